package nbd_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"scoria/nbd"
	"scoria/nbd/internal/wire"
	"scoria/nbd/nbdtest"
)

// pump keeps depth requests in flight and costs next to nothing itself: it sends the same
// bytes again and counts the bytes that come back.
type pump struct {
	nc      net.Conn
	out     []byte
	replies []byte
}

func newPump(t testing.TB, w *world, typ, flags uint16, depth, size int, extended bool) *pump {
	var c *nbdtest.Client
	if extended {
		c, _ = w.attachExtended()
	} else {
		c = w.attach()
	}
	c.Conn.SetDeadline(time.Time{})
	p := &pump{nc: c.Conn}
	for i := range depth {
		r := wire.Request{Type: typ, Flags: flags, Cookie: uint64(i), Offset: uint64(i * size), Length: uint64(size)}
		n := wire.SimpleReplySize
		if extended {
			if n = wire.ExtChunkHeaderSize; typ == wire.CmdWrite {
				r.Flags |= wire.CmdFlagPayloadLen
			} else if typ == wire.CmdRead {
				n = wire.ExtDataChunkSize
			}
			p.out = wire.AppendExtRequest(p.out, r)
		} else {
			p.out = wire.AppendRequest(p.out, r)
		}
		switch typ {
		case wire.CmdWrite:
			p.out = append(p.out, pattern(size, byte(i))...)
		case wire.CmdRead:
			n += size
		}
		p.replies = append(p.replies, make([]byte, n)...)
	}
	return p
}

// round sends the requests and takes the replies.
func (p *pump) round() error {
	if _, err := p.nc.Write(p.out); err != nil {
		return err
	}
	_, err := io.ReadFull(p.nc, p.replies)
	return err
}

var shapes = []struct {
	name        string
	typ         uint16
	depth, size int
}{
	{"read4k/qd1", wire.CmdRead, 1, 4096}, {"read4k/qd32", wire.CmdRead, 32, 4096},
	{"write4k/qd1", wire.CmdWrite, 1, 4096}, {"write4k/qd32", wire.CmdWrite, 32, 4096},
	{"read1m/qd1", wire.CmdRead, 1, 1 << 20}, {"write1m/qd1", wire.CmdWrite, 1, 1 << 20},
	{"flush/qd1", wire.CmdFlush, 1, 0},
}

// The hot path allocates nothing per request.
func TestNoAllocationsPerRequest(t *testing.T) {
	m := nbdtest.NewMemory(64 << 20)
	if err := m.WriteAt(t.Context(), pattern(64<<20, 1), 0, false); err != nil { // no holes, whose replies are shorter
		t.Fatal(err)
	}
	w := disk(t, m, nil)
	for _, s := range shapes {
		for _, extended := range []bool{false, true} {
			countAllocations(t, w, newPump(t, w, s.typ, 0, s.depth, s.size, extended), s.name, s.depth)
		}
	}
}

func countAllocations(t *testing.T, w *world, p *pump, name string, depth int) {
	for range 20 { // pools fill, FLUSH learns that it is quick
		w.must(p.round())
	}
	runtime.GC()
	rounds := 50
	allocs := testing.AllocsPerRun(rounds, func() {
		if err := p.round(); err != nil {
			t.Fatal(err)
		}
	})
	if per := allocs / float64(depth); per > 0.5 && !raceEnabled {
		t.Errorf("%s: %.2f allocations per request", name, per)
	}
}

func BenchmarkUnix(b *testing.B) {
	for _, s := range shapes {
		b.Run(s.name, func(b *testing.B) {
			w := disk(b, nbdtest.NewMemory(64<<20), nil)
			p := newPump(b, w, s.typ, 0, s.depth, s.size, false)
			b.ReportAllocs()
			b.SetBytes(int64(s.size))
			b.ResetTimer()
			for done := 0; done < b.N; done += s.depth {
				if err := p.round(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A call that waits, made here or in a goroutine of its own.
func BenchmarkFlushHop(b *testing.B) {
	for name, limit := range map[string]time.Duration{"here": time.Hour, "handed over": -1} {
		b.Run(name, func(b *testing.B) {
			w := serve(b, nbd.ExportMap{"disk": {Device: nbdtest.NewMemory(1 << 20)}}, func(o *nbd.Options) { o.InlineLimit = limit })
			p := newPump(b, w, wire.CmdFlush, 0, 1, 0, false)
			b.ResetTimer()
			for range b.N {
				if err := p.round(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A thousand idle connections hold no buffers.
func TestIdleConnectionsAreCheap(t *testing.T) {
	w := disk(t, nbdtest.NewMemory(1<<20), nil)
	heap := func() (inuse uint64) {
		runtime.GC()
		runtime.GC() // twice: pools give up their second half
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return ms.HeapInuse + ms.StackInuse
	}
	before := heap()
	const n = 300
	for range n {
		nc := w.raw()
		h := wire.AppendOption([]byte{0, 0, 0, 3}, wire.OptGo, wire.AppendExportRequest(nil, wire.ExportRequest{Name: "disk"}))
		h = append(h, wire.AppendRequest(nil, wire.Request{Type: wire.CmdRead, Length: 4096})...)
		_, err := nc.Write(h)
		w.must(err)
		_, err = io.ReadFull(bufio.NewReaderSize(nc, 16), make([]byte, 18+32+20+16+4096))
		w.must(err)
	}
	per := (int64(heap()) - int64(before)) / n
	t.Logf("%d bytes per idle connection, client and server", per)
	if per > 48<<10 {
		t.Errorf("%d bytes per idle connection", per)
	}
}

func TestTCPAndUnixTogether(t *testing.T) {
	m := nbdtest.NewMemory(1 << 20)
	srv, err := nbd.NewServer(nbd.Options{Exports: nbd.ExportMap{"disk": {Device: m}}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	t.Chdir(t.TempDir()) // the path of a socket is short
	addrs := [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", "s"}}
	for i, a := range addrs {
		l, err := net.Listen(a[0], a[1])
		if err != nil {
			t.Fatal(err)
		}
		addrs[i][1] = l.Addr().String()
		go func() { done <- srv.Serve(t.Context(), l) }()
	}
	for i, a := range addrs {
		c, err := nbdtest.Dial(a[0], a[1])
		if err == nil {
			err = c.Go("disk")
		}
		if err == nil {
			err = c.WriteAt(pattern(100_000, byte(i)), 0, false)
		}
		if err == nil {
			err = c.Disconnect()
		}
		if err != nil {
			t.Fatalf("%v: %v", a, err)
		}
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	for range addrs {
		if err := <-done; err != nbd.ErrServerClosed {
			t.Error(err)
		}
	}
	if s := fmt.Sprint(srv.Stats().Accepted); s != "2" {
		t.Errorf("%s connections", s)
	}
}
