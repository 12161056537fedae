package osd

import (
	"bufio"
	"net"
	"time"

	"scoria/internal/frame"
)

const (
	// roundBytes is the size up to which a read is done in a round.
	roundBytes = 64 << 10
	// roundRequests and roundOps bound the requests of a round, and the reads in them.
	roundRequests = 32
	roundOps      = 256
)

// round is the small reads that have come over a connection since it was last looked at. The
// goroutine of the connection does them itself, all at the same time: to give each to another
// goroutine would cost more than the read, and while it is at it, the next ones gather. They
// do not wait longer than for the disk once; what is large or writes goes its own way.
type round struct {
	ids   []uint64
	ends  []int // of each request, in reads
	reads []Read
	sizes []int
	need  int64 // bytes of memory
	out   net.Buffers
}

// isSmall tells whether reads are done in a round with others.
func isSmall(sizes []int) bool { return len(sizes) <= roundOps && slabSize(sizes) <= roundBytes }

func (r *round) add(id uint64, reads []Read, sizes []int) {
	r.reads, r.sizes, r.need = append(r.reads, reads...), append(r.sizes, sizes...), r.need+slabSize(sizes)
	r.ids, r.ends = append(r.ids, id), append(r.ends, len(r.reads))
}

func (r *round) isFull() bool { return len(r.ids) >= roundRequests || len(r.reads) >= roundOps }

// run does the reads of a round and answers them.
func (c *serverConn) run(r *round) {
	if len(r.ids) == 0 {
		return
	}
	defer func() {
		clear(r.reads)
		clear(r.out)
		*r = round{ids: r.ids[:0], ends: r.ends[:0], reads: r.reads[:0], sizes: r.sizes[:0], out: r.out[:0]}
	}()
	if c.s.mem.Acquire(c.ctx, r.need) != nil {
		return // the connection ends
	}
	slab := c.s.slabs.get(r.need)
	defer func() {
		c.s.slabs.put(slab)
		c.s.mem.Release(r.need)
	}()
	rest := slab
	for i, n := range r.sizes {
		r.reads[i].Buf = rest[:n:n]
		rest = rest[alignUp(int64(n)):]
	}
	err := c.s.store.Read(c.ctx, r.reads)
	first := 0
	for i, id := range r.ids {
		reads := r.reads[first:r.ends[i]]
		first = r.ends[i]
		b := appendError(beginMessage(nil, id), err)
		var tail [][]byte
		if err == nil {
			b, tail = appendReadResults(b, reads)
		}
		endMessage(b, msgReply+msgRead, tail)
		r.out = append(append(r.out, b), tail...)
	}
	c.send(r.out)
}

// send sends a reply, or several. When that fails the connection is of no use any more.
func (c *serverConn) send(bufs net.Buffers) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	var err error
	// The deadline is moved now and then, not each time: it costs as much as the rest.
	if now := time.Now(); c.writeUntil.Sub(now) < c.s.opts.IOTimeout {
		c.writeUntil = now.Add(c.s.opts.IOTimeout + c.s.opts.IOTimeout/4)
		err = c.nc.SetWriteDeadline(c.writeUntil)
	}
	if err == nil {
		_, err = bufs.WriteTo(c.nc)
	}
	if err != nil {
		c.cancel()
		_ = c.nc.Close() // the reader notices
	}
}

// isWhole tells whether the next message, without its tail, is in the buffer.
func isWhole(r *bufio.Reader) bool {
	if r.Buffered() < frame.HeaderSize {
		return false
	}
	b, err := r.Peek(frame.HeaderSize)
	if err != nil {
		return false
	}
	h, err := frame.ParseHeader(b, wireMagic, maxFrame)
	return err == nil && r.Buffered() >= frame.HeaderSize+int(h.Length)
}
