package history

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Sector is the unit of stamps, in bytes.
const Sector = 512

// stamp fills a sector so that its volume, its place, its write and any damage can be told.
func stamp(b []byte, seed, place, number uint64) {
	binary.LittleEndian.PutUint64(b, seed)
	binary.LittleEndian.PutUint64(b[8:], place)
	binary.LittleEndian.PutUint64(b[16:], number)
	x := seed ^ place<<20 ^ number
	for i := 24; i < Sector-8; i += 8 { // incompressible
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	binary.LittleEndian.PutUint64(b[Sector-8:], uint64(crc32.ChecksumIEEE(b[:Sector-8])))
}

// readStamp returns the number of the write in a sector, 0 for one that was never written.
func readStamp(b []byte, seed, place uint64) (uint64, error) {
	if isZero(b) {
		return 0, nil
	}
	if sum := binary.LittleEndian.Uint64(b[Sector-8:]); sum != uint64(crc32.ChecksumIEEE(b[:Sector-8])) {
		return 0, fmt.Errorf("sector %d is damaged (torn inside, or not ours): begins with % x", place, b[:32])
	}
	if s, p := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]); s != seed || p != place {
		return 0, fmt.Errorf("sector %d holds the data of sector %d of volume %d", place, p, s)
	}
	return binary.LittleEndian.Uint64(b[16:]), nil
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
