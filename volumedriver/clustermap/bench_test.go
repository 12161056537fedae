package clustermap

import (
	"math/rand/v2"
	"testing"
)

// filled returns a map of n clusters that are all mapped and resident.
func filled(b testing.TB, n uint64) *Map {
	m := New(NewCache(1<<30), newMemStore(), n)
	es := make([]Entry, fanOut)
	for addr := uint64(0); addr < n; addr += fanOut {
		for i := range es {
			es[i] = Entry{NewLocation(1+(addr+uint64(i))/1024, uint16((addr+uint64(i))%1024), 0), uint32(i)}
		}
		m.Set(addr, es)
	}
	return m
}

func randomAddrs(n uint64) []uint64 {
	r := rand.New(rand.NewPCG(1, 2))
	a := make([]uint64, 1<<14)
	for i := range a {
		a[i] = r.Uint64N(n)
	}
	return a
}

// BenchmarkLookup reads one random cluster of 20 GiB (60 MiB of pages).
func BenchmarkLookup(b *testing.B) {
	const n = 20 << 18
	m := filled(b, n)
	addrs := randomAddrs(n)
	run := func(b *testing.B, next func() bool) {
		var out [1]Entry
		for i := 0; next(); i++ {
			if !m.Lookup(addrs[i&(len(addrs)-1)], out[:]) || !out[0].Loc.Mapped() {
				b.Error("not resident")
				return
			}
		}
	}
	b.Run("serial", func(b *testing.B) {
		b.ReportAllocs()
		run(b, b.Loop)
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) { run(b, pb.Next) })
	})
	b.Run("1MiB", func(b *testing.B) {
		b.ReportAllocs()
		out := make([]Entry, 256)
		for i := 0; b.Loop(); i++ {
			m.Lookup(addrs[i&(len(addrs)-1)]&^255, out)
		}
	})
}

// BenchmarkSet writes into 20 GiB: single random clusters, and whole leaves in order.
func BenchmarkSet(b *testing.B) {
	const n = 20 << 18
	m := filled(b, n)
	addrs := randomAddrs(n)
	b.Run("4KiB-random", func(b *testing.B) {
		b.ReportAllocs()
		e := []Entry{{NewLocation(7, 7, 0), 7}}
		for i := 0; b.Loop(); i++ {
			m.Set(addrs[i&(len(addrs)-1)], e)
		}
	})
	b.Run("1MiB", func(b *testing.B) {
		b.ReportAllocs()
		es := make([]Entry, 256)
		for i := range es {
			es[i] = Entry{NewLocation(9, uint16(i), 0), 7}
		}
		for i := uint64(0); b.Loop(); i++ {
			m.Set(i*256%n, es)
		}
	})
	// Every page was just checkpointed: each first touch copies a leaf.
	b.Run("4KiB-after-checkpoint", func(b *testing.B) {
		checkpoint(b, m, 1)
		b.ReportAllocs()
		e := []Entry{{NewLocation(8, 7, 0), 7}}
		for i := uint64(0); b.Loop(); i++ {
			m.Set(i*256%n, e)
		}
	})
}

// BenchmarkCheckpoint writes 20 GiB of map of which every leaf has changed.
func BenchmarkCheckpoint(b *testing.B) {
	const n = 4 << 18
	m := filled(b, n)
	var bytes int64
	var seq uint64
	e := []Entry{{NewLocation(8, 7, 0), 7}}
	for b.Loop() {
		b.StopTimer()
		for addr := uint64(0); addr < n; addr += fanOut {
			m.Set(addr, e)
		}
		b.StartTimer()
		seq++
		w := checkpoint(b, m, seq)
		bytes += w.PackBytes
		m.store.(*memStore).remove([]uint32{w.Pack - 5})
	}
	b.SetBytes(bytes / int64(seq))
}
