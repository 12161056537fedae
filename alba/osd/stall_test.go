package osd_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scoria/alba/osd"
	"scoria/alba/osd/osdtest"
)

// gatedConn is the server's end of a connection that takes nothing while the gate is shut.
type gatedConn struct {
	net.Conn
	gate atomic.Pointer[chan struct{}] // nil: open
}

func (g *gatedConn) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	if p := g.gate.Load(); p != nil {
		<-*p // with what it has got, and without looking for more
	}
	return n, err
}

// connListener accepts what it is given.
type connListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *connListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *connListener) Addr() net.Addr { return &net.TCPAddr{} }

// TestStalledServerHoldsNobody: who has given up on a server that takes no more bytes is not
// held by his half sent request, and the connection goes on when the server does.
func TestStalledServerHoldsNobody(t *testing.T) {
	l := &connListener{conns: make(chan net.Conn, 4), done: make(chan struct{})}
	s := osd.NewServer(osdtest.NewFake(), "u", osd.ServerOptions{})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	var dials atomic.Int32
	var end *gatedConn
	c := osd.Dial("pipe", "u", osd.ClientOptions{Connections: 1, Dial: func(context.Context, string) (net.Conn, error) {
		dials.Add(1)
		a, b := net.Pipe() // no buffer: nothing is sent that is not taken
		end = &gatedConn{Conn: b}
		l.conns <- end
		return a, nil
	}})
	if _, err := c.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	end.gate.Store(&gate)
	for range 4 { // the first gets no answer, the second is stuck in the middle, the others behind it
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := c.Read(ctx, []osd.Read{{Key: []byte("k"), Buf: make([]byte, 4096)}})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read from a server that takes nothing: %v", err)
		}
	}
	end.gate.Store(nil)
	close(gate)
	if _, err := c.Info(t.Context()); err != nil {
		t.Errorf("after the stall: %v", err)
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	if err := errors.Join(c.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	<-served
}
