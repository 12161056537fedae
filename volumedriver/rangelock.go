package volumedriver

import (
	"context"
	"math/bits"
	"sync"
)

// rangeLocks order writes that read before they write (unaligned ends) against all other
// writes of the same clusters. The address space is dealt out in regions over 64 locks. A
// plain write holds its locks shared, so plain writes never wait for each other; a
// read-modify-write holds them alone, and only while it appends: it has read before, and
// under the lock it merely checks that nothing has changed since.
type rangeLocks struct {
	stripes [64]stripe
}

// stripe is a lock that is held shared or alone. Its holder may wait long (for room in the
// write buffer), so who waits for it can give up, which a sync.RWMutex does not allow.
type stripe struct {
	mu      sync.Mutex
	holders int           // how many hold it shared; -1: one alone
	alone   int           // how many wait for it alone; later ones who want it shared wait behind them
	changed chan struct{} // closed when it may be had again; nil: nobody waits
}

// takeLocked takes the lock if it is free; first tells that the caller was here before those
// who wait.
func (s *stripe) takeLocked(alone, first bool) bool {
	switch {
	case alone && s.holders == 0:
		s.holders = -1
	case !alone && s.holders >= 0 && (first || s.alone == 0):
		s.holders++
	default:
		return false
	}
	return true
}

func (s *stripe) tryShared() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeLocked(false, false)
}

func (s *stripe) lock(ctx context.Context, alone bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.takeLocked(alone, false) {
		return nil
	}
	if alone {
		s.alone++
		defer func() { s.alone-- }()
	}
	for {
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		s.mu.Lock()
		if err != nil {
			s.wakeLocked() // those who wait behind this one
			return err
		}
		// Whoever has waited is served: no shared waiter starves behind a stream of lone ones.
		if s.takeLocked(alone, true) {
			return nil
		}
	}
}

func (s *stripe) unlock() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders = max(s.holders, 1) - 1
	if s.holders == 0 {
		s.wakeLocked()
	}
}

func (s *stripe) wakeLocked() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
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

// lock takes the locks of both sets, those of alone alone, in the order of their numbers; all
// or, when ctx ends first, none.
func (l *rangeLocks) lock(ctx context.Context, shared, alone uint64) error {
	taken := uint64(0)
	for s := shared | alone; s != 0; s &= s - 1 {
		bit := s & -s
		if err := l.stripes[bits.TrailingZeros64(s)].lock(ctx, alone&bit != 0); err != nil {
			l.unlock(taken)
			return err
		}
		taken |= bit
	}
	return nil
}

// tryShared takes all locks of the set shared, or none.
func (l *rangeLocks) tryShared(set uint64) bool {
	for s := set; s != 0; s &= s - 1 {
		if !l.stripes[bits.TrailingZeros64(s)].tryShared() {
			l.unlock(set &^ s)
			return false
		}
	}
	return true
}

func (l *rangeLocks) unlock(set uint64) {
	for s := set; s != 0; s &= s - 1 {
		l.stripes[bits.TrailingZeros64(s)].unlock()
	}
}
