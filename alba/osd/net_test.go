package osd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
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

// TestSilentPeers: connections beyond the limit that say nothing keep no client out, and a client
// that is served is never the one to give way.
func TestSilentPeers(t *testing.T) {
	addr, _ := serve(t, osdtest.NewFake(), "u", osd.ServerOptions{MaxConnections: 4})
	c := osd.Dial(addr, "", osd.ClientOptions{Connections: 1})
	defer c.Close()
	if _, err := c.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	var silent []net.Conn
	for range 12 {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		silent = append(silent, nc)
	}
	for _, nc := range silent[:8] { // the limit is 4, one of them is the client's
		if err := nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a silent connection did not give way")
		}
	}
	d := osd.Dial(addr, "", osd.ClientOptions{Connections: 1})
	defer d.Close()
	for _, cl := range []*osd.Client{c, d, c} {
		if _, err := cl.Info(t.Context()); err != nil {
			t.Errorf("beside silent peers: %v", err)
		}
	}
}

// failingListener fails as a process without free descriptors does.
type failingListener struct {
	net.Listener
	left int
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.left--; l.left >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// TestAcceptFails: a server that is out of descriptors for a while goes on afterwards.
func TestAcceptFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := osd.NewServer(osdtest.NewFake(), "u", osd.ServerOptions{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(&failingListener{ln, 4}) }()
	c := osd.Dial(ln.Addr().String(), "", osd.ClientOptions{})
	defer c.Close()
	if _, err := c.Info(t.Context()); err != nil {
		t.Errorf("after accept failed: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, osd.ErrServerClosed) {
		t.Error(err)
	}
}

// FuzzServer feeds whole connections to a server: whatever comes, it ends and gives all back.
func FuzzServer(f *testing.F) {
	for _, seed := range osd.SeedsForTest() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := osd.NewServer(osdtest.NewFake(), "u", osd.ServerOptions{})
		client, server := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(io.Discard, client) // until the server hangs up
		}()
		osd.ServeConnForTest(s, server)
		_, _ = client.Write(osd.SessionForTest("u", b)) // the server may hang up in the middle
		_ = client.Close()
		<-done
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestOtherVersion: a peer of another version is told so by the frame that it gets, or is hung up on.
func TestOtherVersion(t *testing.T) {
	addr, _ := serve(t, osdtest.NewFake(), "u", osd.ServerOptions{})
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Write(osd.OtherVersionForTest("u")); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(nc)
	if err != nil || !bytes.Contains(b, []byte("version 9, this program speaks 1")) {
		t.Errorf("answer %q, %v", b, err)
	}
}

// TestRounds: small reads, which are done in rounds, get their own answers among large ones,
// missing keys, wrong ranges and batches, all over one connection.
func TestRounds(t *testing.T) {
	st := open(t, "/osd", osd.Options{FS: vfs.NewMem(vfs.MemOptions{}), SegmentSize: 8 << 20})
	addr, _ := serve(t, st, st.UUID(), osd.ServerOptions{MaxInFlight: 4})
	c := osd.Dial(addr, st.UUID(), osd.ClientOptions{Connections: 1})
	defer c.Close()
	const keys, size = 16, 256 << 10
	name := func(i int) []byte { return []byte{'k', byte(i)} }
	var values [][]byte
	for i := range keys {
		values = append(values, osdtest.Fill(uint64(i), size))
		if err := c.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: name(i), Value: values[i]}}}); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for w := range 48 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			for range 40 {
				if err := roundsStep(t, c, rnd, name, values); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func roundsStep(t *testing.T, c *osd.Client, rnd *rand.Rand, name func(int) []byte, values [][]byte) error {
	keys, size := len(values), len(values[0])
	if rnd.IntN(10) == 0 {
		return c.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: []byte{'w', byte(rnd.IntN(256))}, Value: osdtest.Fill(1, 8192)}}})
	}
	reads := make([]osd.Read, 1+rnd.IntN(4))
	which := make([]int, len(reads))
	for i := range reads {
		blocks := 1 + rnd.IntN(2)
		if rnd.IntN(8) == 0 {
			blocks = size / osd.BlockSize // not small
		}
		which[i] = rnd.IntN(keys + 1) // the last one is missing
		off := rnd.IntN(size/osd.BlockSize-blocks+1) * osd.BlockSize
		reads[i] = osd.Read{Key: name(which[i]), Off: uint64(off), Buf: make([]byte, blocks*osd.BlockSize)}
	}
	if err := c.Read(t.Context(), reads); err != nil {
		return err
	}
	for i, r := range reads {
		if which[i] == keys {
			if !errors.Is(r.Err, osd.ErrNotFound) {
				return fmt.Errorf("a missing key gives %w", r.Err)
			}
			continue
		}
		if r.Err != nil {
			return r.Err
		}
		if !bytes.Equal(r.Buf, values[which[i]][r.Off:int(r.Off)+len(r.Buf)]) {
			return fmt.Errorf("key %d at %d: wrong bytes", which[i], r.Off)
		}
	}
	return nil
}
