package main

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// relay forwards TCP connections to one address, and can be a bad network: slow, silent, or
// cutting connections in the middle of a message.
type relay struct {
	ln     net.Listener
	target string

	mu     sync.Mutex
	open   map[*net.TCPConn]struct{}
	closed bool
	silent bool          // nothing gets through, and nobody is told
	delay  time.Duration // of every piece
	news   chan struct{} // closed at each change
	wg     sync.WaitGroup
}

func newRelay(target string) (*relay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{ln: ln, target: target, open: make(map[*net.TCPConn]struct{}), news: make(chan struct{})}
	r.wg.Go(r.accept)
	return r, nil
}

func (r *relay) addr() string { return r.ln.Addr().String() }

func (r *relay) accept() {
	for {
		c, err := r.ln.Accept()
		if err != nil {
			return // closed
		}
		r.wg.Go(func() { r.serve(c.(*net.TCPConn)) })
	}
}

func (r *relay) serve(front *net.TCPConn) {
	defer r.drop(front)
	if !r.keep(front) || !r.mayPass() {
		return
	}
	c, err := net.DialTimeout("tcp", r.target, 5*time.Second)
	if err != nil {
		return
	}
	back := c.(*net.TCPConn)
	defer r.drop(back)
	if !r.keep(back) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.copy(back, front)
	}()
	r.copy(front, back)
	<-done
}

// keep notes a connection, so that it can be cut.
func (r *relay) keep(c *net.TCPConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.open[c] = struct{}{}
	}
	return !r.closed
}

func (r *relay) drop(c *net.TCPConn) {
	r.mu.Lock()
	delete(r.open, c)
	r.mu.Unlock()
	_ = c.Close() // may be closed already
}

// copy forwards until either side ends, and then ends both.
func (r *relay) copy(to, from *net.TCPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !r.mayPass() {
				break
			}
			if _, werr := to.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_, _ = to.Close(), from.Close()
}

// mayPass waits as long as the network is slow or silent. It returns false at the end.
func (r *relay) mayPass() bool {
	r.mu.Lock()
	delay := r.delay
	r.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	for {
		r.mu.Lock()
		silent, closed, news := r.silent, r.closed, r.news
		r.mu.Unlock()
		if closed || !silent {
			return !closed
		}
		<-news
	}
}

func (r *relay) set(silent bool, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent, r.delay = silent, delay
	close(r.news)
	r.news = make(chan struct{})
}

// cut resets some of the connections, at least one, at once: wherever in a message they are.
func (r *relay) cut(rnd *rand.Rand) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for c := range r.open {
		if n > 0 && rnd.IntN(2) == 0 {
			continue
		}
		n++
		_ = c.SetLinger(0) // a reset, so that what is on its way is lost
		_ = c.Close()      // its forwarders notice
	}
	return n
}

func (r *relay) close() error {
	r.mu.Lock()
	r.closed = true
	for c := range r.open {
		_ = c.Close() // its forwarders notice
	}
	close(r.news)
	r.news = make(chan struct{})
	r.mu.Unlock()
	err := r.ln.Close()
	r.wg.Wait()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
