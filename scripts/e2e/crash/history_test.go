package main

import (
	"strings"
	"testing"
)

// volume builds the image in which sector i holds write seqs[i].
func volume(seqs ...uint64) []byte {
	b := make([]byte, len(seqs)*sector)
	for i, s := range seqs {
		if s != 0 {
			stamp(b[i*sector:(i+1)*sector], 7, uint64(i), s)
		}
	}
	return b
}

func TestCheck(t *testing.T) {
	damaged := volume(1, 2, 0)
	damaged[100] ^= 1
	misplaced := volume(1, 2, 0)
	copy(misplaced[2*sector:], misplaced[:sector])
	// Writes: 1 on sector 0 (acknowledged), 2 on sector 1 (acknowledged), 3 on sectors 0 and 2 (in flight).
	for name, c := range map[string]struct {
		volume        []byte
		ordered, lost bool
		want          string // "" for good
	}{
		"all":              {volume(3, 2, 3), true, false, ""},
		"without inflight": {volume(1, 2, 0), true, false, ""},
		"lost acked":       {volume(1, 0, 0), true, false, "acknowledged write is lost"},
		"lost, allowed":    {volume(1, 0, 0), true, true, ""},
		"nothing left":     {volume(0, 0, 0), true, true, ""},
		"hole in prefix":   {volume(0, 2, 0), true, true, "no prefix"},
		"half a write":     {volume(3, 2, 0), true, false, "no prefix"},
		"unordered half":   {volume(3, 2, 0), false, false, ""},
		"invented":         {volume(2, 2, 0), true, false, "never sent"},
		"damaged":          {damaged, true, false, "damaged"},
		"misplaced":        {misplaced, true, false, "holds the data of sector 0"},
	} {
		h := newHistory(7, 3)
		for _, w := range [][2]int{{0, 1}, {1, 1}} {
			seq, _ := h.begin(w[0], w[1])
			h.end(seq, w[0], w[1])
		}
		h.begin(0, 1)
		h.next-- // write 3 has two parts
		h.begin(2, 1)
		_, err := h.check(c.volume, c.ordered, c.lost)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestCheckRemembers: what was visible once must stay.
func TestCheckRemembers(t *testing.T) {
	h := newHistory(7, 1)
	h.begin(0, 1) // in flight when the server died
	if _, err := h.check(volume(1), true, false); err != nil {
		t.Fatal(err)
	}
	if _, err := h.check(volume(0), true, false); err == nil {
		t.Fatal("a write that had been visible went away, and the check took it")
	}
}
