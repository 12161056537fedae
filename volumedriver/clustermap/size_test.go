package clustermap

import (
	"math/rand/v2"
	"testing"
	"unsafe"
)

// sizeClass returns what the allocator takes for n bytes.
func sizeClass(n uintptr) int64 { return int64(cap(append([]byte(nil), make([]byte, n)...))) }

func TestPageMemory(t *testing.T) {
	for _, c := range []struct {
		name  string
		size  uintptr
		bytes int64
	}{{"leaf", unsafe.Sizeof(leaf{}), leafBytes}, {"inner", unsafe.Sizeof(inner{}), innerBytes}} {
		if got := sizeClass(c.size); got != c.bytes {
			t.Errorf("a %s of %d bytes takes %d, accounted as %d", c.name, c.size, got, c.bytes)
		}
	}
}

func TestBytesPerCluster(t *testing.T) {
	const clusters = 1 << 18 // 1 GiB
	fill := func(set func(m *Map, place func() Entry)) float64 {
		m := New(NewCache(1<<30), newMemStore(), MaxClusters)
		r := rand.New(rand.NewPCG(3, 4))
		n := uint64(0)
		set(m, func() Entry { // data lies in SCOs of 4 MiB, in the order of writing
			n++
			return Entry{NewLocation(1+n/1024, uint16(n%1024), 0), r.Uint32()}
		})
		w := checkpoint(t, m, 1)
		return float64(int(w.PackBytes)+len(w.Record)) / float64(m.MappedClusters())
	}
	order := rand.New(rand.NewPCG(5, 6))
	for _, c := range []struct {
		name  string
		limit float64
		set   func(m *Map, place func() Entry)
	}{
		{"sequential", 4.3, func(m *Map, place func() Entry) {
			for a := range uint64(clusters) {
				m.Set(a, []Entry{place()})
			}
		}},
		{"random 4 KiB, full", 8, func(m *Map, place func() Entry) {
			for _, a := range order.Perm(clusters) {
				m.Set(uint64(a), []Entry{place()})
			}
		}},
		{"random 4 KiB, 10 %", 9, func(m *Map, place func() Entry) {
			for range clusters / 10 {
				m.Set(order.Uint64N(clusters), []Entry{place()})
			}
		}},
		{"random 64 KiB", 6, func(m *Map, place func() Entry) {
			for range clusters / 16 {
				a := order.Uint64N(clusters / 16)
				for i := range uint64(16) {
					m.Set(a*16+i, []Entry{place()})
				}
			}
		}},
		{"sequential, 1 of 8 overwritten at random", 9, func(m *Map, place func() Entry) {
			for a := range uint64(clusters) {
				m.Set(a, []Entry{place()})
			}
			for range clusters / 8 {
				m.Set(order.Uint64N(clusters), []Entry{place()})
			}
		}},
		{"8 per leaf", 12, func(m *Map, place func() Entry) {
			for a := uint64(0); a < clusters*16; a += 32 {
				m.Set(a, []Entry{place()})
			}
		}},
		{"1 per leaf (worst case but one)", 48, func(m *Map, place func() Entry) {
			for a := uint64(0); a < clusters*16; a += 256 {
				m.Set(a+order.Uint64N(256), []Entry{place()})
			}
		}},
	} {
		got := fill(c.set)
		t.Logf("%-42s %6.2f bytes per mapped cluster", c.name, got)
		if got > c.limit {
			t.Errorf("%s: %.2f bytes per mapped cluster, limit %.2f", c.name, got, c.limit)
		}
	}
}
