package osd

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"scoria/internal/vfs"
)

const (
	// maxInFlight is how many groups may be written and not yet synced.
	maxInFlight = 4
	// backgroundShare: after so many groups of foreground work a waiting background batch goes first.
	backgroundShare = 8
	// keepScratch bounds the buffers that the writer keeps between groups.
	keepScratch = 1 << 20
)

// request is a batch on its way through the writer and the syncer.
type request struct {
	batch  *Batch
	ops    []op
	values int64 // padded bytes of values
	head   int64 // about its bytes in a record header
	done   chan struct{}
	err    error // valid when done is closed
	taken  bool  // under queue.mu: too late to withdraw
}

// queue is what waits for the writer.
type queue struct {
	mu     sync.Mutex
	fg, bg []*request
	shut   bool
	wake   chan struct{}
}

func (q *queue) init() { q.wake = make(chan struct{}, 1) }

func (q *queue) push(r *request) {
	q.mu.Lock()
	if r.batch.Background {
		q.bg = append(q.bg, r)
	} else {
		q.fg = append(q.fg, r)
	}
	q.mu.Unlock()
	kick(q.wake)
}

// withdraw takes a request out again; false if the writer has it.
func (q *queue) withdraw(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if r.taken {
		return false
	}
	is := func(other *request) bool { return other == r }
	q.fg, q.bg = slices.DeleteFunc(q.fg, is), slices.DeleteFunc(q.bg, is)
	return true
}

func (q *queue) close() {
	q.mu.Lock()
	q.shut = true
	q.mu.Unlock()
	kick(q.wake)
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// take waits for requests and returns what fits a group; nil when the queue is closed and empty.
func (q *queue) take(limit int64, bgFirst bool, into []*request) []*request {
	for {
		q.mu.Lock()
		into = into[:0]
		var sum int64
		var ops int
		pull := func(from []*request) []*request {
			n := 0
			for _, r := range from {
				size := r.values + r.head
				if len(into) > 0 && (sum+size > limit || ops+len(r.ops) > maxGroupOps) {
					break
				}
				r.taken = true
				into = append(into, r)
				sum, ops, n = sum+size, ops+len(r.ops), n+1
			}
			rest := copy(from, from[n:])
			clear(from[rest:])
			return from[:rest]
		}
		if bgFirst {
			q.bg = pull(q.bg)
		}
		q.fg = pull(q.fg)
		if len(into) == 0 {
			q.bg = pull(q.bg)
		}
		shut := q.shut
		q.mu.Unlock()
		if len(into) > 0 {
			return into
		}
		if shut {
			return nil
		}
		<-q.wake
	}
}

// pending is the state of a key that is written but not yet in the index.
type pending struct {
	seq     uint64
	deleted bool
	value   []byte
}

// overlay is what the groups in flight do to keys, for the asserts of the groups behind them.
type overlay struct {
	mu   sync.Mutex
	keys map[string]pending
}

// check compares an assert with what is pending for its key; known is false when nothing is. It
// compares under the lock: a value's memory is its caller's again once settle has passed.
func (o *overlay) check(a *Assert) (known, exists, equal bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p, ok := o.keys[string(a.Key)]
	if !ok {
		return false, false, false
	}
	return true, !p.deleted, a.Exists && !p.deleted && bytes.Equal(p.value, a.Value)
}

func (o *overlay) set(seq uint64, b *Batch) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.keys == nil {
		o.keys = map[string]pending{}
	}
	for i := range b.Puts {
		o.keys[string(b.Puts[i].Key)] = pending{seq: seq, value: b.Puts[i].Value}
	}
	for _, k := range b.Deletes {
		o.keys[string(k)] = pending{seq: seq, deleted: true}
	}
}

// settle forgets what group seq did to the key: the index has it now.
func (o *overlay) settle(seq uint64, ops []op) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range ops {
		if p, ok := o.keys[string(ops[i].key)]; ok && p.seq == seq {
			delete(o.keys, string(ops[i].key))
		}
	}
}

// group is one record on its way to the disk.
type group struct {
	rec    recordInfo
	header int64
	ops    []op
	reqs   []*request // answered when the group is durable and in the index
	denied []*request // answered with their err when everything before is
	seg    *segment
	err    error         // the write failed
	drain  chan struct{} // only asks to be told when everything before is done
	retire *segment      // only says that the segment gets no more records
}

// Apply implements API. ctx ends the wait of a batch that is still queued; one that is being
// written is waited for, as its memory is in use.
func (s *Store) Apply(ctx context.Context, b *Batch) error {
	if err := b.Validate(); err != nil {
		return err
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	if err := s.failedErr(); err != nil {
		return err
	}
	r := newRequest(b)
	weight := min(r.values+r.head, s.opts.QueueBytes)
	if err := s.slots.Acquire(ctx, weight); err != nil {
		return err
	}
	defer s.slots.Release(weight)
	s.queue.push(r)
	select {
	case <-r.done:
	case <-ctx.Done():
		if s.queue.withdraw(r) {
			return ctx.Err()
		}
		<-r.done
	}
	return r.err
}

// newRequest computes what does not depend on the order of batches.
func newRequest(b *Batch) *request {
	r := &request{batch: b, done: make(chan struct{}), ops: make([]op, 0, len(b.Puts)+len(b.Deletes))}
	for i := range b.Puts {
		p := &b.Puts[i]
		e := newEntry(p.Key, p.Value, p.Sums)
		o := op{kind: e[0], key: p.Key, entry: e}
		if o.kind == opPut {
			o.value = p.Value
			r.values += alignUp(int64(len(p.Value)))
		}
		r.head += int64(len(e) + len(p.Key) + 8)
		r.ops = append(r.ops, o)
	}
	for _, k := range b.Deletes {
		r.head += int64(len(k) + 8)
		r.ops = append(r.ops, op{kind: opDelete, key: k})
	}
	return r
}

// writer is the goroutine that checks asserts, forms groups and writes them.
type writer struct {
	s      *Store
	seg    *segment // nil until the first write
	lastNo uint32   // number of the newest segment there ever was
	seq    uint64   // of the last record

	header  []byte // reused, aligned
	scratch []byte // reused, aligned
	bufs    [][]byte
	fgRuns  int
}

func (w *writer) run() {
	s := w.s
	defer close(s.written)
	var reqs []*request
	for {
		reqs = s.queue.take(s.opts.GroupBytes, w.fgRuns >= backgroundShare, reqs)
		if reqs == nil {
			if w.seg != nil {
				s.written <- &group{retire: w.seg}
			}
			return
		}
		w.fgRuns++
		if reqs[len(reqs)-1].batch.Background || reqs[0].batch.Background {
			w.fgRuns = 0
		}
		w.commit(reqs)
	}
}

// commit writes one group and hands it to the syncer.
func (w *writer) commit(reqs []*request) {
	s := w.s
	g := &group{rec: recordInfo{Seq: w.seq + 1}}
	puts := false
	for _, r := range reqs {
		if r.err = w.admit(r, g); r.err != nil {
			g.denied = append(g.denied, r)
			continue
		}
		g.reqs = append(g.reqs, r)
		g.ops = append(g.ops, r.ops...)
		g.rec.Values += uint64(r.values)
		puts = puts || len(r.batch.Puts) > 0
		s.over.set(g.rec.Seq, r.batch)
	}
	if len(g.ops) == 0 {
		s.written <- g // asserts only, or all denied: to be answered in order
		return
	}
	if g.err = s.failedErr(); g.err == nil {
		g.err = w.write(g, puts)
	}
	if g.err == nil {
		w.seq++
		s.space.inFlight.Add(g.header + int64(g.rec.Values))
	}
	failed := g.err != nil
	s.written <- g // it is the syncer's now
	if failed {
		// The next group takes its sequence number, and the overlay may have forgotten what a
		// group before it did to the same keys: go on when all are in the index.
		w.drain()
	}
}

// drain waits until the syncer has done everything.
func (w *writer) drain() {
	d := make(chan struct{})
	w.s.written <- &group{drain: d}
	<-d
}

// admit checks the asserts of a request against the state that the groups before it leave, and the space.
func (w *writer) admit(r *request, g *group) error {
	for i := range r.batch.Asserts {
		if err := w.check(&r.batch.Asserts[i]); err != nil {
			return err
		}
	}
	if len(r.batch.Puts) > 0 {
		need := int64(g.rec.Values) + r.values + r.head + align
		if err := w.s.space.admit(need); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) check(a *Assert) error {
	s := w.s
	fail := func(what string) error {
		s.stats.assertFailures.Add(1)
		return fmt.Errorf("key %x %s: %w", a.Key, what, ErrAssertFailed)
	}
	if known, exists, equal := s.over.check(a); known {
		switch {
		case exists != a.Exists:
			return fail(existence(exists))
		case a.Exists && !equal:
			return fail("has another value")
		}
		return nil
	}
	e, done, found, err := s.index.get(a.Key)
	if err != nil {
		return err
	}
	if found {
		defer done()
	}
	if found != a.Exists {
		return fail(existence(found))
	}
	if !found {
		return nil
	}
	if e.size != uint64(len(a.Value)) {
		return fail("has another value")
	}
	value := e.value
	if e.kind == opPut {
		value = make([]byte, e.size)
		if err := s.readEntry(a.Key, &e, 0, value, nil); err != nil {
			return err
		}
	}
	if !bytes.Equal(value, a.Value) {
		return fail("has another value")
	}
	return nil
}

func existence(exists bool) string {
	if exists {
		return "exists"
	}
	return "does not exist"
}

// write places and writes the record. On ErrFull nothing of it is left on the disk.
func (w *writer) write(g *group, puts bool) error {
	// The length of the header does not depend on the place.
	head := appendRecord(w.header[:0], g.rec, g.ops)
	if len(head) > maxHeader {
		return fmt.Errorf("record header of %d bytes: %w", len(head), ErrInvalid)
	}
	g.header = int64(len(head))
	total := g.header + int64(g.rec.Values)
	if w.seg == nil || w.seg.off+total > w.seg.size {
		if err := w.roll(g.rec.Seq, total, puts); err != nil {
			return err
		}
	}
	g.seg = w.seg
	g.rec.Segment, g.rec.Nonce, g.rec.Off = w.seg.info.No, w.seg.info.Nonce, uint64(w.seg.off)
	g.rec.Durable = w.s.durable.Load()
	w.assemble(g)
	_, err := w.seg.f.WriteVAt(w.bufs, w.seg.off)
	clear(w.bufs)
	if err == nil {
		w.seg.off += total
		w.s.space.tail.Add(-total)
		w.s.stats.wrote.Add(uint64(total))
		return nil
	}
	if errors.Is(err, syscall.ENOSPC) {
		if uerr := w.undo(); uerr == nil {
			w.s.diskFull()
			return fmt.Errorf("write record: %w: %w", err, ErrFull)
		} else {
			err = errors.Join(err, uerr)
		}
	}
	err = fmt.Errorf("write record: %w", err)
	w.s.fail(err)
	return fmt.Errorf("%w: %w", err, ErrUnavailable)
}

// undo makes sure that a record of which a part was written cannot be taken for one: its
// batches are answered as not done.
func (w *writer) undo() error {
	block := vfs.AlignedBuffer(align)
	if _, err := w.seg.f.WriteAt(block, w.seg.off); err != nil {
		return err
	}
	return w.seg.f.Sync()
}

// assemble builds the buffers of a record. Values are written from where they are when their
// memory is aligned, and copied when not.
func (w *writer) assemble(g *group) {
	place := g.rec.Off + uint64(g.header)
	var copied int64
	for i := range g.ops {
		o := &g.ops[i]
		if o.kind == opPut {
			setPlace(o.entry, g.rec.Segment, place)
			place += uint64(alignUp(int64(len(o.value))))
			copied += int64(len(tailOf(o.value))+align-1) &^ (align - 1)
		}
	}
	if int64(cap(w.header)) < g.header {
		w.header = vfs.AlignedBuffer(int(g.header))[:0]
	}
	head := appendRecord(w.header[:0], g.rec, g.ops)
	if int64(len(w.scratch)) < copied {
		w.scratch = vfs.AlignedBuffer(int(copied))
	}
	scratch := w.scratch
	w.bufs = append(w.bufs[:0], head)
	for i := range g.ops {
		o := &g.ops[i]
		if o.kind != opPut {
			continue
		}
		tail := tailOf(o.value)
		if n := len(o.value) - len(tail); n > 0 {
			w.bufs = append(w.bufs, o.value[:n])
		}
		if len(tail) > 0 {
			n := alignUp(int64(len(tail)))
			clear(scratch[copy(scratch, tail):n])
			w.bufs = append(w.bufs, scratch[:n:n])
			scratch = scratch[n:]
		}
	}
	if len(w.scratch) > keepScratch {
		w.scratch = nil // bufs hold it for this write
	}
	if cap(w.header) > keepScratch {
		w.header = nil
	}
}

// tailOf is the part of a value that cannot be written from its own memory: what is
// behind its last whole block, or all of it when it is not aligned.
func tailOf(v []byte) []byte {
	if uintptr(unsafe.Pointer(unsafe.SliceData(v)))%align != 0 {
		return v
	}
	return v[len(v)&^(align-1):]
}

// roll starts a new segment that holds a record of total bytes.
func (w *writer) roll(firstSeq uint64, total int64, puts bool) error {
	s := w.s
	need := segmentHeader + total
	size := max(s.opts.SegmentSize, need)
	info := segmentInfo{UUID: s.UUID(), No: w.lastNo + 1, Nonce: nonce(), FirstSeq: firstSeq}
	size, err := s.space.segment(size, need, puts)
	if err != nil {
		return err
	}
	seg, err := s.segs.create(info, size)
	if errors.Is(err, syscall.ENOSPC) && !puts {
		// Deletes must work on a full disk: they are what makes space again.
		s.space.dropBallast()
		seg, err = s.segs.create(info, need)
	}
	if errors.Is(err, syscall.ENOSPC) {
		s.diskFull()
		return fmt.Errorf("%w: %w", err, ErrFull)
	}
	if err != nil {
		s.fail(err)
		return fmt.Errorf("%w: %w", err, ErrUnavailable)
	}
	if w.seg != nil {
		s.written <- &group{retire: w.seg}
	}
	w.seg, w.lastNo = seg, info.No
	s.space.tail.Store(size - segmentHeader)
	return nil
}

func nonce() uint64 {
	var b [8]byte
	rand.Read(b[:]) //nolint:errcheck // crypto/rand does not fail
	return binary.LittleEndian.Uint64(b[:])
}
