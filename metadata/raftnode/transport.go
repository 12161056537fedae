package raftnode

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"scoria/metadata"
)

// A Raft connection begins with this hello: 8 bytes, and the machine's kind padded to 8.
// Everything else on the port (gRPC) goes to Mux.Other.
const (
	helloMagic   = "SCRAFT\x00\x01"
	helloKind    = 8
	helloTimeout = 10 * time.Second
	maxGreeting  = 256 // connections that have not said yet what they are
)

// Mux is one listener for both Raft and gRPC: a node has one address, a client that is
// told the leader's address can use it, and there is one port to open and to protect.
type Mux struct {
	l     net.Listener
	raft  *queue
	other *queue
	dial  func(addr string, timeout time.Duration) (net.Conn, error)

	wg      sync.WaitGroup
	mu      sync.Mutex
	pending map[net.Conn]struct{}
	closed  bool
}

// Listen makes a Mux on a TCP address. The address must be one that the other nodes can
// connect to: not a wildcard.
func Listen(addr string) (*Mux, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("metadata node: %w", err)
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		return nil, errors.Join(metadata.Errorf(metadata.KindInvalid, "metadata node: address %q is not one that other nodes can connect to: name an interface", addr), l.Close())
	}
	return NewMux(l, func(addr string, timeout time.Duration) (net.Conn, error) {
		return net.DialTimeout("tcp", addr, timeout)
	}), nil
}

// NewMux makes a Mux over a listener, which it owns, and a way to reach other nodes.
func NewMux(l net.Listener, dial func(addr string, timeout time.Duration) (net.Conn, error)) *Mux {
	m := &Mux{l: l, raft: newQueue(l.Addr()), other: newQueue(l.Addr()), dial: dial, pending: make(map[net.Conn]struct{})}
	m.wg.Go(m.accept)
	return m
}

// Addr is the address of the node.
func (m *Mux) Addr() net.Addr { return m.l.Addr() }

// Other is the listener for all connections that are not Raft's.
func (m *Mux) Other() net.Listener { return m.other }

// Close stops listening. Connections already handed out are their owners'.
func (m *Mux) Close() error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	for c := range m.pending {
		_ = c.Close() // it never became anything
	}
	m.mu.Unlock()
	var err error
	if first {
		err = m.l.Close()
	}
	m.raft.shut()
	m.other.shut()
	m.wg.Wait()
	return err
}

func (m *Mux) accept() {
	pause := 5 * time.Millisecond
	for {
		c, err := m.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of files, perhaps
			if m.isClosed() {
				return
			}
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		m.mu.Lock()
		full := m.closed || len(m.pending) >= maxGreeting
		if !full {
			m.pending[c] = struct{}{}
			m.wg.Go(func() { m.greet(c) })
		}
		m.mu.Unlock()
		if full {
			_ = c.Close() // refused
		}
	}
}

func (m *Mux) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// greet finds out what a connection is.
func (m *Mux) greet(c net.Conn) {
	first := make([]byte, len(helloMagic))
	_ = c.SetReadDeadline(time.Now().Add(helloTimeout)) // a connection without deadlines fails at the read
	_, err := io.ReadFull(c, first)
	if err == nil {
		err = c.SetReadDeadline(time.Time{})
	}
	m.mu.Lock()
	delete(m.pending, c)
	m.mu.Unlock()
	switch {
	case err != nil:
		_ = c.Close() // it said nothing
	case string(first) == helloMagic:
		m.raft.push(c)
	default:
		m.other.push(&prefixed{Conn: c, prefix: first})
	}
}

// prefixed is a connection whose first bytes were read already.
type prefixed struct {
	net.Conn
	prefix []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		n := copy(b, p.prefix)
		p.prefix = p.prefix[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// queue is a listener fed by a Mux.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newQueue(addr net.Addr) *queue {
	return &queue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (q *queue) push(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.done:
		_ = c.Close() // nobody wants it any more
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) shut()          { q.once.Do(func() { close(q.done) }) }
func (q *queue) Close() error   { q.shut(); return nil }
func (q *queue) Addr() net.Addr { return q.addr }

// stream is Raft's half of a Mux.
type stream struct {
	mux  *Mux
	kind string
}

func (s *stream) hello() []byte {
	b := make([]byte, len(helloMagic)+helloKind)
	copy(b, helloMagic)
	copy(b[len(helloMagic):], s.kind)
	return b
}

// Accept returns the next Raft connection; its first read checks that it is of our kind.
func (s *stream) Accept() (net.Conn, error) {
	c, err := s.mux.raft.Accept()
	if err != nil {
		return nil, err
	}
	return &checked{Conn: c, want: s.hello()[len(helloMagic):]}, nil
}

// checked reads the rest of the hello in front of the first bytes: in the goroutine of the
// connection, so that a slow one holds up nobody.
type checked struct {
	net.Conn
	want []byte
}

func (c *checked) Read(b []byte) (int, error) {
	if c.want != nil {
		got := make([]byte, len(c.want))
		if _, err := io.ReadFull(c.Conn, got); err != nil {
			return 0, err
		}
		if string(got) != string(c.want) {
			return 0, fmt.Errorf("raft connection for %q, this is %q: %w", got, c.want, ErrForeign)
		}
		c.want = nil
	}
	return c.Conn.Read(b)
}

func (s *stream) Close() error   { return s.mux.raft.Close() }
func (s *stream) Addr() net.Addr { return s.mux.Addr() }

// Dial connects to another node.
func (s *stream) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	c, err := s.mux.dial(string(addr), timeout)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(s.hello()); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// MemNetwork connects nodes of one process, and cuts them off, for tests.
type MemNetwork struct {
	mu    sync.Mutex
	nodes map[raft.ServerAddress]*raft.InmemTransport
	cut   map[raft.ServerAddress]bool
}

// NewMemNetwork returns a network without nodes.
func NewMemNetwork() *MemNetwork {
	return &MemNetwork{nodes: make(map[raft.ServerAddress]*raft.InmemTransport), cut: make(map[raft.ServerAddress]bool)}
}

func (m *MemNetwork) join(name string) (raft.Transport, error) {
	if name == "" {
		return nil, metadata.Errorf(metadata.KindInvalid, "node in memory without an address")
	}
	addr := raft.ServerAddress(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	_, t := raft.NewInmemTransportWithTimeout(addr, 2*time.Second)
	m.nodes[addr] = t
	m.connectLocked()
	return t, nil
}

// connectLocked makes the connections what nodes and cuts say.
func (m *MemNetwork) connectLocked() {
	for a, t := range m.nodes {
		for b, u := range m.nodes {
			if a == b {
				continue
			}
			t.Disconnect(b)
			if !m.cut[a] && !m.cut[b] {
				t.Connect(b, u)
			}
		}
	}
}

// Cut takes a node off the network, or lets it back.
func (m *MemNetwork) Cut(addr string, cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut[raft.ServerAddress(addr)] = cut
	m.connectLocked()
}
