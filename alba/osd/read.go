package osd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"unsafe"

	"scoria/internal/blocksum"
	"scoria/internal/vfs"
)

// readTries is how often a lookup is repeated whose value was deleted and punched meanwhile.
const readTries = 8

// Read implements API. One block costs one index lookup and one pread; no lock is held over either.
func (s *Store) Read(ctx context.Context, reads []Read) error {
	if err := ValidateReads(reads); err != nil {
		return err
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	for first := 0; first < len(reads); first += readBatch {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.readSome(reads[first:min(first+readBatch, len(reads))])
	}
	return nil
}

// readBatch is how many reads of a request are done at a time.
const readBatch = 64

// readSome does reads, many at a time where that is possible: most need one access to the
// disk each, and a disk is faster with all of them at hand.
func (s *Store) readSome(reads []Read) {
	together := len(reads) > 1
	if together {
		s.readTogether(reads)
	}
	for i := range reads {
		r := &reads[i]
		if !together || r.Err != nil {
			r.Sums, r.Size = r.Sums[:0], 0
			r.Err = s.read(r) // with all second thoughts
		}
		s.stats.reads.Add(1)
		if r.Err == nil {
			s.stats.readBlocks.Add(uint64(len(r.Sums)))
			s.stats.bytesRead.Add(uint64(len(r.Buf)))
		} else if errors.Is(r.Err, ErrCorrupt) {
			s.stats.corruptBlocks.Add(1)
			s.log.Error("osd read", "err", r.Err)
		}
	}
}

// together is the memory of readTogether.
type together struct {
	reqs    [readBatch]vfs.ReadReq
	handles [readBatch]*handle
	entries [readBatch]entry
	done    [readBatch]func()
	at      [readBatch]int // of the read
}

var togethers = sync.Pool{New: func() any { return new(together) }}

// errAlone is of reads that readTogether leaves to read.
var errAlone = errors.New("to be read alone")

// readTogether tries all reads at the same time. What is not plain and good is an error, for
// read to look into.
func (s *Store) readTogether(reads []Read) {
	t := togethers.Get().(*together)
	n := 0
	for i := range reads {
		r := &reads[i]
		r.Sums, r.Size, r.Err = r.Sums[:0], 0, errAlone
		if len(r.Buf) == 0 || !s.isDirect(r.Buf) || r.Validate() != nil {
			continue
		}
		e, done, found, err := s.index.get(r.Key)
		if err != nil || !found {
			continue
		}
		if e.kind != opPut || r.CheckSize(e.size) != nil {
			done()
			continue
		}
		h, err := s.segs.acquire(e.seg, true)
		if err != nil {
			done()
			continue
		}
		t.reqs[n] = vfs.ReadReq{File: h.f, Buf: r.Buf, Off: int64(e.off + r.Off)}
		t.handles[n], t.entries[n], t.done[n], t.at[n] = h, e, done, i
		n++
	}
	vfs.ReadMany(t.reqs[:n])
	for i := range n {
		r, e := &reads[t.at[i]], &t.entries[i]
		if t.reqs[i].Err == nil {
			if _, ok := checkBlocks(r.Key, e, r.Off, r.Buf, &r.Sums); ok {
				r.Size, r.Err = e.size, nil
			}
		}
		t.done[i]()
		s.segs.release(t.handles[i])
	}
	*t = together{}
	togethers.Put(t)
}

// isDirect tells whether memory can be read into past the page cache.
func (s *Store) isDirect(buf []byte) bool {
	return !s.opts.BufferedReads && len(buf)%align == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(buf)))%vfs.DirectAlign == 0
}

func (s *Store) read(r *Read) error {
	if err := r.Validate(); err != nil {
		return err
	}
	var last error
	var seg uint32
	var off uint64
	for try := range readTries {
		e, done, found, err := s.index.get(r.Key)
		if err != nil {
			return err
		}
		if !found {
			return NotFound(r.Key)
		}
		if try > 0 && e.kind == opPut && e.seg == seg && e.off == off {
			done()
			return last // it is still there, and bad
		}
		r.Size, seg, off = e.size, e.seg, e.off
		if err := r.CheckSize(e.size); err != nil {
			done()
			return err
		}
		r.Sums = r.Sums[:0]
		last = s.readEntryInto(r, &e)
		done()
		if last == nil {
			return nil
		}
		// Between lookup and pread the value may have been deleted and its space given back.
	}
	return last
}

func (s *Store) readEntryInto(r *Read, e *entry) error {
	if e.kind == opInline {
		copy(r.Buf, e.value[r.Off:])
		hash := keyHash(r.Key)
		for b := range e.blocks() {
			if blocksum.Of(e.value) != e.sum(hash, b) {
				return fmt.Errorf("key %x, inline value: checksum mismatch: %w", r.Key, ErrCorrupt)
			}
			if len(r.Buf) > 0 {
				r.Sums = append(r.Sums, e.sum(hash, b))
			}
		}
		return nil
	}
	sums := &r.Sums
	return s.readEntry(r.Key, e, r.Off, r.Buf, sums)
}

// readEntry fills buf from the value of e at off and checks it; plain sums are appended to sums if it is not nil.
func (s *Store) readEntry(key []byte, e *entry, off uint64, buf []byte, sums *[]uint32) error {
	if len(buf) == 0 {
		return nil
	}
	if err := s.pread(e.seg, int64(e.off+off), buf, s.isDirect(buf)); err != nil {
		return fmt.Errorf("key %x: %w", key, err)
	}
	if bad, ok := checkBlocks(key, e, off, buf, sums); !ok {
		return fmt.Errorf("key %x, block %d (segment %d, offset %d): checksum mismatch: %w",
			key, bad, e.seg, e.off+uint64(bad)*BlockSize, ErrCorrupt)
	}
	return nil
}

// checkBlocks checks the blocks of buf, which begin at off of the value. bad is the first wrong one.
func checkBlocks(key []byte, e *entry, off uint64, buf []byte, sums *[]uint32) (bad int, ok bool) {
	hash := keyHash(key)
	block := int(off / BlockSize)
	for len(buf) > 0 {
		n := min(len(buf), BlockSize)
		want := e.sum(hash, block)
		if blocksum.Of(buf[:n]) != want {
			return block, false
		}
		if sums != nil {
			*sums = append(*sums, want)
		}
		buf, block = buf[n:], block+1
	}
	return 0, true
}

// pread reads from a segment. What the disk cannot read is corrupt data, as far as the reader is concerned.
func (s *Store) pread(seg uint32, off int64, buf []byte, direct bool) error {
	h, err := s.segs.acquire(seg, direct)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("segment %d is missing: %w", seg, ErrCorrupt)
		}
		return fmt.Errorf("open segment %d: %w: %w", seg, err, ErrUnavailable)
	}
	defer s.segs.release(h)
	n, err := h.f.ReadAt(buf, off)
	if n == len(buf) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("segment %d ends before offset %d: %w", seg, off+int64(len(buf)), ErrCorrupt)
	}
	return fmt.Errorf("read segment %d at %d: %w: %w", seg, off, err, ErrCorrupt)
}

// List implements API.
func (s *Store) List(ctx context.Context, from, to []byte, limit int) ([]Item, error) {
	if err := errors.Join(ValidateRange(from, to), ValidateLimit(limit)); err != nil {
		return nil, err
	}
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.leave()
	var items []Item
	err := s.index.scan(ctx, from, to, func(key []byte, e entry) bool {
		items = append(items, Item{Key: append([]byte(nil), key...), Size: e.size})
		return len(items) < limit
	})
	if err != nil {
		return nil, err
	}
	return items, nil
}

// DeleteRange implements API. It goes through the range in batches, so it is not atomic: keys that
// are put meanwhile may or may not be deleted, and an error leaves a part of the range deleted.
func (s *Store) DeleteRange(ctx context.Context, from, to []byte) error {
	for {
		items, err := s.List(ctx, from, to, MaxList)
		if err != nil || len(items) == 0 {
			return err
		}
		b := Batch{Deletes: make([][]byte, len(items))}
		for i := range items {
			b.Deletes[i] = items[i].Key
		}
		if err := s.Apply(ctx, &b); err != nil {
			return err
		}
		if len(items) < MaxList {
			return nil
		}
		from = append(items[len(items)-1].Key, 0)
	}
}

const (
	verifyBytes = 32 << 20 // about what one Verify reads
	verifyKeys  = 4096     // at most
	verifyChunk = 1 << 20
)

// Verify implements API. It reads past the page cache: what is checked is the disk.
func (s *Store) Verify(ctx context.Context, from, to []byte) (bad []Bad, checked uint64, next []byte, err error) {
	if err := ValidateRange(from, to); err != nil {
		return nil, 0, nil, err
	}
	if err := s.enter(ctx); err != nil {
		return nil, 0, nil, err
	}
	defer s.leave()
	buf := vfs.AlignedBuffer(verifyChunk)
	keys := 0
	var inner error
	err = s.index.scan(ctx, from, to, func(key []byte, e entry) bool {
		if checked >= verifyBytes || keys >= verifyKeys {
			next = append([]byte(nil), key...)
			return false
		}
		keys++
		b, n, verr := s.verifyEntry(ctx, key, &e, buf)
		checked += n
		if inner = verr; verr != nil {
			return false
		}
		if b != nil && s.stillBad(key, &e) {
			s.stats.corruptBlocks.Add(1)
			s.log.Error("osd scrub found a bad block", "key", fmt.Sprintf("%x", key), "block", b.Block, "text", b.Text)
			bad = append(bad, *b)
		}
		return true
	})
	if err = errors.Join(err, inner); err != nil {
		return nil, 0, nil, err
	}
	return bad, checked, next, nil
}

func (s *Store) verifyEntry(ctx context.Context, key []byte, e *entry, buf []byte) (bad *Bad, n uint64, err error) {
	report := func(block int, text string) *Bad {
		return &Bad{Key: append([]byte(nil), key...), Block: uint32(block), Text: text}
	}
	if e.kind == opInline {
		if e.blocks() > 0 {
			if _, ok := checkBlocks(key, e, 0, e.value, nil); !ok {
				return report(0, "checksum mismatch"), e.size, nil
			}
		}
		return nil, e.size, nil
	}
	for off := uint64(0); off < e.size; off += verifyChunk {
		if err := ctx.Err(); err != nil {
			return nil, n, err
		}
		part := buf[:min(verifyChunk, e.size-off)]
		padded := buf[:alignUp(int64(len(part)))]
		if err := s.pread(e.seg, int64(e.off+off), padded, true); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				return nil, n, err
			}
			return report(int(off/BlockSize), err.Error()), n, nil
		}
		n += uint64(len(part))
		if block, ok := checkBlocks(key, e, off, part, nil); !ok {
			return report(block, "checksum mismatch"), n, nil
		}
	}
	return nil, n, nil
}

// stillBad tells whether the key still has the value that was found bad.
func (s *Store) stillBad(key []byte, e *entry) bool {
	now, done, found, err := s.index.get(key)
	if err != nil || !found {
		return err != nil
	}
	defer done()
	return now.kind == e.kind && now.seg == e.seg && now.off == e.off
}
