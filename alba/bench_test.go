package alba_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"scoria/alba"
	"scoria/alba/albatest"
	"scoria/alba/osd"
	"scoria/internal/blocksum"
)

// sink is a disk server that keeps nothing: what remains is the client's own cost.
type sink struct {
	osd.API
	block []byte
	sum   uint32
}

func (s *sink) Apply(context.Context, *osd.Batch) error { return nil }

func (s *sink) Read(_ context.Context, reads []osd.Read) error {
	for i := range reads {
		r := &reads[i]
		for at := 0; at < len(r.Buf); at += 4096 {
			copy(r.Buf[at:], s.block)
			r.Sums = append(r.Sums, s.sum)
		}
	}
	return nil
}

func benchCluster(b *testing.B) *albatest.Cluster {
	p := albatest.Preset()
	p.ChunkSize = 8 << 20
	block := data(1, 4096)
	return albatest.New(b, albatest.Config{Preset: p, Client: alba.Options{BlockCacheBytes: -1}, RealOSD: func(t testing.TB, i int) osd.API {
		f := newFake(i)
		return &sink{f, block, blocksum.Of(block)}
	}})
}

func BenchmarkPutSCO8M(b *testing.B) {
	cl := benchCluster(b)
	ns := cl.Namespace("v")
	d := data(1, 8<<20)
	sums := blocksum.Sums(nil, d)
	b.SetBytes(int64(len(d)))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		txn := alba.Txn{Puts: []alba.PutObject{{Name: fmt.Sprint(i % 16), Data: d, Sums: sums}}}
		if err := cl.Client.Apply(b.Context(), ns, txn); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadSlice4K(b *testing.B) {
	cl := benchCluster(b)
	ns := cl.Namespace("v")
	d := data(1, 8<<20)
	if err := cl.Client.Apply(b.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: "o", Data: d}}}); err != nil {
		b.Fatal(err)
	}
	var at atomic.Uint64
	run := func(b *testing.B, one func(s []alba.Slice) error) {
		s := []alba.Slice{{Name: "o", Data: make([]byte, 4096)}}
		b.ReportAllocs()
		for b.Loop() {
			s[0].Off = at.Add(4096) % (8 << 20)
			if err := one(s); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("osd", func(b *testing.B) {
		run(b, func(s []alba.Slice) error { return cl.Client.Read(b.Context(), ns, s) })
	})
	cached := cl.NewClient(alba.Options{})
	b.Run("cached", func(b *testing.B) {
		run(b, func(s []alba.Slice) error {
			if !cached.TryRead(ns, s[0]) {
				return cached.Read(b.Context(), ns, s)
			}
			return nil
		})
	})
}
