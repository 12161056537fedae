package volumedriver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// news wakes all who wait for a change.
type news struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that is closed at the next tell. Ask for it before looking.
func (n *news) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}

// trouble is what is going wrong with a volume right now, by activity.
type trouble struct {
	mu    sync.Mutex
	since time.Time
	errs  map[string]error
}

// set notes that an activity is failing, or, with nil, that it is well again. It tells
// whether that is a change.
func (t *trouble) set(what string, err error) (changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, was := t.errs[what]
	if err == nil {
		delete(t.errs, what)
		return was
	}
	if len(t.errs) == 0 {
		t.since = time.Now()
		t.errs = make(map[string]error)
	}
	t.errs[what] = err
	return !was
}

// get returns since when there is trouble (zero: there is none) and what it is.
func (t *trouble) get() (since time.Time, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for what, err := range t.errs {
		if text := what + ": " + err.Error(); reason == "" || text < reason {
			reason = text
		}
	}
	if reason == "" {
		return time.Time{}, ""
	}
	return t.since, reason
}

// cause returns one of the errors, nil if there are none.
func (t *trouble) cause() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, err := range t.errs {
		return err
	}
	return nil
}

// Back-off of what is tried again until it works.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 5 * time.Second
)

// insist calls f until it succeeds, with growing pauses. It gives up when the volume ends, is
// fenced (which stops the volume), or when f's error is final. what names the activity in
// status and log.
func (v *Volume) insist(what string, f func(ctx context.Context) error) error {
	pause := firstPause
	for {
		err := f(v.ctx)
		switch {
		case err == nil:
			if v.trouble.set(what, nil) {
				v.log.Info("works again", "what", what)
			}
			return nil
		case v.ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, v.gone())
		case errors.Is(err, ErrFenced):
			v.fail(err)
			return err
		}
		if v.trouble.set(what, err) {
			v.log.Warn("fails; it is tried again until it works", "what", what, "error", err)
		}
		v.stats.retries.Add(1)
		v.drain.news.tell() // waiters may want to give up
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-v.ctx.Done():
			timer.Stop()
			return fmt.Errorf("%s: %w", what, v.gone())
		}
		pause = min(2*pause, lastPause)
	}
}

// patiently calls f again while the object store is out of reach, for as long as a reader
// is made to wait: a server that restarts shall not be an I/O error.
func (v *Volume) patiently(ctx context.Context, f func() error) error {
	err := f()
	if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
		if err == nil && v.readsWait.Load() {
			v.readsWait.Store(false)
			v.trouble.set(readTrouble, nil)
		}
		return err
	}
	limit := time.NewTimer(max(0, v.d.opts.ReadPatience))
	defer limit.Stop()
	for pause := firstPause; errors.Is(err, ErrUnavailable); pause = min(2*pause, time.Second) {
		v.readsWait.Store(true)
		if v.trouble.set(readTrouble, err) {
			v.log.Warn("a read waits for the object store", "error", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-limit.C:
			timer.Stop()
			return err
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		err = f()
	}
	v.readsWait.Store(false)
	v.trouble.set(readTrouble, nil)
	return err
}

const readTrouble = "read from the object store"
