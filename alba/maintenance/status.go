package maintenance

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"scoria/metadata"
)

// Status is what an Agent has done since it was made, and is doing.
type Status struct {
	Tasks map[Task]TaskStatus
	// Unreadable lists objects that have lost more than their policy bears, at most 100.
	Unreadable []UnreadableObject
	// Fallback counts objects that were stored under a lesser policy of their preset than the
	// disks allow now: they bear less loss than new ones.
	Fallback uint64
}

// TaskStatus is the progress of one kind of work.
type TaskStatus struct {
	Running           bool
	Elsewhere         bool // another agent holds the lease
	Started, Finished time.Time
	Runs, Errors      uint64
	LastError         string // of the last run, "" when it went well
	Done              uint64 // things done: reports, keys deleted, namespaces removed, fragments written, orphans removed, fragments checked
	Bytes             uint64 // moved or checked
	Left              uint64 // known to remain, as of the last run
	Failed            uint64 // things that could not be done
}

// UnreadableObject is an object beyond repair.
type UnreadableObject struct {
	Namespace metadata.NamespaceID
	Name      string
	ObjectID  metadata.ObjectID
	Text      string
}

const maxUnreadable = 100

// Status returns a copy.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return Status{Tasks: maps.Clone(a.mu.status.Tasks), Unreadable: slices.Clone(a.mu.status.Unreadable), Fallback: a.mu.status.Fallback}
}

func (a *Agent) setFallback(n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.status.Fallback = n
}

func (a *Agent) update(t Task, f func(*TaskStatus)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.mu.status.Tasks[t]
	f(&s)
	a.mu.status.Tasks[t] = s
}

func (a *Agent) unreadable(o UnreadableObject) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, u := range a.mu.status.Unreadable {
		if u.ObjectID == o.ObjectID {
			return
		}
	}
	if len(a.mu.status.Unreadable) < maxUnreadable {
		a.mu.status.Unreadable = append(a.mu.status.Unreadable, o)
	}
}

// readableAgain forgets objects that can be read after all, or are no more.
func (a *Agent) readableAgain(id metadata.ObjectID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.status.Unreadable = slices.DeleteFunc(a.mu.status.Unreadable, func(u UnreadableObject) bool { return u.ObjectID == id })
}

// limiter spends bytes at a rate, with a second's worth at hand.
type limiter struct {
	mu   sync.Mutex
	rate int64 // bytes per second; ≤ 0: no limit
	free time.Time
}

func newLimiter(rate int64) *limiter { return &limiter{rate: rate} }

// wait takes n bytes and waits until they are due.
func (l *limiter) wait(ctx context.Context, n int64) error {
	if l.rate <= 0 || n <= 0 {
		return ctx.Err()
	}
	l.mu.Lock()
	now := time.Now()
	if earliest := now.Add(-time.Second); l.free.Before(earliest) {
		l.free = earliest
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	due := l.free.Sub(now)
	l.mu.Unlock()
	if due <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(due)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
