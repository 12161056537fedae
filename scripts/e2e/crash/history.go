package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
)

const sector = 512

// history knows every write that was sent and which were acknowledged.
type history struct {
	seed    uint64
	mu      sync.Mutex
	next    uint64
	writes  [][]uint64 // per sector: sequence numbers sent, ascending
	acked   []uint64   // per sector: newest acknowledged
	acks    uint64
	visible []uint64 // per sector: what the last check saw
	floor   uint64   // every write up to here had been drained
}

func newHistory(seed uint64, sectors int) *history {
	return &history{seed: seed, writes: make([][]uint64, sectors), acked: make([]uint64, sectors), visible: make([]uint64, sectors)}
}

// begin notes a write of n sectors before it is sent, and returns its stamped data.
func (h *history) begin(first, n int) (seq uint64, data []byte) {
	h.mu.Lock()
	h.next++
	seq = h.next
	for s := first; s < first+n; s++ {
		h.writes[s] = append(h.writes[s], seq)
	}
	h.mu.Unlock()
	data = make([]byte, n*sector)
	for i := range n {
		stamp(data[i*sector:(i+1)*sector], h.seed, uint64(first+i), seq)
	}
	return seq, data
}

// end notes an acknowledgement.
func (h *history) end(seq uint64, first, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := first; s < first+n; s++ {
		h.acked[s] = max(h.acked[s], seq)
	}
	h.acks++
}

// stamp fills a sector so that its place, its writer and any damage can be told.
func stamp(b []byte, seed, place, seq uint64) {
	binary.LittleEndian.PutUint64(b, seed)
	binary.LittleEndian.PutUint64(b[8:], place)
	binary.LittleEndian.PutUint64(b[16:], seq)
	x := seed ^ place<<20 ^ seq
	for i := 24; i < sector-8; i += 8 { // incompressible
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	binary.LittleEndian.PutUint64(b[sector-8:], uint64(crc32.ChecksumIEEE(b[:sector-8])))
}

// readStamp returns the sequence number of a sector, 0 for one that was never written.
func readStamp(b []byte, seed, place uint64) (uint64, error) {
	if isZero(b) {
		return 0, nil
	}
	if sum := binary.LittleEndian.Uint64(b[sector-8:]); sum != uint64(crc32.ChecksumIEEE(b[:sector-8])) {
		return 0, fmt.Errorf("sector %d is damaged (torn inside, or not ours): begins with % x", place, b[:32])
	}
	if s, p := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]); s != seed || p != place {
		return 0, fmt.Errorf("sector %d holds the data of sector %d of run %d", place, p, s)
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

// check compares a volume after a crash with the history.
//
// Nothing acknowledged may be missing, and nothing that an earlier check saw may have
// gone (lost false, contract C1). Where writes were sent one after the other (ordered) the
// volume must also be exactly a prefix of them (contract C3); with lost true the prefix
// may be shorter than what was acknowledged, and the history forgets the rest.
func (h *history) check(volume []byte, ordered, lost bool) (newest uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := make([]uint64, len(h.writes))
	for s := range h.writes {
		if seen[s], err = readStamp(volume[s*sector:(s+1)*sector], h.seed, uint64(s)); err != nil {
			return 0, err
		}
		newest = max(newest, seen[s])
	}
	for s, got := range seen {
		if !lost && got < h.acked[s] {
			return 0, fmt.Errorf("sector %d: write %d was acknowledged, the volume has write %d: an acknowledged write is lost", s, h.acked[s], got)
		}
		if !lost && got < h.visible[s] {
			return 0, fmt.Errorf("sector %d: write %d was visible after an earlier crash, now there is write %d", s, h.visible[s], got)
		}
		want, known := h.lastUpTo(s, newest), got == 0
		for _, w := range h.writes[s] {
			known = known || w == got
		}
		if !known {
			return 0, fmt.Errorf("sector %d has write %d, which was never sent there", s, got)
		}
		if ordered && got != want {
			return 0, fmt.Errorf("sector %d has write %d, but write %d is visible elsewhere and write %d came before it: this is no prefix", s, got, newest, want)
		}
	}
	h.settle(seen, lost)
	return newest, nil
}

// lastUpTo returns the newest write of a sector with a number of at most limit.
func (h *history) lastUpTo(s int, limit uint64) (last uint64) {
	for _, w := range h.writes[s] {
		if w <= limit {
			last = w
		}
	}
	return last
}

// settle makes what a check saw the state from which the next round goes on.
func (h *history) settle(seen []uint64, lost bool) {
	copy(h.visible, seen)
	for s := range h.writes {
		if lost {
			h.acked[s] = seen[s]
		}
		h.acked[s] = max(h.acked[s], seen[s])
		h.writes[s] = h.writes[s][:0]
		if seen[s] != 0 {
			h.writes[s] = append(h.writes[s], seen[s])
		}
	}
}
