package history

import (
	"strings"
	"testing"
)

// volume builds the image in which sector i holds write numbers[i].
func volume(numbers ...uint64) []byte {
	b := make([]byte, len(numbers)*Sector)
	for i, s := range numbers {
		if s != 0 {
			stamp(b[i*Sector:(i+1)*Sector], 7, uint64(i), s)
		}
	}
	return b
}

// world makes this history of three sectors: write 1 on sector 0, acknowledged at 2, flushed
// and drained; write 4 on sector 1, acknowledged at 5, flushed; write 7 on sector 2,
// acknowledged at 8; write 9 on sectors 0 and 1, in flight.
func world() *History {
	h := New(7, 3)
	barrier := func(p Promise) { h.Done(h.Before(p)) }
	h.End(h.BeginAt(0, 1))
	barrier(Drained) // 3
	h.End(h.BeginAt(1, 1))
	barrier(Flushed) // 6
	h.End(h.BeginAt(2, 1))
	h.BeginAt(0, 2)
	return h
}

func TestCheck(t *testing.T) {
	damaged, misplaced := volume(1, 4, 7), volume(1, 4, 7)
	damaged[100] ^= 1
	copy(misplaced[2*Sector:], misplaced[:Sector])
	for name, c := range map[string]struct {
		volume  []byte
		promise Promise
		want    string // "" for good
	}{
		"all":                        {volume(9, 9, 7), Acknowledged, ""},
		"without what was in flight": {volume(1, 4, 7), Acknowledged, ""},
		"lost acknowledged":          {volume(1, 4, 0), Acknowledged, "write 7 was acknowledged"},
		"lost, allowed":              {volume(1, 4, 0), Flushed, ""},
		"lost flushed":               {volume(1, 0, 0), Flushed, "write 4 was flushed"},
		"flushed, allowed":           {volume(1, 0, 0), Drained, ""},
		"lost drained":               {volume(0, 0, 0), Drained, "write 1 was drained"},
		"hole in the prefix":         {volume(1, 0, 7), Drained, "no prefix"},
		"in flight without its past": {volume(9, 9, 0), Flushed, "no prefix"},
		"half a write":               {volume(9, 4, 7), Acknowledged, "half a write"},
		"the other half":             {volume(1, 9, 7), Acknowledged, "half a write"},
		"never sent":                 {volume(1, 5, 7), Acknowledged, "never sent"},
		"damaged":                    {damaged, Acknowledged, "damaged"},
		"misplaced":                  {misplaced, Acknowledged, "holds the data of sector 0"},
	} {
		_, err := world().Check(c.volume, c.promise)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestCheckCut: the log may end inside of one write, between two clusters.
func TestCheckCut(t *testing.T) {
	image := func(cuts ...int) []byte { // two writes of two clusters each, with so many sectors left
		numbers := make([]uint64, 32)
		for w, n := range cuts {
			for i := range n {
				numbers[16*w+i] = uint64(1 + w)
			}
		}
		return volume(numbers...)
	}
	for name, c := range map[string]struct {
		volume []byte
		good   bool
	}{
		"whole": {image(16, 16), true}, "one cut": {image(16, 8), true}, "other cut": {image(8, 16), true}, "nothing": {image(0, 0), true},
		"two cuts": {image(8, 8), false}, "inside of a cluster": {image(16, 3), false},
	} {
		h := New(7, 32)
		h.BeginAt(0, 16)
		h.BeginAt(16, 16)
		if _, err := h.Check(c.volume, Acknowledged); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		} else if err == nil {
			if _, err := h.Check(c.volume, Acknowledged); err != nil {
				t.Errorf("%s, checked again: %v", name, err)
			}
		}
	}
	tail := volume(make([]uint64, 16)...)
	stamp(tail[8*Sector:9*Sector], 7, 8, 1)
	h := New(7, 16)
	h.BeginAt(0, 16)
	if _, err := h.Check(tail, Acknowledged); err == nil {
		t.Error("the end of a write without its beginning was taken")
	}
}

// TestCheckRemembers: what a check saw must stay; what it did not see must not come; and the
// loss of the write buffer may still bring back what lies between the drained and now.
func TestCheckRemembers(t *testing.T) {
	for name, c := range map[string]struct {
		first, second []byte
		promise       Promise
		want          string
	}{
		"gone again":        {volume(9, 9, 7), volume(1, 4, 7), Acknowledged, "write 9 was acknowledged"},
		"late":              {volume(1, 4, 7), volume(9, 9, 7), Acknowledged, "never sent"},
		"late after a wipe": {volume(1, 4, 7), volume(9, 9, 7), Drained, "never sent"},
		"back by a wipe":    {volume(9, 9, 7), volume(1, 4, 0), Drained, ""},
	} {
		h := world()
		if _, err := h.Check(c.first, Acknowledged); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err := h.Check(c.second, c.promise)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestCheckRead(t *testing.T) {
	h := world()
	acked := h.Acked(0, 3)
	if err := h.CheckRead(volume(1, 4, 7), 0, acked); err != nil {
		t.Error(err)
	}
	if err := h.CheckRead(volume(9, 4, 7), 0, acked); err != nil {
		t.Error("a read beside a write may show half of it:", err)
	}
	if err := h.CheckRead(volume(9, 4, 0), 0, acked); err == nil || !strings.Contains(err.Error(), "write 7 had been acknowledged") {
		t.Error("an old read was taken:", err)
	}
	if _, err := h.Check(volume(1, 4, 7), Acknowledged); err == nil || !strings.Contains(err.Error(), "write 9 was acknowledged") {
		t.Error("what a client has read went away, and the check took it:", err)
	}
}
