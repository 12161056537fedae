package nbdtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"scoria/nbd/internal/wire"
)

// Receive reads one whole reply, which must be the answer to a request that was sent and must
// keep every rule of the protocol.
func (c *Client) Receive() (*Reply, error) {
	var r *Reply
	var req wire.Request
	var covered []bool
	for {
		magic, err := c.br.Peek(4)
		if err != nil {
			return nil, fmt.Errorf("reply: %w", err)
		}
		switch m := binary.BigEndian.Uint32(magic); m {
		case wire.MagicSimpleReply:
			if r != nil {
				return nil, errors.New("simple reply among the chunks of another")
			}
			return c.simple()
		case wire.MagicChunk:
		default:
			return nil, fmt.Errorf("reply has magic %#x", m)
		}
		if !c.Structured {
			return nil, errors.New("chunk without structured replies")
		}
		var h [wire.ChunkHeaderSize]byte
		if _, err := io.ReadFull(c.br, h[:]); err != nil {
			return nil, err
		}
		flags, typ, cookie, n := binary.BigEndian.Uint16(h[4:]), binary.BigEndian.Uint16(h[6:]), binary.BigEndian.Uint64(h[8:]), binary.BigEndian.Uint32(h[16:])
		if r == nil {
			if req, err = c.take(cookie, false); err != nil {
				return nil, err
			}
			r = &Reply{Cookie: cookie, Status: map[uint32][]wire.Extent{}}
			if req.Type == wire.CmdRead && req.Length <= 64<<20 {
				r.Data, covered = make([]byte, req.Length), make([]bool, req.Length)
			}
		} else if cookie != r.Cookie {
			return nil, fmt.Errorf("chunk of %#x among those of %#x", cookie, r.Cookie) // legal, but our server does not
		}
		if n > 65<<20 {
			return nil, fmt.Errorf("chunk of %d bytes", n)
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(c.br, payload); err != nil {
			return nil, err
		}
		r.Chunks++
		if err := r.chunk(req, typ, flags, payload, covered); err != nil {
			return nil, err
		}
		if flags&wire.ChunkFlagDone != 0 {
			_, _ = c.take(cookie, true)
			return r, r.whole(req, covered)
		}
	}
}

// chunk checks and keeps one chunk.
func (r *Reply) chunk(req wire.Request, typ, flags uint16, p []byte, covered []bool) error {
	switch typ {
	case wire.ChunkNone:
		if len(p) != 0 || flags&wire.ChunkFlagDone == 0 {
			return fmt.Errorf("NONE chunk of %d bytes with flags %d", len(p), flags)
		}
	case wire.ChunkOffsetData:
		if len(p) < 9 || req.Type != wire.CmdRead {
			return fmt.Errorf("OFFSET_DATA of %d bytes to command %d", len(p), req.Type)
		}
		r.Content++
		return r.content(req, binary.BigEndian.Uint64(p), uint64(len(p)-8), p[8:], covered)
	case wire.ChunkOffsetHole:
		if len(p) != 12 || req.Type != wire.CmdRead || binary.BigEndian.Uint32(p[8:]) == 0 {
			return fmt.Errorf("OFFSET_HOLE of %d bytes to command %d", len(p), req.Type)
		}
		r.Content++
		return r.content(req, binary.BigEndian.Uint64(p), uint64(binary.BigEndian.Uint32(p[8:])), nil, covered)
	case wire.ChunkBlockStatus:
		return r.status(req, p)
	case wire.ChunkError, wire.ChunkErrorOffset:
		if len(p) < 6 || int(binary.BigEndian.Uint16(p[4:])) > len(p)-6 {
			return fmt.Errorf("error chunk of %d bytes", len(p))
		}
		r.Errno = binary.BigEndian.Uint32(p)
		r.Message = string(p[6 : 6+binary.BigEndian.Uint16(p[4:])])
		if r.Errno == 0 {
			return errors.New("error chunk with error 0")
		}
	default:
		return fmt.Errorf("chunk of type %d", typ)
	}
	return nil
}

func (r *Reply) content(req wire.Request, off, n uint64, data []byte, covered []bool) error {
	if off < req.Offset || off-req.Offset+n > uint64(req.Length) {
		return fmt.Errorf("content %d+%d outside of the request %d+%d", off, n, req.Offset, req.Length)
	}
	at := off - req.Offset
	for i := at; i < at+n; i++ {
		if covered[i] {
			return fmt.Errorf("content overlaps at %d", i)
		}
		covered[i] = true
	}
	copy(r.Data[at:at+n], data)
	return nil
}

func (r *Reply) status(req wire.Request, p []byte) error {
	if len(p) < 12 || len(p)%8 != 4 || req.Type != wire.CmdBlockStatus {
		return fmt.Errorf("BLOCK_STATUS chunk of %d bytes to command %d", len(p), req.Type)
	}
	id := binary.BigEndian.Uint32(p)
	if _, twice := r.Status[id]; twice {
		return fmt.Errorf("two chunks for context %d", id)
	}
	var list []wire.Extent
	sum := uint64(0)
	for p = p[4:]; len(p) > 0; p = p[8:] {
		e := wire.Extent{Length: binary.BigEndian.Uint32(p), Flags: binary.BigEndian.Uint32(p[4:])}
		if e.Length == 0 || sum >= uint64(req.Length) {
			return fmt.Errorf("extent %v after %d bytes of %d", e, sum, req.Length)
		}
		sum += uint64(e.Length)
		list = append(list, e)
	}
	if req.Flags&wire.CmdFlagReqOne != 0 && (len(list) != 1 || sum > uint64(req.Length)) {
		return fmt.Errorf("REQ_ONE answered with %v", list)
	}
	r.Status[id] = list
	return nil
}

// whole checks a finished reply.
func (r *Reply) whole(req wire.Request, covered []bool) error {
	if r.Errno == 0 {
		for i, ok := range covered {
			if !ok {
				return fmt.Errorf("byte %d of the request is in no chunk", i)
			}
		}
		if req.Type == wire.CmdBlockStatus && len(r.Status) == 0 {
			return errors.New("BLOCK_STATUS answered without status")
		}
	}
	if req.Flags&wire.CmdFlagDF != 0 && r.Content > 1 {
		return fmt.Errorf("DF answered with %d content chunks", r.Content)
	}
	return nil
}

func (c *Client) simple() (*Reply, error) {
	var h [wire.SimpleReplySize]byte
	if _, err := io.ReadFull(c.br, h[:]); err != nil {
		return nil, err
	}
	r := &Reply{Cookie: binary.BigEndian.Uint64(h[8:]), Errno: binary.BigEndian.Uint32(h[4:])}
	req, err := c.take(r.Cookie, true)
	if err != nil {
		return nil, err
	}
	if req.Type == wire.CmdRead || req.Type == wire.CmdBlockStatus && r.Errno == 0 {
		if c.Structured {
			return nil, fmt.Errorf("simple reply to command %d though structured ones were agreed", req.Type)
		}
		if r.Errno == 0 {
			r.Data = make([]byte, req.Length)
			if _, err := io.ReadFull(c.br, r.Data); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// take finds the request with a cookie, and forgets it if done.
func (c *Client) take(cookie uint64, done bool) (wire.Request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	req, ok := c.sent[cookie]
	if !ok {
		return req, fmt.Errorf("reply to unknown cookie %#x", cookie)
	}
	if done {
		delete(c.sent, cookie)
	}
	return req, nil
}
