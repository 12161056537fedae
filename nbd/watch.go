package nbd

import "time"

// watch ends connections that have been idle or stalled for too long.
func (s *Server) watch() {
	every := time.Duration(0)
	for _, d := range []time.Duration{s.opts.IdleTimeout, s.opts.StallTimeout, s.opts.PressureTimeout} {
		if d > 0 && (every == 0 || d/4 < every) {
			every = d / 4
		}
	}
	if every == 0 {
		return
	}
	tick := time.NewTicker(max(every, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case now := <-tick.C:
			s.inspect(now)
		}
	}
}

// inspect looks at every connection in transmission once.
func (s *Server) inspect(now time.Time) {
	var conns []*conn
	s.mu.Lock()
	for p := range s.conns {
		if c := p.conn.Load(); c != nil {
			conns = append(conns, c)
		}
	}
	s.mu.Unlock()
	pressed := s.budget.pressed()
	for _, c := range conns {
		if c.overdue(now, pressed) {
			c.abort(errTimeout)
		}
	}
}

// overdue reports whether the connection has not moved a byte for too long. pressed says
// that other connections wait for memory.
func (c *conn) overdue(now time.Time, pressed bool) bool {
	moved := c.rcv.received.Load() + c.out.written.Load()
	if moved != c.seenBytes || c.seenAt.IsZero() {
		c.seenBytes, c.seenAt = moved, now
		return false
	}
	since := now.Sub(c.seenAt)
	idle, stall := c.srv.opts.IdleTimeout, c.srv.opts.StallTimeout
	untaken := c.out.pending() > 0
	if c.inDevice.Load() > 0 && !untaken {
		c.seenAt = now // the device's turn, not the client's
		return false
	}
	pressed = pressed && c.quot.holds()
	if pressed {
		stall = c.srv.opts.PressureTimeout
	}
	switch {
	case c.rcv.partial.Load() || untaken && (pressed || c.ending.Load()):
		return stall > 0 && since >= stall
	case untaken:
		return false
	}
	return idle > 0 && since >= idle
}
