// Package blocksum is the checksum of 4 KiB blocks that travels with every block from
// the NBD request to the disk and back.
//
// Of is the plain CRC32C (Castagnoli) of a block. Where a sum is stored it is sealed
// with the place it belongs to, so that a right block at a wrong place fails as well.
// Sealing is an XOR with a mixed address; since a CRC is linear this equals a CRC
// that was started from a seed, and a sum can move from one place to the next
// (cluster map, local log, fragment) without reading the data again:
// stored = Seal(Of(block), place), and Seal(stored, place) gives Of(block) back.
package blocksum

import "hash/crc32"

// BlockSize is the unit of checksums, in bytes: one cluster of a volume.
const BlockSize = 4096

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Of returns the CRC32C of b.
func Of(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Update continues the CRC32C crc with b: Update(Of(a), b) == Of(a followed by b).
func Update(crc uint32, b []byte) uint32 { return crc32.Update(crc, castagnoli, b) }

// Seal binds a plain sum to a place, or frees a sealed one from it: it is its own inverse.
func Seal(sum uint32, place uint64) uint32 { return sum ^ mix(place) }

// mix spreads a place over 32 bits (the finalizer of MurmurHash3, folded). It maps 0
// to a value that is not 0, so that sealing is never the identity by accident.
func mix(x uint64) uint32 {
	x += 0x9e3779b97f4a7c15
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return uint32(x ^ x>>32)
}

// Sums appends the plain sums of all blocks of data to dst. The last block may be short.
func Sums(dst []uint32, data []byte) []uint32 {
	for len(data) > 0 {
		n := min(len(data), BlockSize)
		dst = append(dst, Of(data[:n]))
		data = data[n:]
	}
	return dst
}
