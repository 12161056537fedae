package nbd

import (
	"context"
	"fmt"
	"slices"
	"time"

	"scoria/nbd/internal/wire"
)

// job is a request that may wait in the device, with its memory.
type job struct {
	c      *conn
	req    wire.Request
	buf    *buffer // payload of a WRITE, room for a READ
	charge int64   // memory charged for buf, or for the reply to a BLOCK_STATUS
}

// wait carries out a request that may wait: here and now when that harms nobody, else in a
// goroutine of its own. data is the payload of a WRITE, in buf or (buf nil) in the receive
// buffer; charge is what was charged for buf. The error is that of a connection that ended.
func (c *conn) wait(req *wire.Request, data []byte, buf *buffer, charge int64) error {
	if req.Type == wire.CmdBlockStatus { // room for the reply
		charge = int64(len(c.neg.contexts)) * wire.MaxStatusChunk
		if err := c.charge(0, charge); err != nil {
			return err
		}
	}
	if c.runsHere(req.Type) {
		return c.runHere(req, data, buf, charge)
	}
	if buf == nil && (req.Type == wire.CmdRead || req.Type == wire.CmdWrite) {
		charge = int64(req.Length)
		if err := c.charge(1, charge); err != nil {
			return err
		}
		buf = c.srv.pool.get(int(req.Length))
		copy(buf.payload(int(req.Length)), data)
	} else if err := c.charge(1, 0); err != nil {
		c.srv.pool.put(buf)
		c.uncharge(charge)
		return err
	}
	j, _ := c.srv.jobs.Get().(*job)
	if j == nil {
		j = new(job)
	}
	*j = job{c: c, req: *req, buf: buf, charge: charge}
	c.srv.counters.handed.Add(1)
	c.srv.counters.waiting.Add(1)
	go j.run() // transmit waits for it through quota
	return nil
}

// runsHere says whether a call that may wait should be made by the reading goroutine: when
// the client has sent one request at a time lately, nothing else is pending, and calls of
// this kind have been quick. A hop to another goroutine then only costs.
func (c *conn) runsHere(typ uint16) bool {
	return c.single >= 2 && c.parsed <= 1 && c.inDevice.Load() == 0 && len(c.rcv.peek()) == 0 &&
		c.slow[typ].Load() < int64(c.srv.opts.InlineLimit)
}

func (c *conn) runHere(req *wire.Request, data []byte, buf *buffer, charge int64) error {
	if req.Type == wire.CmdRead && buf == nil {
		n := int(req.Length)
		tx := c.reserve(c.header + n)
		at := tx.n + c.header
		if err := c.call(req, tx.mem[at:at+n:at+n]); err != nil {
			c.replyError(req, err)
			return nil
		}
		c.putReadHeader(tx.mem[tx.n:at], req)
		tx.n = at + n
		c.tal.add(req, wire.OK)
		return nil
	}
	if req.Type == wire.CmdRead {
		data = buf.payload(int(req.Length))
	}
	if req.Type == wire.CmdBlockStatus {
		c.send()
		c.out.sendBuffer(c.blockStatus(req), nil, charge)
		return nil
	}
	err := c.call(req, data)
	if err == nil && req.Type == wire.CmdRead {
		c.send()
		c.sendRead(req, buf, charge)
		c.tal.add(req, wire.OK)
		return nil
	}
	if buf != nil {
		c.srv.pool.put(buf)
		c.uncharge(charge)
	}
	if err != nil {
		c.replyError(req, err)
	} else {
		c.reply(req, wire.OK, "")
	}
	return nil
}

// run is a goroutine of its own.
func (j *job) run() {
	c, req, buf, charge := j.c, j.req, j.buf, j.charge
	*j = job{}
	c.srv.jobs.Put(j)
	c.perform(&req, buf, charge)
	c.srv.counters.waiting.Add(-1)
	c.quot.give(1, 0) // last: transmit may return now
}

func (c *conn) perform(req *wire.Request, buf *buffer, charge int64) {
	if req.Type == wire.CmdBlockStatus {
		c.out.sendBuffer(c.blockStatus(req), nil, charge)
		return
	}
	var data []byte
	if buf != nil {
		data = buf.payload(int(req.Length))
	}
	err := c.call(req, data)
	errno := errnoOf(err)
	c.srv.counters.add(req, errno)
	if err != nil {
		c.deviceError(req.Type, err)
	} else if req.Type == wire.CmdRead {
		c.sendRead(req, buf, charge)
		return
	}
	if buf != nil {
		c.srv.pool.put(buf)
		c.uncharge(charge)
	}
	var space [64]byte
	c.out.send(c.appendReply(space[:0], req, errno, ""))
}

// call makes the device's call and notes how long it took.
func (c *conn) call(req *wire.Request, data []byte) error {
	start := time.Now()
	c.inDevice.Add(1)
	err := c.callDevice(req, data)
	c.inDevice.Add(-1)
	c.took(req.Type, time.Since(start))
	return err
}

func (c *conn) took(typ uint16, d time.Duration) {
	old := c.slow[typ].Load()
	c.slow[typ].Store(old + (int64(d)-old)/8) // a lost update does no harm
}

func (c *conn) callDevice(req *wire.Request, data []byte) error {
	off, length, fua := req.Offset, req.Length, req.Flags&wire.CmdFlagFUA != 0
	switch req.Type {
	case wire.CmdRead:
		return c.dev.ReadAt(c.ctx, data, off)
	case wire.CmdWrite:
		c.dirty.Store(true)
		return c.dev.WriteAt(c.ctx, data, off, fua)
	case wire.CmdFlush:
		c.dirty.Store(false)
		return c.dev.Flush(c.ctx)
	case wire.CmdTrim:
		c.dirty.Store(true)
		return c.dev.Trim(c.ctx, off, length, fua)
	case wire.CmdWriteZeroes:
		c.dirty.Store(true)
		return c.dev.WriteZeroes(c.ctx, off, length, req.Flags&wire.CmdFlagNoHole != 0, fua)
	case wire.CmdCache:
		return c.dev.Cache(c.ctx, off, length)
	}
	return fmt.Errorf("nbd: no call for %s", commandName(req.Type))
}

// blockStatus carries out a BLOCK_STATUS and returns its whole reply.
func (c *conn) blockStatus(req *wire.Request) []byte {
	start := time.Now()
	c.inDevice.Add(1)
	defer c.inDevice.Add(-1)
	var reply []byte
	ids := c.neg.contexts
	if req.Only != 0 {
		ids = slices.DeleteFunc(slices.Clone(ids), func(id int) bool { return req.Only>>id&1 == 0 })
	}
	for i, id := range ids {
		extents, err := c.extents(req, id)
		if err != nil {
			c.deviceError(req.Type, err)
			errno := errnoOf(err)
			c.srv.counters.add(req, errno)
			return c.appendReply(nil, req, errno, "")
		}
		var flags uint16
		if i == len(ids)-1 {
			flags = wire.ChunkFlagDone
		}
		if c.neg.extended {
			reply = wire.AppendExtStatusChunk(reply, flags, req, uint32(id), extents)
			continue
		}
		reply = wire.AppendStatusChunk(reply, flags, req.Cookie, uint32(id), extents)
	}
	c.took(req.Type, time.Since(start))
	c.srv.counters.add(req, wire.OK)
	return reply
}

// extents asks the device (id 1) or a further context for the extents of a request: merged,
// cut to the request, and as many as fit into a reply.
func (c *conn) extents(req *wire.Request, id int) ([]wire.Extent, error) {
	limit := wire.MaxExtents
	if c.neg.extended {
		limit = wire.MaxExtExtents
	}
	if req.Flags&wire.CmdFlagReqOne != 0 {
		limit = 1
	}
	left := req.Length
	var list []wire.Extent
	add := func(length uint64, flags uint32) bool {
		length = min(length, left)
		if length == 0 {
			return left > 0
		}
		if n := len(list); n > 0 && list[n-1].Flags == flags {
			list[n-1].Length += length
		} else if n == limit {
			return false
		} else {
			list = append(list, wire.Extent{Length: length, Flags: flags})
		}
		left -= length
		return left > 0
	}
	var err error
	if id == 1 {
		err = c.dev.Extents(c.ctx, req.Offset, req.Length, func(length uint64, hole, zero bool) bool {
			var flags uint32
			if hole {
				flags |= wire.StateHole
			}
			if zero {
				flags |= wire.StateZero
			}
			return add(length, flags)
		})
	} else {
		err = c.neg.export.Contexts[id-2].Extents(c.ctx, req.Offset, req.Length, add)
	}
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("nbd: device told no extent at %d", req.Offset)
	}
	return list, err
}

// charge takes jobs and memory for the connection and memory from the server's budget. If it
// has to wait, what was answered is sent first.
func (c *conn) charge(jobs, bytes int64) error {
	if !c.quot.take(jobs, bytes, false) {
		c.send()
		if !c.quot.take(jobs, bytes, true) {
			return context.Cause(c.ctx)
		}
	}
	if bytes == 0 || c.srv.budget.tryAcquire(bytes) {
		return nil
	}
	c.send()
	c.inDevice.Add(1) // not the client's fault either
	err := c.srv.budget.acquire(c.ctx, bytes)
	c.inDevice.Add(-1)
	if err != nil {
		c.quot.give(jobs, bytes)
		return context.Cause(c.ctx)
	}
	return nil
}

// uncharge gives memory back.
func (c *conn) uncharge(bytes int64) {
	c.quot.give(0, bytes)
	c.srv.budget.release(bytes)
}
