package nbd

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
)

// outbox sends the replies of one connection. Whoever has a reply hands it over; the first
// one becomes the writer and also sends what others hand over meanwhile, in one writev. A
// reply is always handed over whole, so replies never interleave.
type outbox struct {
	nc       net.Conn
	pool     *pool
	written  atomic.Uint64      // bytes, for the watch over stalled clients
	sent     func(charge int64) // gives back memory that was charged for a segment
	failed   func(err error)    // called once, when writing failed
	mu       sync.Mutex         // guards what follows
	changed  sync.Cond          // queued fell, writing ended, or err was set
	small    []byte             // short replies, copied
	segs     []segment          // long replies, owned
	spare    []byte             // the other small, while one is being written
	spareSeg []segment          // the other segs
	queued   int                // bytes handed over and not yet written
	writing  bool               // somebody is the writer
	err      error              // sticky
	vec      net.Buffers        // only the writer's
	vecStore [][]byte           // backing of vec, only the writer's
}

type segment struct {
	b      []byte
	buf    *buffer
	charge int64
}

// maxSpare is the largest buffer of short replies kept for the next time.
const maxSpare = 4 << 10

func (o *outbox) init(nc net.Conn, p *pool, sent func(int64), failed func(error)) {
	o.nc, o.pool, o.sent, o.failed = nc, p, sent, failed
	o.changed.L = &o.mu
}

// send hands over b, which is copied. It returns when b was written, or was left to
// another writer, or is known never to arrive.
func (o *outbox) send(b []byte) {
	o.mu.Lock()
	if o.err == nil {
		o.small = append(o.small, b...)
		o.queued += len(b)
		o.pushLocked()
	}
	o.mu.Unlock()
}

// sendBuffer hands over b, part of buf, with buf and with the memory charged for it.
func (o *outbox) sendBuffer(b []byte, buf *buffer, charge int64) {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		o.drop(segment{b, buf, charge})
		return
	}
	o.segs = append(o.segs, segment{b, buf, charge})
	o.queued += len(b)
	o.pushLocked()
	o.mu.Unlock()
}

// waitBelow waits until at most n bytes are queued (or the connection is broken).
func (o *outbox) waitBelow(n int) {
	o.mu.Lock()
	for o.queued > n && o.err == nil {
		o.changed.Wait()
	}
	o.mu.Unlock()
}

// waitIdle waits until nobody writes.
func (o *outbox) waitIdle() {
	o.mu.Lock()
	for o.writing {
		o.changed.Wait()
	}
	o.mu.Unlock()
}

// pending reports how many bytes wait to be taken by the client.
func (o *outbox) pending() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.queued
}

// fail makes every further reply vanish.
func (o *outbox) fail(err error) {
	o.mu.Lock()
	if o.err == nil {
		o.err = err
	}
	o.changed.Broadcast()
	o.mu.Unlock()
}

// pushLocked writes everything that is queued unless somebody else does already.
func (o *outbox) pushLocked() {
	if o.writing {
		return
	}
	o.writing = true
	for o.queued > 0 && o.err == nil {
		small, segs, n := o.small, o.segs, o.queued
		o.small, o.segs = o.spare[:0], o.spareSeg[:0]
		o.spare, o.spareSeg = nil, nil
		o.mu.Unlock()
		err := o.write(small, segs)
		for i, s := range segs {
			o.drop(s)
			segs[i] = segment{}
		}
		if err != nil {
			o.failed(err)
		}
		o.mu.Lock()
		if cap(small) <= maxSpare {
			o.spare = small
		}
		o.spareSeg = segs
		o.queued -= n
		if err != nil && o.err == nil {
			o.err = err
		}
		o.changed.Broadcast()
	}
	if o.err != nil {
		for _, s := range o.segs {
			o.drop(s)
		}
		o.segs, o.small, o.queued = nil, nil, 0
	}
	o.writing = false
	o.changed.Broadcast()
}

func (o *outbox) drop(s segment) {
	o.pool.put(s.buf)
	if s.charge != 0 {
		o.sent(s.charge)
	}
}

var errShortWrite = errors.New("short write")

func (o *outbox) write(small []byte, segs []segment) error {
	total := len(small)
	for _, s := range segs {
		total += len(s.b)
	}
	if len(segs) == 0 || total == len(small) || len(small) == 0 && len(segs) == 1 || total > pieceSize {
		err := o.writePieces(small)
		for i := 0; i < len(segs) && err == nil; i++ {
			err = o.writePieces(segs[i].b)
		}
		return err
	}
	o.vecStore = o.vecStore[:0]
	if len(small) > 0 {
		o.vecStore = append(o.vecStore, small)
	}
	for _, s := range segs {
		o.vecStore = append(o.vecStore, s.b)
	}
	o.vec = o.vecStore
	_, err := o.vec.WriteTo(o.nc)
	clear(o.vecStore)
	o.written.Add(uint64(total))
	return err
}

// pieceSize is how much is written at once, so that a client that takes a long reply slowly is
// seen to take it.
const pieceSize = 1 << 20

func (o *outbox) writePieces(b []byte) error {
	for len(b) > 0 {
		piece := b[:min(len(b), pieceSize)]
		n, err := o.nc.Write(piece)
		if err == nil && n < len(piece) {
			err = errShortWrite
		}
		if err != nil {
			return err
		}
		o.written.Add(uint64(n))
		b = b[n:]
	}
	return nil
}
