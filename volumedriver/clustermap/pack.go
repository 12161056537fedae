package clustermap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"scoria/internal/blocksum"
	"scoria/internal/frame"
)

// PackStore keeps the packs of one volume. The driver implements it; all methods may be
// called concurrently.
type PackStore interface {
	// WritePack stores pack number, whose bytes the function writes to w in pieces, and
	// returns when it is durable. It replaces whatever an earlier, unpublished attempt
	// left under the number. When the function fails, so does WritePack.
	WritePack(ctx context.Context, number uint32, write func(w io.Writer) error) error
	// ReadPack returns length bytes of a pack from offset off. A pack that is not there
	// is fs.ErrNotExist. The map keeps no reference to the bytes.
	ReadPack(ctx context.Context, number uint32, off, length uint32) ([]byte, error)
}

const (
	typePackHead  = 1
	typePackIndex = 2
	packVersion   = 1

	maxPackSize = 1<<32 - 1
	trailerSize = 16
	maxIndex    = 16 << 20 // bytes of a pack's index
)

// packWriter writes a pack: head frame, pages, index frame, trailer.
type packWriter struct {
	w     io.Writer
	pack  uint32
	off   uint64
	live  int64
	n     uint64 // pages
	index []byte
	buf   []byte
}

func (p *packWriter) write(b []byte) error {
	if p.off+uint64(len(b)) > maxPackSize {
		return fmt.Errorf("cluster map: pack %d is full: %w", p.pack, frame.ErrTooLong)
	}
	if _, err := p.w.Write(b); err != nil {
		return fmt.Errorf("cluster map: write pack %d: %w", p.pack, err)
	}
	p.off += uint64(len(b))
	return nil
}

func (p *packWriter) begin(seq uint64) error {
	body := binary.AppendUvarint(nil, uint64(p.pack))
	body = binary.AppendUvarint(body, seq)
	return p.write(frame.Append(nil, magicPack, typePackHead, packVersion, 0, body))
}

// page writes an encoded page and returns its ref.
func (p *packWriter) page(level int, index uint64, b []byte, count uint64) (ref, error) {
	r := ref{pack: p.pack, off: uint32(p.off), length: uint32(len(b)), crc: blocksum.Of(b), count: count}
	if err := r.check(level); err != nil {
		return ref{}, fmt.Errorf("cluster map: page of level %d, index %d would not be readable: %w", level, index, err)
	}
	if err := p.write(b); err != nil {
		return ref{}, err
	}
	if p.n == 0 {
		p.index = binary.AppendUvarint(p.index, uint64(r.off))
	}
	p.index = append(p.index, byte(level))
	p.index = binary.AppendUvarint(p.index, index)
	p.index = binary.AppendUvarint(p.index, uint64(len(b)))
	p.n++
	p.live += int64(len(b))
	return r, nil
}

// end writes the index and the trailer: length of the index frame, its CRC32C, pack
// number and magic, 4 bytes each.
func (p *packWriter) end() error {
	body := append(binary.AppendUvarint(nil, p.n), p.index...)
	f := frame.Append(nil, magicPack, typePackIndex, packVersion, 0, body)
	length := uint32(len(f))
	sum := blocksum.Of(f)
	for _, v := range []uint32{length, sum, p.pack, magicPack} {
		f = binary.LittleEndian.AppendUint32(f, v)
	}
	return p.write(f)
}

// pagePlace is a page that a pack's index tells of.
type pagePlace struct {
	level       int
	index       uint64
	off, length uint32
}

// readIndex lists the pages of a pack of known size.
func readIndex(ctx context.Context, store PackStore, p PackInfo) ([]pagePlace, error) {
	if p.Size < trailerSize {
		return nil, &CorruptError{p.Number, 0, fmt.Errorf("pack of %d bytes: %w", p.Size, frame.ErrTruncated)}
	}
	tail := uint32(p.Size - trailerSize)
	b, err := readExact(ctx, store, p.Number, tail, trailerSize)
	if err != nil {
		return nil, err
	}
	length, sum := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	number, magic := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	if magic != magicPack || number != p.Number || length > tail || length > maxIndex {
		return nil, &CorruptError{p.Number, tail, fmt.Errorf("trailer of pack %d, index of %d bytes, magic %08x: %w", number, length, magic, frame.ErrInvalid)}
	}
	if b, err = readExact(ctx, store, p.Number, tail-length, length); err != nil {
		return nil, err
	}
	if blocksum.Of(b) != sum {
		return nil, &CorruptError{p.Number, tail - length, frame.ErrChecksum}
	}
	places, err := decodeIndex(b)
	if err != nil {
		return nil, &CorruptError{p.Number, tail - length, err}
	}
	return places, nil
}

// decodeIndex decodes the index frame of a pack.
func decodeIndex(b []byte) ([]pagePlace, error) {
	h, body, rest, err := frame.Parse(b, magicPack, maxIndex)
	if err != nil {
		return nil, err
	}
	if h.Type != typePackIndex || len(rest) != 0 {
		return nil, fmt.Errorf("frame of type %d, %d bytes behind it: %w", h.Type, len(rest), frame.ErrInvalid)
	}
	if h.Version != packVersion {
		return nil, fmt.Errorf("pack version %d: %w", h.Version, frame.ErrVersion)
	}
	d := frame.NewDecoder(body)
	n := d.Count(3, maxIndex)
	places := make([]pagePlace, 0, n)
	var off uint64
	if n > 0 {
		off = d.Uvarint()
	}
	for range n {
		level, index, length := int(d.U8()), d.Uvarint(), d.Uvarint()
		if level > maxHeight || length == 0 || length > maxPage || off < frame.HeaderSize || off+length > maxPackSize {
			d.Fail("page of level %d at %d, %d bytes", level, off, length)
		}
		if d.Err() != nil {
			break
		}
		places = append(places, pagePlace{level, index, uint32(off), uint32(length)})
		off += length
	}
	if err := d.Finish(); err != nil {
		return nil, err
	}
	return places, nil
}

// readExact reads length bytes or fails.
func readExact(ctx context.Context, store PackStore, number, off, length uint32) ([]byte, error) {
	b, err := store.ReadPack(ctx, number, off, length)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, &CorruptError{number, off, fmt.Errorf("pack ends early: %w", err)}
	}
	if err != nil {
		return nil, fmt.Errorf("cluster map: read pack %d at %d: %w", number, off, err)
	}
	if uint64(len(b)) != uint64(length) {
		return nil, &CorruptError{number, off, fmt.Errorf("%d of %d bytes: %w", len(b), length, frame.ErrTruncated)}
	}
	return b, nil
}
