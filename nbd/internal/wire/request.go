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
	Length uint32
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
		Length: binary.BigEndian.Uint32(b[24:]),
	}, nil
}

// AppendRequest appends a request header as a client sends it.
func AppendRequest(dst []byte, r Request) []byte {
	dst = binary.BigEndian.AppendUint32(dst, MagicRequest)
	dst = binary.BigEndian.AppendUint16(dst, r.Flags)
	dst = binary.BigEndian.AppendUint16(dst, r.Type)
	dst = binary.BigEndian.AppendUint64(dst, r.Cookie)
	dst = binary.BigEndian.AppendUint64(dst, r.Offset)
	return binary.BigEndian.AppendUint32(dst, r.Length)
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

// AppendErrorChunk appends a whole error chunk, the last of its reply.
func AppendErrorChunk(dst []byte, cookie uint64, errno Errno, message string) []byte {
	message = Truncate(message, MaxString)
	dst = AppendChunk(dst, ChunkFlagDone, ChunkError, cookie, uint32(6+len(message)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(errno))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(message)))
	return append(dst, message...)
}

// Extent is one descriptor of a BLOCK_STATUS reply.
type Extent struct {
	Length uint32 // bytes, never 0
	Flags  uint32
}

// AppendStatusChunk appends a whole BLOCK_STATUS chunk for one context.
func AppendStatusChunk(dst []byte, flags uint16, cookie uint64, context uint32, extents []Extent) []byte {
	dst = AppendChunk(dst, flags, ChunkBlockStatus, cookie, uint32(4+8*len(extents)))
	dst = binary.BigEndian.AppendUint32(dst, context)
	for _, e := range extents {
		dst = binary.BigEndian.AppendUint32(dst, e.Length)
		dst = binary.BigEndian.AppendUint32(dst, e.Flags)
	}
	return dst
}
