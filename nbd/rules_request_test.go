package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"scoria/nbd"
	"scoria/nbd/internal/wire"
	"scoria/nbd/nbdtest"
)

// errno fails the test unless err is the error reply want.
func errno(t *testing.T, what string, err error, want uint32) {
	t.Helper()
	if got := nbdtest.ErrnoOf(err); err == nil && want != 0 || got != want {
		t.Errorf("%s: %v, want error %d", what, err, want)
	}
}

func TestRule31ReadOnly(t *testing.T) {
	m := memory()
	w := disk(t, m, func(e *nbd.Export) { e.ReadOnly = true })
	c := w.attach()
	if c.Flags&(wire.FlagHasFlags|wire.FlagReadOnly) != wire.FlagHasFlags|wire.FlagReadOnly {
		t.Fatalf("flags %#x", c.Flags)
	}
	errno(t, "WRITE", c.WriteAt(pattern(4096, 1), 0, false), 1)
	errno(t, "large WRITE", c.WriteAt(pattern(1<<20, 1), 0, false), 1)
	errno(t, "TRIM", c.Trim(0, 4096, false), 1)
	errno(t, "WRITE_ZEROES", c.WriteZeroes(0, 4096, false, false), 1)
	errno(t, "READ", c.ReadAt(make([]byte, 4096), 0), 0)
	errno(t, "FLUSH", c.Flush(), 0)
	if m.Calls(nbdtest.OpWrite)+m.Calls(nbdtest.OpTrim)+m.Calls(nbdtest.OpWriteZeroes) != 0 || !bytes.Equal(m.Bytes(), make([]byte, 1<<20)) {
		t.Error("the device saw a write")
	}
}

func TestRule32Flags(t *testing.T) {
	base := wire.FlagHasFlags | wire.FlagSendFlush | wire.FlagSendCache
	rw := wire.FlagSendFUA | wire.FlagSendTrim | wire.FlagSendWriteZeroes
	for _, c := range []struct {
		name string
		mod  func(e *nbd.Export)
		want uint16
	}{
		{"plain", func(e *nbd.Export) { e.FastZero = false }, base | rw | wire.FlagCanMultiConn},
		{"fast zero", nil, base | rw | wire.FlagCanMultiConn | wire.FlagSendFastZero},
		{"read-only", func(e *nbd.Export) { e.ReadOnly = true }, base | wire.FlagReadOnly | wire.FlagCanMultiConn},
		{"no multi-conn", func(e *nbd.Export) { e.NoMultiConn = true }, base | rw | wire.FlagSendFastZero},
	} {
		w := disk(t, memory(), c.mod)
		if got := w.attach().Flags; got != c.want {
			t.Errorf("%s: flags %#x, want %#x", c.name, got, c.want)
		}
		if got := w.attachStructured().Flags; got != c.want|wire.FlagSendDF {
			t.Errorf("%s: flags %#x with structured replies", c.name, got)
		}
	}
}

func TestRule33And42FlushCoversAllConnections(t *testing.T) {
	m := nbdtest.NewDurable(1 << 20)
	w := disk(t, m, nil)
	a, b := w.attach(), w.attachStructured()
	w.must(a.WriteAt(pattern(8192, 1), 4096, false))
	got := make([]byte, 8192)
	w.must(b.ReadAt(got, 4096)) // visible through the other connection
	if !bytes.Equal(got, pattern(8192, 1)) {
		t.Fatal("answered write is not visible on the other connection")
	}
	if !bytes.Equal(m.Durable(), make([]byte, 1<<20)) {
		t.Fatal("durable without FLUSH: the test proves nothing")
	}
	w.must(b.Flush())
	if !bytes.Equal(m.Durable()[4096:12288], pattern(8192, 1)) {
		t.Fatal("FLUSH on one connection did not cover the other")
	}
	// offset and length of FLUSH are reserved
	_, err := b.Do(wire.CmdFlush, 0, ^uint64(0), 77, nil)
	w.must(err)
}

func TestRule34RequestFrame(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.attach()
	c.Queue(wire.CmdRead, 0, 0, 512, nil)
	w.must(c.Send())
	_, err := c.Receive()
	w.must(err)
	_, err = c.Conn.Write(append([]byte{0xde, 0xad, 0xbe, 0xef}, make([]byte, 24)...))
	w.must(err)
	closed(t, c.Conn)
	w.stillServes()
	if s := w.srv.Stats(); s.ProtocolErrors != 1 {
		t.Errorf("%d protocol errors", s.ProtocolErrors)
	}
}

func TestRule35OutOfOrder(t *testing.T) {
	m := memory()
	w := disk(t, m, nil)
	c := w.attachStructured()
	release := make(chan struct{})
	m.Hook(func(_ context.Context, op nbdtest.Op, off, _ uint64) error {
		if op == nbdtest.OpRead && off == 0 {
			<-release
		}
		return nil
	})
	slow := c.Queue(wire.CmdRead, 0, 0, 4096, nil)
	w.must(c.Send())
	for i := range 20 { // all overtake the first
		quick := c.Queue(wire.CmdRead, 0, 4096, 70000, nil)
		w.must(c.Send())
		r, err := c.Receive()
		if err != nil || r.Cookie != quick {
			t.Fatalf("request %d: %v, %v", i, r, err)
		}
	}
	close(release)
	if r, err := c.Receive(); err != nil || r.Cookie != slow {
		t.Fatalf("%v, %v", r, err)
	}
}

// Many requests of all kinds in flight at once: replies are whole and each comes once.
func TestRule35ManyInFlight(t *testing.T) {
	for _, decline := range []bool{false, true} {
		m := memory()
		m.Decline(decline)
		w := disk(t, m, nil)
		for _, c := range []*nbdtest.Client{w.attach(), w.attachStructured()} {
			const rounds, depth = 6, 100
			errs := make(chan error, 1)
			go func() {
				for range rounds {
					for i := range uint64(depth) {
						switch i % 6 {
						case 0:
							c.Queue(wire.CmdRead, 0, i*4096, 4096, nil)
						case 1, 2:
							c.Queue(wire.CmdWrite, uint16(i%2), i*4096, 4096, pattern(4096, byte(i)))
						case 3:
							c.Queue(wire.CmdFlush, 0, 0, 0, nil)
						case 4:
							c.Queue(wire.CmdRead, 0, i*1000, 100_000, nil)
						case 5:
							c.Queue(wire.CmdWrite, 0, 1<<19, 80_000, pattern(80_000, byte(i)))
						}
					}
					if err := c.Send(); err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
			for i := range rounds * depth {
				r, err := c.Receive()
				if err == nil {
					err = r.Err()
				}
				if err != nil {
					t.Fatalf("reply %d: %v", i, err)
				}
			}
			w.must(<-errs)
			for i := range uint64(depth) {
				if i%6 == 1 || i%6 == 2 {
					got := make([]byte, 4096)
					w.must(c.ReadAt(got, i*4096))
					if !bytes.Equal(got, pattern(4096, byte(i))) && i*4096 < 1<<19-4096 {
						t.Fatalf("write %d is lost", i)
					}
				}
			}
			w.must(c.Disconnect())
		}
	}
}

func TestRule36And37Bounds(t *testing.T) {
	m := nbdtest.NewMemory(1<<20 + 7)
	w := disk(t, m, nil)
	for _, c := range []*nbdtest.Client{w.attach(), w.attachStructured()} {
		for _, r := range []struct {
			off    uint64
			length uint64
		}{{1<<20 + 7, 1}, {1<<20 + 6, 2}, {1 << 30, 512}, {1 << 63, 512}, {^uint64(0), 1}, {^uint64(0) - 510, 512}, {^uint64(0) - 4095, 4096}, {0, 2 << 20}} {
			what := fmt.Sprintf("%d+%d", r.off, r.length)
			for _, typ := range []uint16{wire.CmdRead, wire.CmdTrim, wire.CmdCache} {
				_, err := c.Do(typ, 0, r.off, r.length, nil)
				errno(t, fmt.Sprintf("command %d at %s", typ, what), err, 22)
			}
			errno(t, "WRITE at "+what, c.WriteAt(make([]byte, r.length), r.off, false), 28)
			errno(t, "WRITE_ZEROES at "+what, c.WriteZeroes(r.off, r.length, false, false), 28)
			if c.Structured {
				_, err := c.Do(wire.CmdBlockStatus, 0, r.off, r.length, nil)
				errno(t, "BLOCK_STATUS at "+what, err, 22)
			}
		}
		errno(t, "last byte", c.WriteAt([]byte{1}, 1<<20+6, false), 0)
		w.must(c.Disconnect())
	}
	if m.Size() != 1<<20+7 {
		t.Fatal("the export grew")
	}
	t.Run("growth is seen", func(t *testing.T) {
		c := w.attach()
		errno(t, "before", c.ReadAt(make([]byte, 512), 1<<20+4096), 22)
		m.Grow(2 << 20)
		errno(t, "after", c.ReadAt(make([]byte, 512), 1<<20+4096), 0)
	})
}

func TestRule38UnknownCommandsAndFlags(t *testing.T) {
	w := disk(t, memory(), func(e *nbd.Export) { e.FastZero = false })
	for _, c := range []*nbdtest.Client{w.attach(), w.attachStructured()} {
		for _, typ := range []uint16{8, 9, 100, 65535} {
			_, err := c.Do(typ, 0, 0, 4096, nil) // no payload, whatever its length says
			errno(t, fmt.Sprintf("command %d", typ), err, 22)
		}
		for _, r := range []struct{ typ, flags uint16 }{
			{wire.CmdRead, wire.CmdFlagNoHole}, {wire.CmdRead, 1 << 15}, {wire.CmdRead, wire.CmdFlagReqOne},
			{wire.CmdTrim, wire.CmdFlagNoHole}, {wire.CmdTrim, wire.CmdFlagDF}, {wire.CmdFlush, wire.CmdFlagDF},
			{wire.CmdCache, wire.CmdFlagNoHole}, {wire.CmdWriteZeroes, wire.CmdFlagFastZero}, {wire.CmdWriteZeroes, wire.CmdFlagDF}, {wire.CmdBlockStatus, wire.CmdFlagDF},
		} {
			_, err := c.Do(r.typ, r.flags, 0, 4096, nil)
			errno(t, fmt.Sprintf("command %d with flags %#x", r.typ, r.flags), err, 22)
		}
		_, err := c.Do(wire.CmdWrite, wire.CmdFlagDF, 0, 100_000, pattern(100_000, 1))
		errno(t, "WRITE with DF", err, 22)
		_, err = c.Do(wire.CmdRead, wire.CmdFlagDF, 0, 4096, nil)
		errno(t, "READ with DF", err, map[bool]uint32{true: 0, false: 22}[c.Structured])
		w.must(c.ReadAt(make([]byte, 512), 0))
	}
}

func TestRule39LengthZero(t *testing.T) {
	m := memory()
	w := disk(t, m, nil)
	for _, c := range []*nbdtest.Client{w.attach(), w.attachStructured()} {
		for _, typ := range []uint16{wire.CmdRead, wire.CmdWrite, wire.CmdTrim, wire.CmdCache, wire.CmdWriteZeroes} {
			for _, off := range []uint64{0, 1 << 20} {
				if _, err := c.Do(typ, 0, off, 0, nil); err != nil {
					t.Errorf("command %d at %d: %v", typ, off, err)
				}
			}
		}
		_, err := c.Do(wire.CmdBlockStatus, 0, 0, 0, nil)
		errno(t, "BLOCK_STATUS", err, 22)
		w.must(c.Disconnect())
	}
	if n := m.Calls(nbdtest.OpWrite) + m.Calls(nbdtest.OpTrim) + m.Calls(nbdtest.OpCache); n != 0 {
		t.Errorf("%d calls of length 0 reached the device", n)
	}
}

func TestRule40ReadErrors(t *testing.T) {
	m := nbdtest.NewMemory(40 << 20)
	w := disk(t, m, nil)
	for _, c := range []*nbdtest.Client{w.attach(), w.attachStructured()} {
		w.must(c.ReadAt(make([]byte, 32<<20), 5))
		errno(t, "READ above the maximum", c.ReadAt(make([]byte, 32<<20+1), 0), 22)
		m.Hook(func(context.Context, nbdtest.Op, uint64, uint64) error { return errors.New("bad sector") })
		for _, n := range []int{1, 4096, 65537, 1 << 20} { // in step after errors of each size
			errno(t, fmt.Sprintf("failing READ of %d", n), c.ReadAt(make([]byte, n), 0), 5)
		}
		m.Hook(nil)
		w.must(c.ReadAt(make([]byte, 4096), 0))
	}
}

func TestRule41Writes(t *testing.T) {
	m := nbdtest.NewMemory(40 << 20)
	w := disk(t, m, nil)
	for _, decline := range []bool{false, true} {
		m.Decline(decline)
		for _, n := range []int{32 << 20, 1 << 20, 70_000, 65536, 4097} {
			c := w.attach()
			w.must(c.WriteAt(pattern(n, byte(n>>3)), 3, false))
			got := make([]byte, n)
			w.must(c.ReadAt(got, 3))
			if !bytes.Equal(got, pattern(n, byte(n>>3))) {
				t.Fatalf("WRITE of %d is not what is read", n)
			}
			w.must(c.Disconnect())
		}
	}
	c := w.attach()
	errno(t, "WRITE above the maximum", c.WriteAt(make([]byte, 32<<20+1), 0, false), 22)
	w.must(c.ReadAt(make([]byte, 512), 0))
	t.Run("claimed only", func(t *testing.T) {
		c := w.attach()
		c.Queue(wire.CmdWrite, 0, 0, 1<<32-1, pattern(1000, 1))
		w.must(c.Send())
		w.must(c.Close())
		w.stillServes()
	})
}

func TestRule43FUA(t *testing.T) {
	m := nbdtest.NewDurable(1 << 20)
	w := disk(t, m, nil)
	c := w.attachStructured()
	for _, typ := range []uint16{wire.CmdRead, wire.CmdFlush, wire.CmdCache, wire.CmdBlockStatus} {
		if _, err := c.Do(typ, wire.CmdFlagFUA, 0, 4096, nil); err != nil {
			t.Errorf("command %d with FUA: %v", typ, err)
		}
	}
	for _, n := range []int{4096, 100_000} {
		w.must(c.WriteAt(pattern(n, 2), 4096, true))
		if !bytes.Equal(m.Durable()[4096:4096+n], pattern(n, 2)) {
			t.Fatal("WRITE with FUA is not durable")
		}
	}
	w.must(c.WriteZeroes(4096, 4096, false, true))
	if !bytes.Equal(m.Durable()[4096:8192], make([]byte, 4096)) {
		t.Fatal("WRITE_ZEROES with FUA is not durable")
	}
	w.must(c.Trim(8192, 4096, true))
	if !bytes.Equal(m.Durable()[8192:12288], make([]byte, 4096)) {
		t.Fatal("TRIM with FUA is not durable")
	}
}

func TestRule44To46TrimAndZeroes(t *testing.T) {
	m := nbdtest.NewMemory(100 << 20)
	w := disk(t, m, nil)
	c := w.attach()
	w.must(c.WriteAt(bytes.Repeat([]byte{1}, 100_000), 0, false))
	w.must(c.Trim(4000, 10_000, false))
	got := make([]byte, 20_000)
	w.must(c.ReadAt(got, 0))
	if !bytes.Equal(got[:4000], bytes.Repeat([]byte{1}, 4000)) || !bytes.Equal(got[14_000:], bytes.Repeat([]byte{1}, 6000)) {
		t.Error("TRIM changed bytes outside of its range")
	}
	w.must(c.WriteZeroes(50_001, 9_999, true, false))
	w.must(c.ReadAt(got, 45_000))
	want := bytes.Repeat([]byte{1}, 20_000)
	clear(want[5001:15_000])
	if !bytes.Equal(got, want) {
		t.Error("WRITE_ZEROES is not exact")
	}
	w.must(c.Trim(0, 100<<20, false)) // far above the payload limit
	w.must(c.WriteZeroes(0, 100<<20, false, false))
	_, err := c.Do(wire.CmdWriteZeroes, wire.CmdFlagFastZero|wire.CmdFlagNoHole, 0, 1<<20, nil)
	w.must(err)
	t.Run("errors of the device", func(t *testing.T) {
		m.Hook(func(context.Context, nbdtest.Op, uint64, uint64) error { return syscall.EOPNOTSUPP })
		errno(t, "WRITE_ZEROES", c.WriteZeroes(0, 4096, false, false), 5) // never ENOTSUP without FAST_ZERO
	})
}

func TestRule47Cache(t *testing.T) {
	m := memory()
	w := disk(t, m, nil)
	c := w.attach()
	_, err := c.Do(wire.CmdCache, 0, 0, 1<<20, nil)
	w.must(err)
	if m.Calls(nbdtest.OpCache) != 1 {
		t.Error("the device was not told")
	}
	m.Hook(func(context.Context, nbdtest.Op, uint64, uint64) error { return errors.New("no") })
	_, err = c.Do(wire.CmdCache, 0, 0, 4096, nil)
	errno(t, "failing CACHE", err, 5)
}

func TestRule48BlockStatus(t *testing.T) {
	m := nbdtest.NewMemory(64 << 20)
	w := disk(t, m, marks)
	c := w.dial()
	_, err := c.Do(wire.CmdBlockStatus, 0, 0, 4096, nil)
	if err == nil {
		t.Fatal("BLOCK_STATUS in the handshake")
	}
	plain := w.attach()
	_, err = plain.Do(wire.CmdBlockStatus, 0, 0, 4096, nil)
	errno(t, "without a context", err, 22)
	c = w.dial()
	ids, err := c.Negotiate("disk", "test:marks", "base:allocation")
	w.must(err)
	w.must(c.Go("disk"))
	w.must(c.WriteAt(pattern(4096, 1), 8192, false))
	r, err := c.Do(wire.CmdBlockStatus, 0, 4096, 1<<20, nil)
	w.must(err)
	want := []wire.Extent{{Length: 4096, Flags: 3}, {Length: 4096, Flags: 0}, {Length: 1<<20 - 8192, Flags: 3}}
	if got := r.Status[ids["base:allocation"]]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("base:allocation %v, want %v", got, want)
	}
	want = []wire.Extent{{Length: 61440, Flags: 7}, {Length: 1<<20 - 61440, Flags: 8}}
	if got := r.Status[ids["test:marks"]]; fmt.Sprint(got) != fmt.Sprint(want) || len(r.Status) != 2 {
		t.Errorf("test:marks %v, want %v", got, want)
	}
	r, err = c.Do(wire.CmdBlockStatus, wire.CmdFlagReqOne, 8192, 64<<10, nil)
	w.must(err)
	if got := r.Status[ids["base:allocation"]]; len(got) != 1 || got[0].Length != 4096 {
		t.Errorf("REQ_ONE: %v", got)
	}
	m.Hook(func(context.Context, nbdtest.Op, uint64, uint64) error { return errors.New("no") })
	_, err = c.Do(wire.CmdBlockStatus, 0, 0, 4096, nil)
	errno(t, "failing BLOCK_STATUS", err, 5)
	m.Hook(nil)
	t.Run("bounded", func(t *testing.T) {
		m := nbdtest.NewMemory(2 * 4096 * (wire.MaxExtents + 100))
		for i := range uint64(wire.MaxExtents + 100) {
			w.must(m.WriteAt(t.Context(), []byte{1}, i*8192, false))
		}
		w := disk(t, m, nil)
		c := w.attachStructured()
		r, err := c.Do(wire.CmdBlockStatus, 0, 0, m.Size(), nil)
		if err != nil || len(r.Status[1]) != wire.MaxExtents {
			t.Errorf("%d extents, %v", len(r.Status[1]), err)
		}
	})
}

func TestRule49Errors(t *testing.T) {
	m := memory()
	w := disk(t, m, nil)
	c := w.attachStructured()
	for err, want := range map[error]uint32{
		syscall.ENOSPC: 28, syscall.EDQUOT: 28, syscall.EFBIG: 28,
		syscall.EPERM: 1, syscall.EROFS: 1, syscall.EACCES: 1,
		syscall.EINVAL: 22, syscall.ESHUTDOWN: 108,
		syscall.ENOMEM: 5, syscall.EOPNOTSUPP: 5, syscall.EOVERFLOW: 5, syscall.EIO: 5, syscall.ENOENT: 5, syscall.Errno(9999): 5,
		errors.New("anything"): 5, context.DeadlineExceeded: 5,
	} {
		m.Hook(func(context.Context, nbdtest.Op, uint64, uint64) error {
			return fmt.Errorf("deep: %w", fmt.Errorf("down: %w", err))
		})
		errno(t, "WRITE with "+err.Error(), c.WriteAt(pattern(4096, 1), 0, false), want)
		errno(t, "READ with "+err.Error(), c.ReadAt(make([]byte, 4096), 0), want)
		errno(t, "FLUSH with "+err.Error(), c.Flush(), want)
	}
}

// A READ of a hole is answered with one, where the client can take it and the device knows it.
func TestRule51Holes(t *testing.T) {
	m := nbdtest.NewMemory(4 << 20)
	w := disk(t, m, nil)
	structured := w.attachStructured()
	w.must(structured.WriteAt(pattern(4096, 1), 1<<20, false))
	w.must(structured.WriteAt(pattern(4096, 2), 3<<20, false))
	w.must(structured.Trim(3<<20, 4096, false))
	plain := w.attach()
	extended, _ := w.attachExtended()
	for _, c := range []*nbdtest.Client{plain, structured, extended} {
		for _, x := range []struct {
			off, length uint64
			hole        bool
		}{
			{0, 1, true}, {5, 100, true}, {0, 4096, true}, {4096, 64 << 10, true}, {0, 1 << 20, true}, {1<<20 + 4096, 1 << 20, true}, {3 << 20, 4096, true},
			{1 << 20, 4096, false}, {1<<20 - 1, 2, false}, {0, 1<<20 + 1, false}, {1<<20 + 4095, 2 << 20, false}, {0, 4 << 20, false},
		} {
			for _, flags := range []uint16{0, wire.CmdFlagDF}[:1+min(1, c.Flags&wire.FlagSendDF)] {
				r, err := c.Do(wire.CmdRead, flags, x.off, x.length, nil)
				w.must(err)
				if want := x.hole && c != plain; (r.Holes == 1) != want || r.Content != r.Chunks {
					t.Errorf("READ %d+%d: %d chunks, %d of them holes, want one: %v", x.off, x.length, r.Chunks, r.Holes, want)
				}
				if !bytes.Equal(r.Data, m.Bytes()[x.off:x.off+x.length]) {
					t.Errorf("READ %d+%d has other bytes", x.off, x.length)
				}
			}
		}
	}
	m.Decline(true) // a device that cannot tell at once sends its zeroes
	if r, err := structured.Do(wire.CmdRead, 0, 0, 4096, nil); err != nil || r.Holes != 0 || r.Content != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRule50To53Structured(t *testing.T) {
	m := nbdtest.NewMemory(4 << 20)
	w := disk(t, m, nil)
	c := w.attachStructured() // it checks chunks, coverage, DONE, DF and error chunks
	for _, n := range []uint64{0, 1, 4096, 65536, 65537, 2 << 20} {
		for _, flags := range []uint16{0, wire.CmdFlagDF} {
			r, err := c.Do(wire.CmdRead, flags, 1000, n, nil)
			if err != nil || r.Chunks != 1 || len(r.Data) != int(n) {
				t.Fatalf("READ of %d: %+v, %v", n, r, err)
			}
		}
	}
	r, err := c.Do(wire.CmdRead, 0, 1<<40, 512, nil)
	if errno(t, "READ past the end", err, 22); r.Chunks != 1 || r.Message == "" {
		t.Errorf("error chunk %+v", r)
	}
	r, err = c.Do(wire.CmdWrite, 0, 0, 512, pattern(512, 0))
	if w.must(err); r.Chunks != 0 {
		t.Errorf("WRITE answered with chunks: %+v", r)
	}
}
