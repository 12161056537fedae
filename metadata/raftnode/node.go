package raftnode

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"scoria/metadata"
	"scoria/metadata/fsm"
)

// Bounds of a node.
const (
	maxApplying = 2048 // commands waiting for their result
	maxBatch    = 256  // entries per log append and per apply transaction
	logCache    = 512  // recent entries in memory, for followers

	minSnapshotBytes = 16 << 20
	maxSnapshotBytes = 64 << 20
	keptSnapshots    = 2
)

// Node is a running node. Its methods are safe for concurrent use.
type Node struct {
	opts      Options
	dir       *dir
	store     *store
	machine   *machine
	logs      *raftboltdb.BoltStore
	raft      *raft.Raft
	transport raft.Transport
	stopRaft  func() error // ends Raft and closes the transport; waits, also when called again

	applying      chan struct{} // a slot per command under way
	readyTerm     atomic.Uint64 // term in which this leader is known to have applied all of the past
	snapshotAfter atomic.Uint64
	snapshots     atomic.Uint64
	snapshotNow   chan struct{}
	halted        chan struct{} // closed by machine.halt
	closing       chan struct{} // closed when Close begins
	stopped       chan struct{} // closed when Raft has stopped
	closeOnce     sync.Once
	closeErr      error
	wg            sync.WaitGroup // background goroutines and waiting futures
	waitMu        sync.Mutex     // orders wg.Add of waits before wg.Wait of Close
	waitClosed    bool
}

var _ fsm.Host = (*Node)(nil)

// Open starts the node of a directory. Errors: ErrForeign, ErrNewer, metadata.ErrCorrupt,
// vfs.ErrLocked, metadata.ErrInvalid, or the disk's.
func Open(opts Options) (n *Node, err error) {
	if err := opts.ensureDefaults(); err != nil {
		return nil, err
	}
	d, err := openDir(&opts)
	if err != nil {
		return nil, err
	}
	n = &Node{
		opts: opts, dir: d, applying: make(chan struct{}, maxApplying), snapshotNow: make(chan struct{}, 1),
		halted: make(chan struct{}), closing: make(chan struct{}), stopped: make(chan struct{}),
	}
	if err := n.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("open metadata node %q in %s: %w", opts.ID, opts.Dir, err), n.Close())
	}
	n.wg.Go(n.run)
	return n, nil
}

// start opens log, snapshots and state, checks them against each other and starts Raft.
func (n *Node) start() (err error) {
	hl := &hlog{l: n.opts.Logger}
	if err := n.openLog(); err != nil {
		return err
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(n.dir.path, keptSnapshots, hl)
	if err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	snaps := syncedSnapshots{files, n.dir.file(snapshotDir)}
	store, rebuilt, err := openStore(n.dir, n.opts.Machine.Kind())
	if err != nil {
		return err
	}
	n.store = store
	n.machine = &machine{node: n, store: store}
	if rebuilt != "" {
		n.opts.Logger.Warn("metadata state is rebuilt from snapshot and log", "reason", rebuilt)
	}
	intact, err := n.checkState(snaps)
	if err != nil {
		return err
	}
	cfg := n.config(hl)
	cfg.NoSnapshotRestoreOnStart = intact
	cache, err := raft.NewLogCache(logCache, n.logs)
	if err != nil {
		return err
	}
	if n.transport, err = n.newTransport(hl); err != nil {
		return err
	}
	if err := n.bootstrap(cfg, cache, snaps); err != nil {
		return err
	}
	n.setSnapshotAfter()
	defer guard(n.dir.path, &err)()
	if n.raft, err = raft.NewRaft(cfg, n.machine, cache, n.logs, snaps, n.transport); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	// A second Shutdown of Raft would not wait for the first.
	n.stopRaft = sync.OnceValue(func() error { return n.raft.Shutdown().Error() })
	return n.electNow()
}

// electNow lets a solo node stand for election at once: a shorter heartbeat timeout, by
// however little, ends a follower's wait. So its time-outs can be long, which keeps an
// idle node asleep, and its start still takes milliseconds.
func (n *Node) electNow() error {
	if !n.opts.Solo {
		return nil
	}
	rc := n.raft.ReloadableConfig()
	rc.HeartbeatTimeout -= time.Millisecond
	if err := n.raft.ReloadConfig(rc); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	return nil
}

func (n *Node) openLog() (err error) {
	path := n.dir.file(logFile)
	opts := &bbolt.Options{Timeout: boltTimeout, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, InitialMmapSize: 1 << 30, NoStatistics: true}
	if err := n.dir.placeLog(); err != nil {
		return err
	}
	db, err := openBolt(path, opts) // once for ourselves: damage becomes an error
	if err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer guard(path, &err)()
	if n.logs, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: opts, MsgpackUseNewTimeFormat: true}); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return nil
}

// checkState compares the state with the newest snapshot and the log. intact tells that
// the state holds all of the snapshot, which then need not be restored.
func (n *Node) checkState(snaps raft.SnapshotStore) (intact bool, err error) {
	applied := n.store.applied.Load()
	last, err := n.logs.LastIndex()
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	list, err := snaps.List()
	if err != nil {
		return false, fmt.Errorf("list snapshots: %w", err)
	}
	intact = true
	if len(list) > 0 {
		last = max(last, list[0].Index)
		_, r, err := snaps.Open(list[0].ID)
		if err != nil {
			// A damaged newest snapshot matters only when it is needed; Raft tries the older ones.
			n.opts.Logger.Warn("newest snapshot cannot be opened", "snapshot", list[0].ID, "error", err)
			return applied >= list[0].Index, nil
		}
		head, err := newSnapshotReader(r)
		if err = errors.Join(err, r.Close()); err != nil {
			n.opts.Logger.Warn("newest snapshot cannot be read", "snapshot", list[0].ID, "error", err)
			return applied >= list[0].Index, nil
		}
		if head.Kind != n.opts.Machine.Kind() {
			return false, fmt.Errorf("snapshot %s is of kind %q: %w", list[0].ID, head.Kind, ErrForeign)
		}
		intact = applied >= head.Applied
	}
	if applied > last {
		return false, fmt.Errorf("state holds log entry %d, the log ends at %d: %s was lost or replaced; bring it back, or start with an empty directory: %w",
			applied, last, logFile, metadata.ErrCorrupt)
	}
	return intact, nil
}

func (n *Node) config(hl *hlog) *raft.Config {
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(n.opts.ID)
	cfg.Logger = hl
	cfg.HeartbeatTimeout = n.opts.Heartbeat
	cfg.ElectionTimeout = n.opts.Heartbeat
	cfg.LeaderLeaseTimeout = n.opts.Heartbeat / 2
	if n.opts.Solo { // room for electNow
		cfg.LeaderLeaseTimeout = n.opts.Heartbeat
		cfg.HeartbeatTimeout += time.Millisecond
		cfg.ElectionTimeout = cfg.HeartbeatTimeout
	}
	cfg.CommitTimeout = min(50*time.Millisecond, n.opts.Heartbeat/4)
	cfg.MaxAppendEntries = maxBatch
	cfg.BatchApplyCh = true
	cfg.TrailingLogs = n.opts.TrailingLogs
	cfg.SnapshotThreshold = 1 << 62 // we count bytes ourselves
	cfg.SnapshotInterval = time.Hour
	cfg.NoLegacyTelemetry = true
	return cfg
}

func (n *Node) newTransport(hl *hlog) (raft.Transport, error) {
	switch {
	case n.opts.Mux != nil:
		stream := &stream{mux: n.opts.Mux, kind: n.opts.Machine.Kind()}
		return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: stream, MaxPool: 4, Timeout: 10 * time.Second, Logger: hl, MsgpackUseNewTimeFormat: true,
		}), nil
	case n.opts.Mem != nil:
		return n.opts.Mem.join(n.opts.MemAddr)
	}
	_, t := raft.NewInmemTransport(soloAddr)
	return t, nil
}

// soloAddr is the address of a node that nobody connects to.
const soloAddr = "solo"

// bootstrap makes the first configuration of a new cluster.
func (n *Node) bootstrap(cfg *raft.Config, logs raft.LogStore, snaps raft.SnapshotStore) error {
	has, err := n.bootstrapped(logs, snaps)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if has || !n.opts.Bootstrap {
		return nil
	}
	servers := []raft.Server{{ID: cfg.LocalID, Address: n.transport.LocalAddr()}}
	if len(n.opts.Peers) > 0 {
		servers = nil
		for _, p := range n.opts.Peers {
			servers = append(servers, raft.Server{ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Addr)})
		}
	}
	// raft.BootstrapCluster writes the term first, and refuses to go on where power was lost behind that.
	entry := &raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{Servers: servers})}
	if err := n.logs.SetUint64(keyCurrentTerm, 1); err != nil {
		return fmt.Errorf("make a new cluster: %w", err)
	}
	if err := logs.StoreLog(entry); err != nil {
		return fmt.Errorf("make a new cluster: %w", err)
	}
	return nil
}

// keyCurrentTerm is where Raft keeps its term.
var keyCurrentTerm = []byte("CurrentTerm")

// bootstrapped tells whether the node has a past. Term 1 without any entry is none: that is a
// bootstrap without its second half, since elections begin with term 2.
func (n *Node) bootstrapped(logs raft.LogStore, snaps raft.SnapshotStore) (bool, error) {
	last, err := logs.LastIndex()
	if err != nil {
		return false, err
	}
	list, err := snaps.List()
	if err != nil {
		return false, err
	}
	term, err := n.logs.GetUint64(keyCurrentTerm)
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return false, err
	}
	return last > 0 || len(list) > 0 || term > 1, nil
}

// run makes snapshots when they are due, and stops Raft when the machine has halted.
func (n *Node) run() {
	for {
		select {
		case <-n.closing:
			return
		case <-n.halted:
			if err := n.stopRaft(); err != nil {
				n.opts.Logger.Error("stop raft", "error", err)
			}
			return
		case <-n.snapshotNow:
			if err := n.raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) && !errors.Is(err, raft.ErrRaftShutdown) {
				n.opts.Logger.Error("snapshot failed", "error", err)
			}
			n.setSnapshotAfter()
		}
	}
}

// setSnapshotAfter keeps the cost of snapshots in proportion to what was written, and the
// log that is replayed after a power loss short.
func (n *Node) setSnapshotAfter() {
	after := n.opts.SnapshotBytes
	if after == 0 {
		after = min(max(n.store.size(), minSnapshotBytes), maxSnapshotBytes)
	}
	// Behind what was not snapshotted yet when the last attempt failed: not at once again.
	n.snapshotAfter.Store(after + n.machine.sinceSnapshot.Load())
}

func (n *Node) wantSnapshot() {
	select {
	case n.snapshotNow <- struct{}{}:
	default:
	}
}

// Snapshot makes a snapshot now and shortens the log.
func (n *Node) Snapshot(ctx context.Context) error {
	// Any node may: a snapshot is of its own state and log.
	err := n.await(ctx, func() error { return n.raft.Snapshot().Error() })
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// await runs a blocking call of Raft, and returns early when ctx ends; the call then
// finishes in the background, and Close waits for it.
func (n *Node) await(ctx context.Context, fn func() error) error {
	n.waitMu.Lock()
	if n.waitClosed {
		n.waitMu.Unlock()
		return ErrClosed
	}
	n.wg.Add(1)
	n.waitMu.Unlock()
	if ctx.Done() == nil {
		defer n.wg.Done()
		return n.failure(fn())
	}
	done := make(chan error, 1)
	go func() {
		defer n.wg.Done()
		done <- fn()
	}()
	select {
	case err := <-done:
		return n.failure(err)
	case <-ctx.Done():
		return fmt.Errorf("metadata node %q: %w: %w", n.opts.ID, ctx.Err(), metadata.ErrUnavailable)
	}
}

// failure makes an error of Raft one of ours.
func (n *Node) failure(err error) error {
	var ours *metadata.Error
	switch {
	case err == nil || errors.As(err, &ours) || errors.Is(err, raft.ErrNothingNewToSnapshot):
		return err
	case n.machine.haltedErr() != nil:
		return n.machine.haltedErr()
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrClosed
	case errors.Is(err, raft.ErrNotLeader):
		if leader := n.LeaderAddr(); leader != "" {
			return metadata.Errorf(metadata.KindUnavailable, "node %q is not the leader, %s is", n.opts.ID, leader)
		}
		return metadata.Errorf(metadata.KindUnavailable, "node %q is not the leader, and knows none now", n.opts.ID)
	}
	return metadata.Errorf(metadata.KindUnavailable, "node %q: %v", n.opts.ID, err)
}

// Apply logs a sealed command, waits until it is applied and returns its result.
// KindUnavailable means: not the leader, or the outcome is not known.
func (n *Node) Apply(ctx context.Context, envelope []byte) ([]byte, error) {
	if _, err := fsm.Open(envelope); err != nil {
		return nil, metadata.Errorf(metadata.KindInvalid, "%v", err)
	}
	if err := n.machine.haltedErr(); err != nil {
		return nil, err
	}
	select {
	case n.applying <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("metadata node %q: %w: %w", n.opts.ID, ctx.Err(), metadata.ErrUnavailable)
	case <-n.closing:
		return nil, ErrClosed
	}
	var reply any
	err := n.await(ctx, func() error {
		defer func() { <-n.applying }()
		f := n.raft.Apply(envelope, 0)
		answered := make(chan error, 1)
		go func() { answered <- f.Error() }()
		select {
		case err := <-answered:
			if err == nil {
				reply = f.Response()
			}
			return err
		case <-n.stopped:
			// Raft never answers what was still in its queue when it stopped (nothing but the
			// goroutine above remains of it). Whether it was logged is not known.
			return ErrClosed
		}
	})
	if err != nil {
		return nil, err
	}
	r, ok := reply.(response)
	switch {
	case !ok:
		return nil, metadata.Errorf(metadata.KindInternal, "command had no response")
	case r.err != nil:
		return nil, r.err
	}
	return r.result.Body, r.result.Err()
}

// Read calls fn with a state that holds every command acknowledged, by any node, before the
// call: it makes sure to be the leader, and to have applied what earlier leaders acknowledged.
func (n *Node) Read(ctx context.Context, fn func(fsm.Reader) error) error {
	if err := n.machine.haltedErr(); err != nil {
		return err
	}
	if n.raft.State() != raft.Leader {
		return n.failure(raft.ErrNotLeader)
	}
	// A term is read before what proves leadership in it: a newer one is not taken for proved.
	if term := n.raft.CurrentTerm(); n.readyTerm.Load() != term {
		if err := n.await(ctx, func() error { return n.raft.Barrier(0).Error() }); err != nil {
			return err
		}
		n.readyTerm.Store(term)
	} else if !n.opts.Solo {
		if err := n.await(ctx, func() error { return n.raft.VerifyLeader().Error() }); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("metadata node %q: %w: %w", n.opts.ID, err, metadata.ErrUnavailable)
	}
	return n.store.view(fn)
}

// ReadStale calls fn with what this node has, which may be behind.
func (n *Node) ReadStale(fn func(fsm.Reader) error) error { return n.store.view(fn) }

// LeaderAddr returns the leader's address, "" when it is this node or unknown.
func (n *Node) LeaderAddr() string {
	addr, id := n.raft.LeaderWithID()
	if id == raft.ServerID(n.opts.ID) {
		return ""
	}
	return string(addr)
}

// IsLeader tells whether the node thinks that it leads.
func (n *Node) IsLeader() bool { return n.raft.State() == raft.Leader }

// WaitLeader waits until the cluster has a leader that this node knows.
func (n *Node) WaitLeader(ctx context.Context) error {
	changes := make(chan raft.Observation, 16)
	obs := raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	n.raft.RegisterObserver(obs)
	defer n.raft.DeregisterObserver(obs)
	for {
		if addr, _ := n.raft.LeaderWithID(); addr != "" {
			return nil
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return fmt.Errorf("metadata node %q waits for a leader: %w: %w", n.opts.ID, ctx.Err(), metadata.ErrUnavailable)
		case <-n.closing:
			return ErrClosed
		case <-n.halted:
			return n.machine.haltedErr()
		}
	}
}

// Close stops the node and waits for all it has started. Closing again is fine.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		close(n.closing)
		n.waitMu.Lock()
		n.waitClosed = true
		n.waitMu.Unlock()
		var errs []error
		if n.raft != nil {
			errs = append(errs, n.stopRaft())
			close(n.stopped)
		} else if t, ok := n.transport.(raft.WithClose); ok {
			errs = append(errs, t.Close())
		}
		if n.opts.Mux != nil {
			errs = append(errs, n.opts.Mux.Close())
		}
		n.wg.Wait()
		if n.logs != nil {
			errs = append(errs, n.logs.Close())
		}
		if n.store != nil {
			errs = append(errs, n.store.close())
		}
		errs = append(errs, n.dir.lock.Close())
		n.closeErr = errors.Join(errs...)
	})
	return n.closeErr
}
