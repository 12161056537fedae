package wire

import (
	"encoding/binary"
	"fmt"
)

// Request is the header of a request.
type Request struct {
	Flags  uint16
	Type   uint16
	Cookie uint64 // opaque, echoed in the reply
	Offset uint64
	Length uint64 // 32 bits on the wire, but 64 with extended headers
	// Only has bit i set for each context id i that the payload of a BLOCK_STATUS asks
	// about; 0 means all.
	Only uint32
}

// ParseRequest reads the first RequestSize bytes of b. The only error is a wrong magic (or
// a short b): whether the content makes sense is for the server to answer.
func ParseRequest(b []byte) (Request, error) {
	if len(b) < RequestSize {
		return Request{}, fmt.Errorf("%w: request header of %d bytes", ErrInvalid, len(b))
	}
	_ = b[RequestSize-1]
	if m := binary.BigEndian.Uint32(b); m != MagicRequest {
		return Request{}, fmt.Errorf("%w %#x of a request", ErrMagic, m)
	}
	return Request{
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Type:   binary.BigEndian.Uint16(b[6:]),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Offset: binary.BigEndian.Uint64(b[16:]),
		Length: uint64(binary.BigEndian.Uint32(b[24:])),
	}, nil
}

// AppendRequest appends a request header as a client sends it.
func AppendRequest(dst []byte, r Request) []byte {
	dst = binary.BigEndian.AppendUint32(dst, MagicRequest)
	dst = binary.BigEndian.AppendUint16(dst, r.Flags)
	dst = binary.BigEndian.AppendUint16(dst, r.Type)
	dst = binary.BigEndian.AppendUint64(dst, r.Cookie)
	dst = binary.BigEndian.AppendUint64(dst, r.Offset)
	return binary.BigEndian.AppendUint32(dst, uint32(r.Length))
}

// ParseExtRequest is ParseRequest where extended headers were agreed: it reads the first
// ExtRequestSize bytes.
func ParseExtRequest(b []byte) (Request, error) {
	if len(b) < ExtRequestSize {
		return Request{}, fmt.Errorf("%w: extended request header of %d bytes", ErrInvalid, len(b))
	}
	_ = b[ExtRequestSize-1]
	if m := binary.BigEndian.Uint32(b); m != MagicExtRequest {
		return Request{}, fmt.Errorf("%w %#x of an extended request", ErrMagic, m)
	}
	return Request{
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Type:   binary.BigEndian.Uint16(b[6:]),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Offset: binary.BigEndian.Uint64(b[16:]),
		Length: binary.BigEndian.Uint64(b[24:]),
	}, nil
}

// AppendExtRequest appends an extended request header as a client sends it.
func AppendExtRequest(dst []byte, r Request) []byte {
	dst = binary.BigEndian.AppendUint32(dst, MagicExtRequest)
	dst = binary.BigEndian.AppendUint16(dst, r.Flags)
	dst = binary.BigEndian.AppendUint16(dst, r.Type)
	dst = binary.BigEndian.AppendUint64(dst, r.Cookie)
	dst = binary.BigEndian.AppendUint64(dst, r.Offset)
	return binary.BigEndian.AppendUint64(dst, r.Length)
}

// AppendSimpleReply appends the 16 bytes of a simple reply; a successful READ is followed
// by its data.
func AppendSimpleReply(dst []byte, cookie uint64, errno Errno) []byte {
	dst = binary.BigEndian.AppendUint32(dst, MagicSimpleReply)
	dst = binary.BigEndian.AppendUint32(dst, uint32(errno))
	return binary.BigEndian.AppendUint64(dst, cookie)
}

// AppendChunk appends the header of a chunk with length bytes to follow.
func AppendChunk(dst []byte, flags, typ uint16, cookie uint64, length uint32) []byte {
	dst = binary.BigEndian.AppendUint32(dst, MagicChunk)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	dst = binary.BigEndian.AppendUint16(dst, typ)
	dst = binary.BigEndian.AppendUint64(dst, cookie)
	return binary.BigEndian.AppendUint32(dst, length)
}

// AppendDataChunk appends what stands before length bytes of data read at offset, the last
// (and only) chunk of its reply.
func AppendDataChunk(dst []byte, cookie, offset uint64, length uint32) []byte {
	dst = AppendChunk(dst, ChunkFlagDone, ChunkOffsetData, cookie, 8+length)
	return binary.BigEndian.AppendUint64(dst, offset)
}

// AppendHoleChunk appends a whole reply that says that length bytes at offset are zeroes.
func AppendHoleChunk(dst []byte, cookie, offset uint64, length uint32) []byte {
	dst = AppendChunk(dst, ChunkFlagDone, ChunkOffsetHole, cookie, 12)
	dst = binary.BigEndian.AppendUint64(dst, offset)
	return binary.BigEndian.AppendUint32(dst, length)
}

// AppendErrorChunk appends a whole error chunk, the last of its reply.
func AppendErrorChunk(dst []byte, cookie uint64, errno Errno, message string) []byte {
	message = Truncate(message, MaxString)
	dst = AppendChunk(dst, ChunkFlagDone, ChunkError, cookie, uint32(6+len(message)))
	return appendError(dst, errno, message)
}

func appendError(dst []byte, errno Errno, message string) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(errno))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(message)))
	return append(dst, message...)
}

// Extent is one descriptor of a BLOCK_STATUS reply.
type Extent struct {
	Length uint64 // bytes, never 0; below 4 GiB without extended headers
	Flags  uint32
}

// AppendStatusChunk appends a whole BLOCK_STATUS chunk for one context.
func AppendStatusChunk(dst []byte, flags uint16, cookie uint64, context uint32, extents []Extent) []byte {
	dst = AppendChunk(dst, flags, ChunkBlockStatus, cookie, uint32(4+8*len(extents)))
	dst = binary.BigEndian.AppendUint32(dst, context)
	for _, e := range extents {
		dst = binary.BigEndian.AppendUint32(dst, uint32(e.Length))
		dst = binary.BigEndian.AppendUint32(dst, e.Flags)
	}
	return dst
}

// AppendExtChunk appends the header of an extended chunk in reply to req, with length bytes
// to follow.
func AppendExtChunk(dst []byte, flags, typ uint16, req *Request, length uint64) []byte {
	dst = binary.BigEndian.AppendUint32(dst, MagicExtReply)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	dst = binary.BigEndian.AppendUint16(dst, typ)
	dst = binary.BigEndian.AppendUint64(dst, req.Cookie)
	dst = binary.BigEndian.AppendUint64(dst, req.Offset)
	return binary.BigEndian.AppendUint64(dst, length)
}

// AppendExtDataChunk appends what stands before all the data of a READ, in one chunk.
func AppendExtDataChunk(dst []byte, req *Request) []byte {
	dst = AppendExtChunk(dst, ChunkFlagDone, ChunkOffsetData, req, 8+req.Length)
	return binary.BigEndian.AppendUint64(dst, req.Offset)
}

// AppendExtHoleChunk appends a whole reply that says that the range of a READ is zeroes.
func AppendExtHoleChunk(dst []byte, req *Request) []byte {
	dst = AppendExtChunk(dst, ChunkFlagDone, ChunkOffsetHole, req, 12)
	dst = binary.BigEndian.AppendUint64(dst, req.Offset)
	return binary.BigEndian.AppendUint32(dst, uint32(req.Length))
}

// AppendExtErrorChunk appends a whole error chunk, the last of its reply.
func AppendExtErrorChunk(dst []byte, req *Request, errno Errno, message string) []byte {
	message = Truncate(message, MaxString)
	dst = AppendExtChunk(dst, ChunkFlagDone, ChunkError, req, uint64(6+len(message)))
	return appendError(dst, errno, message)
}

// AppendExtStatusChunk appends a whole BLOCK_STATUS_EXT chunk for one context.
func AppendExtStatusChunk(dst []byte, flags uint16, req *Request, context uint32, extents []Extent) []byte {
	dst = AppendExtChunk(dst, flags, ChunkStatusExt, req, uint64(8+16*len(extents)))
	dst = binary.BigEndian.AppendUint32(dst, context)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(extents)))
	for _, e := range extents {
		dst = binary.BigEndian.AppendUint64(dst, e.Length)
		dst = binary.BigEndian.AppendUint64(dst, uint64(e.Flags))
	}
	return dst
}

// StatusRequest is the payload of a BLOCK_STATUS that asks about some of its contexts only.
type StatusRequest struct {
	Length uint64   // of the range, in place of that of the header
	IDs    []uint32 // of contexts
}

// ParseStatusRequest parses the payload of a BLOCK_STATUS and appends the ids to ids.
func ParseStatusRequest(p []byte, ids []uint32) (StatusRequest, error) {
	if len(p) < 8 || len(p)%4 != 0 {
		return StatusRequest{}, fmt.Errorf("%w: BLOCK_STATUS with a payload of %d bytes", ErrInvalid, len(p))
	}
	r := StatusRequest{Length: binary.BigEndian.Uint64(p), IDs: ids}
	for p = p[8:]; len(p) > 0; p = p[4:] {
		r.IDs = append(r.IDs, binary.BigEndian.Uint32(p))
	}
	return r, nil
}

// AppendStatusRequest appends the payload of a BLOCK_STATUS as a client sends it.
func AppendStatusRequest(dst []byte, r StatusRequest) []byte {
	dst = binary.BigEndian.AppendUint64(dst, r.Length)
	for _, id := range r.IDs {
		dst = binary.BigEndian.AppendUint32(dst, id)
	}
	return dst
}
