package nbd

import (
	"context"
	"math/bits"
	"sync"
	"unsafe"
)

const (
	// alignment of payload buffers: what direct I/O asks for.
	alignment = 4096
	// headroom stands before the payload of a large buffer, so that reply header and read
	// data leave in one piece while the data stays aligned.
	headroom = alignment
	// minClass and maxClass are the payload sizes of the smallest and largest buffers, as
	// powers of two: 4 KiB and 64 MiB.
	minClass = 12
	maxClass = 26
)

// buffer is pooled memory of headroom + 2^class bytes, page aligned.
type buffer struct {
	mem   []byte
	class int
	n     int // bytes used, counted from the start of mem, where the owner wants that kept
}

// payload returns the first n bytes behind the headroom.
func (b *buffer) payload(n int) []byte { return b.mem[headroom : headroom+n : headroom+n] }

// pool hands out buffers by size class. sync.Pool lets the garbage collector have what is
// not used, so an idle server keeps none.
type pool struct {
	classes [maxClass - minClass + 1]sync.Pool
}

// get returns a buffer with room for a payload of n bytes, n <= 2^maxClass.
func (p *pool) get(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), minClass)
	if b, ok := p.classes[class-minClass].Get().(*buffer); ok {
		return b
	}
	size := headroom + 1<<class
	mem := make([]byte, size+alignment-1)
	skip := 0
	if r := int(uintptr(unsafe.Pointer(unsafe.SliceData(mem))) & (alignment - 1)); r != 0 {
		skip = alignment - r
	}
	return &buffer{mem: mem[skip : skip+size : skip+size], class: class}
}

// put takes a buffer back; nil is fine.
func (p *pool) put(b *buffer) {
	if b != nil {
		b.n = 0
		p.classes[b.class-minClass].Put(b)
	}
}

// budget bounds the payload memory of all connections, first come first served.
type budget struct {
	mu      sync.Mutex
	free    int64
	waiters []*budgetWaiter
}

type budgetWaiter struct {
	n     int64
	ready chan struct{} // closed when n was taken for the waiter
}

// tryAcquire takes n bytes if they are free and nobody waits for some.
func (b *budget) tryAcquire(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiters) > 0 || b.free < n {
		return false
	}
	b.free -= n
	return true
}

// acquire takes n bytes, waiting until they are free or ctx ends.
func (b *budget) acquire(ctx context.Context, n int64) error {
	b.mu.Lock()
	if len(b.waiters) == 0 && b.free >= n {
		b.free -= n
		b.mu.Unlock()
		return nil
	}
	w := &budgetWaiter{n: n, ready: make(chan struct{})}
	b.waiters = append(b.waiters, w)
	b.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, x := range b.waiters {
		if x == w {
			b.waiters = append(b.waiters[:i], b.waiters[i+1:]...)
			b.wakeLocked()
			return ctx.Err()
		}
	}
	// It was granted meanwhile: give it back.
	b.free += n
	b.wakeLocked()
	return ctx.Err()
}

func (b *budget) release(n int64) {
	b.mu.Lock()
	b.free += n
	b.wakeLocked()
	b.mu.Unlock()
}

func (b *budget) wakeLocked() {
	for len(b.waiters) > 0 && b.free >= b.waiters[0].n {
		w := b.waiters[0]
		b.free -= w.n
		b.waiters = b.waiters[1:]
		close(w.ready)
	}
}

// pressed reports whether somebody waits.
func (b *budget) pressed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiters) > 0
}
