package osd_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"scoria/alba/osd"
	"scoria/alba/osd/osdtest"
	"scoria/internal/blocksum"
	"scoria/internal/vfs"
)

// benchAPIs runs a benchmark on a store and through a server. TMPDIR says on which disk.
func benchAPIs(b *testing.B, run func(b *testing.B, a osd.API)) {
	b.Run("store", func(b *testing.B) {
		s, err := osd.Open(b.TempDir(), osd.Options{BufferedReads: os.Getenv("SCORIA_BUFFERED") != ""})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		run(b, s)
	})
	b.Run("tcp", func(b *testing.B) {
		s, err := osd.Open(b.TempDir(), osd.Options{BufferedReads: os.Getenv("SCORIA_BUFFERED") != ""})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		addr, srv := serveB(b, s)
		defer srv.Close()
		c := osd.Dial(addr, "", osd.ClientOptions{})
		defer c.Close()
		run(b, c)
	})
}

func aligned(n int) []byte {
	v := vfs.AlignedBuffer(n)
	copy(v, osdtest.Fill(1, n))
	return v
}

func benchPut(b *testing.B, a osd.API, size, workers int) {
	v := aligned(size)
	sums := blocksum.Sums(nil, v)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var n atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range workers {
		wg.Go(func() {
			for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
				// A ring of keys, so that the disk does not fill.
				key := fmt.Appendf(nil, "%d-%d", size, i%(1<<30/int64(size)))
				if err := a.Apply(b.Context(), &osd.Batch{Puts: []osd.Put{{Key: key, Value: v, Sums: sums}}}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkPut(b *testing.B) {
	for _, c := range []struct{ size, workers int }{{2 << 20, 1}, {2 << 20, 4}, {4096, 1}, {4096, 16}} {
		b.Run(fmt.Sprintf("%dKiB-%d", c.size>>10, c.workers), func(b *testing.B) {
			benchAPIs(b, func(b *testing.B, a osd.API) { benchPut(b, a, c.size, c.workers) })
		})
	}
}

func BenchmarkRead4K(b *testing.B) {
	const size, keys = 2 << 20, 128
	for _, workers := range []int{1, 16} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) {
			benchAPIs(b, func(b *testing.B, a osd.API) {
				v := aligned(size)
				for k := range keys {
					if err := a.Apply(b.Context(), &osd.Batch{Puts: []osd.Put{{Key: fmt.Append(nil, k), Value: v}}}); err != nil {
						b.Fatal(err)
					}
				}
				b.SetBytes(osd.BlockSize)
				b.ReportAllocs()
				b.ResetTimer()
				var n atomic.Int64
				var wg sync.WaitGroup
				for range workers {
					wg.Go(func() {
						r := []osd.Read{{Buf: vfs.AlignedBuffer(osd.BlockSize)}}
						for n.Add(1) <= int64(b.N) {
							r[0].Key = fmt.Append(r[0].Key[:0], rand.IntN(keys))
							r[0].Off = uint64(rand.IntN(size/osd.BlockSize)) * osd.BlockSize
							if err := a.Read(b.Context(), r); err != nil || r[0].Err != nil {
								b.Error(err, r[0].Err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

func serveB(b *testing.B, a osd.API) (string, *osd.Server) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := osd.NewServer(a, "", osd.ServerOptions{})
	go func() { _ = s.Serve(ln) }() // ends with Close
	return ln.Addr().String(), s
}
