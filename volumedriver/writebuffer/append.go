package writebuffer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"scoria/volumedriver/tlog"
)

// request is an Append on its way through the leader, or something to do between batches.
type request struct {
	ops  []Op
	do   func() error
	next int    // ops[:next] are in the log
	part uint64 // clusters of ops[next] that are in the log
	err  error
	lead bool          // woken up to be the leader
	wake chan struct{} // capacity 1
	link *request
}

// requestPool recycles requests. Each Pool has one: their channels must not get from one
// test's bubble into another's.
type requestPool struct{ p sync.Pool }

func (q *requestPool) take(ops []Op) *request {
	r, ok := q.p.Get().(*request)
	if !ok {
		r = &request{wake: make(chan struct{}, 1)}
	}
	r.ops = ops
	return r
}

func (q *requestPool) give(r *request) {
	*r = request{wake: r.wake}
	q.p.Put(r)
}

// cost is an upper bound of what the ops take in the log, in bytes, but for the header of a
// new segment.
func (b *Buffer) cost(ops []Op) int64 {
	n := int64(0)
	for i := range ops {
		n += 2 * headerSize // it may be split
		if op := &ops[i]; op.Kind == tlog.Write {
			n += int64(op.Count) * (ClusterSize + 4)
			if b.isDirect(op) {
				n += 4 * pageSize
			}
		}
	}
	return n
}

func (b *Buffer) check(ops []Op) error {
	for i := range ops {
		op := &ops[i]
		op.Seq = 0
		ok := op.Count > 0 && op.Addr < tlog.MaxAddr && op.Count <= tlog.MaxAddr-op.Addr
		switch op.Kind {
		case tlog.Write:
			ok = ok && op.Count <= uint64(b.opts.SCOClusters) && uint64(len(op.Data)) == op.Count*ClusterSize && uint64(len(op.Sums)) == op.Count
		case tlog.Clear:
			ok = ok && op.Data == nil && op.Sums == nil
		default:
			ok = false
		}
		if !ok {
			return fmt.Errorf("write buffer %s: op %d: %v of %d+%d with %d bytes, %d sums (a write has 1..%d clusters): %w", b.opts.Dir, i,
				op.Kind, op.Addr, op.Count, len(op.Data), len(op.Sums), b.opts.SCOClusters, ErrInvalid)
		}
	}
	return nil
}

// Append waits for room in the Pool (pacing, hard limit), appends all ops back to back and in
// order, and returns when they and all records before them are handed to the kernel
// and applied. On a full file system it waits up to Options.SpaceWait; then the error is
// syscall.ENOSPC. On an error a part may be appended (and applied): the ops whose Seq is
// not 0, and of the first one with Seq 0 possibly its beginning. ctx is heard only
// while waiting for room.
func (b *Buffer) Append(ctx context.Context, ops []Op) error {
	if err := b.check(ops); err != nil || len(ops) == 0 {
		return err
	}
	n := b.cost(ops)
	if err := b.pool.reserve(ctx, b, n); err != nil {
		return err
	}
	r := b.pool.requests.take(ops)
	defer b.pool.requests.give(r)
	b.submit(r)
	if r.err != nil && errors.Is(r.err, syscall.ENOSPC) {
		b.awaitSpace(ctx, r)
	}
	b.pool.settle(-n) // what was written has been counted by the leader
	return r.err
}

// TryAppend is Append if it has to wait for nothing but the local disk. done is false, and
// nothing has been appended, when the Pool asks for pacing or is full or the file
// system is: call Append then. ENOSPC after a part was appended is done, with that error.
func (b *Buffer) TryAppend(ops []Op) (done bool, err error) {
	if err := b.check(ops); err != nil || len(ops) == 0 {
		return true, err
	}
	n := b.cost(ops)
	if !b.pool.tryReserve(n) {
		return false, nil
	}
	r := b.pool.requests.take(ops)
	b.submit(r)
	err = r.err
	if err != nil && r.next == 0 && r.part == 0 && errors.Is(err, syscall.ENOSPC) {
		done, err = false, nil
	} else {
		done = true
	}
	b.pool.requests.give(r)
	b.pool.settle(-n)
	return done, err
}

// Rotate closes the open SCO, if it has records.
func (b *Buffer) Rotate(ctx context.Context) error {
	return b.exclusive(ctx, func() error {
		if t := &b.tail; t.seg != nil && t.section.Entries() > 0 {
			b.closeSegment()
		}
		return nil
	})
}

// exclusive runs do while nobody appends.
func (b *Buffer) exclusive(ctx context.Context, do func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := b.pool.requests.take(nil)
	defer b.pool.requests.give(r)
	r.do = do
	b.submit(r)
	return r.err
}

// awaitSpace repeats a request that met a full file system.
func (b *Buffer) awaitSpace(ctx context.Context, r *request) {
	b.stats.spaceWaits.Add(1)
	limit := time.NewTimer(b.opts.SpaceWait)
	defer limit.Stop()
	pause := 2 * time.Millisecond
	again := time.NewTimer(pause)
	defer again.Stop()
	for b.opts.SpaceWait > 0 {
		b.pool.needSpace()
		select {
		case <-ctx.Done():
			r.err = fmt.Errorf("%w (gave up waiting: %w)", r.err, ctx.Err())
			return
		case <-limit.C:
			return
		case <-again.C:
		}
		r.err = nil
		if b.submit(r); !errors.Is(r.err, syscall.ENOSPC) {
			return
		}
		pause = min(2*pause, 250*time.Millisecond)
		again.Reset(pause)
	}
}

// submit runs r: as the leader, or by one.
func (b *Buffer) submit(r *request) {
	b.q.Lock()
	if b.q.closed {
		b.q.Unlock()
		r.err = fmt.Errorf("write buffer %s: %w", b.opts.Dir, ErrClosed)
		return
	}
	if !b.q.leading {
		b.q.leading = true
		b.q.Unlock()
		b.lead(r)
		return
	}
	if b.q.tail == nil {
		b.q.head = r
	} else {
		b.q.tail.link = r
	}
	b.q.tail = r
	b.q.Unlock()
	<-r.wake
	if r.lead {
		r.lead = false
		b.lead(r)
	}
}

// maxRounds is how many batches a leader takes besides its own before it hands over.
const maxRounds = 2

// lead appends r, and what others queued meanwhile. r is not in the queue (any more).
func (b *Buffer) lead(r *request) {
	b.run(r)
	for range maxRounds {
		b.q.Lock()
		batch := b.q.head
		b.q.head, b.q.tail = nil, nil
		if batch == nil {
			b.resignLocked()
			return
		}
		b.q.Unlock()
		b.run(batch)
		for batch != nil {
			next := batch.link
			batch.link = nil
			batch.wake <- struct{}{}
			batch = next
		}
	}
	b.q.Lock()
	heir := b.q.head
	if heir == nil {
		b.resignLocked()
		return
	}
	if b.q.head = heir.link; b.q.head == nil {
		b.q.tail = nil
	}
	b.q.Unlock()
	heir.link, heir.lead = nil, true
	heir.wake <- struct{}{}
}

// resignLocked ends the lead and unlocks the queue.
func (b *Buffer) resignLocked() {
	b.q.leading = false
	idle := b.q.idle
	b.q.idle = nil
	b.q.Unlock()
	if idle != nil {
		close(idle)
	}
}

// run appends a list of requests in order. What one of them does not get into the log
// because of an error, the later ones do not either, with the same error.
func (b *Buffer) run(batch *request) {
	s := takeScratch()
	s.begin(b)
	var err error
	for r := batch; r != nil && err == nil; r = r.link {
		if err = b.sync.failure(); err != nil {
			break
		}
		if r.do != nil {
			if err = s.flush(b); err == nil {
				r.err = r.do()
				r.do = nil
				s.begin(b)
			}
			continue
		}
		for i := r.next; i < len(r.ops) && err == nil; i++ {
			err = s.add(b, r, i)
		}
	}
	if err == nil {
		err = s.flush(b)
	}
	if err != nil {
		for r := batch; r != nil; r = r.link {
			if r.next < len(r.ops) || r.do != nil {
				r.err = err
			}
		}
	}
	giveScratch(s)
}
