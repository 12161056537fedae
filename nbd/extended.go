package nbd

import (
	"errors"
	"fmt"
	"slices"

	"scoria/nbd/internal/wire"
)

// maxStatusPayload is the longest payload of a BLOCK_STATUS that can make sense: the length
// of the range and the id of every context.
const maxStatusPayload = 8 + 4*(1+MaxContexts)

// errOversize ends a connection: with extended headers a length has 64 bits, and a payload
// above what was advertised is not worth reading to keep the stream in step.
var errOversize = errors.New("payload is longer than the maximum")

func (c *conn) oversize(req *wire.Request) error {
	c.runBatch()
	return fmt.Errorf("nbd: %s with %d bytes: %w", commandName(req.Type), req.Length, errOversize)
}

// withPayload takes a request other than WRITE whose payload begins in p, which only extended
// headers allow. It returns true when the rest has to be waited for in the receive buffer.
func (c *conn) withPayload(req *wire.Request, p []byte) (more bool, err error) {
	if req.Length > uint64(c.srv.opts.MaxPayload) {
		return false, c.oversize(req)
	}
	n := int(req.Length)
	status := req.Type == wire.CmdBlockStatus && c.rules[req.Type].flags&wire.CmdFlagPayloadLen != 0
	if status && n > len(p) && n <= maxStatusPayload {
		return true, nil
	}
	c.note()
	c.runBatch()
	c.rcv.skip(c.req)
	why := "command takes no payload"
	if status {
		if why = "payload is too long"; n <= maxStatusPayload {
			why = c.chooseContexts(req, p[:n])
		}
	}
	if err := c.discard(int64(n)); err != nil {
		return false, err
	}
	if why != "" {
		c.reply(req, wire.EINVAL, why)
		return false, nil
	}
	return false, c.other(req)
}

// chooseContexts makes of req what the payload of a BLOCK_STATUS says, or tells what is wrong
// with it.
func (c *conn) chooseContexts(req *wire.Request, payload []byte) string {
	var space [1 + MaxContexts]uint32
	s, err := wire.ParseStatusRequest(payload, space[:0])
	if err != nil {
		return err.Error()
	}
	if len(s.IDs) == 0 {
		return "payload names no context"
	}
	for _, id := range s.IDs {
		if id > 1+MaxContexts || !slices.Contains(c.neg.contexts, int(id)) {
			return fmt.Sprintf("context %d was not selected", id)
		}
		if req.Only>>id&1 != 0 {
			return fmt.Sprintf("context %d is named twice", id)
		}
		req.Only |= 1 << id
	}
	req.Length = s.Length
	return ""
}
