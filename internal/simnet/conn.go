package simnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// stream is one direction of a connection. All fields are guarded by Network.mu.
type stream struct {
	link     link
	cond     *sync.Cond
	queue    []segment
	buffered int  // bytes in queue
	eof      bool // the writer is done
	gone     bool // the reader is gone: nobody will take more
	reset    bool
}

// segment is data that may be read from due on.
type segment struct {
	data []byte
	due  time.Time
}

// conn is one end of a connection: it reads from in and writes to out.
type conn struct {
	n             *Network
	local, remote addr
	in, out       *stream
	closed        bool
	read, write   deadline
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func newPair(n *Network, from, to addr) (there, here *conn) {
	a := &stream{link: link{from.host, to.host}, cond: sync.NewCond(&n.mu)}
	b := &stream{link: link{to.host, from.host}, cond: sync.NewCond(&n.mu)}
	here = &conn{n: n, local: from, remote: to, in: b, out: a}
	there = &conn{n: n, local: to, remote: from, in: a, out: b}
	n.conns[here], n.conns[there] = struct{}{}, struct{}{}
	return there, here
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) fail(op string, err error) error { return opError(op, c.local, c.remote, err) }

// stateLocked returns why no I/O is possible on s, if so.
func (c *conn) stateLocked(s *stream, d *deadline) error {
	switch {
	case c.closed:
		return net.ErrClosed
	case s.reset:
		return syscall.ECONNRESET
	case d.passed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (c *conn) Read(p []byte) (int, error) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	s := c.in
	for {
		if err := c.stateLocked(s, &c.read); err != nil {
			return 0, c.fail("read", err)
		}
		if len(p) == 0 {
			return 0, nil
		}
		if !c.n.linkLocked(s.link.from, s.link.to).blocked {
			if len(s.queue) == 0 && s.eof {
				return 0, io.EOF
			}
			if len(s.queue) > 0 {
				wait := time.Until(s.queue[0].due)
				if wait <= 0 {
					return s.takeLocked(p), nil
				}
				c.wakeIn(s, wait)
			}
		}
		s.cond.Wait()
	}
}

func (s *stream) takeLocked(p []byte) int {
	first := &s.queue[0]
	n := copy(p, first.data)
	if first.data = first.data[n:]; len(first.data) == 0 {
		s.queue = s.queue[1:]
	}
	s.buffered -= n
	s.cond.Broadcast()
	return n
}

// wakeIn wakes whoever waits on s later.
func (c *conn) wakeIn(s *stream, d time.Duration) *time.Timer {
	return time.AfterFunc(d, func() {
		c.n.mu.Lock()
		defer c.n.mu.Unlock()
		s.cond.Broadcast()
	})
}

func (c *conn) Write(p []byte) (int, error) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	s, total := c.out, 0
	for {
		if err := c.stateLocked(s, &c.write); err != nil {
			return total, c.fail("write", err)
		}
		if s.gone {
			return total, c.fail("write", syscall.EPIPE)
		}
		if s.eof {
			return total, c.fail("write", net.ErrClosed)
		}
		if total == len(p) {
			return total, nil
		}
		room := min(len(p)-total, c.n.window-s.buffered)
		if room <= 0 {
			s.cond.Wait()
			continue
		}
		l := c.n.linkLocked(s.link.from, s.link.to)
		cut := l.cutting && l.cutLeft < room
		if l.cutting {
			room = min(room, l.cutLeft)
			l.cutLeft -= room
		}
		if room > 0 {
			s.pushLocked(p[total:total+room], l.delay)
			total += room
		}
		if cut {
			l.cutting = false
			c.resetAfterLocked()
			return total, c.fail("write", syscall.ECONNRESET)
		}
	}
}

func (s *stream) pushLocked(p []byte, delay time.Duration) {
	due := time.Now().Add(delay)
	if n := len(s.queue); n > 0 && s.queue[n-1].due.After(due) {
		due = s.queue[n-1].due // never overtakes
	}
	s.queue = append(s.queue, segment{append([]byte(nil), p...), due})
	s.buffered += len(p)
	s.cond.Broadcast()
}

// Close ends both directions; what was written still arrives.
func (c *conn) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.dropLocked()
	c.out.eof = true
	c.in.gone = true
	c.in.queue, c.in.buffered = nil, 0
	c.out.cond.Broadcast()
	c.in.cond.Broadcast()
	return nil
}

// CloseWrite ends the direction of this side, as net.TCPConn has it.
func (c *conn) CloseWrite() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.out.eof = true
	c.out.cond.Broadcast()
	return nil
}

func (c *conn) dropLocked() {
	c.closed = true
	delete(c.n.conns, c)
	for _, d := range []*deadline{&c.read, &c.write} {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
}

// resetLocked breaks the connection for both sides; bytes on the way are lost.
func (c *conn) resetLocked() {
	for _, s := range []*stream{c.in, c.out} {
		s.reset = true
		s.queue, s.buffered = nil, 0
		s.cond.Broadcast()
	}
}

// resetAfterLocked breaks the connection for this side at once, and for the other one
// when it has read what was delivered.
func (c *conn) resetAfterLocked() {
	c.in.reset, c.in.queue, c.in.buffered = true, nil, 0
	c.out.eof, c.out.gone = true, true
	c.in.cond.Broadcast()
	c.out.cond.Broadcast()
}

func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error  { return c.setDeadline(&c.read, c.in, t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.write, c.out, t) }

func (c *conn) setDeadline(d *deadline, s *stream, t time.Time) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return c.fail("set deadline", net.ErrClosed)
	}
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if d.at = t; !t.IsZero() {
		d.timer = c.wakeIn(s, time.Until(t))
	}
	s.cond.Broadcast()
	return nil
}
