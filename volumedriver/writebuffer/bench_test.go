package writebuffer

import (
	"math/rand/v2"
	"os"
	"testing"

	"scoria/internal/vfs"
)

// benchBuffer returns a log on the machine's disk whose SCOs become disposable at once.
func benchBuffer(b *testing.B, change func(*Options)) *Buffer {
	dir, err := os.MkdirTemp(".", "bench-") // not /tmp, which may be memory
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	pool := newTestPool(b, PoolOptions{})
	var buf *Buffer
	full := make(chan uint64, 1<<16)
	opts := Options{FS: vfs.OS, Dir: dir, Pool: pool, Volume: 1, Epoch: 1, Closed: func(n uint64) { full <- n }}
	if change != nil {
		change(&opts)
	}
	buf = create(b, opts)
	go func() { // drains for free
		for n := range full {
			buf.MarkUploaded(n)
			if n%16 == 0 {
				_ = buf.Sync(b.Context())
				buf.MarkDisposable(n)
			}
		}
	}()
	b.Cleanup(func() { buf.Close(); close(full) })
	return buf
}

func benchmarkAppend(b *testing.B, ops []Op, sync bool) {
	buf := benchBuffer(b, nil)
	n := 0
	for i := range ops {
		n += len(ops[i].Data)
	}
	b.SetBytes(int64(n))
	b.ReportAllocs()
	for b.Loop() {
		done, err := buf.TryAppend(ops)
		if err == nil && !done {
			err = buf.Append(b.Context(), ops)
		}
		if err == nil && sync {
			err = buf.Sync(b.Context())
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	s := buf.Stats()
	b.ReportMetric(float64(s.WrittenBytes)/float64(s.UserBytes), "written/user")
	b.ReportMetric(float64(len(ops)), "ops/op")
}

func benchOps(n int, clusters uint64) []Op {
	r := rand.New(rand.NewPCG(1, 1))
	ops := make([]Op, n)
	for i := range ops {
		ops[i] = write(r, r.Uint64N(1<<30), clusters)
	}
	return ops
}

func BenchmarkAppend4K(b *testing.B)      { benchmarkAppend(b, benchOps(1, 1), false) }
func BenchmarkAppend4Kx32(b *testing.B)   { benchmarkAppend(b, benchOps(32, 1), false) }
func BenchmarkAppend64K(b *testing.B)     { benchmarkAppend(b, benchOps(1, 16), false) }
func BenchmarkAppend1M(b *testing.B)      { benchmarkAppend(b, benchOps(1, 256), false) }
func BenchmarkAppend4KSync(b *testing.B)  { benchmarkAppend(b, benchOps(1, 1), true) }
func BenchmarkAppend4KxSync(b *testing.B) { benchmarkAppend(b, benchOps(32, 1), true) }
func BenchmarkAppend1MSync(b *testing.B)  { benchmarkAppend(b, benchOps(1, 256), true) }

func BenchmarkReadAt4K(b *testing.B) {
	buf := benchBuffer(b, func(o *Options) { o.Closed = nil })
	ops := benchOps(2000, 1)
	if err := buf.Append(b.Context(), ops); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, ClusterSize)
	number := (*buf.segs.Load())[0].number
	i := uint32(0)
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := buf.ReadAt(number, i, p); !ok || err != nil {
			b.Fatal(ok, err)
		}
		if i++; i == 2000 {
			i = 0
		}
	}
}

func BenchmarkLoad8M(b *testing.B) {
	buf := benchBuffer(b, func(o *Options) { o.Closed = nil })
	if err := buf.Append(b.Context(), benchOps(2048, 1)); err != nil {
		b.Fatal(err)
	}
	c := buf.ClosedSCOs(0)[0]
	data, sums := make([]byte, c.Clusters*ClusterSize), make([]uint32, c.Clusters)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := buf.Load(b.Context(), c.Number, data, sums); err != nil {
			b.Fatal(err)
		}
	}
}
