package history

import (
	"fmt"
	"slices"
)

// Check compares a volume, nobody writing, with its history after a fault that leaves the
// given promise in force. Then what it saw is the state from which the history goes on.
//
//   - every sector holds a write that was sent to it, whole and in its place;
//   - nothing that has the promise is missing, nor anything an earlier check saw and the fault may not take;
//   - a write that shows in one sector shows in all of its others, unless a later one does. One
//     single write may be cut: the log ends in it, and holds its first clusters only;
//   - the volume is a prefix: if a write shows, so does everything that was acknowledged
//     before it was sent. With one writer that waits for each answer this is exact.
func (h *History) Check(volume []byte, p Promise) (newest uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range []Promise{Flushed, Drained} {
		for s := range h.writes {
			h.floor[p][s] = max(h.floor[p][s], h.lastEndedLocked(s, h.barrier[p]))
		}
	}
	seen := make([]uint64, len(h.writes))
	for s := range h.writes {
		if seen[s], err = h.readLocked(volume[s*Sector:(s+1)*Sector], s); err != nil {
			return 0, err
		}
		newest = max(newest, seen[s])
	}
	cut := uint64(0)
	for s, got := range seen {
		if want := h.floor[p][s]; got < want {
			return 0, fmt.Errorf("sector %d: write %d was %s, the volume has write %d: a write is lost", s, want, p, got)
		}
		if want := h.lastEndedLocked(s, newest); got < want {
			return 0, fmt.Errorf("sector %d has write %d, but write %d shows elsewhere, and write %d was acknowledged here before that one was sent: this is no prefix", s, got, newest, want)
		}
		n, err := h.wholeLocked(seen, s)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			continue
		}
		if cut != 0 {
			return 0, fmt.Errorf("half a write shows twice, writes %d and %d", cut, got)
		}
		cut = got
		h.extents[cut] = extent{h.extents[cut].first, n}
	}
	h.settleLocked(seen)
	return newest, nil
}

// readLocked reads the stamp of a sector, which must be of a write that was sent there.
func (h *History) readLocked(b []byte, s int) (uint64, error) {
	got, err := readStamp(b, h.seed, uint64(s))
	if err != nil {
		return 0, err
	}
	if _, known := slices.BinarySearch(h.writes[s], got); !known && got != 0 {
		return 0, fmt.Errorf("sector %d has write %d, which was never sent there, or was gone at an earlier check", s, got)
	}
	return got, nil
}

// wholeLocked checks that the write in a sector is in all of its sectors. If it is cut in a way
// that is allowed, it returns how many are left. It looks from the first visible sector of a
// write only, which is enough.
func (h *History) wholeLocked(seen []uint64, s int) (left int, err error) {
	w := seen[s]
	if w == 0 || s > 0 && seen[s-1] == w {
		return 0, nil
	}
	e := h.extents[w]
	for o := e.first; o < e.first+e.n; o++ {
		switch {
		case seen[o] >= w && left == 0:
		case seen[o] < w && left == 0 && o%cluster == 0 && o > e.first:
			left = o - e.first
		case seen[o] < w && left > 0:
		default:
			return 0, fmt.Errorf("write %d of sectors %d to %d shows in sector %d, but sector %d has write %d: half a write", w, e.first, e.first+e.n-1, s, o, seen[o])
		}
	}
	return left, nil
}

// cluster is where a write may be cut, in sectors.
const cluster = 8

// settleLocked makes what a check saw the state from which the history goes on. What is not
// drained stays known, since the loss of the write buffer may bring it back.
func (h *History) settleLocked(seen []uint64) {
	h.clock++
	keep := make(map[uint64]bool)
	for s, got := range seen {
		low := h.floor[Drained][s]
		list := h.writes[s][:0]
		for _, w := range h.writes[s] {
			if w <= got && (w >= low || w == got) {
				list = append(list, w)
				keep[w] = true
			}
		}
		h.writes[s] = list
		h.floor[Acknowledged][s] = got
		h.floor[Flushed][s] = min(h.floor[Flushed][s], got)
		if got != 0 && h.ended[got] == 0 {
			h.ended[got] = h.clock // in flight when the fault came, and there now
		}
	}
	for w := range h.ended {
		if !keep[w] {
			delete(h.ended, w)
			delete(h.extents, w)
		}
	}
	clear(h.taken)
	h.freed.Broadcast()
}

// CheckRead checks what a read during the load returned, given what was acknowledged before it
// was sent. What a client has read must survive as what was acknowledged to it.
func (h *History) CheckRead(data []byte, first int, acked []uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, want := range acked {
		got, err := h.readLocked(data[i*Sector:(i+1)*Sector], first+i)
		if err != nil {
			return err
		}
		if got < want {
			return fmt.Errorf("sector %d: a read shows write %d, though write %d had been acknowledged before it was sent", first+i, got, want)
		}
		h.floor[Acknowledged][first+i] = max(h.floor[Acknowledged][first+i], got)
	}
	return nil
}

// String names what a promise is about.
func (p Promise) String() string {
	return [...]string{"acknowledged", "flushed", "drained"}[p]
}
