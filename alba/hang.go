package alba

import (
	"context"
	"fmt"
	"time"

	"scoria/alba/codec"
	"scoria/alba/osd"
)

const (
	// silentAfter is how long a disk that is asked may answer nothing at all until a hedge is
	// made without regard to the budget: one disk that is silent must not be felt more than that.
	silentAfter = 100 * time.Millisecond
	// hungAfter is how long it may do so until it is taken out of use. Without that each read of
	// it would be a hedge.
	hungAfter = 2 * time.Second
	// latePart of the write time-out is the least time that a batch gets after its object was
	// committed without it. Until then it holds memory that the next object needs.
	latePart = 30
)

// errHung: the disk takes requests and answers none.
var errHung = fmt.Errorf("no answer to anything in %v: %w", hungAfter, osd.ErrUnavailable)

// errLate: the other fragments of an object have been in place for long.
var errLate = fmt.Errorf("much slower than the other disks: %w", osd.ErrUnavailable)

// silent waits until a slow request has ended (by an answer, a hedge or its time limit), or the
// disk has answered nothing since it was sent, for so long that this is not chance.
func (c *Client) silent(request context.Context, k *disk, started time.Time) bool {
	if !stillAfter(silentAfter-time.Since(started), request.Done()) {
		return false
	}
	return k.answered.Load() < started.UnixNano()
}

// stillAfter waits for a time; false when done came first.
func stillAfter[T any](d time.Duration, done <-chan T) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-done:
		return false
	}
}

// ask finds out whether a disk that was slower than a hedge is slow or hangs: it reads a block
// again, in memory of its own, and takes the disk out of use when there is no answer at all.
// The requests of readers cannot tell, since hedges end them. One at a time for each disk.
func (c *Client) ask(k *disk, api osd.API, key []byte, off uint32) {
	if !k.asked.CompareAndSwap(false, true) {
		return
	}
	ok := c.spawn(func(ctx context.Context) {
		defer k.asked.Store(false)
		ctx, cancel := context.WithTimeout(ctx, c.opts.ReadTimeout)
		defer cancel()
		done := make(chan struct{})
		started := time.Now()
		reading := c.spawn(func(context.Context) {
			defer close(done)
			reads := []osd.Read{{Key: key, Off: uint64(off), Buf: make([]byte, codec.BlockSize)}}
			if err := api.Read(ctx, reads); err != nil {
				c.failed(k, err)
				return
			}
			k.succeeded(time.Since(started))
		})
		if !reading {
			return
		}
		// It looks twice, a moment apart: in a process that was stopped for a while, timers and
		// answers come due at the same time.
		limit := min(hungAfter, c.opts.ReadTimeout/2)
		if stillAfter(limit, done) && stillAfter(limit/20, done) && k.answered.Load() < started.UnixNano() {
			c.failed(k, errHung)
		}
		cancel()
		<-done
	})
	if !ok {
		k.asked.Store(false)
	}
}
