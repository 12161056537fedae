// Package history knows every write that was sent to a volume, which of them were
// acknowledged, flushed and drained, and what the volume must therefore show after a fault.
package history

import (
	"math/rand/v2"
	"sync"
)

// Promise is how much of a history a fault may not take.
type Promise int

// The promises, weakest fault first.
const (
	Acknowledged Promise = iota // a process died: nothing acknowledged may be missing (C1)
	Flushed                     // power was lost: what FLUSH covered must be there, and a prefix (C2, C3)
	Drained                     // the write buffer is gone: what was drained must be there, and a prefix (C3)
)

// History of one volume. Numbers of writes and the times of acknowledgements come from one
// clock, so that "was acknowledged before that one was sent" is a comparison.
type History struct {
	seed uint64

	mu      sync.Mutex
	clock   uint64
	taken   map[int]int // writes in flight or of unknown outcome: first sector -> sectors
	freed   *sync.Cond
	writes  [][]uint64            // per sector: numbers sent, ascending; what no promise reaches any more is forgotten
	ended   map[uint64]uint64     // by number: time of the acknowledgement, 0 for none yet
	extents map[uint64]extent     // by number
	floor   [Drained + 1][]uint64 // per promise and sector: the newest write that must survive; of Flushed and Drained as of the last Check
	barrier [Drained + 1]uint64   // time up to which everything acknowledged was flushed or drained
	count   Count
}

type extent struct{ first, n int }

// Count is how much was done.
type Count struct{ Sent, Acknowledged, Flushes uint64 }

// New returns the history of an empty volume (of its first sectors).
func New(seed uint64, sectors int) *History {
	h := &History{
		seed: seed, taken: make(map[int]int), writes: make([][]uint64, sectors),
		ended: make(map[uint64]uint64), extents: make(map[uint64]extent),
	}
	h.freed = sync.NewCond(&h.mu)
	for p := range h.floor {
		h.floor[p] = make([]uint64, sectors)
	}
	return h
}

// Sectors returns how many sectors the history is about.
func (h *History) Sectors() int { return len(h.writes) }

// Count returns how much was done so far.
func (h *History) Count() Count {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

// BeginRandom notes a write at a random free place: mostly one cluster, sometimes up to 128 KiB,
// sometimes unaligned. Writes in flight never overlap: nobody could tell their order. It returns
// false when it finds no free place.
func (h *History) BeginRandom(r *rand.Rand) (Write, bool) {
	n := 8 // 4 KiB
	switch r.IntN(8) {
	case 0:
		n = 1 + r.IntN(20) // unaligned
	case 1:
		n = 8 * (1 + r.IntN(32)) // up to 128 KiB
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for range 1000 {
		first := r.IntN(len(h.writes) - n + 1)
		if r.IntN(2) == 0 && n%8 == 0 {
			first -= first % 8
		}
		if !h.overlapsLocked(first, n) {
			return h.beginLocked(first, n), true
		}
	}
	return Write{}, false
}

// BeginAt notes a write of n sectors at first. It waits until nobody else writes there.
func (h *History) BeginAt(first, n int) Write {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.overlapsLocked(first, n) {
		h.freed.Wait()
	}
	return h.beginLocked(first, n)
}

func (h *History) overlapsLocked(first, n int) bool {
	for f, k := range h.taken {
		if first < f+k && f < first+n {
			return true
		}
	}
	return false
}

func (h *History) beginLocked(first, n int) Write {
	h.clock++
	w := Write{First: first, Sectors: n, Number: h.clock}
	h.taken[first] = n
	h.ended[w.Number] = 0
	h.extents[w.Number] = extent{first, n}
	for s := first; s < first+n; s++ {
		h.writes[s] = append(h.writes[s], w.Number)
	}
	h.count.Sent++
	w.Data = make([]byte, n*Sector)
	for i := range n {
		stamp(w.Data[i*Sector:(i+1)*Sector], h.seed, uint64(first+i), w.Number)
	}
	return w
}

// Write is a write that was begun.
type Write struct {
	First, Sectors int
	Number         uint64
	Data           []byte // stamped
}

// Offset returns where the write goes, in bytes.
func (w Write) Offset() uint64 { return uint64(w.First) * Sector }

// End notes that a write was acknowledged. A write that is not ended keeps its place until
// the next Check: it may still happen.
func (h *History) End(w Write) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.ended[w.Number] = h.clock
	for s := w.First; s < w.First+w.Sectors; s++ {
		h.floor[Acknowledged][s] = max(h.floor[Acknowledged][s], w.Number)
	}
	delete(h.taken, w.First)
	h.count.Acknowledged++
	h.freed.Broadcast()
}

// Barrier is what was acknowledged when a flush or a drain began.
type Barrier struct {
	promise Promise
	at      uint64
}

// Before notes what a flush (promise Flushed) or a drain (Drained) that is now sent will cover.
func (h *History) Before(p Promise) Barrier {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return Barrier{p, h.clock}
}

// Done notes that a flush or drain succeeded: everything acknowledged before it keeps its promise.
// What is drained is in particular flushed.
func (h *History) Done(b Barrier) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b.promise == Flushed {
		h.count.Flushes++
	}
	for p := Flushed; p <= b.promise; p++ {
		h.barrier[p] = max(h.barrier[p], b.at)
	}
}

// lastEndedLocked returns the newest write of a sector that was acknowledged before a time.
func (h *History) lastEndedLocked(s int, before uint64) uint64 {
	for i := len(h.writes[s]) - 1; i >= 0; i-- {
		if t := h.ended[h.writes[s][i]]; t != 0 && t < before {
			return h.writes[s][i]
		}
	}
	return 0
}

// Acked returns the newest acknowledged write of each of n sectors: a read that begins now
// must not show older ones.
func (h *History) Acked(first, n int) []uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]uint64(nil), h.floor[Acknowledged][first:first+n]...)
}
