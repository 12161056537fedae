// Package simnet is a network in memory for tests: net.Listener and dial functions
// between named hosts, with partitions, delays and connections that break where a test
// says so. It needs no ports and no sleeps, and runs inside testing/synctest.
//
// Fault model, that of TCP over bad links: bytes of a connection arrive in order, once,
// or the connection is reset. A partition delays everything, new connections too, until
// it heals; it loses nothing by itself. A reset (Cut, CutAfter, Stop) may lose any bytes
// that the other side has not read yet, and both sides notice. Nothing is corrupted.
package simnet

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Window is the number of bytes that one direction of a connection holds between
// writer and reader, unless SetWindow says otherwise; a writer waits beyond it.
const Window = 256 << 10

// backlog bounds the connections that wait for Accept.
const backlog = 128

// Network joins hosts. It is safe for concurrent use.
type Network struct {
	mu        sync.Mutex
	changed   *sync.Cond // partitions, listeners and their queues
	listeners map[string]*listener
	conns     map[*conn]struct{} // both ends of each
	links     map[link]*linkState
	nextPort  int
	window    int
}

// link is one direction between two hosts.
type link struct{ from, to string }

type linkState struct {
	blocked bool
	delay   time.Duration
	cutting bool
	cutLeft int // bytes, while cutting
}

// New returns a network without faults.
func New() *Network {
	n := &Network{listeners: make(map[string]*listener), conns: make(map[*conn]struct{}), links: make(map[link]*linkState), nextPort: 40000, window: Window}
	n.changed = sync.NewCond(&n.mu)
	return n
}

func (n *Network) linkLocked(from, to string) *linkState {
	l := n.links[link{from, to}]
	if l == nil {
		l = new(linkState)
		n.links[link{from, to}] = l
	}
	return l
}

func (n *Network) wakeLocked() {
	n.changed.Broadcast()
	for c := range n.conns {
		c.in.cond.Broadcast()
	}
}

// SetWindow replaces Window. A large one keeps writers from waiting at all, which a simulation
// needs: who waits with a mutex held stops the virtual clock of testing/synctest.
func (n *Network) SetWindow(bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.window = bytes
	n.wakeLocked()
}

// Block stops what from sends to to (one direction) until Heal.
func (n *Network) Block(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linkLocked(from, to).blocked = true
}

// Partition separates every host of a from every host of b, in both directions.
func (n *Network) Partition(a, b []string) {
	for _, x := range a {
		for _, y := range b {
			n.Block(x, y)
			n.Block(y, x)
		}
	}
}

// Heal ends all partitions; what waited is delivered.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.links {
		l.blocked = false
	}
	n.wakeLocked()
}

// Delay lets everything sent from now on between a and b take d per direction.
func (n *Network) Delay(a, b string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linkLocked(a, b).delay = d
	n.linkLocked(b, a).delay = d
}

// Cut resets all connections between a and b and tells how many there were.
func (n *Network) Cut(a, b string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	cut := 0
	for c := range n.conns {
		if c.local.host == a && c.remote.host == b {
			c.resetLocked()
			cut++
		}
	}
	return cut
}

// CutAfter resets the connection that carries the byte after the next bytes bytes from
// from to to; those bytes are delivered. It works once.
func (n *Network) CutAfter(from, to string, bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.linkLocked(from, to)
	l.cutting, l.cutLeft = true, bytes
}

// Stop is the end of a host's process: its listeners close and its connections are reset.
func (n *Network) Stop(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.listeners {
		if l.addr.host == host {
			l.closeLocked()
		}
	}
	for c := range n.conns {
		if c.local.host == host {
			c.resetLocked()
		}
	}
}

// Host returns a view of the network from one host.
func (n *Network) Host(name string) *Host { return &Host{n: n, name: name} }

// Host listens and dials. Its zero value is not usable.
type Host struct {
	n    *Network
	name string
}

type addr struct {
	host string
	port int
}

func (a addr) Network() string { return "sim" }
func (a addr) String() string  { return net.JoinHostPort(a.host, strconv.Itoa(a.port)) }

func parse(address, self string) (addr, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return addr{}, err
	}
	if host == "" {
		host = self
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return addr{}, fmt.Errorf("port of %q: %w", address, err)
	}
	return addr{host, int(p)}, nil
}

// Listen listens on "host:port" or ":port" of this host; port 0 picks a free one.
func (h *Host) Listen(address string) (net.Listener, error) {
	a, err := parse(address, h.name)
	if err == nil && a.host != h.name {
		err = syscall.EADDRNOTAVAIL
	}
	if err != nil {
		return nil, opError("listen", nil, a, err)
	}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if a.port == 0 {
		a.port = h.n.portLocked()
	}
	if h.n.listeners[a.String()] != nil {
		return nil, opError("listen", nil, a, syscall.EADDRINUSE)
	}
	l := &listener{n: h.n, addr: a}
	h.n.listeners[a.String()] = l
	h.n.changed.Broadcast()
	return l, nil
}

func (n *Network) portLocked() int {
	n.nextPort++
	return n.nextPort
}

// DialContext connects to "host:port"; network is ignored. It waits as long as a
// partition lasts or until ctx ends, and is refused where nobody listens.
func (h *Host) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	to, err := parse(address, h.name)
	if err != nil {
		return nil, opError("dial", nil, to, err)
	}
	n := h.n
	stop := context.AfterFunc(ctx, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.changed.Broadcast()
	})
	defer stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	for ctx.Err() == nil && (n.linkLocked(h.name, to.host).blocked || n.linkLocked(to.host, h.name).blocked) {
		n.changed.Wait()
	}
	from := addr{h.name, n.portLocked()}
	if ctx.Err() != nil {
		return nil, opError("dial", from, to, ctx.Err())
	}
	l := n.listeners[to.String()]
	if l == nil || len(l.queue) >= backlog {
		return nil, opError("dial", from, to, syscall.ECONNREFUSED)
	}
	there, here := newPair(n, from, to)
	l.queue = append(l.queue, there)
	n.changed.Broadcast()
	return here, nil
}

func opError(op string, from, to net.Addr, err error) error {
	return &net.OpError{Op: op, Net: "sim", Source: from, Addr: to, Err: err}
}

type listener struct {
	n      *Network
	addr   addr
	queue  []*conn
	closed bool
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Accept() (net.Conn, error) {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	for !l.closed && len(l.queue) == 0 {
		l.n.changed.Wait()
	}
	if l.closed {
		return nil, opError("accept", nil, l.addr, net.ErrClosed)
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c, nil
}

func (l *listener) Close() error {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	if l.closed {
		return opError("close", nil, l.addr, net.ErrClosed)
	}
	l.closeLocked()
	return nil
}

func (l *listener) closeLocked() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.n.listeners, l.addr.String())
	for _, c := range l.queue {
		c.resetLocked()
	}
	l.queue = nil
	l.n.changed.Broadcast()
}
