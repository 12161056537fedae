package admin

import (
	queue "container/list"
	"context"
	"net"
	"net/http"
	"sync"
)

// crowd is a listener with a bound on its connections. When all places are taken, that one
// makes room which has been without a request in work for longest: peers that send nothing, or a
// byte now and then, keep nobody out. Beyond that many requests in work others wait.
type crowd struct {
	net.Listener
	limit int
	done  chan struct{} // closed by Close

	mu     sync.Mutex
	taken  int
	quiet  queue.List // of *member, without a request in work, the longest in front
	room   chan struct{}
	closed sync.Once
}

// member is a connection of a crowd.
type member struct {
	net.Conn
	of  *crowd
	at  *queue.Element // in quiet; nil while a request is in work, or it has ended
	end bool
	err error
}

func newCrowd(ln net.Listener, limit int) *crowd {
	return &crowd{Listener: ln, limit: limit, done: make(chan struct{}), room: make(chan struct{}, 1)}
}

// Accept takes the next connection, and makes or awaits room for it.
func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	m := &member{Conn: conn, of: c}
	for {
		in, shed := c.enter(m)
		if in {
			return m, nil
		}
		if shed != nil {
			_ = shed.Close() // it said nothing that counts
			continue
		}
		select {
		case <-c.room:
		case <-c.done:
			_ = conn.Close() // never served
			return nil, net.ErrClosed
		}
	}
}

// enter takes a place, or names who shall make room; nil if nobody can.
func (c *crowd) enter(m *member) (in bool, shed *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken < c.limit {
		c.taken++
		m.at = c.quiet.PushBack(m)
		return true, nil
	}
	if e := c.quiet.Front(); e != nil {
		return false, e.Value.(*member)
	}
	return false, nil
}

// Close closes the listener; connections are their owners'.
func (c *crowd) Close() error {
	c.closed.Do(func() { close(c.done) })
	return c.Listener.Close()
}

// Close gives the place back once, whoever calls it how often.
func (m *member) Close() error {
	c := m.of
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.end {
		return m.err
	}
	m.end = true
	m.err = m.Conn.Close()
	if m.at != nil {
		c.quiet.Remove(m.at)
		m.at = nil
	}
	c.taken--
	c.tellLocked()
	return m.err
}

// tellLocked wakes who waits for room. c.mu is held.
func (c *crowd) tellLocked() {
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// work notes that a request is in work, or that it is not any more.
func (m *member) work(begins bool) {
	c := m.of
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case m.end:
	case begins && m.at != nil:
		c.quiet.Remove(m.at)
		m.at = nil
	case !begins && m.at == nil:
		m.at = c.quiet.PushBack(m)
		c.tellLocked() // it can make room now
	}
}

type memberKey struct{}

// withMember lets handlers know the connection of their request.
func withMember(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, memberKey{}, conn)
}

// working keeps the connection of a request from making room for others until it is answered.
func working(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m, ok := r.Context().Value(memberKey{}).(*member); ok {
			m.work(true)
			defer m.work(false)
		}
		h.ServeHTTP(w, r)
	})
}
