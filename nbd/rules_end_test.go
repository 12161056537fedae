package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"scoria/nbd"
	"scoria/nbd/internal/wire"
	"scoria/nbd/nbdtest"
)

func TestRule54Disconnect(t *testing.T) {
	m := memory()
	w := disk(t, m, nil)
	c := w.attach()
	entered, release := make(chan struct{}), make(chan struct{})
	m.Hook(func(context.Context, nbdtest.Op, uint64, uint64) error {
		entered <- struct{}{}
		<-release
		return nil
	})
	for i := range uint64(5) {
		c.Queue(wire.CmdWrite, 0, i*4096, 4096, pattern(4096, 1))
	}
	c.Queue(wire.CmdDisc, 0, 0, 0, nil)
	w.must(c.Send())
	for range 5 {
		<-entered
	}
	close(release)
	for range 5 {
		r, err := c.Receive()
		w.must(err)
		w.must(r.Err())
	}
	closed(t, c.Conn)
}

func TestRule55DroppedConnection(t *testing.T) {
	m := memory()
	w := disk(t, m, nil)
	other := w.attach()
	c := w.attach()
	w.must(c.WriteAt(pattern(4096, 3), 0, false))
	cancelled := make(chan struct{})
	entered := make(chan struct{})
	m.Hook(func(ctx context.Context, op nbdtest.Op, off, _ uint64) error {
		if off == 65536 {
			close(entered)
			<-ctx.Done() // abandoned as soon as the client is gone
			close(cancelled)
			return ctx.Err()
		}
		return nil
	})
	c.Queue(wire.CmdRead, 0, 65536, 1<<19, nil)
	w.must(c.Send())
	<-entered
	w.must(c.Close())
	<-cancelled
	m.Hook(nil)
	got := make([]byte, 4096)
	w.must(other.ReadAt(got, 0))
	if !bytes.Equal(got, pattern(4096, 3)) {
		t.Error("an acknowledged write is gone")
	}
	until(t, "memory is given back", func() bool {
		s := w.srv.Stats()
		return s.Connections == 1 && s.BytesFree == 1<<30 && s.Waiting == 0
	})
}

// until polls for something that happens in another goroutine after a connection was closed.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
	}
}

func TestRule56Bounds(t *testing.T) {
	m := nbdtest.NewMemory(8 << 20)
	w := serve(t, nbd.ExportMap{"disk": {Name: "disk", Device: m}}, func(o *nbd.Options) {
		o.MaxPayload, o.MaxConnBytes, o.MaxBytes, o.MaxRequests = 1<<20, 4<<20, 6<<20, 8
	})
	t.Run("requests in the device", func(t *testing.T) {
		var now, most atomic.Int64
		step := make(chan struct{})
		m.Hook(func(context.Context, nbdtest.Op, uint64, uint64) error {
			n := now.Add(1)
			for {
				if old := most.Load(); n <= old || most.CompareAndSwap(old, n) {
					break
				}
			}
			<-step
			now.Add(-1)
			return nil
		})
		c := w.attach()
		for i := range uint64(100) {
			c.Queue(wire.CmdRead, 0, i*512, 512, nil)
		}
		w.must(c.Send())
		until(t, "the bound is reached", func() bool { return now.Load() == 8 })
		close(step)
		for range 100 {
			_, err := c.Receive()
			w.must(err)
		}
		if most.Load() != 8 {
			t.Errorf("%d requests in the device", most.Load())
		}
		m.Hook(nil)
	})
	t.Run("a peer that takes no replies stalls only itself", func(t *testing.T) {
		for _, decline := range []bool{false, true} {
			m.Decline(decline)
			c := w.attach()
			c.Conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			var err error
			for i := 0; i < 10_000 && err == nil; i++ { // some GB of replies
				c.Queue(wire.CmdRead, 0, 0, 1<<20, nil)
				c.Queue(wire.CmdRead, 0, 0, 4096, nil)
				err = c.Send()
			}
			if err == nil {
				t.Fatal("the server went on reading requests")
			}
			if s := w.srv.Stats(); s.BytesFree < 2<<20 {
				t.Errorf("one connection holds %d bytes", 6<<20-s.BytesFree)
			}
			w.stillServes()
			other := w.attach()
			w.must(other.ReadAt(make([]byte, 1<<20), 0))
			w.must(c.Close())
		}
		m.Decline(false)
		until(t, "memory is given back", func() bool { return w.srv.Stats().BytesFree == 6<<20 })
	})
}

func TestRule57Shutdown(t *testing.T) {
	m := nbdtest.NewDurable(1 << 20)
	w := disk(t, m, nil)
	haggling, busy, idle := w.dial(), w.attach(), w.attach()
	w.must(idle.WriteAt(pattern(4096, 9), 0, false))
	entered, release := make(chan struct{}), make(chan struct{})
	m.Hook(func(_ context.Context, op nbdtest.Op, off, _ uint64) error {
		if off == 65536 {
			close(entered)
			<-release
		}
		return nil
	})
	inFlight := busy.Queue(wire.CmdWrite, 0, 65536, 4096, pattern(4096, 5))
	w.must(busy.Send())
	<-entered
	done := make(chan error, 1)
	go func() { done <- w.srv.Shutdown(context.Background()) }()
	// the idle one is closed, the busy one is told ESHUTDOWN until its request is done
	closed(t, idle.Conn)
	late := busy.Queue(wire.CmdRead, 0, 0, 512, nil)
	w.must(busy.Send())
	r, err := busy.Receive()
	if err != nil || r.Cookie != late || r.Errno != 108 {
		t.Fatalf("%+v, %v; want ESHUTDOWN", r, err)
	}
	select {
	case err := <-done:
		t.Fatalf("Shutdown did not wait: %v", err)
	default:
	}
	close(release)
	if r, err = busy.Receive(); err != nil || r.Cookie != inFlight || r.Errno != 0 {
		t.Fatalf("%+v, %v; want the write in flight to be answered", r, err)
	}
	w.must(<-done)
	if !bytes.Equal(m.Durable()[:4096], pattern(4096, 9)) || !bytes.Equal(m.Durable()[65536:69632], pattern(4096, 5)) {
		t.Error("Shutdown did not flush")
	}
	if _, err := haggling.Option(wire.OptList, nil); err == nil {
		t.Error("handshake goes on after Shutdown")
	}
	if _, err := net.Dial("unix", w.addr); err == nil {
		t.Error("still accepting")
	}
	w.must(w.srv.Shutdown(context.Background()))
}

func TestRule57OptionsGetErrShutdown(t *testing.T) {
	e := &exports{ExportMap: nbd.ExportMap{"disk": {Name: "disk", Device: memory()}}}
	entered, release := make(chan struct{}), make(chan struct{})
	e.open = func(context.Context, string) error {
		close(entered)
		<-release
		return nil
	}
	w := serve(t, e, nil)
	c := w.dial()
	b := wire.AppendOption(nil, wire.OptInfo, wire.AppendExportRequest(nil, wire.ExportRequest{Name: "disk"}))
	b = wire.AppendOption(b, wire.OptList, nil)
	_, err := c.Conn.Write(wire.AppendOption(b, wire.OptAbort, nil))
	w.must(err)
	<-entered
	done := make(chan error, 1)
	go func() { done <- w.srv.Shutdown(context.Background()) }()
	until(t, "the server stops accepting", func() bool {
		nc, err := net.Dial("unix", w.addr)
		if err == nil {
			nc.Close()
		}
		return err != nil
	})
	close(release)
	_, err = c.OptionReplies(wire.OptInfo) // was being answered
	w.must(err)
	_, err = c.OptionReplies(wire.OptList)
	refused(t, err, wire.RepErrShutdown)
	_, err = c.OptionReplies(wire.OptAbort)
	w.must(err)
	w.must(<-done)
}

func TestRule57ShutdownInTheHandshake(t *testing.T) {
	e := &exports{ExportMap: nbd.ExportMap{"disk": {Name: "disk", Device: memory()}}}
	entered, release := make(chan struct{}), make(chan struct{})
	e.open = func(context.Context, string) error {
		close(entered)
		<-release
		return nil
	}
	w := serve(t, e, nil)
	c := w.dial()
	// INFO is being answered when the shutdown begins, LIST comes after.
	b := wire.AppendOption(nil, wire.OptInfo, wire.AppendExportRequest(nil, wire.ExportRequest{Name: "disk"}))
	_, err := c.Conn.Write(wire.AppendOption(b, wire.OptList, nil))
	w.must(err)
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // Shutdown gives up at once: it is cut short, and still waits for its goroutines
	done := make(chan error, 1)
	go func() { done <- w.srv.Shutdown(ctx) }()
	closed(t, c.Conn)
	close(release)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("Shutdown: %v", err)
	}
	if e.used.Load() != 0 {
		t.Error("export was not released")
	}
}

func TestRule58ErrorsKeepTheConnection(t *testing.T) {
	m := memory()
	w := disk(t, m, nil)
	c := w.attach()
	m.Hook(func(context.Context, nbdtest.Op, uint64, uint64) error { return errors.New("backend away") })
	for range 200 {
		errno(t, "READ", c.ReadAt(make([]byte, 512), 0), 5)
		errno(t, "WRITE", c.WriteAt(pattern(512, 1), 0, false), 5)
		errno(t, "FLUSH", c.Flush(), 5)
	}
	m.Hook(nil)
	w.must(c.WriteAt(pattern(512, 1), 0, false))
	if s := w.srv.Stats(); s.DeviceErrors != 600 || s.Read.Errors != 200 || s.Write.Requests != 201 || s.Write.Bytes != 512 {
		t.Errorf("%+v", s)
	}
}

// bubble runs a server on a pipe, with time that jumps.
func bubble(t *testing.T, mod func(*nbd.Options), f func(srv *nbd.Server, m *nbdtest.Memory, nc net.Conn, ended chan error)) {
	synctest.Test(t, func(t *testing.T) {
		m := nbdtest.NewMemory(1 << 20)
		opts := nbd.Options{Exports: nbd.ExportMap{"disk": {Name: "disk", Device: m}}}
		mod(&opts)
		srv, err := nbd.NewServer(opts)
		if err != nil {
			t.Fatal(err)
		}
		ours, its := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- srv.ServeConn(t.Context(), its) }()
		f(srv, m, ours, ended)
		ours.Close()
		srv.Close()
	})
}

func TestTimeouts(t *testing.T) {
	attach := func(t *testing.T, nc net.Conn) *nbdtest.Client {
		c, err := nbdtest.NewClient(nc)
		if err == nil {
			err = c.Go("disk")
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	between := func(t *testing.T, since time.Time, lo, hi time.Duration) {
		t.Helper()
		if d := time.Since(since); d < lo || d > hi {
			t.Errorf("ended after %v, want %v to %v", d, lo, hi)
		}
	}
	t.Run("handshake", func(t *testing.T) {
		bubble(t, func(o *nbd.Options) { o.HandshakeTimeout = 7 * time.Second }, func(srv *nbd.Server, _ *nbdtest.Memory, nc net.Conn, ended chan error) {
			start := time.Now()
			go io.Copy(io.Discard, nc)
			if err := <-ended; err == nil {
				t.Error("no error")
			}
			between(t, start, 7*time.Second, 7*time.Second)
		})
	})
	t.Run("idle", func(t *testing.T) {
		bubble(t, func(o *nbd.Options) { o.IdleTimeout = 40 * time.Second }, func(srv *nbd.Server, m *nbdtest.Memory, nc net.Conn, ended chan error) {
			c := attach(t, nc)
			for range 5 { // activity keeps it open
				time.Sleep(25 * time.Second)
				if err := c.ReadAt(make([]byte, 512), 0); err != nil {
					t.Fatal(err)
				}
			}
			m.Hook(func(context.Context, nbdtest.Op, uint64, uint64) error { time.Sleep(time.Hour); return nil })
			if err := c.Flush(); err != nil { // a slow device is not an idle client
				t.Fatal(err)
			}
			start := time.Now()
			<-ended
			between(t, start, 40*time.Second, 60*time.Second)
			if srv.Stats().TimedOut != 1 {
				t.Errorf("%+v", srv.Stats())
			}
		})
	})
	t.Run("never by default", func(t *testing.T) {
		bubble(t, func(*nbd.Options) {}, func(_ *nbd.Server, _ *nbdtest.Memory, nc net.Conn, _ chan error) {
			c := attach(t, nc)
			time.Sleep(1000 * time.Hour)
			if err := c.ReadAt(make([]byte, 512), 0); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("half a request", func(t *testing.T) {
		for _, n := range []int{3, 28, 1000, 100_000} {
			bubble(t, func(o *nbd.Options) { o.StallTimeout = 20 * time.Second }, func(srv *nbd.Server, _ *nbdtest.Memory, nc net.Conn, ended chan error) {
				attach(t, nc)
				b := wire.AppendRequest(nil, wire.Request{Type: wire.CmdWrite, Length: 1 << 19})
				nc.Write(append(b, make([]byte, 1<<19)...)[:n])
				start := time.Now()
				<-ended
				between(t, start, 20*time.Second, 30*time.Second)
				if s := srv.Stats(); s.TimedOut != 1 || s.BytesFree != 1<<30 {
					t.Errorf("%+v", s)
				}
			})
		}
	})
}

// A connection that holds memory and does not take its replies is ended soon when another one
// needs the memory, also while it waits for more itself; one that takes them slowly is not, and
// without need none is.
func TestStalledHolderOfMemoryIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := nbdtest.NewMemory(4 << 20)
		srv, err := nbd.NewServer(nbd.Options{Exports: nbd.ExportMap{"disk": {Name: "disk", Device: m}},
			MaxPayload: 4 << 20, MaxConnBytes: 8 << 20, MaxBytes: 16 << 20})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		open := func() *nbdtest.Client {
			ours, its := net.Pipe()
			wg.Go(func() { srv.ServeConn(t.Context(), its) })
			c, err := nbdtest.NewClient(ours)
			if err == nil {
				err = c.Go("disk")
			}
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		m.Decline(true)
		ask := func(reads int) *nbdtest.Client {
			c := open()
			for range reads {
				c.Queue(wire.CmdRead, 0, 0, 4<<20, nil)
			}
			if err := c.Send(); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return c
		}
		ask(2)         // takes none
		slow := ask(1) // will take it, a piece at a time
		ask(1)
		time.Sleep(time.Hour)
		if s := srv.Stats(); s.Connections != 3 || s.BytesFree != 0 {
			t.Fatalf("without need: %+v", s)
		}
		done := make(chan error)
		go func() {
			p := make([]byte, 1<<20)
			for range 4 {
				if _, err := io.ReadFull(slow.Conn, p); err != nil {
					done <- err
					return
				}
				time.Sleep(4 * time.Second)
			}
			done <- nil
		}()
		time.Sleep(time.Millisecond)
		start := time.Now()
		good := open()
		if err := good.ReadAt(make([]byte, 4<<20), 0); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 7*time.Second {
			t.Errorf("took %v", d)
		}
		if err := <-done; err != nil {
			t.Errorf("the slow client: %v", err)
		}
		srv.Close()
		wg.Wait()
	})
}

func TestServeEndsWithItsContext(t *testing.T) {
	srv, err := nbd.NewServer(nbd.Options{Exports: nbd.ExportMap{"disk": {Device: memory()}}})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	c, err := nbdtest.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Go("disk"); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
	closed(t, c.Conn)
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := srv.Serve(t.Context(), l); err != nbd.ErrServerClosed {
		t.Errorf("Serve after Close: %v", err)
	}
}

func TestMaxConns(t *testing.T) {
	w := serve(t, nbd.ExportMap{"disk": {Device: memory()}}, func(o *nbd.Options) { o.MaxConns = 3 })
	var cs []*nbdtest.Client
	for range 3 {
		cs = append(cs, w.attach())
	}
	nc := w.raw()
	closed(t, nc)
	w.must(cs[0].Disconnect())
	until(t, "a place is free", func() bool { return w.srv.Stats().Connections == 2 })
	w.stillServes()
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []nbd.Options{{}, {Exports: nbd.ExportMap{}, MaxPayload: 5}, {Exports: nbd.ExportMap{}, MaxConnBytes: 1},
		{Exports: nbd.ExportMap{}, MaxBytes: 1}, {Exports: nbd.ExportMap{}, MaxConns: -1}, {Exports: nbd.ExportMap{}, IdleTimeout: -1}} {
		if srv, err := nbd.NewServer(o); err == nil {
			srv.Close()
			t.Errorf("%+v was accepted", o)
		}
	}
}
