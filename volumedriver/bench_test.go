package volumedriver_test

import (
	"context"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"scoria/internal/vfs"
	"scoria/volumedriver"
	"scoria/volumedriver/volumetest"
)

func goroutines() int { return runtime.NumGoroutine() }

func heapBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// benchVolume opens a volume on a real directory.
func benchVolume(b *testing.B, size uint64) *volumedriver.Handle {
	b.Helper()
	store := volumetest.NewStore()
	d, err := volumedriver.Open(b.Context(), volumedriver.Options{FS: vfs.OS, Dir: b.TempDir(), Store: store,
		Registry: volumetest.NewRegistry(store), GatewayID: "gw-1", DrainDelay: -1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = d.Close(context.Background()) })
	if _, err := d.Create(b.Context(), "v", size, ""); err != nil {
		b.Fatal(err)
	}
	h, err := d.OpenVolume(b.Context(), "v")
	if err != nil {
		b.Fatal(err)
	}
	return h
}

// BenchmarkTryWriteBatch writes 32 random clusters per call; figures are per cluster.
func BenchmarkTryWriteBatch(b *testing.B) {
	h := benchVolume(b, 1<<30)
	const batch = 32
	offs, data, errs := make([]uint64, batch), make([][]byte, batch), make([]error, batch)
	for i := range data {
		data[i] = pattern(uint64(i), 0, cluster)
	}
	b.ReportAllocs()
	b.SetBytes(cluster)
	b.ResetTimer()
	for n := 0; n < b.N; n += batch {
		for i := range offs {
			offs[i] = rand.Uint64N(1<<30/cluster) * cluster
		}
		if !h.TryWriteBatch(offs, data, errs) {
			for i := range offs {
				if err := h.WriteAt(b.Context(), data[i], offs[i], false); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
}

func BenchmarkWriteAt4k(b *testing.B) {
	h := benchVolume(b, 1<<30)
	p := pattern(1, 0, cluster)
	b.ReportAllocs()
	b.SetBytes(cluster)
	for b.Loop() {
		if err := h.WriteAt(b.Context(), p, rand.Uint64N(1<<30/cluster)*cluster, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTryReadAt(b *testing.B) {
	const size = 64 << 20
	h := benchVolume(b, size)
	p := pattern(1, 0, 64<<10) // not so large that it bypasses the page cache
	for off := uint64(0); off < size; off += 64 << 10 {
		if err := h.WriteAt(b.Context(), p, off, false); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.SetBytes(cluster)
	for b.Loop() {
		if done, err := h.TryReadAt(p[:cluster], rand.Uint64N(size/cluster)*cluster); !done || err != nil {
			b.Fatal(done, err)
		}
	}
}

// BenchmarkSustained writes random clusters, 32 at a time, far past the write buffer, until all
// is drained: the whole way but for the object store, which is memory here.
func BenchmarkSustained(b *testing.B) {
	const size, total = 4 << 30, 256 << 20
	for b.Loop() {
		b.StopTimer()
		store := volumetest.NewStore()
		d, err := volumedriver.Open(b.Context(), volumedriver.Options{Dir: b.TempDir(), Store: store,
			Registry: volumetest.NewRegistry(store), GatewayID: "gw-1", DrainDelay: -1, WriteBufferBytes: 128 << 20})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := d.Create(b.Context(), "v", size, ""); err != nil {
			b.Fatal(err)
		}
		h, err := d.OpenVolume(b.Context(), "v")
		if err != nil {
			b.Fatal(err)
		}
		const batch = 32
		offs, data, errs := make([]uint64, batch), make([][]byte, batch), make([]error, batch)
		for i := range data {
			data[i] = pattern(uint64(i), 0, cluster)
		}
		var longest time.Duration
		b.StartTimer()
		for n := 0; n < total; n += batch * cluster {
			for i := range offs {
				offs[i] = rand.Uint64N(size/cluster) * cluster
			}
			began := time.Now()
			if !h.TryWriteBatch(offs, data, errs) {
				for i := range offs {
					if err := h.WriteAt(b.Context(), data[i], offs[i], false); err != nil {
						b.Fatal(err)
					}
				}
			}
			longest = max(longest, time.Since(began))
		}
		if err := h.Drain(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		b.SetBytes(total)
		b.ReportMetric(float64(longest.Milliseconds()), "ms-longest-batch")
		b.ReportMetric(float64(store.BytesIn())/total, "stored/written")
		s, _ := d.Status(h.ID())
		b.ReportMetric(float64(s.Log.WrittenBytes)/total, "logged/written")
		b.ReportMetric(float64(s.Stats.Checkpoints), "checkpoints")
		_ = h.Close()
		_ = d.Close(context.Background())
		b.StartTimer()
	}
}
