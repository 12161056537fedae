package writebuffer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// PoolOptions of a Pool. The zero value is useful.
type PoolOptions struct {
	// HardBytes bounds the bytes of all logs on disk, read cache included: writers wait
	// there. Default 1 GiB.
	HardBytes int64
	// SoftFraction of HardBytes, 0..1: from there on writers are paced. Default 0.6.
	SoftFraction float64
	// MaxFiles bounds the files that are open for reading; those of open SCOs and with
	// unsynced data come on top. Default 256.
	MaxFiles int
	// MemoryBytes bounds the copies of large writes that are kept for reading and upload,
	// since their data bypasses the page cache. Default 96 MiB; negative: none.
	MemoryBytes int64

	// For tests: the fill from which segments' files are reused (default: a little before
	// they would be deleted).
	reuseAbove int64
}

// PoolStats are figures of a Pool. Bytes are of segment files.
type PoolStats struct {
	HardBytes, SoftBytes int64
	TotalBytes           int64 // dirty, reserved and cached
	DirtyBytes           int64 // not disposable, and reserved by writers
	UploadedBytes        int64 // of DirtyBytes: on the object store, but not yet in a TLog there
	MemoryBytes          int64 // copies of large writes
	Waiting              int   // writers that wait
	DrainRate            float64
	PaceRate             float64 // bytes/s that writers get now; 0: not paced
	Buffers              int

	Waits       uint64        // reservations that had to wait
	WaitTime    time.Duration // sum of their waits
	LongestWait time.Duration // longest of them
	Evicted     uint64        // segments
	Reused      uint64        // segments whose file was taken for a new one instead
	EvictFails  uint64        // segments whose removal failed (tried again)
}

// Pool bounds what the logs of a gateway's volumes take together. It is safe for
// concurrent use. It has two goroutines, which end with Close.
type Pool struct {
	opts  PoolOptions
	soft  int64
	files fileCache

	requests requestPool

	kick     chan struct{} // capacity 1: the governor has something to do
	kickLate chan struct{} // capacity 1: there is something to write out
	stop     chan struct{}
	running  sync.WaitGroup // the goroutines
	once     sync.Once

	mu struct {
		sync.Mutex
		closed   bool
		total    int64
		dirty    int64
		uploaded int64
		pacer    pacer
		buffers  map[*Buffer]struct{}
		ring     []*Buffer // with waiting writers, in the order of their turns
		waiting  int
		cached   []evictable // oldest first
		late     []evictable // to be written out
		lent     int64       // of total: segments that are being overwritten by new ones
		needed   bool        // a file system was full: evict beyond the limit
		memory   int64
		free     [][]byte // buffers for copies, all of the same size
		pressed  time.Time
		stats    PoolStats // the counters
	}
}

// evictable is a disposable segment.
type evictable struct {
	b   *Buffer
	seg *segment
}

// waiter is a writer that waits for room.
type waiter struct {
	n       int64
	granted chan struct{}
	err     error // set before granted is closed: refused
}

// NewPool returns a running Pool.
func NewPool(opts PoolOptions) *Pool {
	if opts.HardBytes <= 0 {
		opts.HardBytes = 1 << 30
	}
	if opts.SoftFraction <= 0 || opts.SoftFraction > 1 {
		opts.SoftFraction = 0.6
	}
	if opts.MaxFiles <= 0 {
		opts.MaxFiles = 256
	}
	if opts.MemoryBytes == 0 {
		opts.MemoryBytes = 96 << 20
	}
	if opts.reuseAbove == 0 {
		opts.reuseAbove = opts.HardBytes - opts.HardBytes/8
	}
	p := &Pool{opts: opts, soft: int64(float64(opts.HardBytes) * opts.SoftFraction), kick: make(chan struct{}, 1), kickLate: make(chan struct{}, 1), stop: make(chan struct{})}
	p.files.max = opts.MaxFiles
	p.mu.buffers = make(map[*Buffer]struct{})
	p.mu.pacer.init(opts.HardBytes, p.soft)
	p.running.Go(p.govern)
	p.running.Go(p.writeOuts)
	return p
}

// Close ends the Pool's goroutines; its Buffers must be closed before. Idempotent.
func (p *Pool) Close() error {
	p.once.Do(func() {
		p.mu.Lock()
		p.mu.closed = true
		p.mu.Unlock()
		close(p.stop)
	})
	p.running.Wait()
	return nil
}

// Stats returns the figures of the moment.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.mu.stats
	s.HardBytes, s.SoftBytes, s.TotalBytes, s.DirtyBytes, s.UploadedBytes = p.opts.HardBytes, p.soft, p.mu.total, p.mu.dirty, p.mu.uploaded
	s.MemoryBytes, s.Waiting, s.Buffers = p.mu.memory, p.mu.waiting, len(p.mu.buffers)
	s.DrainRate, s.PaceRate = p.mu.pacer.drain, p.mu.pacer.rate(p.mu.dirty, p.mu.uploaded)
	return s
}

func (p *Pool) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

func (p *Pool) register(b *Buffer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return fmt.Errorf("write buffer pool: %w", ErrClosed)
	}
	p.mu.buffers[b] = struct{}{}
	return nil
}

// unregister forgets a buffer whose segments have been taken off the counts.
func (p *Pool) unregister(b *Buffer) {
	p.mu.Lock()
	delete(p.mu.buffers, b)
	for _, w := range b.waiters {
		w.err = ErrClosed
		close(w.granted)
	}
	p.mu.waiting -= len(b.waiters)
	b.waiters = nil
	p.mu.ring = slices.DeleteFunc(p.mu.ring, func(o *Buffer) bool { return o == b })
	p.mu.cached = slices.DeleteFunc(p.mu.cached, func(e evictable) bool { return e.b == b })
	p.mu.Unlock()
	p.wake()
}

// admitLocked takes n bytes if the limit and the pace allow it now.
func (p *Pool) admitLocked(n int64) bool {
	if p.mu.total+n > p.opts.HardBytes && p.mu.dirty > 0 {
		return false
	}
	if !p.mu.pacer.admit(n, p.mu.dirty, p.mu.uploaded) {
		return false
	}
	p.mu.total += n
	p.mu.dirty += n
	return true
}

// tryReserve takes n bytes if there is room at once and nobody waits for it.
func (p *Pool) tryReserve(n int64) bool {
	p.mu.Lock()
	ok := len(p.mu.ring) == 0 && p.admitLocked(n)
	wake := !ok || p.mu.dirty > p.soft || p.mu.total > p.evictAbove()
	p.mu.Unlock()
	if wake {
		p.wake()
	}
	return ok
}

// reserve takes n bytes for a write of b, and waits for its turn.
func (p *Pool) reserve(ctx context.Context, b *Buffer, n int64) error {
	if p.tryReserve(n) {
		return nil
	}
	w := &waiter{n: n, granted: make(chan struct{})}
	p.mu.Lock()
	if _, open := p.mu.buffers[b]; p.mu.closed || !open {
		p.mu.Unlock()
		return fmt.Errorf("write buffer %s: %w", b.opts.Dir, ErrClosed)
	}
	if len(b.waiters) == 0 {
		p.mu.ring = append(p.mu.ring, b)
	}
	b.waiters = append(b.waiters, w)
	p.mu.waiting++
	p.mu.Unlock()
	p.wake()
	start := time.Now()
	var err error
	select {
	case <-w.granted:
		err = w.err
	case <-ctx.Done():
		err = p.cancel(b, w, ctx.Err())
	case <-p.stop:
		err = p.cancel(b, w, ErrClosed)
	}
	waited := time.Since(start)
	p.mu.Lock()
	p.mu.stats.Waits++
	p.mu.stats.WaitTime += waited
	p.mu.stats.LongestWait = max(p.mu.stats.LongestWait, waited)
	p.mu.Unlock()
	if err != nil {
		return fmt.Errorf("write buffer %s: waiting for %d bytes of room: %w", b.opts.Dir, n, err)
	}
	return nil
}

// cancel takes w out of the queue; nil when it had been granted already.
func (p *Pool) cancel(b *Buffer, w *waiter, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, o := range b.waiters {
		if o == w {
			b.waiters = append(b.waiters[:i], b.waiters[i+1:]...)
			p.mu.waiting--
			if len(b.waiters) == 0 {
				p.mu.ring = slices.DeleteFunc(p.mu.ring, func(o *Buffer) bool { return o == b })
			}
			return err
		}
	}
	return nil
}

// settle corrects the counts: reserved bytes become written ones, or come back.
func (p *Pool) settle(delta int64) {
	if delta == 0 {
		return
	}
	p.mu.Lock()
	p.mu.total += delta
	p.mu.dirty += delta
	wake := delta < 0 && len(p.mu.ring) > 0
	p.mu.Unlock()
	if wake {
		p.wake()
	}
}

// drained counts bytes that reached the object store.
func (p *Pool) drained(n int64) {
	p.mu.Lock()
	p.mu.uploaded += n
	p.mu.pacer.drained(n)
	p.mu.pacer.tick(p.mu.dirty, p.mu.uploaded)
	p.mu.Unlock()
	p.wake()
}

// disposable moves n bytes, of which uploaded had been counted as drained, from dirty to cached.
func (p *Pool) disposable(n, uploaded int64) {
	p.mu.Lock()
	p.mu.dirty -= n
	p.mu.uploaded -= uploaded
	p.mu.pacer.drained(n - uploaded)
	p.mu.pacer.tick(p.mu.dirty, p.mu.uploaded)
	p.mu.Unlock()
	p.wake()
}

// enlist makes segments evictable.
func (p *Pool) enlist(b *Buffer, segs []*segment) {
	if len(segs) == 0 {
		return
	}
	p.mu.Lock()
	for _, s := range segs {
		p.mu.cached = append(p.mu.cached, evictable{b, s})
	}
	p.mu.Unlock()
	p.wake()
}

// uncache takes n bytes of cached segments off the counts.
func (p *Pool) uncache(n int64) {
	p.mu.Lock()
	p.mu.total -= n
	p.mu.Unlock()
	p.wake()
}

// needSpace asks for eviction because the file system is full.
func (p *Pool) needSpace() {
	p.mu.Lock()
	p.mu.needed = true
	p.mu.Unlock()
	p.wake()
}

// evictAbove is the fill from which cached segments are removed, ahead of need.
func (p *Pool) evictAbove() int64 { return p.opts.HardBytes - p.opts.HardBytes/16 }

// takeMemory returns a buffer of n bytes for copies, nil when there is no room.
func (p *Pool) takeMemory(n int) []byte {
	p.mu.Lock()
	if p.mu.memory+int64(n) > p.opts.MemoryBytes {
		p.mu.Unlock()
		return nil
	}
	p.mu.memory += int64(n)
	for i, b := range p.mu.free {
		if len(b) == n {
			last := len(p.mu.free) - 1
			p.mu.free[i] = p.mu.free[last]
			p.mu.free[last] = nil
			p.mu.free = p.mu.free[:last]
			p.mu.Unlock()
			return b
		}
	}
	p.mu.Unlock()
	return make([]byte, n)
}

// giveMemory takes a buffer back. A few are kept for the next one.
func (p *Pool) giveMemory(b []byte) {
	if b == nil {
		return
	}
	p.mu.Lock()
	p.mu.memory -= int64(len(b))
	if len(p.mu.free) < 2 {
		p.mu.free = append(p.mu.free, b)
	}
	p.mu.Unlock()
}

// forget takes the bytes of a closed buffer off the counts.
func (p *Pool) forget(dirty, cached, uploaded int64) {
	p.mu.Lock()
	p.mu.total -= dirty + cached
	p.mu.dirty -= dirty
	p.mu.uploaded -= uploaded
	p.mu.Unlock()
	p.wake()
}

// restore counts the bytes of a recovered log.
func (p *Pool) restore(total, dirty int64) {
	p.mu.Lock()
	p.mu.total += total
	p.mu.dirty += dirty
	p.mu.Unlock()
	p.wake()
}
