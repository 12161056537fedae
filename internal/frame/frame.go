// Package frame is the one way in which Scoria frames what it keeps on disk or sends:
// a header with length, type, version and CRC32C in front of a body, plus the small
// bounds-checked Encoder helpers and Decoder that bodies are written and read with.
//
// Layout of a frame, little-endian:
//
//	 0  magic    u32   names the format (each format has its own)
//	 4  type     u8    kind of body, 0 is invalid
//	 5  version  u8    version of the body's layout, 0 is invalid
//	 6  flags    u16   free for the format
//	 8  length   u32   bytes of the body
//	12  crc      u32   CRC32C over bytes 0..11 and the body
//	16  body
//
// A wrong magic, an unknown version and a damaged content are three different errors,
// so that a foreign file, a newer Scoria and a rotten disk are told apart.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"scoria/internal/blocksum"
)

// HeaderSize is the number of bytes in front of a body.
const HeaderSize = 16

// Errors of decoding. All are returned wrapped with what was found.
var (
	ErrMagic     = errors.New("not this format (wrong magic)")
	ErrVersion   = errors.New("unknown format version")
	ErrChecksum  = errors.New("checksum mismatch")
	ErrTooLong   = errors.New("length over the limit")
	ErrTruncated = errors.New("truncated")
	ErrInvalid   = errors.New("invalid content")
)

// Header is a decoded frame header.
type Header struct {
	Type    uint8
	Version uint8
	Flags   uint16
	Length  uint32
	crc     uint32
	sum     uint32 // of the header bytes
}

// Append appends a frame with the given body to dst.
func Append(dst []byte, magic uint32, typ, version uint8, flags uint16, body []byte) []byte {
	start := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, magic)
	dst = append(dst, typ, version)
	dst = binary.LittleEndian.AppendUint16(dst, flags)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(body)))
	crc := blocksum.Update(blocksum.Of(dst[start:]), body)
	dst = binary.LittleEndian.AppendUint32(dst, crc)
	return append(dst, body...)
}

// ParseHeader decodes a header of HeaderSize bytes. maxLength bounds the body that the
// caller is ready to take; version is checked by the caller, who knows the type.
func ParseHeader(b []byte, magic uint32, maxLength uint32) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("frame header: %d bytes: %w", len(b), ErrTruncated)
	}
	if m := binary.LittleEndian.Uint32(b); m != magic {
		return Header{}, fmt.Errorf("frame header: magic %08x, want %08x: %w", m, magic, ErrMagic)
	}
	h := Header{
		Type:    b[4],
		Version: b[5],
		Flags:   binary.LittleEndian.Uint16(b[6:]),
		Length:  binary.LittleEndian.Uint32(b[8:]),
		crc:     binary.LittleEndian.Uint32(b[12:]),
		sum:     blocksum.Of(b[:12]),
	}
	if h.Length > maxLength {
		return Header{}, fmt.Errorf("frame body of %d bytes, limit %d: %w", h.Length, maxLength, ErrTooLong)
	}
	return h, nil
}

// Verify checks the body that follows the header.
func (h Header) Verify(body []byte) error {
	if len(body) != int(h.Length) {
		return fmt.Errorf("frame body: %d of %d bytes: %w", len(body), h.Length, ErrTruncated)
	}
	if got := blocksum.Update(h.sum, body); got != h.crc {
		return fmt.Errorf("frame body: crc %08x, stored %08x: %w", got, h.crc, ErrChecksum)
	}
	return nil
}

// Parse decodes the frame at the start of b and returns its body (a part of b) and what follows.
func Parse(b []byte, magic uint32, maxLength uint32) (h Header, body, rest []byte, err error) {
	h, err = ParseHeader(b, magic, maxLength)
	if err != nil {
		return Header{}, nil, nil, err
	}
	if uint64(len(b)-HeaderSize) < uint64(h.Length) {
		return Header{}, nil, nil, fmt.Errorf("frame body: %d of %d bytes: %w", len(b)-HeaderSize, h.Length, ErrTruncated)
	}
	body = b[HeaderSize : HeaderSize+int(h.Length)]
	if err := h.Verify(body); err != nil {
		return Header{}, nil, nil, err
	}
	return h, body, b[HeaderSize+int(h.Length):], nil
}

// Read reads one frame from r. io.EOF means that r ended between two frames,
// ErrTruncated (wrapped) that it ended inside one.
func Read(r io.Reader, magic uint32, maxLength uint32) (Header, []byte, error) {
	var hb [HeaderSize]byte
	if n, err := io.ReadFull(r, hb[:]); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return Header{}, nil, io.EOF
		}
		return Header{}, nil, fmt.Errorf("frame header: %w", cut(err))
	}
	h, err := ParseHeader(hb[:], magic, maxLength)
	if err != nil {
		return Header{}, nil, err
	}
	body := make([]byte, h.Length)
	if _, err := io.ReadFull(r, body); err != nil {
		return Header{}, nil, fmt.Errorf("frame body of %d bytes: %w", h.Length, cut(err))
	}
	return h, body, h.Verify(body)
}

// cut turns an end of file inside a frame into ErrTruncated: io.EOF means a clean end.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrTruncated
	}
	return err
}

// Decoder reads fields from a body. The first failure sticks: later calls return zero
// values, and Err tells it. No length is believed before it is checked.
type Decoder struct {
	b   []byte
	err error
}

// NewDecoder returns a Decoder over b.
func NewDecoder(b []byte) *Decoder { return &Decoder{b: b} }

// Err returns the first failure.
func (d *Decoder) Err() error { return d.err }

// Rest returns the number of bytes that are left.
func (d *Decoder) Rest() int { return len(d.b) }

// Finish returns the first failure, or ErrInvalid if bytes are left.
func (d *Decoder) Finish() error {
	if d.err == nil && len(d.b) != 0 {
		d.err = fmt.Errorf("%d bytes behind the last field: %w", len(d.b), ErrInvalid)
	}
	return d.err
}

// Fail records a failure found by the caller (an impossible value).
func (d *Decoder) Fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrInvalid)
	}
}

// Take returns the next n bytes without copying them.
func (d *Decoder) Take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n < 0 || n > len(d.b) {
		d.err = fmt.Errorf("%d bytes wanted, %d left: %w", n, len(d.b), ErrTruncated)
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// U8 reads one byte.
func (d *Decoder) U8() uint8 {
	if v := d.Take(1); v != nil {
		return v[0]
	}
	return 0
}

// U16 reads a little-endian 16-bit number.
func (d *Decoder) U16() uint16 {
	if v := d.Take(2); v != nil {
		return binary.LittleEndian.Uint16(v)
	}
	return 0
}

// U32 reads a little-endian 32-bit number.
func (d *Decoder) U32() uint32 {
	if v := d.Take(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}

// U64 reads a little-endian 64-bit number.
func (d *Decoder) U64() uint64 {
	if v := d.Take(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

// Uvarint reads a base-128 number.
func (d *Decoder) Uvarint() uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n < 0 {
		d.err = fmt.Errorf("varint over 64 bits: %w", ErrInvalid)
		return 0
	}
	if n == 0 {
		d.err = fmt.Errorf("varint: %w", ErrTruncated)
		return 0
	}
	d.b = d.b[n:]
	return v
}

// Count reads a Uvarint that counts items of at least size bytes each. It fails when the
// rest of the body cannot hold them, so that the count may be allocated. size is at least 1.
func (d *Decoder) Count(size, limit int) int {
	n := d.Uvarint()
	if d.err == nil && (limit < 0 || n > uint64(limit) || n > uint64(len(d.b))/uint64(max(size, 1))) {
		d.Fail("count %d (limit %d) with %d bytes left", n, limit, len(d.b))
	}
	if d.err != nil {
		return 0
	}
	return int(n)
}

// Bytes reads a byte string (Uvarint length in front) of at most limit bytes, without copying it.
func (d *Decoder) Bytes(limit int) []byte { return d.Take(d.Count(1, limit)) }

// String reads a string of at most limit bytes.
func (d *Decoder) String(limit int) string { return string(d.Bytes(limit)) }

// AppendBytes appends a byte string as Decoder.Bytes reads it.
func AppendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// AppendString appends a string as Decoder.String reads it.
func AppendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}
