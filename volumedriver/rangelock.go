package volumedriver

import (
	"math/bits"
	"sync"
)

// rangeLocks order writes that read before they write (unaligned ends) against all other
// writes of the same clusters. The address space is dealt out in regions over 64 locks. A
// plain write holds its locks shared, so plain writes never wait for each other; a
// read-modify-write holds them alone, and only while it appends: it has read before, and
// under the lock it merely checks that nothing has changed since.
type rangeLocks struct {
	stripes [64]sync.RWMutex
}

// regionShift makes regions of 64 clusters (256 KiB).
const regionShift = 6

// stripeMask returns the locks of n clusters from addr on as a set of bits.
func stripeMask(addr, n uint64) uint64 {
	first, last := addr>>regionShift, (addr+n-1)>>regionShift
	if n == 0 {
		return 0
	}
	if last-first >= 63 {
		return ^uint64(0)
	}
	run := uint64(1)<<(last-first+1) - 1
	return bits.RotateLeft64(run, int(first&63))
}

// lock takes all locks of the set, in the order of their numbers.
func (l *rangeLocks) lock(set uint64, alone bool) {
	for s := set; s != 0; s &= s - 1 {
		if m := &l.stripes[bits.TrailingZeros64(s)]; alone {
			m.Lock()
		} else {
			m.RLock()
		}
	}
}

// tryShared takes all locks of the set shared, or none.
func (l *rangeLocks) tryShared(set uint64) bool {
	for s := set; s != 0; s &= s - 1 {
		if !l.stripes[bits.TrailingZeros64(s)].TryRLock() {
			l.unlock(set&^s, false)
			return false
		}
	}
	return true
}

func (l *rangeLocks) unlock(set uint64, alone bool) {
	for s := set; s != 0; s &= s - 1 {
		if m := &l.stripes[bits.TrailingZeros64(s)]; alone {
			m.Unlock()
		} else {
			m.RUnlock()
		}
	}
}
