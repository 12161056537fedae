package simnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

// connect returns both ends of a connection from host a to host b.
func connect(n *Network) (a, b net.Conn, err error) {
	l, err := n.Host("b").Listen(":0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close() //nolint:errcheck // a test
	if a, err = n.Host("a").DialContext(context.Background(), "tcp", l.Addr().String()); err != nil {
		return nil, nil, err
	}
	b, err = l.Accept()
	return a, b, err
}

func pair(t *testing.T, n *Network) (a, b net.Conn) {
	t.Helper()
	a, b, err := connect(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func send(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); err != nil || n != len(s) {
		t.Fatalf("wrote %d of %d: %v", n, len(s), err)
	}
}

func receive(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v, want %q", b, err, want)
	}
}

// TestConn runs the standard conformance test of net.Conn.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, c2, err = connect(New())
		return c1, c2, func() { _, _ = c1.Close(), c2.Close() }, err
	})
}

func TestHTTPOverIt(t *testing.T) {
	n := New()
	l, err := n.Host("server").Listen(":80")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	tr := &http.Transport{DialContext: n.Host("client").DialContext}
	body := bytes.Repeat([]byte("x"), 3*Window)
	resp, err := (&http.Client{Transport: tr}).Post("http://server:80/", "text/plain", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, body) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if err := errors.Join(resp.Body.Close(), srv.Close()); err != nil {
		t.Fatal(err)
	}
	tr.CloseIdleConnections()
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Fatal(err)
	}
}

func TestRefused(t *testing.T) {
	n := New()
	ctx := context.Background()
	if _, err := n.Host("a").DialContext(ctx, "tcp", "b:1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("nobody listens: %v", err)
	}
	l, err := n.Host("b").Listen("b:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Host("b").Listen(":1"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("listening twice: %v", err)
	}
	if _, err := n.Host("b").Listen("c:1"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Fatalf("another host's address: %v", err)
	}
	waiting, err := n.Host("a").DialContext(ctx, "tcp", "b:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("a connection that nobody accepted: %v", err)
	}
	if _, err := n.Host("a").DialContext(ctx, "tcp", "b:1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("after Close: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("Accept after Close: %v", err)
	}
}

func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b := pair(t, n)
		l, err := n.Host("b").Listen(":9")
		if err != nil {
			t.Fatal(err)
		}
		n.Partition([]string{"a"}, []string{"b", "c"})
		send(t, a, "held back")
		if err := b.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Read(make([]byte, 9)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read through a partition: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := n.Host("a").DialContext(ctx, "tcp", "b:9"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("dialled through a partition: %v", err)
		}
		if c, err := n.Host("c").DialContext(t.Context(), "tcp", "b:9"); err != nil {
			t.Fatalf("hosts on one side: %v", err)
		} else if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		dialled := make(chan error, 1)
		go func() {
			_, err := n.Host("a").DialContext(t.Context(), "tcp", "b:9")
			dialled <- err
		}()
		synctest.Wait()
		n.Heal()
		if err := b.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		receive(t, b, "held back")
		if err := <-dialled; err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestBlockOneDirection(t *testing.T) {
	n := New()
	a, b := pair(t, n)
	n.Block("a", "b")
	send(t, b, "this way")
	receive(t, a, "this way")
	send(t, a, "not this way")
	if err := b.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%v", err)
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b := pair(t, n)
		n.Delay("a", "b", 30*time.Millisecond)
		start := time.Now()
		send(t, a, "ping")
		receive(t, b, "ping")
		send(t, b, "pong")
		receive(t, a, "pong")
		if took := time.Since(start); took != 60*time.Millisecond {
			t.Fatalf("round trip in %v", took)
		}
		send(t, a, "slow ")
		n.Delay("a", "b", 0)
		send(t, a, "fast")
		receive(t, b, "slow fast") // nothing overtakes
	})
}

func TestCut(t *testing.T) {
	n := New()
	a, b := pair(t, n)
	blocked := make(chan error, 1)
	go func() {
		_, err := a.Read(make([]byte, 1))
		blocked <- err
	}()
	if got := n.Cut("a", "b"); got != 1 {
		t.Fatalf("%d connections cut", got)
	}
	if err := <-blocked; !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%v", err)
	}
	if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%v", err)
	}
}

func TestCutAfter(t *testing.T) {
	for _, at := range []int{0, 1, 5, 9} {
		n := New()
		a, b := pair(t, n)
		n.CutAfter("a", "b", at)
		wrote, err := a.Write([]byte("0123456789"))
		if wrote != at || !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("cut after %d: wrote %d, %v", at, wrote, err)
		}
		got, err := io.ReadAll(b)
		if string(got) != "0123456789"[:at] || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("cut after %d: read %q, %v", at, got, err)
		}
		if _, err := b.Write([]byte("x")); err == nil {
			t.Fatal("wrote into a cut connection")
		}
		c, d := pair(t, n) // works once
		send(t, c, "0123456789")
		receive(t, d, "0123456789")
	}
}

func TestStop(t *testing.T) {
	n := New()
	l, err := n.Host("b").Listen(":1")
	if err != nil {
		t.Fatal(err)
	}
	a, _ := pair(t, n)
	n.Stop("b")
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("%v", err)
	}
	if _, err := n.Host("b").Listen(":1"); err != nil {
		t.Fatalf("restart: %v", err)
	}
}

func TestHalfClose(t *testing.T) {
	a, b := pair(t, New())
	send(t, a, "request")
	if err := a.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(b)
	if err != nil || string(got) != "request" {
		t.Fatalf("%q, %v", got, err)
	}
	send(t, b, "answer")
	receive(t, a, "answer")
}
