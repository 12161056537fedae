package writebuffer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"scoria/internal/blocksum"
	"scoria/volumedriver/tlog"
)

// ReadAt reads len(p)/4096 clusters of an SCO, from index on. ok is false when they are not
// here: the SCO was evicted (or never was here), so ask the cluster map again, then the
// object store. The data is not verified: whoever looked up the place has the sums.
func (b *Buffer) ReadAt(number uint64, index uint32, p []byte) (ok bool, err error) {
	seg := b.segment(number)
	if seg == nil || len(p)%ClusterSize != 0 {
		return false, nil
	}
	if !seg.indexed.Load() {
		if err := b.loadIndex(seg); err != nil {
			return false, notExist(err)
		}
	}
	ok, err = b.readSegment(seg, index, p)
	if ok {
		b.stats.reads.Add(1)
	}
	return ok, err
}

// notExist makes the error of an evicted file nil.
func notExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (b *Buffer) readSegment(seg *segment, index uint32, p []byte) (bool, error) {
	for len(p) > 0 {
		seg.mu.RLock()
		off, n, inMem, ok := find(seg.mu.runs, index)
		if !ok {
			seg.mu.RUnlock()
			return false, nil
		}
		part := p[:min(int64(n)*ClusterSize, int64(len(p)))]
		if inMem && seg.mu.mem != nil {
			copy(part, seg.mu.mem[int64(index)*ClusterSize:])
			seg.mu.RUnlock()
		} else {
			seg.mu.RUnlock()
			if err := b.pread(seg, part, off); err != nil {
				return false, notExist(err)
			}
		}
		index += uint32(len(part) / ClusterSize)
		p = p[len(part):]
	}
	return true, nil
}

func (b *Buffer) pread(seg *segment, p []byte, off int64) error {
	h, err := b.pool.files.acquire(b.opts.FS, seg)
	if err != nil {
		return err
	}
	n, err := h.f.ReadAt(p, off)
	if cerr := h.unref(); cerr != nil && err == nil {
		err = cerr
	}
	if n == len(p) && errors.Is(err, io.EOF) {
		err = nil
	}
	if err == nil && seg.removed.Load() {
		err = fs.ErrNotExist // its file may have been written over meanwhile
	}
	if err != nil {
		return fmt.Errorf("read %d bytes at %d of %s: %w", len(p), off, seg.path, err)
	}
	return nil
}

// loadIndex finds the clusters of a cached segment of an earlier run.
func (b *Buffer) loadIndex(seg *segment) error {
	h, err := b.pool.files.acquire(b.opts.FS, seg)
	if err != nil {
		return err
	}
	var found *scanned
	buf, size, err := readWhole(h.f)
	if err == nil {
		// Whoever reads verifies. Here it is for a segment whose file was being written over when the
		// power failed: what is left of it is not damaged, but gone.
		found, err = scan(*buf, size, 0)
		giveReadBuffer(buf)
	}
	if err = errors.Join(err, h.unref()); err != nil {
		return fmt.Errorf("index of %s: %w", seg.path, err)
	}
	seg.mu.Lock()
	seg.mu.runs, seg.mu.clusters = found.runs, found.clusters
	seg.mu.Unlock()
	seg.indexed.Store(true)
	return nil
}

// loadPiece is the least size of a read of Load: shorter runs of data are read together with
// the headers between them.
const loadPiece = 256 << 10

// Load fills data with all clusters of a closed SCO, in order, and sums with their plain
// CRC32C. Both have the length that ClosedSCO.Clusters tells. All is verified: ErrCorrupt
// when it does not match what the log says. fs.ErrNotExist when the SCO is not here.
func (b *Buffer) Load(ctx context.Context, number uint64, data []byte, sums []uint32) error {
	seg := b.segment(number)
	if seg == nil {
		return fmt.Errorf("load SCO %x from %s: %w", number, b.opts.Dir, fs.ErrNotExist)
	}
	b.mu.Lock()
	entries := seg.entries
	closed := seg.state == stateClosed
	b.mu.Unlock()
	if !closed {
		return fmt.Errorf("load SCO %x from %s: it is not a closed, dirty one: %w", number, b.opts.Dir, ErrInvalid)
	}
	seg.mu.RLock()
	clusters, runs := seg.mu.clusters, seg.mu.runs // a closed segment's do not change
	seg.mu.RUnlock()
	if len(data) != int(clusters)*ClusterSize || len(sums) != int(clusters) {
		return fmt.Errorf("load SCO %x: %d bytes, %d sums for %d clusters: %w", number, len(data), len(sums), clusters, ErrInvalid)
	}
	if err := b.loadRuns(ctx, seg, runs, data); err != nil {
		return fmt.Errorf("load SCO %x: %w", number, err)
	}
	return verifySCO(entries, number, data, sums)
}

// verifySCO checks data against the sums in a section, and fills in the plain ones.
func verifySCO(entries []byte, number uint64, data []byte, sums []uint32) error {
	_, err := tlog.DecodeSection(entries, func(e *Entry) error {
		for i, sealed := range e.Sums {
			at := int(e.Index) + i
			got := blocksum.Of(data[at*ClusterSize : (at+1)*ClusterSize])
			if want := blocksum.Seal(sealed, e.Addr+uint64(i)); got != want {
				return fmt.Errorf("SCO %x index %d (cluster %d, record %d): sum %08x, the log says %08x: %w",
					number, at, e.Addr+uint64(i), e.Seq, got, want, ErrCorrupt)
			}
			sums[at] = got
		}
		return nil
	})
	return err
}

// loadRuns fills data from memory and the file.
func (b *Buffer) loadRuns(ctx context.Context, seg *segment, runs []run, data []byte) error {
	var buf *[]byte
	for _, r := range runs {
		if err := ctx.Err(); err != nil {
			return err
		}
		dst := data[int64(r.index)*ClusterSize:][:int64(r.per)*int64(r.records)*ClusterSize]
		length := int(r.per) * ClusterSize // of each record's data
		if r.mem && b.copyFromMemory(seg, r.index, dst) {
			continue
		}
		if r.records == 1 || length >= loadPiece {
			for i := range int(r.records) {
				if err := b.pread(seg, dst[i*length:(i+1)*length], r.off+int64(i)*int64(r.stride)); err != nil {
					return err
				}
			}
			continue
		}
		if buf == nil {
			buf = takeReadBuffer(2 * loadPiece)
			defer giveReadBuffer(buf)
		}
		if err := b.loadStrided(seg, r, dst, (*buf)[:2*loadPiece]); err != nil {
			return err
		}
	}
	return nil
}

// loadStrided reads the records of a run many at a time, and copies their data out.
func (b *Buffer) loadStrided(seg *segment, r run, dst, buf []byte) error {
	length, stride := int(r.per)*ClusterSize, int(r.stride)
	each := max(1, (len(buf)-length)/stride+1)
	for i := 0; i < int(r.records); i += each {
		n := min(each, int(r.records)-i)
		piece := buf[:(n-1)*stride+length]
		if err := b.pread(seg, piece, r.off+int64(i)*int64(stride)); err != nil {
			return err
		}
		for j := range n {
			copy(dst[(i+j)*length:(i+j+1)*length], piece[j*stride:])
		}
	}
	return nil
}

func (b *Buffer) copyFromMemory(seg *segment, index uint32, dst []byte) bool {
	seg.mu.RLock()
	defer seg.mu.RUnlock()
	if seg.mu.mem == nil {
		return false
	}
	copy(dst, seg.mu.mem[int64(index)*ClusterSize:])
	return true
}

// ClosedSCOs lists the closed SCOs with greater numbers than after that are not disposable, in order.
func (b *Buffer) ClosedSCOs(after uint64) []ClosedSCO {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []ClosedSCO
	for _, s := range *b.segs.Load() {
		if s.state != stateClosed || s.number <= after {
			continue
		}
		s.mu.RLock()
		clusters := s.mu.clusters
		s.mu.RUnlock()
		list = append(list, ClosedSCO{Number: s.number, Clusters: int(clusters), FirstSeq: s.firstSeq, LastSeq: s.lastSeq, Bytes: s.size,
			Uploaded: s.uploaded, Entries: s.entries})
	}
	return list
}

// MarkUploaded tells that the SCO's data is on the object store. It counts as drained; its
// copy in memory is given back. A later Open does not remember it.
func (b *Buffer) MarkUploaded(number uint64) {
	seg := b.segment(number)
	if seg == nil {
		return
	}
	b.mu.Lock()
	first := seg.state == stateClosed && !seg.uploaded
	if first {
		seg.uploaded = true
		b.pool.drained(seg.size)
	}
	b.mu.Unlock()
	if first {
		b.dropMemory(seg)
	}
}

// MarkDisposable tells that all closed SCOs up to number are safe on the object store,
// with the TLogs that name them, and that the owner's durable map has all their
// records (a later Open has a FromSeq that is not smaller). They become read cache.
func (b *Buffer) MarkDisposable(upTo uint64) {
	var gone []*segment
	b.mu.Lock()
	for _, s := range *b.segs.Load() {
		if s.number > upTo || s.state == stateOpen {
			break
		}
		if s.state == stateClosed {
			b.disposeLocked(s)
			gone = append(gone, s)
		}
	}
	free := b.evictableLocked()
	b.mu.Unlock()
	for _, s := range gone {
		b.dropMemory(s)
	}
	b.pool.enlist(b, free)
}

// Evict removes all disposable segments from the disk. Before an idle volume is closed this
// leaves a log of a few bytes.
func (b *Buffer) Evict(ctx context.Context) error {
	if err := b.exclusive(ctx, func() error { return b.plantIfDisposable(ctx) }); err != nil {
		return err
	}
	for _, s := range *b.segs.Load() {
		b.mu.Lock()
		gone := s.state == stateDisposable && s.enlisted
		b.mu.Unlock()
		if !gone {
			return nil
		}
		if err := b.evictSegment(s); err != nil {
			return err
		}
	}
	return nil
}

// plantIfDisposable puts a new, empty segment behind a disposable last one, so that that one
// may go.
func (b *Buffer) plantIfDisposable(ctx context.Context) error {
	segs := *b.segs.Load()
	if b.tail.seg != nil || len(segs) == 0 {
		return nil
	}
	last := segs[len(segs)-1]
	b.mu.Lock()
	again := last.state == stateDisposable && last.size > headerSize
	b.mu.Unlock()
	if !again {
		return nil
	}
	return b.plant(ctx)
}
