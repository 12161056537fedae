package osd_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"scoria/alba/osd"
	"scoria/alba/osd/osdtest"
	"scoria/internal/vfs"
)

// serve starts a server of a and returns its address.
func serve(t *testing.T, a osd.API, uuid string, o osd.ServerOptions) (addr string, s *osd.Server) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = osd.NewServer(a, uuid, o)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, osd.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return ln.Addr().String(), s
}

func TestClientConforms(t *testing.T) {
	osdtest.Run(t, func(t *testing.T) osd.API {
		st := open(t, "/osd", osd.Options{FS: vfs.NewMem(vfs.MemOptions{}), SegmentSize: 1 << 20})
		addr, _ := serve(t, st, st.UUID(), osd.ServerOptions{})
		c := osd.Dial(addr, st.UUID(), osd.ClientOptions{})
		t.Cleanup(func() { _ = c.Close() })
		return c
	})
}

func TestWrongIdentity(t *testing.T) {
	addr, _ := serve(t, osdtest.NewFake(), "00000000-0000-4000-8000-000000000001", osd.ServerOptions{})
	c := osd.Dial(addr, "00000000-0000-4000-8000-000000000002", osd.ClientOptions{})
	defer c.Close()
	if _, err := c.Info(t.Context()); !errors.Is(err, osd.ErrWrongOSD) {
		t.Errorf("info: %v, want ErrWrongOSD", err)
	}
}

func TestUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	c := osd.Dial(addr, "", osd.ClientOptions{})
	defer c.Close()
	for range 3 {
		if _, err := c.Info(t.Context()); !errors.Is(err, osd.ErrUnavailable) {
			t.Errorf("info: %v, want ErrUnavailable", err)
		}
	}
}

// TestReconnect: a server that went away and came back is found again by reads without an error.
func TestReconnect(t *testing.T) {
	f := osdtest.NewFake()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	s := osd.NewServer(f, "u", osd.ServerOptions{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	c := osd.Dial(addr, "", osd.ClientOptions{Connections: 1})
	defer c.Close()
	if _, err := c.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-done
	if ln, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	s = osd.NewServer(f, "u", osd.ServerOptions{})
	go func() { done <- s.Serve(ln) }()
	if _, err := c.Info(t.Context()); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-done
}

// TestHostile: garbage ends its own connection and no other.
func TestHostile(t *testing.T) {
	addr, _ := serve(t, osdtest.NewFake(), "u", osd.ServerOptions{})
	c := osd.Dial(addr, "", osd.ClientOptions{Connections: 1})
	defer c.Close()
	if _, err := c.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write(osdtest.Fill(uint64(i), 4096)); err != nil && i == 0 {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, nc); n != 0 {
			t.Errorf("%d bytes of answer to garbage (%v)", n, err)
		}
		_ = nc.Close()
	}
	if _, err := c.Info(t.Context()); err != nil {
		t.Errorf("the good client: %v", err)
	}
}
