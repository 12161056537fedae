package codec

import (
	"encoding/binary"

	"scoria/internal/blocksum"
)

// poly is the reflected Castagnoli polynomial.
const poly = 0x82f63b78

// Combiner joins CRC32Cs of consecutive blocks without reading the blocks again. Appending
// 4096 bytes to a message multiplies its CRC by a fixed matrix over GF(2); the matrix is kept
// as four tables of 256, so that a block costs four look-ups.
type Combiner struct {
	shift [4][256]uint32
}

// NewCombiner computes the tables.
func NewCombiner() *Combiner {
	// op[i] is what bit i becomes after one zero byte; squaring doubles the length.
	var op [32]uint32
	for i := range op {
		v := uint32(1) << i
		for range 8 {
			if v&1 != 0 {
				v = v>>1 ^ poly
			} else {
				v >>= 1
			}
		}
		op[i] = v
	}
	for n := 1; n < BlockSize; n *= 2 {
		var sq [32]uint32
		for i := range sq {
			sq[i] = apply(&op, op[i])
		}
		op = sq
	}
	c := &Combiner{}
	for t := range c.shift {
		for b := range c.shift[t] {
			c.shift[t][b] = apply(&op, uint32(b)<<(8*t))
		}
	}
	return c
}

func apply(op *[32]uint32, v uint32) uint32 {
	var r uint32
	for i := 0; v != 0; i, v = i+1, v>>1 {
		if v&1 != 0 {
			r ^= op[i]
		}
	}
	return r
}

// Object returns the CRC32C of data from the plain sums of its blocks; only a short last
// block is read.
func (c *Combiner) Object(data []byte, sums []uint32) uint32 {
	crc, full := uint32(0), len(data)/BlockSize
	for _, s := range sums[:full] {
		crc = c.shift[0][crc&0xff] ^ c.shift[1][crc>>8&0xff] ^ c.shift[2][crc>>16&0xff] ^ c.shift[3][crc>>24] ^ s
	}
	return blocksum.Update(crc, data[full*BlockSize:])
}

// Digest returns the CRC32C over the little-endian block sums of a fragment, as manifests keep it.
func Digest(sums []uint32) uint32 {
	var buf [1024]byte
	crc, n := uint32(0), 0
	for _, s := range sums {
		binary.LittleEndian.PutUint32(buf[n:], s)
		if n += 4; n == len(buf) {
			crc, n = blocksum.Update(crc, buf[:]), 0
		}
	}
	return blocksum.Update(crc, buf[:n])
}
