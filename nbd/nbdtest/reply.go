package nbdtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"scoria/nbd/internal/wire"
)

// chunkHeader is the header of a chunk, in either form.
type chunkHeader struct {
	flags, typ     uint16
	cookie, offset uint64 // offset: extended headers only
	length         uint64
}

// chunkHeader reads the header of the next chunk.
func (c *Client) chunkHeader() (chunkHeader, error) {
	if !c.Structured && !c.Extended {
		return chunkHeader{}, errors.New("chunk without structured replies")
	}
	var space [wire.ExtChunkHeaderSize]byte
	p := space[:wire.ChunkHeaderSize]
	if c.Extended {
		p = space[:]
	}
	if _, err := io.ReadFull(c.br, p); err != nil {
		return chunkHeader{}, err
	}
	h := chunkHeader{flags: binary.BigEndian.Uint16(p[4:]), typ: binary.BigEndian.Uint16(p[6:]), cookie: binary.BigEndian.Uint64(p[8:])}
	if c.Extended {
		h.offset, h.length = binary.BigEndian.Uint64(p[16:]), binary.BigEndian.Uint64(p[24:])
	} else {
		h.length = uint64(binary.BigEndian.Uint32(p[16:]))
	}
	if h.length > 65<<20 {
		return h, fmt.Errorf("chunk of %d bytes", h.length)
	}
	return h, nil
}

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
		switch m := binary.BigEndian.Uint32(magic); {
		case m == wire.MagicSimpleReply && r == nil && !c.Extended:
			return c.simple()
		case m == wire.MagicChunk && !c.Extended, m == wire.MagicExtReply && c.Extended:
		default:
			return nil, fmt.Errorf("reply has magic %#x (first chunk %v, extended headers %v)", m, r == nil, c.Extended)
		}
		h, err := c.chunkHeader()
		if err != nil {
			return nil, err
		}
		if r == nil {
			if req, err = c.take(h.cookie, false); err != nil {
				return nil, err
			}
			r = &Reply{Cookie: h.cookie, Status: map[uint32][]wire.Extent{}}
			if req.Type == wire.CmdRead && req.Length <= 64<<20 {
				r.Data, covered = make([]byte, req.Length), make([]bool, req.Length)
			}
		} else if h.cookie != r.Cookie {
			return nil, fmt.Errorf("chunk of %#x among those of %#x", h.cookie, r.Cookie) // legal, but our server does not
		}
		if c.Extended && h.offset != req.Offset {
			return nil, fmt.Errorf("chunk has offset %d, the request had %d", h.offset, req.Offset)
		}
		payload := make([]byte, h.length)
		if _, err := io.ReadFull(c.br, payload); err != nil {
			return nil, err
		}
		r.Chunks++
		if err := r.chunk(req, h.typ, h.flags, payload, covered); err != nil {
			return nil, err
		}
		if (h.typ == wire.ChunkStatusExt) != c.Extended && (h.typ == wire.ChunkStatusExt || h.typ == wire.ChunkBlockStatus) {
			return nil, fmt.Errorf("status chunk of type %d, extended headers %v", h.typ, c.Extended)
		}
		if h.flags&wire.ChunkFlagDone != 0 {
			_, _ = c.take(h.cookie, true)
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
		r.Holes++
		return r.content(req, binary.BigEndian.Uint64(p), uint64(binary.BigEndian.Uint32(p[8:])), nil, covered)
	case wire.ChunkBlockStatus, wire.ChunkStatusExt:
		return r.status(req, typ == wire.ChunkStatusExt, p)
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
	if off < req.Offset || off-req.Offset+n > req.Length {
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

func (r *Reply) status(req wire.Request, ext bool, p []byte) error {
	head, each := 4, 8
	if ext {
		head, each = 8, 16
	}
	if len(p) < head+each || (len(p)-head)%each != 0 || req.Type != wire.CmdBlockStatus {
		return fmt.Errorf("BLOCK_STATUS chunk of %d bytes to command %d", len(p), req.Type)
	}
	id := binary.BigEndian.Uint32(p)
	if _, twice := r.Status[id]; twice {
		return fmt.Errorf("two chunks for context %d", id)
	}
	if n := (len(p) - head) / each; ext && int(binary.BigEndian.Uint32(p[4:])) != n {
		return fmt.Errorf("%d extents counted, there are %d", binary.BigEndian.Uint32(p[4:]), n)
	}
	var list []wire.Extent
	sum := uint64(0)
	for p = p[head:]; len(p) > 0; p = p[each:] {
		var e wire.Extent
		if ext {
			e = wire.Extent{Length: binary.BigEndian.Uint64(p), Flags: binary.BigEndian.Uint32(p[12:])}
			if high := binary.BigEndian.Uint32(p[8:]); high != 0 {
				return fmt.Errorf("upper half of the flags is %#x", high)
			}
		} else {
			e = wire.Extent{Length: uint64(binary.BigEndian.Uint32(p)), Flags: binary.BigEndian.Uint32(p[4:])}
		}
		if e.Length == 0 || sum >= req.Length {
			return fmt.Errorf("extent %v after %d bytes of %d", e, sum, req.Length)
		}
		sum += e.Length
		list = append(list, e)
	}
	if req.Flags&wire.CmdFlagReqOne != 0 && (len(list) != 1 || sum > req.Length) {
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
