package clustermap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"scoria/internal/frame"
)

// DumpRecord writes what a checkpoint record says as text for people, one fact a line.
func DumpRecord(w io.Writer, b []byte) error {
	info, err := DecodeRecord(b)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "map checkpoint: record %d, %d clusters, %d mapped, %d packs, next pack %d\n",
		info.Seq, info.Clusters, info.Mapped, len(info.Packs), info.NextPack)
	for _, p := range info.Packs {
		if err == nil {
			_, err = fmt.Fprintf(w, "pack %d: %d bytes, %d of them live\n", p.Number, p.Size, p.Live)
		}
	}
	return err
}

// DumpPack writes what a pack of size bytes holds as text for people: a line about the whole
// and one for each page of its index. Pages themselves are not verified: their sums are kept
// by the pages and records that point to them.
func DumpPack(w io.Writer, pack io.ReaderAt, size int64) error {
	s := onePack{pack, size}
	if size < trailerSize+frame.HeaderSize || size > maxPackSize {
		return &CorruptError{0, 0, fmt.Errorf("pack of %d bytes: %w", size, frame.ErrTruncated)}
	}
	tail, err := s.ReadPack(context.Background(), 0, uint32(size-trailerSize), trailerSize)
	if err != nil {
		return err
	}
	number := binary.LittleEndian.Uint32(tail[8:])
	head, err := s.ReadPack(context.Background(), number, 0, uint32(min(size, maxPackHead)))
	if err != nil {
		return err
	}
	h, body, _, err := frame.Parse(head, magicPack, maxPackHead)
	if err != nil {
		return &CorruptError{number, 0, err}
	}
	if h.Type != typePackHead {
		return &CorruptError{number, 0, fmt.Errorf("frame of type %d: %w", h.Type, frame.ErrInvalid)}
	}
	if h.Version != packVersion {
		return fmt.Errorf("pack version %d: %w", h.Version, frame.ErrVersion)
	}
	d := frame.NewDecoder(body)
	said, seq := d.Uvarint(), d.Uvarint()
	if said != uint64(number) {
		d.Fail("head of pack %d, trailer of pack %d", said, number)
	}
	if err := d.Finish(); err != nil {
		return &CorruptError{number, 0, err}
	}
	places, err := readIndex(context.Background(), s, PackInfo{Number: number, Size: size})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "map pack %d: made at record %d, %d bytes, %d pages\n", number, seq, size, len(places)); err != nil {
		return err
	}
	for _, p := range places {
		if _, err := fmt.Fprintf(w, "page of level %d, index %d: %d bytes at %d\n", p.level, p.index, p.length, p.off); err != nil {
			return err
		}
	}
	return nil
}

// maxPackHead bounds the frame that a pack starts with, in bytes.
const maxPackHead = 4096

// onePack is a PackStore of a single pack that is only read.
type onePack struct {
	r    io.ReaderAt
	size int64
}

var errReadOnly = errors.New("pack is only read")

func (onePack) WritePack(context.Context, uint32, func(io.Writer) error) error { return errReadOnly }

func (o onePack) ReadPack(_ context.Context, _ uint32, off, length uint32) ([]byte, error) {
	if int64(off)+int64(length) > o.size {
		return nil, io.ErrUnexpectedEOF
	}
	b := make([]byte, length)
	_, err := io.ReadFull(io.NewSectionReader(o.r, int64(off), int64(length)), b)
	return b, err
}
