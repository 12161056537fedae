package nbd

import "scoria/nbd/internal/wire"

// write takes a WRITE whose payload begins in p. It returns true when the rest has to be
// waited for in the receive buffer.
func (c *conn) write(req *wire.Request, p []byte) (more bool, err error) {
	if c.neg.extended && req.Length > uint64(c.srv.opts.MaxPayload) {
		return false, c.oversize(req)
	}
	n := int64(req.Length)
	if errno, why := c.check(req); errno != wire.OK {
		c.note()
		c.runBatch()
		c.rcv.skip(c.req)
		if err := c.discard(n); err != nil {
			return false, err
		}
		c.reply(req, errno, why)
		return false, nil
	}
	switch {
	case n <= int64(len(p)):
		c.note()
		c.rcv.skip(c.req + int(n))
		if n == 0 {
			c.reply(req, wire.OK, "")
			return false, nil
		}
		if c.batchable(req) {
			c.gather(req, p[:n:n])
			return false, nil
		}
		c.runBatch()
		return false, c.wait(req, p[:n:n], nil, 0)
	case n <= smallPayload:
		return true, nil
	}
	c.note()
	c.runBatch()
	return false, c.writeLarge(req, int(n))
}

// writeLarge reads a payload into a buffer of its own and carries the WRITE out.
func (c *conn) writeLarge(req *wire.Request, n int) error {
	if err := c.charge(0, int64(n)); err != nil {
		return err
	}
	c.send()
	buf := c.srv.pool.get(n)
	data := buf.payload(n)
	c.rcv.skip(c.req)
	have := copy(data, c.rcv.peek())
	c.rcv.skip(have)
	for have < n {
		got, err := c.fill(data[have:], true)
		if err != nil {
			c.srv.pool.put(buf)
			c.uncharge(int64(n))
			return err
		}
		have += got
	}
	if c.batchable(req) && (n < handOver || c.single > 0) {
		c.gather(req, data)
		if c.tryBatch() {
			c.srv.pool.put(buf)
			c.uncharge(int64(n))
			return nil
		}
		c.batch.n = 0
	}
	return c.wait(req, data, buf, int64(n))
}

// discard consumes the payload of a refused WRITE, so that the stream stays in step.
func (c *conn) discard(n int64) error {
	for {
		k := min(n, int64(len(c.rcv.peek())))
		c.rcv.skip(int(k))
		if n -= k; n == 0 {
			return nil
		}
		c.send()
		if _, err := c.fill(nil, true); err != nil {
			return err
		}
	}
}

func (c *conn) batchable(req *wire.Request) bool {
	return c.tw != nil && req.Flags&wire.CmdFlagFUA == 0
}

// gather adds a WRITE to the batch.
func (c *conn) gather(req *wire.Request, data []byte) {
	b := &c.batch
	b.reqs[b.n], b.offs[b.n], b.data[b.n], b.errs[b.n] = *req, req.Offset, data, nil
	b.n++
	if b.n == maxBatch {
		c.runBatch()
	}
}

// tryBatch offers the batch to the device and answers it if the device took it.
func (c *conn) tryBatch() bool {
	b := &c.batch
	n := b.n
	c.dirty.Store(true)
	if !c.tw.TryWriteBatch(b.offs[:n], b.data[:n], b.errs[:n]) {
		return false
	}
	b.n = 0
	for i := range n {
		if err := b.errs[i]; err != nil {
			c.replyError(&b.reqs[i], err)
		} else {
			c.reply(&b.reqs[i], wire.OK, "")
		}
	}
	return true
}

// runBatch carries out the gathered WRITEs.
func (c *conn) runBatch() {
	if c.batch.n == 0 || c.tryBatch() {
		return
	}
	b := &c.batch
	n := b.n
	b.n = 0
	for i := range n {
		if c.wait(&b.reqs[i], b.data[i], nil, 0) != nil {
			return // the connection is ending; the reading loop will notice
		}
	}
}
