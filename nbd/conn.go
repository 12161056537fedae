package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"scoria/nbd/internal/wire"
)

const (
	// smallPayload is the largest READ that is gathered with other replies and the largest
	// WRITE that is waited for in the receive buffer; larger ones get buffers of their own.
	smallPayload = 64 << 10
	// handOver is the length of a WRITE from which the next one is received while it is carried out,
	// when the client has several in flight: the hop costs less than either of them.
	handOver = 256 << 10
	// maxBatch bounds the writes of one TryWriteBatch.
	maxBatch = 32
	// maxQueued is how many bytes of replies the client may leave untaken before the server
	// stops reading its requests.
	maxQueued = 256 << 10
	// drainLinger is how long a connection still answers ESHUTDOWN after its last request
	// was done.
	drainLinger = 100 * time.Millisecond
)

// Ends of a connection that are nobody's fault.
var (
	errDisc    = errors.New("client sent DISC")
	errLeft    = errors.New("client left")
	errDrained = errors.New("server shut down")
	errTimeout = errors.New("timed out")
)

// conn is one connection in transmission.
type conn struct {
	srv    *Server
	nc     net.Conn
	client Client
	ctx    context.Context
	cancel context.CancelCauseFunc
	close  sync.Once

	neg    negotiated
	dev    Device
	tr     TryReader  // nil: the device has none
	th     HoleReader // nil: the device has none, or the client cannot be told
	tw     TryWriter
	rules  [wire.CmdCount]rule
	header int // bytes before the data of a READ reply
	req    int // bytes of a request's header
	magic  uint32

	rcv  receiver
	out  outbox
	quot quota
	tx   *buffer // replies gathered by the reading goroutine; tx.n bytes
	tal  tally

	batch struct { // WRITEs found in a row; data points into the receive buffer
		n    int
		reqs [maxBatch]wire.Request
		offs [maxBatch]uint64
		data [maxBatch][]byte
		errs [maxBatch]error
	}

	parsed int // requests since the last fill
	single int // requests in a row that came alone: none before them in the buffer, none in the device
	poll   poller
	slow   [wire.CmdCount]atomic.Int64 // moving average of calls that may wait, ns

	draining atomic.Bool
	ending   atomic.Bool  // the reading loop is over
	inDevice atomic.Int64 // calls under way: while there are any, the client is not to blame
	dirty    atomic.Bool  // written since the last FLUSH
	logged   atomic.Bool  // a device error was logged
	// For the watch: what was seen when, kept by the server's watcher only.
	seenBytes uint64
	seenAt    time.Time
}

// start prepares the transmission phase; neg.export is set.
func (c *conn) start() {
	c.dev = c.neg.export.Device
	c.tr, _ = c.dev.(TryReader)
	if c.neg.structured {
		c.th, _ = c.dev.(HoleReader)
	}
	c.tw, _ = c.dev.(TryWriter)
	c.rules = rulesOf(c.neg.flags(), len(c.neg.contexts) > 0, c.neg.extended)
	c.req, c.magic, c.header = wire.RequestSize, wire.MagicRequest, wire.SimpleReplySize
	switch {
	case c.neg.extended:
		c.req, c.magic, c.header = wire.ExtRequestSize, wire.MagicExtRequest, wire.ExtDataChunkSize
	case c.neg.structured:
		c.header = wire.DataChunkSize
	}
	for i := range c.slow {
		c.slow[i].Store(2 * int64(max(c.srv.opts.InlineLimit, 0)))
	}
}

// abort ends the connection from any goroutine. The reading goroutine cleans up.
func (c *conn) abort(err error) {
	c.close.Do(func() {
		c.cancel(err)
		c.nc.Close()
		c.quot.close()
		c.out.fail(err)
	})
}

// transmit serves requests until the connection ends and says why it did. When it returns,
// no goroutine of the connection is left.
func (c *conn) transmit() error {
	err := c.serve()
	c.ending.Store(true)
	if errors.Is(err, errDisc) || errors.Is(err, errDrained) {
		// What is outstanding is answered before the connection closes.
		c.quot.waitIdle()
		c.out.waitBelow(0)
		if errors.Is(err, errDrained) {
			c.finalFlush()
		}
	}
	c.abort(err)
	c.quot.waitIdle()
	c.out.waitIdle()
	c.rcv.release()
	c.srv.latest.CompareAndSwap(c, nil)
	c.srv.pool.put(c.tx)
	c.tx = nil
	c.srv.counters.fold(&c.tal)
	return err
}

// finalFlush makes what a client wrote durable when it is the server that ends things.
func (c *conn) finalFlush() {
	if !c.dirty.Load() || c.neg.export.ReadOnly {
		return
	}
	if err := c.dev.Flush(c.ctx); err != nil {
		c.deviceError(wire.CmdFlush, err)
	}
}

func (c *conn) serve() error {
	for {
		if err := c.process(); err != nil {
			c.send()
			return err
		}
		c.send()
		c.parsed = 0
		c.rcv.spin = c.poll.next(c)
		polls := c.rcv.spin > 0
		if _, err := c.fill(nil, false); err != nil {
			return err
		}
		if polls {
			c.poll.learn(c.rcv.spin > 0)
		}
	}
}

// fill waits for more bytes. The batch must be empty, as its data would move.
func (c *conn) fill(direct []byte, within bool) (int, error) {
	for {
		n, err := c.rcv.fill(direct, within)
		if err == nil {
			return n, nil
		}
		if cause := context.Cause(c.ctx); cause != nil {
			return 0, cause
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			if c.beginDrain() {
				continue
			}
			return 0, errDrained
		}
		return 0, errLeft
	}
}

// beginDrain is called when Shutdown kicked the reader out of its wait. The first time it
// arranges for a second kick once the outstanding requests are answered, and returns true;
// until then, requests are read and answered with ESHUTDOWN.
func (c *conn) beginDrain() bool {
	if !c.draining.CompareAndSwap(false, true) {
		return false
	}
	_ = c.nc.SetReadDeadline(time.Time{}) // fails only on a closed connection
	c.srv.wg.Go(func() {
		c.quot.waitIdle()
		_ = c.nc.SetReadDeadline(time.Now().Add(drainLinger))
	})
	return true
}

// send hands the gathered replies over, and waits while the client leaves too much untaken.
func (c *conn) send() {
	c.srv.counters.fold(&c.tal)
	if tx := c.tx; tx != nil && tx.n > 0 {
		c.tx = nil
		c.out.sendBuffer(tx.mem[:tx.n], tx, 0)
		c.out.waitBelow(maxQueued)
	} else if c.parsed > 0 {
		c.out.waitBelow(maxQueued)
	}
	if c.tx != nil {
		c.srv.pool.put(c.tx)
		c.tx = nil
	}
}

// reserve returns the reply buffer with room for n more bytes, n <= smallPayload + 4 KiB.
func (c *conn) reserve(n int) *buffer {
	if c.tx != nil && c.tx.n+n > len(c.tx.mem) {
		c.send()
	}
	if c.tx == nil {
		c.tx = c.srv.pool.get(1 << ioClass)
	}
	return c.tx
}

// process carries out every whole request in the receive buffer.
func (c *conn) process() error {
	for {
		b := c.rcv.peek()
		if len(b) < c.req {
			if len(b) >= 4 && binary.BigEndian.Uint32(b) != c.magic {
				c.runBatch()
				return fmt.Errorf("%w %#x of a request", wire.ErrMagic, b[:4])
			}
			break
		}
		req, payload, err := c.parse(b)
		if err != nil {
			c.runBatch()
			return err
		}
		if payload {
			var more bool
			if req.Type == wire.CmdWrite {
				more, err = c.write(&req, b[c.req:])
			} else {
				more, err = c.withPayload(&req, b[c.req:])
			}
			if err != nil {
				return err
			}
			if more {
				break
			}
			continue
		}
		c.rcv.skip(c.req)
		c.note()
		c.runBatch()
		switch req.Type {
		case wire.CmdDisc:
			return errDisc
		case wire.CmdRead:
			err = c.read(&req)
		default:
			err = c.other(&req)
		}
		if err != nil {
			return err
		}
	}
	c.runBatch()
	return nil
}

// parse reads the header of a request and says whether a payload follows it.
func (c *conn) parse(b []byte) (req wire.Request, payload bool, err error) {
	if c.neg.extended {
		req, err = wire.ParseExtRequest(b)
		return req, req.Flags&wire.CmdFlagPayloadLen != 0 && req.Type != wire.CmdDisc, err
	}
	req, err = wire.ParseRequest(b)
	return req, req.Type == wire.CmdWrite, err
}

// other carries out what is neither READ nor WRITE nor DISC.
func (c *conn) other(req *wire.Request) error {
	if errno, why := c.check(req); errno != wire.OK || req.Length == 0 && req.Type != wire.CmdFlush {
		c.reply(req, errno, why)
		return nil
	}
	return c.wait(req, nil, nil, 0)
}

// note counts a request, and learns whether the client sends one at a time.
func (c *conn) note() {
	c.parsed++
	if c.parsed > 1 || c.inDevice.Load() > 0 {
		c.single = 0
	} else {
		c.single++
	}
}

// read answers a READ from memory if the device can, into the reply buffer directly.
func (c *conn) read(req *wire.Request) error {
	if errno, why := c.check(req); errno != wire.OK || req.Length == 0 {
		c.reply(req, errno, why)
		return nil
	}
	n := int(req.Length)
	if n > smallPayload {
		return c.readLarge(req)
	}
	if c.tr == nil {
		return c.wait(req, nil, nil, 0)
	}
	tx := c.reserve(c.header + max(n, holeExtra))
	at := tx.n + c.header
	done, hole, err := c.tryRead(tx.mem[at:at+n:at+n], req.Offset)
	switch {
	case !done:
		return c.wait(req, nil, nil, 0)
	case err != nil:
		c.replyError(req, err)
	case hole:
		tx.n = len(c.appendHole(tx.mem[:tx.n], req))
		c.tal.add(req, wire.OK)
	default:
		c.putReadHeader(tx.mem[tx.n:at], req)
		tx.n = at + n
		c.tal.add(req, wire.OK)
	}
	return nil
}

// readLarge is read with a reply buffer of its own.
func (c *conn) readLarge(req *wire.Request) error {
	n := int(req.Length)
	if err := c.charge(0, int64(n)); err != nil {
		return err
	}
	buf := c.srv.pool.get(n)
	if c.tr != nil {
		if done, hole, err := c.tryRead(buf.payload(n), req.Offset); done {
			if err != nil || hole {
				c.srv.pool.put(buf)
				c.uncharge(int64(n))
				if err != nil {
					c.replyError(req, err)
					return nil
				}
				tx := c.reserve(c.header + holeExtra)
				tx.n = len(c.appendHole(tx.mem[:tx.n], req))
				c.tal.add(req, wire.OK)
				return nil
			}
			c.send()
			c.sendRead(req, buf, int64(n))
			c.tal.add(req, wire.OK)
			c.out.waitBelow(maxQueued + int(c.srv.opts.MaxPayload))
			return nil
		}
	}
	return c.wait(req, nil, buf, int64(n))
}

// holeExtra is by how much the chunk of a hole is longer than what stands before data.
const holeExtra = 4

// tryRead is the device's TryReadHole where a hole can be told, else its TryReadAt.
func (c *conn) tryRead(p []byte, off uint64) (done, hole bool, err error) {
	if c.th != nil {
		return c.th.TryReadHole(p, off)
	}
	done, err = c.tr.TryReadAt(p, off)
	return done, false, err
}

// appendHole appends the reply to a READ that found nothing.
func (c *conn) appendHole(dst []byte, req *wire.Request) []byte {
	if c.neg.extended {
		return wire.AppendExtHoleChunk(dst, req)
	}
	return wire.AppendHoleChunk(dst, req.Cookie, req.Offset, uint32(req.Length))
}

// putReadHeader writes what stands before the data of a READ reply; dst has c.header bytes.
func (c *conn) putReadHeader(dst []byte, req *wire.Request) {
	switch {
	case c.neg.extended:
		wire.AppendExtDataChunk(dst[:0], req)
	case c.neg.structured:
		wire.AppendDataChunk(dst[:0], req.Cookie, req.Offset, uint32(req.Length))
	default:
		wire.AppendSimpleReply(dst[:0], req.Cookie, wire.OK)
	}
}

// sendRead sends the data in buf's payload.
func (c *conn) sendRead(req *wire.Request, buf *buffer, charge int64) {
	from := headroom - c.header
	c.putReadHeader(buf.mem[from:headroom], req)
	c.out.sendBuffer(buf.mem[from:headroom+int(req.Length)], buf, charge)
}

// reply gathers a reply without data. why is for the client's log.
func (c *conn) reply(req *wire.Request, errno wire.Errno, why string) {
	tx := c.reserve(wire.ExtChunkHeaderSize + 6 + len(why))
	tx.n = len(c.appendReply(tx.mem[:tx.n], req, errno, why))
	c.tal.add(req, errno)
}

// replyError gathers the reply to a request that failed in the device.
func (c *conn) replyError(req *wire.Request, err error) {
	c.deviceError(req.Type, err)
	c.reply(req, errnoOf(err), "")
}

// appendReply appends a reply without data. With extended headers all of them are chunks;
// where structured replies were agreed, those to READ and BLOCK_STATUS are.
func (c *conn) appendReply(dst []byte, req *wire.Request, errno wire.Errno, why string) []byte {
	switch {
	case c.neg.extended && errno == wire.OK:
		return wire.AppendExtChunk(dst, wire.ChunkFlagDone, wire.ChunkNone, req, 0)
	case c.neg.extended:
		return wire.AppendExtErrorChunk(dst, req, errno, why)
	case !c.neg.structured || req.Type != wire.CmdRead && req.Type != wire.CmdBlockStatus:
		return wire.AppendSimpleReply(dst, req.Cookie, errno)
	case errno == wire.OK:
		return wire.AppendChunk(dst, wire.ChunkFlagDone, wire.ChunkNone, req.Cookie, 0)
	default:
		return wire.AppendErrorChunk(dst, req.Cookie, errno, why)
	}
}

// deviceError counts an error and logs the first one of a connection as a warning, so that a
// broken device does not flood the log.
func (c *conn) deviceError(typ uint16, err error) {
	if c.ctx.Err() != nil {
		return // abandoned because the connection ended
	}
	c.srv.counters.deviceErrors.Add(1)
	log := c.srv.opts.Logger.Debug
	if c.logged.CompareAndSwap(false, true) {
		log = c.srv.opts.Logger.Warn
	}
	log("nbd: device failed", "export", c.neg.export.Name, "command", commandName(typ), "client", c.client.ID, "err", err)
}
