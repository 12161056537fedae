// Package codec turns the plain bytes of a chunk into the fragments that disk servers keep,
// and back: compress and encrypt by unit, cut into k data fragments, add m parity fragments
// by Reed–Solomon, and know the checksum of every 4 KiB block of every fragment.
//
// The package is pure: no I/O, no clock, no randomness. FORMAT.md tells the layout.
package codec

import (
	"errors"
	"fmt"

	"scoria/internal/blocksum"
	"scoria/metadata"
)

// BlockSize is the grain of fragments and of their checksums, in bytes.
const BlockSize = blocksum.BlockSize

// Limits of what the codec takes.
const (
	MaxChunk  = 64 << 20           // plain bytes of a chunk
	MaxChunks = metadata.MaxChunks // of an object: a chunk's number is 16 bits in a key
)

// Sizes of the units that are compressed and encrypted as one, in plain bytes. A read of
// 4 KiB costs one unit: smaller units read less, larger ones compress better.
const (
	UnitCompressed = 32 << 10
	UnitEncrypted  = 16 << 10
)

// Errors of the codec.
var (
	ErrDamaged = errors.New("codec: damaged data")       // fails authentication, decompression or a checksum
	ErrTooFew  = errors.New("codec: too few fragments")  // fewer than k
	ErrInvalid = errors.New("codec: impossible request") // sizes or parameters that cannot be
)

// UnitSize returns the unit size for new objects: 0 when neither compression nor encryption is wanted.
func UnitSize(c metadata.Compression, e metadata.Encryption) uint32 {
	switch {
	case c != metadata.CompressNone:
		return UnitCompressed
	case e != metadata.EncryptNone:
		return UnitEncrypted
	}
	return 0
}

// FragmentLen returns the length of each fragment of a chunk with packed bytes cut in k: a
// multiple of BlockSize, and at least one block.
func FragmentLen(packed uint32, k int) uint32 {
	per := (uint64(packed) + uint64(k) - 1) / uint64(k)
	blocks := max((per+BlockSize-1)/BlockSize, 1)
	return uint32(blocks * BlockSize)
}

// Chunks returns the number of chunks of an object of size bytes; 0 for an empty one, which is inline.
func Chunks(size uint64, chunkSize uint32) int {
	return int((size + uint64(chunkSize) - 1) / uint64(chunkSize))
}

// Units returns the number of units in a chunk of size plain bytes.
func Units(size, unitSize uint32) int {
	if unitSize == 0 {
		return 0
	}
	return int((uint64(size) + uint64(unitSize) - 1) / uint64(unitSize))
}

// CheckManifest tells whether a manifest describes something that can be read: all lengths
// agree with each other, so that readers may trust them.
func CheckManifest(m *metadata.Manifest) error {
	if m == nil {
		return fmt.Errorf("no manifest: %w", ErrInvalid)
	}
	if m.Inline != nil {
		plain := m.Compression == metadata.CompressNone && m.Encryption == metadata.EncryptNone
		if (plain && uint64(len(m.Inline)) != m.Size) || m.Size > metadata.MaxInlineLimit || len(m.Chunks) != 0 {
			return fmt.Errorf("manifest of %q: %d inline bytes, size %d, %d chunks: %w", m.Name, len(m.Inline), m.Size, len(m.Chunks), ErrInvalid)
		}
		return nil
	}
	if err := m.Policy.Validate(); err != nil {
		return fmt.Errorf("manifest of %q: %w", m.Name, err)
	}
	if len(m.Chunks) == 0 || len(m.Chunks) > MaxChunks {
		return fmt.Errorf("manifest of %q: %d chunks: %w", m.Name, len(m.Chunks), ErrInvalid)
	}
	total := uint64(0)
	for i := range m.Chunks {
		if err := checkChunk(m, i); err != nil {
			return fmt.Errorf("manifest of %q, chunk %d: %w", m.Name, i, err)
		}
		total += uint64(m.Chunks[i].Size)
	}
	if total != m.Size {
		return fmt.Errorf("manifest of %q: chunks hold %d bytes of %d: %w", m.Name, total, m.Size, ErrInvalid)
	}
	return nil
}

func checkChunk(m *metadata.Manifest, i int) error {
	ch := &m.Chunks[i]
	last := i == len(m.Chunks)-1
	switch {
	case ch.Size == 0 || ch.Size > MaxChunk || (!last && (ch.Size != m.Chunks[0].Size || ch.Size%BlockSize != 0)) || ch.Size > m.Chunks[0].Size:
		return fmt.Errorf("size %d: %w", ch.Size, ErrInvalid)
	case len(ch.Fragments) != m.Policy.K+m.Policy.M:
		return fmt.Errorf("%d fragments for policy %v: %w", len(ch.Fragments), m.Policy, ErrInvalid)
	case ch.FragmentLen != FragmentLen(ch.Packed, m.Policy.K):
		return fmt.Errorf("fragments of %d bytes for %d packed ones: %w", ch.FragmentLen, ch.Packed, ErrInvalid)
	case m.UnitSize == 0 && (ch.Packed != ch.Size || len(ch.Units) != 0 || m.Encryption == metadata.EncryptAES256GCM):
		return fmt.Errorf("packed %d of %d without units: %w", ch.Packed, ch.Size, ErrInvalid)
	case m.UnitSize != 0 && (m.UnitSize%BlockSize != 0 || len(ch.Units) != Units(ch.Size, m.UnitSize)):
		return fmt.Errorf("%d units of %d bytes: %w", len(ch.Units), m.UnitSize, ErrInvalid)
	}
	sum := uint64(0)
	for _, u := range ch.Units {
		if u > m.UnitSize+Overhead {
			return fmt.Errorf("unit of %d bytes: %w", u, ErrInvalid)
		}
		sum += uint64(u)
	}
	if m.UnitSize != 0 && sum != uint64(ch.Packed) {
		return fmt.Errorf("units hold %d bytes of %d: %w", sum, ch.Packed, ErrInvalid)
	}
	return nil
}
