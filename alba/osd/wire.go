package osd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"scoria/internal/blocksum"
	"scoria/internal/frame"
	"scoria/internal/vfs"
)

// The protocol is described in FORMAT.md. A message is a frame, whose checksum covers all of it but
// the values; those follow the frame as the message's tail, and are covered by the block sums in it.

const (
	wireMagic         = 0x57444f53 // "SODW"
	wireVersion uint8 = 1

	// maxFrame bounds the frame of a message: keys, sums and small fields of the largest batch.
	maxFrame = MaxBatchOps*(MaxKey+32) + 4*(MaxBatch/BlockSize+MaxBatchOps) + MaxBatch/16
	// maxText bounds the text of an error.
	maxText = 4096
)

// Types of messages.
const (
	msgHello       uint8 = 1
	msgApply       uint8 = 2
	msgRead        uint8 = 3
	msgList        uint8 = 4
	msgDeleteRange uint8 = 5
	msgVerify      uint8 = 6
	msgInfo        uint8 = 7
	msgClaim       uint8 = 8

	msgReply uint8 = 128 // + the type it answers
)

// Kinds of errors on the wire.
var wireErrors = []struct {
	code uint8
	err  error
}{
	{1, ErrAssertFailed}, {2, ErrFull}, {3, ErrNotFound}, {4, ErrCorrupt}, {5, ErrUnavailable},
	{6, ErrInvalid}, {7, ErrWrongOSD}, {8, context.DeadlineExceeded}, {9, context.Canceled},
}

const codeOther uint8 = 255

// remoteError is an error of the server.
type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

func appendError(dst []byte, err error) []byte {
	if err == nil {
		return append(dst, 0)
	}
	code := codeOther
	for _, w := range wireErrors {
		if errors.Is(err, w.err) {
			code = w.code
			break
		}
	}
	text := err.Error()
	return frame.AppendString(append(dst, code), text[:min(len(text), maxText)])
}

func decodeError(d *frame.Decoder, key []byte) error {
	code := d.U8()
	if code == 0 || d.Err() != nil {
		return nil
	}
	text := d.String(maxText)
	for _, w := range wireErrors {
		if w.code == code {
			if w.err == ErrNotFound && key != nil {
				return NotFound(key)
			}
			return &remoteError{text, w.err}
		}
	}
	return &remoteError{text, ErrUnavailable}
}

// message builds the frame of a message: begin, fields, end.
func beginMessage(dst []byte, id uint64) []byte {
	dst = append(dst[:0], make([]byte, frame.HeaderSize)...)
	dst = binary.LittleEndian.AppendUint64(dst, id)
	return binary.LittleEndian.AppendUint64(dst, 0) // length of the tail
}

// endMessage fills in the frame's header and the length of the tail.
func endMessage(b []byte, typ uint8, tail [][]byte) {
	var n uint64
	for _, t := range tail {
		n += uint64(len(t))
	}
	binary.LittleEndian.PutUint64(b[frame.HeaderSize+8:], n)
	sealFrame(b, wireMagic, typ, wireVersion)
}

// maxTail bounds what follows a frame.
const maxTail = MaxBatch

// readMessage reads a frame, but not its tail. The body is in buf, or in a larger one that replaces it.
func readMessage(r io.Reader, buf []byte, limit uint32) (_ []byte, typ uint8, id, tail uint64, d *frame.Decoder, err error) {
	fail := func(err error) ([]byte, uint8, uint64, uint64, *frame.Decoder, error) { return buf, 0, 0, 0, nil, err }
	var hb [frame.HeaderSize]byte
	if _, err := io.ReadFull(r, hb[:]); err != nil {
		return fail(err)
	}
	h, err := frame.ParseHeader(hb[:], wireMagic, limit)
	if err != nil {
		return fail(err)
	}
	if h.Version != wireVersion {
		return fail(fmt.Errorf("message of version %d, this program speaks %d: %w", h.Version, wireVersion, frame.ErrVersion))
	}
	buf = grow(buf, int(h.Length))
	if _, err := io.ReadFull(r, buf); err != nil {
		return fail(fmt.Errorf("message body: %w", err))
	}
	if err := h.Verify(buf); err != nil {
		return fail(err)
	}
	d = frame.NewDecoder(buf)
	id, tail = d.U64(), d.U64()
	if d.Err() == nil && tail > maxTail {
		d.Fail("tail of %d bytes, limit %d", tail, maxTail)
	}
	return buf, h.Type, id, tail, d, d.Err()
}

// hello opens a connection.
type hello struct {
	UUID string // client: whom it expects, "" for anybody; server: who it is
}

func appendHello(dst []byte, h hello) []byte { return frame.AppendString(dst, h.UUID) }

func decodeHello(d *frame.Decoder) hello { return hello{UUID: d.String(64)} }

func appendSums(dst []byte, sums []uint32) []byte {
	for _, s := range sums {
		dst = binary.LittleEndian.AppendUint32(dst, s)
	}
	return dst
}

func decodeSums(d *frame.Decoder, n int, into []uint32) []uint32 {
	b := d.Take(4 * n)
	for i := 0; i+4 <= len(b); i += 4 {
		into = append(into, binary.LittleEndian.Uint32(b[i:]))
	}
	return into
}

// appendBatch appends a batch without the values of its puts, which are returned to be sent behind the frame.
func appendBatch(dst []byte, b *Batch) (_ []byte, tail [][]byte) {
	var flags uint8
	if b.Background {
		flags = 1
	}
	dst = append(dst, flags)
	dst = binary.AppendUvarint(dst, uint64(len(b.Asserts)))
	for i := range b.Asserts {
		a := &b.Asserts[i]
		dst = frame.AppendBytes(dst, a.Key)
		var exists uint8
		if a.Exists {
			exists = 1
		}
		dst = append(dst, exists)
		dst = binary.AppendUvarint(dst, uint64(len(a.Value)))
		dst = appendSums(dst, blocksum.Sums(nil, a.Value))
		tail = appendTail(tail, a.Value)
	}
	dst = binary.AppendUvarint(dst, uint64(len(b.Puts)))
	for i := range b.Puts {
		p := &b.Puts[i]
		dst = frame.AppendBytes(dst, p.Key)
		dst = binary.AppendUvarint(dst, uint64(len(p.Value)))
		sums := p.Sums
		if sums == nil {
			sums = blocksum.Sums(nil, p.Value)
		}
		dst = appendSums(dst, sums)
		tail = appendTail(tail, p.Value)
	}
	dst = binary.AppendUvarint(dst, uint64(len(b.Deletes)))
	for _, k := range b.Deletes {
		dst = frame.AppendBytes(dst, k)
	}
	return dst, tail
}

func appendTail(tail [][]byte, v []byte) [][]byte {
	if len(v) == 0 {
		return tail
	}
	return append(tail, v)
}

// decodeBatch decodes a batch whose values are still to be read. sizes are those of the values: of the
// asserts, then of the puts. Their sum is at most MaxBatch. Keys are copies.
func decodeBatch(d *frame.Decoder) (b *Batch, assertSums [][]uint32, sizes []int) {
	b = &Batch{Background: d.U8()&1 != 0}
	total := uint64(0)
	value := func() (int, []uint32) {
		n := d.Uvarint()
		if total += n; n > MaxValue || total > MaxBatch {
			d.Fail("values of more than %d bytes", MaxBatch)
			return 0, nil
		}
		return int(n), decodeSums(d, int(Blocks(n)), make([]uint32, 0, min(int(Blocks(n)), d.Rest()/4)))
	}
	for range d.Count(3, MaxBatchOps) {
		a := Assert{Key: clone(d.Bytes(MaxKey)), Exists: d.U8() != 0}
		n, sums := value()
		b.Asserts, assertSums, sizes = append(b.Asserts, a), append(assertSums, sums), append(sizes, n)
	}
	for range d.Count(2, MaxBatchOps) {
		p := Put{Key: clone(d.Bytes(MaxKey))}
		n, sums := value()
		p.Sums = sums
		b.Puts, sizes = append(b.Puts, p), append(sizes, n)
	}
	for range d.Count(1, MaxBatchOps) {
		b.Deletes = append(b.Deletes, clone(d.Bytes(MaxKey)))
	}
	return b, assertSums, sizes
}

func clone(b []byte) []byte { return append([]byte(nil), b...) }

// slab is the memory of the values of a batch: aligned, so that the store can write them from it.
// Each value begins at a block.
func slabSize(sizes []int) int64 {
	var n int64
	for _, s := range sizes {
		n += alignUp(int64(s))
	}
	return n
}

// place gives the values their parts of the slab and returns them in order.
func place(b *Batch, sizes []int, slab []byte) [][]byte {
	parts := make([][]byte, len(sizes))
	for i, n := range sizes {
		parts[i] = slab[:n:n]
		slab = slab[alignUp(int64(n)):]
		if i < len(b.Asserts) {
			b.Asserts[i].Value = parts[i]
		} else {
			b.Puts[i-len(b.Asserts)].Value = parts[i]
		}
	}
	return parts
}

// checkSums compares received values with the sums that came with them.
func checkSums(what string, v []byte, sums []uint32) error {
	for i := range sums {
		if blocksum.Of(v[i*BlockSize:min((i+1)*BlockSize, len(v))]) != sums[i] {
			return fmt.Errorf("%s: block %d does not fit its checksum: %w", what, i, ErrCorrupt)
		}
	}
	return nil
}

func appendReads(dst []byte, reads []Read) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(reads)))
	for i := range reads {
		dst = frame.AppendBytes(dst, reads[i].Key)
		dst = binary.AppendUvarint(dst, reads[i].Off)
		dst = binary.AppendUvarint(dst, uint64(len(reads[i].Buf)))
	}
	return dst
}

// decodeReads decodes reads and the bytes they ask for, in all at most MaxReadBytes.
func decodeReads(d *frame.Decoder) (reads []Read, sizes []int) {
	total := uint64(0)
	for range d.Count(3, MaxReadOps) {
		r := Read{Key: clone(d.Bytes(MaxKey)), Off: d.Uvarint()}
		n := d.Uvarint()
		if total += n; n > MaxReadBytes || total > MaxReadBytes {
			d.Fail("reads of more than %d bytes", MaxReadBytes)
			return nil, nil
		}
		reads, sizes = append(reads, r), append(sizes, int(n))
	}
	return reads, sizes
}

// appendReadResults appends the outcome of reads; what was read follows the frame.
func appendReadResults(dst []byte, reads []Read) (_ []byte, tail [][]byte) {
	dst = binary.AppendUvarint(dst, uint64(len(reads)))
	for i := range reads {
		r := &reads[i]
		dst = appendError(dst, r.Err)
		dst = binary.AppendUvarint(dst, r.Size)
		if r.Err == nil {
			dst = appendSums(dst, r.Sums)
			tail = appendTail(tail, r.Buf)
		}
	}
	return dst, tail
}

// decodeReadResults sets the outcome of the reads and returns the buffers to fill, in order.
func decodeReadResults(d *frame.Decoder, reads []Read) (tail [][]byte) {
	if n := d.Count(1, MaxReadOps); n != len(reads) {
		d.Fail("%d results for %d reads", n, len(reads))
		return nil
	}
	for i := range reads {
		r := &reads[i]
		r.Err = decodeError(d, r.Key)
		r.Size, r.Sums = d.Uvarint(), r.Sums[:0]
		if r.Err == nil {
			r.Sums = decodeSums(d, int(Blocks(uint64(len(r.Buf)))), r.Sums)
			tail = appendTail(tail, r.Buf)
		}
	}
	return tail
}

// appendBound appends a bound of a range; nil and empty are different.
func appendBound(dst, b []byte) []byte {
	if b == nil {
		return append(dst, 0)
	}
	return frame.AppendBytes(append(dst, 1), b)
}

func decodeBound(d *frame.Decoder) []byte {
	if d.U8() == 0 {
		return nil
	}
	return append([]byte{}, d.Bytes(MaxKey+1)...)
}

func appendItems(dst []byte, items []Item) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(items)))
	for i := range items {
		dst = frame.AppendBytes(dst, items[i].Key)
		dst = binary.AppendUvarint(dst, items[i].Size)
	}
	return dst
}

func decodeItems(d *frame.Decoder) (items []Item) {
	for range d.Count(2, MaxList) {
		items = append(items, Item{Key: clone(d.Bytes(MaxKey)), Size: d.Uvarint()})
	}
	return items
}

// maxBad bounds the findings of one Verify on the wire; Verify looks at fewer keys.
const maxBad = verifyKeys

func appendVerify(dst []byte, bad []Bad, checked uint64, next []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(bad)))
	for i := range bad {
		dst = frame.AppendBytes(dst, bad[i].Key)
		dst = binary.AppendUvarint(dst, uint64(bad[i].Block))
		dst = frame.AppendString(dst, bad[i].Text[:min(len(bad[i].Text), 256)])
	}
	dst = binary.AppendUvarint(dst, checked)
	return appendBound(dst, next)
}

func decodeVerify(d *frame.Decoder) (bad []Bad, checked uint64, next []byte) {
	for range d.Count(3, maxBad) {
		b := Bad{Key: clone(d.Bytes(MaxKey))}
		n := d.Uvarint()
		if n > math.MaxUint32 {
			d.Fail("block %d", n)
		}
		b.Block, b.Text = uint32(n), d.String(256)
		bad = append(bad, b)
	}
	return bad, d.Uvarint(), decodeBound(d)
}

func infoNumbers(in *Info) []*uint64 {
	s := &in.Stats
	return []*uint64{
		&in.Capacity, &in.Used, &in.Keys, &s.Applies, &s.Puts, &s.Deletes, &s.Reads, &s.ReadBlocks,
		&s.BytesWritten, &s.BytesRead, &s.Syncs, &s.Groups, &s.AssertFailures, &s.CorruptBlocks,
	}
}

func appendInfo(dst []byte, in Info) []byte {
	dst = frame.AppendString(dst, in.UUID)
	dst = frame.AppendString(dst, in.Backend)
	dst = binary.LittleEndian.AppendUint32(dst, in.ID)
	var full uint8
	if in.Full {
		full = 1
	}
	dst = frame.AppendString(append(dst, full), in.Failed[:min(len(in.Failed), maxText)])
	for _, n := range infoNumbers(&in) {
		dst = binary.AppendUvarint(dst, *n)
	}
	return dst
}

func decodeInfo(d *frame.Decoder) (in Info) {
	in.UUID, in.Backend, in.ID = d.String(64), d.String(MaxBackend), d.U32()
	in.Full, in.Failed = d.U8() != 0, d.String(maxText)
	for _, n := range infoNumbers(&in) {
		*n = d.Uvarint()
	}
	return in
}

// slabs hands out aligned buffers and takes them back, by powers of two up to 8 MiB.
type slabs struct{ pools [12]sync.Pool }

func slabClass(n int64) int {
	c := 0
	for align<<c < n {
		c++
	}
	return c
}

func (s *slabs) get(n int64) []byte {
	if n == 0 {
		return nil
	}
	c := slabClass(n)
	if c >= len(s.pools) {
		return vfs.AlignedBuffer(int(n))
	}
	if p, ok := s.pools[c].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	return vfs.AlignedBuffer(align << c)[:n]
}

func (s *slabs) put(b []byte) {
	if cap(b) == 0 {
		return
	}
	if c := slabClass(int64(cap(b))); c < len(s.pools) && align<<c == cap(b) {
		b = b[:cap(b)]
		s.pools[c].Put(&b)
	}
}
