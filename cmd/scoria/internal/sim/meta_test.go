package sim

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"scoria/metadata"
	abmstate "scoria/metadata/abm/state"
	"scoria/metadata/fsm"
	nsmstate "scoria/metadata/nsm/state"
)

// meta is the metadata of the system: the real state machines over a log that is durable
// when it answers, as Raft's is. Three voters of raftnode can come in its place: what the rest
// needs of it is an fsm.Host.
type meta struct {
	abm, nsm *fsm.MemHost
	down     atomic.Bool // the process is dead: calls wait, then fail
}

func newMeta() *meta {
	return &meta{abm: fsm.NewMemHost(abmstate.Machine{}), nsm: fsm.NewMemHost(nsmstate.Machine{})}
}

// link is one process' way to a metadata host. Its end is the end of that process: what was
// not applied by then never is.
type link struct {
	host fsm.Host
	m    *meta
	dead *atomic.Bool // of the calling process
	lose *atomic.Int32

	mu sync.Mutex // guards r
	r  *rand.Rand
}

var _ fsm.Host = (*link)(nil)

// patience is how long a call looks for a metadata node that serves, as the RPC client does.
const patience = 15 * time.Second

// reach waits until the host serves.
func (l *link) reach(ctx context.Context) error {
	l.mu.Lock()
	took := time.Duration(100+l.r.IntN(900)) * time.Microsecond
	l.mu.Unlock()
	for end := time.Now().Add(patience); ; took = 50 * time.Millisecond {
		t := time.NewTimer(took)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return metadata.Errorf(metadata.KindUnavailable, "metadata: %v", ctx.Err())
		}
		switch {
		case l.dead.Load():
			return metadata.Errorf(metadata.KindUnavailable, "metadata: this process is dead")
		case !l.m.down.Load():
			return nil
		case time.Now().After(end):
			return metadata.Errorf(metadata.KindUnavailable, "metadata: nobody answers")
		}
	}
}

// Apply implements fsm.Host. While answers are being lost it does what it is told, and fails.
func (l *link) Apply(ctx context.Context, envelope []byte) ([]byte, error) {
	if err := l.reach(ctx); err != nil {
		return nil, err
	}
	b, err := l.host.Apply(ctx, envelope)
	if err == nil && l.lose.Load() > 0 && l.lose.Add(-1) >= 0 {
		return nil, metadata.Errorf(metadata.KindUnavailable, "metadata: the answer was lost")
	}
	return b, err
}

// Read implements fsm.Host.
func (l *link) Read(ctx context.Context, fn func(fsm.Reader) error) error {
	if err := l.reach(ctx); err != nil {
		return err
	}
	return l.host.Read(ctx, fn)
}

// LeaderAddr implements fsm.Host.
func (l *link) LeaderAddr() string { return l.host.LeaderAddr() }
