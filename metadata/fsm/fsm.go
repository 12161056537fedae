// Package fsm says what a replicated state machine of Scoria is, without Raft: a Machine
// applies Commands to a key-value store inside a transaction. Everything here is pure, so
// that state machines can be replayed, fuzzed and simulated without a cluster. Package
// raftnode hosts a Machine on Raft and disk, MemHost in memory.
//
// The envelope (envelope.go) is what Raft logs. Execute opens it, keeps retried requests
// from being applied twice, and rolls back what a failing command has written.
package fsm

import (
	"context"
	"errors"

	"scoria/metadata"
)

// Reader reads one consistent state. Keys and values belong to the store: they are valid
// until the transaction ends and must not be changed.
type Reader interface {
	// Get returns the value of key, nil when there is none. Values are never empty-but-present
	// nil: a present empty value is a non-nil empty slice.
	Get(key []byte) []byte
	// Scan calls fn for the keys in [from, to) in order until it returns false. An empty to
	// means no end. fn must not write.
	Scan(from, to []byte, fn func(key, value []byte) bool)
}

// Tx reads and writes. A store that fails remembers it and fails the whole transaction
// later, so that pure code need not care. Put and Delete keep no reference to their arguments.
type Tx interface {
	Reader
	Put(key, value []byte)
	Delete(key []byte)
}

// RequestID names a request of a client, for recognizing a retry. Zero means none.
type RequestID struct {
	Client uint64 // random, not 0
	Seq    uint64 // counts up from 1
}

// Command is an opened envelope.
type Command struct {
	Type      uint8 // the machine's own number, append-only, 0 is invalid
	Version   uint8 // of the body's layout, 0 is invalid
	Skippable bool  // a node that does not know Type may go on without it
	Request   RequestID
	Now       int64 // nanoseconds since 1970, read by who made the command
	Body      []byte
}

// Machine is a pure state machine. Keys beginning with bytes ≥ 0xf0 belong to this package.
type Machine interface {
	// Kind names the machine ("abm", "nsm"): a store of another kind is refused.
	Kind() string
	// Apply runs a command and returns its result. An error must be a *metadata.Error; it is
	// the deterministic outcome of the command, and what was written is rolled back. Of
	// commands that it does not know it returns ErrUnknownCommand.
	Apply(tx Tx, cmd Command) ([]byte, error)
}

// Host runs a Machine: raftnode.Node on Raft and disk, MemHost in memory.
type Host interface {
	// Apply logs the command in the envelope, waits until it is applied and returns its
	// result. KindUnavailable means that this node is not the leader, or that the outcome is
	// not known: the same envelope may be applied again when it has a RequestID.
	Apply(ctx context.Context, envelope []byte) ([]byte, error)
	// Read calls fn with a state that holds every command acknowledged before the call.
	Read(ctx context.Context, fn func(Reader) error) error
	// LeaderAddr tells where the leader is, "" when it is this node or unknown.
	LeaderAddr() string
}

// ErrUnknownCommand means that a newer Scoria logged this command. A node that sees it
// must stop applying, as its state would differ from that of the others.
var ErrUnknownCommand = errors.New("unknown command: this node is older than the leader, upgrade it")

// Result is the outcome of a command: a reply, or an error of a kind.
type Result struct {
	Kind metadata.Kind // 0: fine
	Text string
	Body []byte
}

// Err returns the outcome as an error, nil when fine.
func (r Result) Err() error {
	if r.Kind == 0 {
		return nil
	}
	return &metadata.Error{Kind: r.Kind, Text: r.Text}
}

// Execute opens an envelope and applies it, unless it is a retry: then the remembered
// result is returned. index is the command's place in the log. An error means that the
// node cannot go on (unknown command, damaged log), and that nothing was written.
func Execute(m Machine, tx Tx, index uint64, envelope []byte) (Result, error) {
	cmd, err := Open(envelope)
	if err != nil {
		return Result{}, err
	}
	u := &undo{tx: tx}
	var window *window
	if cmd.Request != (RequestID{}) {
		window, err = loadWindow(tx, cmd.Request.Client)
		if err != nil {
			return Result{}, err
		}
		if r, known := window.lookup(cmd.Request.Seq); known {
			return r, nil
		}
	}
	body, err := m.Apply(u, cmd)
	var result Result
	switch {
	case err == nil:
		result.Body = body
	case errors.Is(err, ErrUnknownCommand) && !cmd.Skippable:
		u.rollback()
		return Result{}, err
	default:
		u.rollback()
		result.Kind, result.Text = metadata.KindOf(err), err.Error()
		if errors.Is(err, ErrUnknownCommand) {
			result.Kind = metadata.KindInvalid
		}
	}
	if window != nil {
		window.remember(tx, cmd.Request.Seq, index, result)
	}
	return result, nil
}

// undo records what was overwritten, so that a failing command leaves nothing.
type undo struct {
	tx  Tx
	log []undoEntry
}

type undoEntry struct {
	key, value []byte // value nil: there was none
}

func (u *undo) Get(key []byte) []byte { return u.tx.Get(key) }
func (u *undo) Scan(from, to []byte, fn func(k, v []byte) bool) {
	u.tx.Scan(from, to, fn)
}

func (u *undo) save(key []byte) {
	e := undoEntry{key: append([]byte(nil), key...)}
	if old := u.tx.Get(key); old != nil {
		e.value = append([]byte{}, old...)
	}
	u.log = append(u.log, e)
}

func (u *undo) Put(key, value []byte) {
	u.save(key)
	u.tx.Put(key, value)
}

func (u *undo) Delete(key []byte) {
	u.save(key)
	u.tx.Delete(key)
}

func (u *undo) rollback() {
	for i := len(u.log) - 1; i >= 0; i-- {
		if e := u.log[i]; e.value == nil {
			u.tx.Delete(e.key)
		} else {
			u.tx.Put(e.key, e.value)
		}
	}
	u.log = nil
}

// PrefixEnd returns the first key behind all keys with the prefix, nil when there is none.
func PrefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
