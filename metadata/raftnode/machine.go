package raftnode

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"scoria/metadata"
	"scoria/metadata/fsm"
)

// retryCommit is how long to wait before a commit that failed (a full disk) is tried again.
const retryCommit = 500 * time.Millisecond

// machine is the raft.FSM: it applies committed commands to the store, a batch in one
// transaction.
type machine struct {
	node  *Node
	store *store

	sinceSnapshot atomic.Uint64 // bytes of commands applied since the last snapshot
	commands      atomic.Uint64
	batches       atomic.Uint64
	stalls        atomic.Uint64 // commits that failed and were tried again

	mu     sync.Mutex
	halted error // why nothing is applied any more
	stall  string
}

// response is what a command's future yields.
type response struct {
	result fsm.Result
	err    error // the node cannot tell or go on
}

func (m *machine) haltedErr() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.halted
}

// halt ends applying: the node cannot follow the log any further.
func (m *machine) halt(err error) {
	m.mu.Lock()
	first := m.halted == nil
	if first {
		m.halted = metadata.Errorf(metadata.KindInternal, "metadata node %q halted: %v", m.node.opts.ID, err)
	}
	m.mu.Unlock()
	if first {
		m.node.opts.Logger.Error("metadata node halted, restart or upgrade it", "error", err)
		close(m.node.halted)
	}
}

func (m *machine) setStall(text string) {
	m.mu.Lock()
	m.stall = text
	m.mu.Unlock()
}

// Apply is not used by Raft when ApplyBatch is there, but by the interface.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies committed entries in one transaction of the state. What the state
// has already (after a restart) is passed over.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for try := 0; ; try++ {
		err := m.haltedErr()
		if err == nil {
			err = m.applyOnce(logs, out)
		}
		if err == nil {
			if try > 0 {
				m.setStall("")
				m.node.opts.Logger.Warn("metadata state is written again", "tries", try+1)
			}
			return out
		}
		if !errors.Is(err, errCommit) {
			m.halt(err)
			err = m.haltedErr()
		} else {
			m.stalls.Add(1)
			m.setStall(err.Error())
			if try == 0 {
				m.node.opts.Logger.Error("metadata state cannot be written, trying again", "error", err)
			}
			timer := time.NewTimer(retryCommit)
			select {
			case <-timer.C:
				continue
			case <-m.node.closing:
				timer.Stop()
				err = ErrClosed
				m.halt(err) // what was not applied now must not be passed over by a later batch
			}
		}
		for i := range out {
			out[i] = response{err: err}
		}
		return out
	}
}

// errCommit marks a failure of the disk, not of the command.
var errCommit = errors.New("state not written")

func (m *machine) applyOnce(logs []*raft.Log, out []any) (err error) {
	defer guard(m.store.dir.file(stateFile), &err)()
	applied := m.store.applied.Load()
	last := logs[len(logs)-1].Index
	if last <= applied {
		return nil
	}
	var bytes, commands uint64
	var fatal error
	err = m.store.update(last, func(tx fsm.Tx) error {
		for i, l := range logs {
			if l.Index <= applied || l.Type != raft.LogCommand {
				continue
			}
			r, err := fsm.Execute(m.node.opts.Machine, tx, l.Index, l.Data)
			if err != nil {
				fatal = fmt.Errorf("log entry %d: %w", l.Index, err)
				return fatal
			}
			out[i] = response{result: r}
			bytes += uint64(len(l.Data))
			commands++
		}
		return nil
	})
	switch {
	case fatal != nil:
		return fatal
	case err != nil:
		return fmt.Errorf("%w: %w", errCommit, err)
	}
	m.commands.Add(commands)
	m.batches.Add(1)
	if m.sinceSnapshot.Add(bytes) >= m.node.snapshotAfter.Load() {
		m.node.wantSnapshot()
	}
	return nil
}

// Snapshot begins a read transaction; the streaming happens beside further applies.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if err := m.haltedErr(); err != nil {
		return nil, err
	}
	tx, err := m.store.db.Begin(false) // same goroutine as Restore: db stays
	if err != nil {
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	before := m.sinceSnapshot.Load()
	return &fsmSnapshot{tx: tx, kind: m.store.kind, done: func(err error) {
		if err == nil {
			m.sinceSnapshot.Add(^(before - 1))
			m.node.snapshots.Add(1)
		}
	}}, nil
}

// Restore replaces the state by a snapshot.
func (m *machine) Restore(r io.ReadCloser) (err error) {
	defer func() { err = errors.Join(err, r.Close()) }()
	tmp := m.store.dir.file(stateFile + ".restore")
	if err := restoreInto(tmp, m.store.kind, r); err != nil {
		return err
	}
	if err := m.store.replace(tmp); err != nil {
		return err
	}
	m.sinceSnapshot.Store(0)
	return nil
}
