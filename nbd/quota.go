package nbd

import (
	"sync"
	"sync/atomic"
)

// quota bounds what one connection has in its device: requests, and bytes of payload. Only
// the reading goroutine takes, everybody gives.
type quota struct {
	maxJobs  int64
	maxBytes int64
	jobs     atomic.Int64 // changed under mu
	mu       sync.Mutex   // guards what follows
	changed  sync.Cond
	bytes    int64
	closed   bool
}

func (q *quota) init(maxJobs int, maxBytes int64) {
	q.maxJobs, q.maxBytes = int64(maxJobs), maxBytes
	q.changed.L = &q.mu
}

// take takes jobs and bytes. It waits for them if wait is set, and reports whether it got
// them; waiting fails only when the quota is closed.
func (q *quota) take(jobs, bytes int64, wait bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed {
		if q.jobs.Load()+jobs <= q.maxJobs && q.bytes+bytes <= q.maxBytes {
			q.jobs.Add(jobs)
			q.bytes += bytes
			return true
		}
		if !wait {
			return false
		}
		q.changed.Wait()
	}
	return false
}

// holds reports whether the connection holds memory.
func (q *quota) holds() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes > 0
}

func (q *quota) give(jobs, bytes int64) {
	q.mu.Lock()
	q.jobs.Add(-jobs)
	q.bytes -= bytes
	q.changed.Broadcast()
	q.mu.Unlock()
}

// close makes every waiting and further take fail.
func (q *quota) close() {
	q.mu.Lock()
	q.closed = true
	q.changed.Broadcast()
	q.mu.Unlock()
}

// waitIdle waits until no job is left.
func (q *quota) waitIdle() {
	q.mu.Lock()
	for q.jobs.Load() != 0 {
		q.changed.Wait()
	}
	q.mu.Unlock()
}
