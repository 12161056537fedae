package writebuffer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"scoria/internal/vfs"
	"scoria/volumedriver/tlog"
)

// scratch is what a leader builds a batch in: records for one segment, written by as few
// system calls as possible straight from the callers' memory. Nothing counts before flush.
type scratch struct {
	arena   []byte // headers and sums, aligned for O_DIRECT
	used    int
	iovs    [][]byte
	chunks  []chunk
	entries []Entry
	places  []place
	marks   []mark

	// The tail as it will be.
	seq, synced uint64
	chain       uint32
	size        int64
	clusters    uint32
	heads       int64
	written     int64 // bytes
	direct      int64 // of written
	data        int64 // of written: clusters
}

// chunk is a range of the file that goes in one write.
type chunk struct {
	first  int // iov
	off    int64
	end    int64
	direct bool
}

// place is where the data of an entry goes.
type place struct {
	off  int64
	data []byte // with direct: the data, for the copy in memory
}

// mark says how far a request is once an entry counts.
type mark struct {
	r    *request
	next int
	part uint64
}

const (
	arenaSize  = 160 << 10
	maxEntries = 400 // of a batch: its buffers fit one pwritev
)

var scratches = sync.Pool{New: func() any {
	return &scratch{arena: vfs.AlignedBuffer(arenaSize)}
}}

func takeScratch() *scratch { return scratches.Get().(*scratch) }

func giveScratch(s *scratch) {
	s.reset()
	scratches.Put(s)
}

// reset forgets the batch, and all memory of callers with it.
func (s *scratch) reset() {
	clear(s.iovs)
	clear(s.entries)
	clear(s.places)
	clear(s.marks)
	s.used, s.iovs, s.chunks, s.entries, s.places, s.marks = 0, s.iovs[:0], s.chunks[:0], s.entries[:0], s.places[:0], s.marks[:0]
	s.written, s.direct, s.data = 0, 0, 0
}

// begin starts a batch at the buffer's tail.
func (s *scratch) begin(b *Buffer) {
	s.reset()
	t := &b.tail
	s.seq, s.chain, s.size, s.clusters, s.heads = t.seq, t.chain, t.size, t.clusters, t.heads
	s.synced = b.synced.Load()
}

// isDirect tells whether a write's data is to go by O_DIRECT.
func (b *Buffer) isDirect(op *Op) bool {
	return b.opts.Direct > 0 && len(op.Data) >= b.opts.Direct && uintptr(unsafe.Pointer(unsafe.SliceData(op.Data)))%vfs.DirectAlign == 0
}

// add appends op i of r to the batch; it flushes when the batch or the segment is full.
func (s *scratch) add(b *Buffer, r *request, i int) error {
	op := &r.ops[i]
	part := uint64(0)
	if i == r.next {
		part = r.part
	}
	for {
		n := op.Count
		if op.Kind == tlog.Write {
			n = min(op.Count-part, uint64(b.opts.SCOClusters))
		}
		if err := s.room(b, n, op.Kind); err != nil {
			return err
		}
		if op.Kind == tlog.Write {
			n = min(n, uint64(b.opts.SCOClusters)-uint64(s.clusters))
		}
		s.put(b, op, part, n)
		part += n
		m := mark{r: r, next: i, part: part}
		if part == op.Count {
			m.next, m.part = i+1, 0
		}
		s.marks = append(s.marks, m)
		if s.clusters == uint32(b.opts.SCOClusters) { // full: close it, so that it is uploaded
			if err := s.flush(b); err != nil {
				return err
			}
		}
		if part == op.Count {
			return nil
		}
	}
}

// room sees to an open segment and space in the batch for a record of n clusters.
func (s *scratch) room(b *Buffer, n uint64, kind tlog.Kind) error {
	head := headerSize
	if kind == tlog.Write {
		head += 4 * int(n)
	}
	if b.tail.seg != nil && s.heads+int64(head) > maxHeaderBytes {
		if err := s.flush(b); err != nil {
			return err
		}
		if b.tail.seg != nil {
			b.closeSegment()
		}
	}
	if len(s.entries) == maxEntries || s.used+head+headerSize+2*pageSize > len(s.arena) {
		if err := s.flush(b); err != nil {
			return err
		}
	}
	if b.tail.seg == nil {
		if err := b.openSegment(); err != nil {
			return err
		}
		s.begin(b)
	}
	if s.size == 0 {
		s.segmentHeader(b)
	}
	return nil
}

// segmentHeader puts the header of the open segment in front of its first record.
func (s *scratch) segmentHeader(b *Buffer) {
	seg := b.tail.seg
	version := uint16(aheadVersion)
	if b.tail.lent > 0 {
		version = segmentVersion
	}
	h := segmentHeader{version: version, volume: b.opts.Volume, number: seg.number, epoch: b.opts.Epoch, firstSeq: seg.firstSeq, synced: s.synced, prev: s.chain}
	head := s.take(headerSize)
	s.chain = h.encode(head)
	seg.head = s.chain
	s.push(0, false, head)
	s.size, s.heads = headerSize, headerSize
}

// take returns n bytes of the arena.
func (s *scratch) take(n int) []byte {
	p := s.arena[s.used : s.used+n : s.used+n]
	s.used += n
	return p
}

// push adds bufs, which go to off.
func (s *scratch) push(off int64, direct bool, bufs ...[]byte) {
	if n := len(s.chunks); n == 0 || s.chunks[n-1].direct != direct || s.chunks[n-1].end != off {
		s.chunks = append(s.chunks, chunk{first: len(s.iovs), off: off, end: off, direct: direct})
	}
	c := &s.chunks[len(s.chunks)-1]
	for _, b := range bufs {
		if len(b) > 0 {
			s.iovs = append(s.iovs, b)
			c.end += int64(len(b))
			s.written += int64(len(b))
			if direct {
				s.direct += int64(len(b))
			}
		}
	}
}

// put adds the record of n clusters of op from part on.
func (s *scratch) put(b *Buffer, op *Op, part, n uint64) {
	t := &b.tail
	s.seq++
	r := record{kind: op.Kind, epoch: b.opts.Epoch, seq: s.seq, addr: op.Addr + part, count: n, index: s.clusters, synced: s.synced, prev: s.chain}
	e := Entry{Seq: r.seq, Kind: r.kind, Addr: r.addr, Count: n, SCO: t.seg.number, Index: s.clusters}
	if op.Kind == tlog.Clear {
		head := s.take(headerSize)
		s.chain = r.encode(head, nil)
		s.push(s.size, false, head)
		s.size += headerSize
		s.heads += headerSize
		s.entries, s.places = append(s.entries, e), append(s.places, place{})
		return
	}
	sums, data := op.Sums[part:part+n], op.Data[part*ClusterSize:(part+n)*ClusterSize]
	e.Sums = sums
	headLen, at, direct := r.headBytes(), s.size, false
	if b.isDirect(op) && len(data) >= b.opts.Direct && !t.noDirect {
		direct = true
		at, headLen, s.used = alignUp(at), int(alignUp(int64(headLen))), int(alignUp(int64(s.used)))
	}
	r.dataOff = uint32(headLen)
	head := s.take(headLen)
	s.chain = r.encode(head, sums)
	clear(head[r.headBytes():])
	s.push(at, direct, head, data)
	pl := place{off: at + int64(headLen)}
	if direct {
		pl.data = data
	}
	s.heads += at + int64(headLen) - s.size
	s.size = at + r.size()
	s.clusters += uint32(n)
	s.data += int64(len(data))
	s.entries, s.places = append(s.entries, e), append(s.places, pl)
}

// flush writes the batch, and makes it count. On an error none of it counts. Afterwards the
// batch is empty.
func (s *scratch) flush(b *Buffer) error {
	if len(s.chunks) == 0 {
		return nil
	}
	err := s.write(b)
	if err == nil {
		err = s.commit(b)
	}
	s.begin(b)
	return err
}

// write hands the batch to the kernel.
func (s *scratch) write(b *Buffer) error {
	t := &b.tail
	if t.tainted { // remains of a failed write, whose cutting failed as well
		if err := t.file.f.Truncate(t.size); err != nil {
			return fmt.Errorf("append to %s: cutting off the remains of a failed write: %w", t.seg.path, err)
		}
		t.tainted = false
	}
	s.extend(b)
	s.pad(b)
	for i, c := range s.chunks {
		end := len(s.iovs)
		if i+1 < len(s.chunks) {
			end = s.chunks[i+1].first
		}
		if err := b.writeChunk(c, s.iovs[c.first:end]); err != nil {
			// The chain of checksums would tell remains from what is written there next, but
			// a clean end is better.
			t.tainted = t.file.f.Truncate(t.size) != nil
			t.zeroed = 0
			return fmt.Errorf("append to %s: %w", t.seg.path, err)
		}
	}
	return nil
}

func (b *Buffer) writeChunk(c chunk, bufs [][]byte) error {
	t := &b.tail
	if c.direct && !t.noDirect {
		f, err := b.directFile()
		if err != nil {
			return err
		}
		_, err = f.WriteVAt(bufs, c.off)
		if !errors.Is(err, syscall.EINVAL) {
			return err
		}
		t.noDirect = true // this file system has other rules; the same by the page cache
	}
	_, err := t.file.f.WriteVAt(bufs, c.off)
	return err
}

// directFile returns the open segment's file for O_DIRECT.
func (b *Buffer) directFile() (vfs.File, error) {
	t := &b.tail
	if t.direct == nil {
		f, err := b.opts.FS.OpenFile(t.seg.path, os.O_WRONLY|vfs.ODirect, 0)
		if err != nil {
			return nil, err
		}
		t.direct = f
	}
	return t.direct, nil
}

// commit makes a written batch count: readers find it, the owner applies it, the requests
// are answered.
func (s *scratch) commit(b *Buffer) error {
	t := &b.tail
	seg := t.seg
	grown := s.size - t.size
	t.seq, t.chain, t.size, t.clusters, t.heads = s.seq, s.chain, s.size, s.clusters, s.heads
	mem := b.keepCopies(s)
	seg.mu.Lock()
	for i := range s.entries {
		if e := &s.entries[i]; e.Kind == tlog.Write {
			seg.mu.runs = addRun(seg.mu.runs, e.Index, uint32(e.Count), s.places[i].off, mem && s.places[i].data != nil)
		}
	}
	seg.mu.clusters = s.clusters
	seg.mu.Unlock()
	for i := range s.entries {
		if err := t.section.Add(&s.entries[i]); err != nil {
			return b.sync.fail(fmt.Errorf("record %d: %w", s.entries[i].Seq, err))
		}
	}
	b.mu.Lock()
	seg.size, seg.lastSeq = t.size, t.seq
	b.mu.dirty += grown
	if !t.listed {
		t.listed = true
		b.mu.newNames++
		b.mu.unsynced = append(b.mu.unsynced, seg)
		segs := append(slices.Clip(*b.segs.Load()), seg)
		b.segs.Store(&segs)
	}
	b.mu.Unlock()
	b.pool.settle(grown)
	b.openBytes.Store(t.size)
	// Before Applied: whoever sees the owner's state with these records, and calls Sync to make
	// it safe to say so on disk, must have them covered.
	b.lastSeq.Store(t.seq)
	if len(s.entries) > 0 {
		b.opts.Applied(s.entries)
	}
	for i, m := range s.marks {
		m.r.next, m.r.part = m.next, m.part
		if m.part == 0 {
			m.r.ops[m.next-1].Seq = s.entries[i].Seq
		}
	}
	c := &b.stats
	c.records.Add(uint64(len(s.entries)))
	c.clusters.Add(uint64(s.data / ClusterSize))
	c.userBytes.Add(uint64(s.data))
	c.writtenBytes.Add(uint64(s.written))
	c.directBytes.Add(uint64(s.direct))
	c.batches.Add(1)
	b.hasten()
	if t.clusters >= uint32(b.opts.SCOClusters) {
		b.closeSegment()
	}
	return nil
}

// keepCopies copies data that bypasses the page cache, so that reads and the upload need
// not wait for the disk. It tells whether the segment has a copy.
func (b *Buffer) keepCopies(s *scratch) bool {
	if s.direct == 0 {
		return false
	}
	seg := b.tail.seg
	if seg.mu.mem == nil && !seg.noMem { // only the leader sets it while the segment is open
		mem := b.pool.takeMemory(b.opts.SCOClusters * ClusterSize)
		seg.noMem = mem == nil
		seg.mu.Lock()
		seg.mu.mem = mem
		seg.mu.Unlock()
	}
	if seg.mu.mem == nil {
		return false
	}
	for i := range s.places {
		if d := s.places[i].data; d != nil {
			copy(seg.mu.mem[int64(s.entries[i].Index)*ClusterSize:], d)
		}
	}
	return true
}
