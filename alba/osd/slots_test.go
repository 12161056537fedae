package osd_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"scoria/alba/osd"
	"scoria/alba/osd/osdtest"
)

// TestSmallReadsShareAConnection: a client opens a connection when it needs it, so counting
// them tells what shares one.
func TestSmallReadsShareAConnection(t *testing.T) {
	addr, _ := serve(t, osdtest.NewFake(), "u", osd.ServerOptions{})
	var dials atomic.Int32
	c := osd.Dial(addr, "", osd.ClientOptions{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		dials.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}})
	defer c.Close() //nolint:errcheck // of a test's client
	value := osdtest.Fill(1, 256<<10)
	want := func(n int32, what string) {
		t.Helper()
		if got := dials.Load(); got != n {
			t.Errorf("%d connections after %s, want %d", got, what, n)
		}
	}
	read := func(n int) {
		t.Helper()
		reads := []osd.Read{{Key: []byte("k"), Buf: make([]byte, n)}}
		if err := c.Read(t.Context(), reads); err != nil {
			t.Fatal(err)
		}
	}
	for range 8 {
		read(osd.BlockSize)
	}
	want(1, "small reads")
	if err := c.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: []byte("k"), Value: value}}}); err != nil {
		t.Fatal(err)
	}
	want(2, "a write")
	for range 8 {
		read(osd.BlockSize)
		read(len(value))
	}
	want(2, "reads of both sizes")
}
