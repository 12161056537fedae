package nbd_test

import (
	"context"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"scoria/nbd"
	"scoria/nbd/nbdtest"
)

// world is a server on a unix socket with the exports of a test.
type world struct {
	t    testing.TB
	srv  *nbd.Server
	addr string
}

// serve starts a server; mod may change its options.
func serve(t testing.TB, exports nbd.Exports, mod func(*nbd.Options)) *world {
	t.Helper()
	opts := nbd.Options{Exports: exports}
	if mod != nil {
		mod(&opts)
	}
	srv, err := nbd.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, srv: srv, addr: filepath.Join(dir, "s")}
	l, err := net.Listen("unix", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nbd.ErrServerClosed {
			t.Errorf("Serve returned %v", err)
		}
		os.RemoveAll(dir)
		if s := srv.Stats(); s.Connections != 0 || s.Waiting != 0 || s.BytesFree < 1<<20 {
			t.Errorf("after Close: %+v", s)
		}
	})
	return w
}

// disk serves one device as "disk".
func disk(t testing.TB, d nbd.Device, mod func(*nbd.Export)) *world {
	e := &nbd.Export{Name: "disk", Description: "a disk for tests", Device: d, FastZero: true}
	if mod != nil {
		mod(e)
	}
	return serve(t, nbd.ExportMap{"disk": e}, nil)
}

// dial connects up to the greeting.
func (w *world) dial() *nbdtest.Client {
	w.t.Helper()
	c, err := nbdtest.Dial("unix", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	c.Conn.SetDeadline(time.Now().Add(time.Minute)) // so that a bug fails instead of hanging
	return c
}

// attach connects and chooses "disk".
func (w *world) attach() *nbdtest.Client {
	w.t.Helper()
	c := w.dial()
	w.must(c.Go("disk"))
	return c
}

// attachStructured is attach with structured replies and base:allocation (id 1).
func (w *world) attachStructured() *nbdtest.Client {
	w.t.Helper()
	c := w.dial()
	ids, err := c.Negotiate("disk", "base:allocation")
	w.must(err)
	if ids["base:allocation"] != 1 {
		w.t.Fatalf("contexts %v", ids)
	}
	w.must(c.Go("disk"))
	return c
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// stillServes fails the test unless a fresh connection works.
func (w *world) stillServes() {
	w.t.Helper()
	c := w.attach()
	w.must(c.ReadAt(make([]byte, 512), 0))
	w.must(c.Disconnect())
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return p
}

// TestServeForPeople is no test: with SCORIA_NBD_SERVE=unix:/path or host:port it serves 1 GiB
// of memory until it is interrupted, for measuring with fio and for trying clients.
func TestServeForPeople(t *testing.T) {
	addr := os.Getenv("SCORIA_NBD_SERVE")
	if addr == "" {
		t.Skip("SCORIA_NBD_SERVE is not set")
	}
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	size := uint64(1 << 30)
	srv, err := nbd.NewServer(nbd.Options{Exports: nbd.ExportMap{"": {Device: nbdtest.NewMemory(size), FastZero: true}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	go srv.Serve(ctx, l)
	<-ctx.Done()
	t.Logf("%+v", srv.Stats())
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}
