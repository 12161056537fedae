// Package raftnode hosts a fsm.Machine on hashicorp/raft: the log in raft-boltdb, the
// state in a bbolt file that may be larger than memory, snapshots beside them. It is the
// only package that knows these libraries. FORMAT.md in the parent says what lies in a
// node's directory and what a crash leaves there; DESIGN.md says why.
package raftnode

import (
	"errors"
	"io"
	"log/slog"
	"time"

	"scoria/metadata"
	"scoria/metadata/fsm"
)

// Errors of opening a node's directory, wrapped with what was found. Damage is
// metadata.ErrCorrupt, a directory in use vfs.ErrLocked.
var (
	ErrForeign = errors.New("directory belongs to something else")
	ErrNewer   = metadata.ErrNewerVersion
)

// ErrClosed is KindUnavailable: the node is closed or closing.
var ErrClosed = metadata.Errorf(metadata.KindUnavailable, "metadata node is closed")

// Peer is a voter of a cluster.
type Peer struct {
	ID   string
	Addr string
}

// Options of a node.
type Options struct {
	// ID names the node in its cluster, 1..128 bytes. It is kept in the directory and must
	// not change.
	ID string
	// Dir is the node's directory. It is made when absent; a directory with other things in
	// it is refused.
	Dir string
	// Machine is the state machine to host.
	Machine fsm.Machine

	// Solo: this node is and stays the only voter. It elects itself within milliseconds and
	// answers reads without asking anybody; it needs no transport. To add voters, open it
	// without Solo.
	Solo bool
	// Mux takes and makes the connections of a node of several (Listen). Its address is the
	// node's. The node closes it.
	Mux *Mux
	// Mem connects nodes of one process for tests, under MemAddr.
	Mem     *MemNetwork
	MemAddr string

	// Bootstrap makes a new cluster when the directory is new: of this node (Solo, or no
	// Peers) or of Peers, which all nodes must be opened with alike. Without it a new node
	// waits to be added by AddVoter. It has no effect on a directory that has a log.
	Bootstrap bool
	Peers     []Peer

	// Heartbeat is the time without a leader after which followers elect another. Default
	// 1 s. A solo node elects itself at once when it starts, and within twice this after its
	// log could not be written (a full disk).
	Heartbeat time.Duration
	// SnapshotBytes of commands since the last snapshot make the next one. Default: as many
	// as the state has, within 16 MiB..64 MiB.
	SnapshotBytes uint64
	// TrailingLogs stay in the log behind a snapshot, for followers that are a little behind.
	// Default 8192; Solo 128.
	TrailingLogs uint64
	// Logger is told what an operator should know. Default: nothing.
	Logger *slog.Logger

	// bootID tells one start of the machine from another (tests simulate a power loss by
	// another value).
	bootID string
}

func (o *Options) ensureDefaults() error {
	if err := metadata.ValidateName("node", o.ID); err != nil {
		return err
	}
	if o.Machine == nil || o.Dir == "" {
		return metadata.Errorf(metadata.KindInvalid, "node %q: a directory and a machine are needed", o.ID)
	}
	transports := 0
	for _, given := range []bool{o.Solo, o.Mux != nil, o.Mem != nil} {
		if given {
			transports++
		}
	}
	if transports != 1 {
		return metadata.Errorf(metadata.KindInvalid, "node %q: exactly one of Solo, Mux and Mem is needed", o.ID)
	}
	if o.Solo && len(o.Peers) > 0 {
		return metadata.Errorf(metadata.KindInvalid, "node %q: a solo node has no peers", o.ID)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelError + 1}))
	}
	o.Logger = o.Logger.With("node", o.ID, "kind", o.Machine.Kind())
	if o.Heartbeat <= 0 {
		o.Heartbeat = time.Second
	}
	if o.TrailingLogs == 0 {
		o.TrailingLogs = 8192
		if o.Solo {
			o.TrailingLogs = 128
		}
	}
	if o.bootID == "" {
		o.bootID = readBootID()
	}
	return nil
}
