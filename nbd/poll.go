package nbd

import "time"

// A client that sends one request at a time sends the next one a few microseconds after the
// answer. Sleeping until then costs two wake-ups of a processor, which take longer than the
// request. So the reading goroutine polls the socket for a moment before it sleeps, as long as
// this is worth it: it is the only connection that does anything, its requests come
// one by one, and polling has been successful lately.

const (
	// pollFor is how long a socket is polled.
	pollFor = 50 * time.Microsecond
	// pollAfter is how many requests in a row must have come alone, on the only busy connection.
	pollAfter = 8
	// maxPollSkip bounds for how many requests a client that takes its time is not polled for.
	maxPollSkip = 1024
)

// poller decides when a connection polls. Only the reading goroutine uses it.
type poller struct {
	alone int // times in a row that no other connection received anything in between
	skip  int // requests until the next attempt
	pause int // the next skip
}

// next returns how long to poll before the next sleep; 0: not at all.
func (p *poller) next(c *conn) time.Duration {
	if c.srv.latest.Load() != c {
		c.srv.latest.Store(c)
		p.alone = 0
	} else if p.alone < pollAfter {
		p.alone++
	}
	switch {
	case p.alone < pollAfter || c.single < pollAfter || !c.srv.polls:
		return 0
	case p.skip > 0:
		p.skip--
		return 0
	}
	return pollFor
}

// learn is told whether the request came while it was polled for.
func (p *poller) learn(hit bool) {
	if hit {
		p.pause = 0
		return
	}
	p.pause = min(2*p.pause+1, maxPollSkip)
	p.skip = p.pause
}
