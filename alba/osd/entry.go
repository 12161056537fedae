package osd

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"

	"scoria/internal/blocksum"
	"scoria/internal/frame"
)

// maxEntry bounds an index entry: the block sums of the largest value and some numbers.
const maxEntry = 4*MaxValue/BlockSize + 64

// entryPrefix is what stands in front of the body of an entry: kind, segment, offset.
const entryPrefix = 1 + 4 + 8

// entry is a decoded index entry: what the index knows of a key. It refers to the bytes it was decoded from.
type entry struct {
	kind  uint8  // opPut or opInline
	seg   uint32 // opPut: the segment of the value
	off   uint64 // opPut: the place of the value in it
	size  uint64
	sums  []byte // sealed sums of the blocks, 4 bytes each, little-endian
	value []byte // opInline
}

// blocks returns the number of blocks of the value.
func (e *entry) blocks() int { return len(e.sums) / 4 }

// padded returns the bytes that the value takes in its segment.
func (e *entry) padded() int64 {
	if e.kind != opPut {
		return 0
	}
	return alignUp(int64(e.size))
}

// sum returns the plain sum of a block.
func (e *entry) sum(hash uint64, block int) uint32 {
	return seal(binary.LittleEndian.Uint32(e.sums[4*block:]), hash, block)
}

// keyHash is the place of a key's first block, to which the sums of its blocks are bound.
func keyHash(key []byte) uint64 {
	h := fnv.New64a()
	h.Write(key) //nolint:errcheck // a hash does not fail
	return h.Sum64()
}

func seal(sum uint32, hash uint64, block int) uint32 {
	return blocksum.Seal(sum, hash+uint64(block)*0x9e3779b97f4a7c15)
}

// newEntry makes the index entry of a value; its place is set later. sums are plain, or nil to compute them.
func newEntry(key, value []byte, sums []uint32) []byte {
	if sums == nil {
		sums = blocksum.Sums(make([]uint32, 0, Blocks(uint64(len(value)))), value)
	}
	kind, inline := opPut, []byte(nil)
	if len(value) <= inlineMax {
		kind, inline = opInline, value
	}
	b := make([]byte, entryPrefix, entryPrefix+binary.MaxVarintLen64+4*len(sums)+len(inline))
	b[0] = kind
	b = binary.AppendUvarint(b, uint64(len(value)))
	hash := keyHash(key)
	for i, s := range sums {
		b = binary.LittleEndian.AppendUint32(b, seal(s, hash, i))
	}
	return append(b, inline...)
}

// entryBody is the part of an entry that does not depend on its place.
func entryBody(e []byte) []byte { return e[entryPrefix:] }

// makeEntry is the inverse of entryBody.
func makeEntry(kind uint8, body []byte) []byte {
	b := make([]byte, entryPrefix+len(body))
	b[0] = kind
	copy(b[entryPrefix:], body)
	return b
}

// setPlace sets where the value lies.
func setPlace(e []byte, seg uint32, off uint64) {
	binary.LittleEndian.PutUint32(e[1:], seg)
	binary.LittleEndian.PutUint64(e[5:], off)
}

func parseEntry(b []byte) (entry, error) {
	d := frame.NewDecoder(b)
	e := entry{kind: d.U8(), seg: d.U32(), off: d.U64(), size: d.Uvarint()}
	if d.Err() == nil && (e.size > MaxValue || e.kind == opInline && e.size > inlineMax || e.kind == opPut && e.size == 0) {
		d.Fail("entry of kind %d with %d bytes", e.kind, e.size)
	}
	e.sums = d.Take(4 * int(Blocks(e.size)))
	switch e.kind {
	case opPut:
	case opInline:
		e.value = d.Take(int(e.size))
	default:
		d.Fail("entry of kind %d", e.kind)
	}
	if err := d.Finish(); err != nil {
		return entry{}, fmt.Errorf("index entry: %w", err)
	}
	return e, nil
}
