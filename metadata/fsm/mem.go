package fsm

import (
	"context"
	"slices"
	"sync"

	"scoria/metadata"
)

// Mem is a Tx in memory: a sorted list of keys. It is not safe for concurrent use.
type Mem struct {
	keys   []string
	values map[string][]byte
}

// NewMem returns an empty store.
func NewMem() *Mem { return &Mem{values: make(map[string][]byte)} }

// Get returns the value of key, nil when there is none.
func (m *Mem) Get(key []byte) []byte { return m.values[string(key)] }

// Scan calls fn for the keys in [from, to).
func (m *Mem) Scan(from, to []byte, fn func(k, v []byte) bool) {
	i, _ := slices.BinarySearch(m.keys, string(from))
	for ; i < len(m.keys); i++ {
		k := m.keys[i]
		if len(to) > 0 && k >= string(to) {
			return
		}
		if !fn([]byte(k), m.values[k]) {
			return
		}
	}
}

// Put stores a copy of value.
func (m *Mem) Put(key, value []byte) {
	k := string(key)
	if _, known := m.values[k]; !known {
		i, _ := slices.BinarySearch(m.keys, k)
		m.keys = slices.Insert(m.keys, i, k)
	}
	m.values[k] = append([]byte{}, value...)
}

// Delete removes key.
func (m *Mem) Delete(key []byte) {
	k := string(key)
	if _, known := m.values[k]; !known {
		return
	}
	i, _ := slices.BinarySearch(m.keys, k)
	m.keys = slices.Delete(m.keys, i, i+1)
	delete(m.values, k)
}

// Len returns the number of keys.
func (m *Mem) Len() int { return len(m.keys) }

// MemHost hosts a Machine in memory: what raftnode.Node does, without Raft and disk. It is
// for tests and simulations. It is safe for concurrent use.
type MemHost struct {
	machine Machine

	mu    sync.RWMutex
	mem   *Mem
	index uint64
}

// NewMemHost returns a host with an empty state.
func NewMemHost(m Machine) *MemHost { return &MemHost{machine: m, mem: NewMem()} }

// Apply runs the command in the envelope.
func (h *MemHost) Apply(ctx context.Context, envelope []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.index++
	r, err := Execute(h.machine, h.mem, h.index, envelope)
	if err != nil {
		return nil, metadata.Errorf(metadata.KindInternal, "apply command %d: %v", h.index, err)
	}
	return r.Body, r.Err()
}

// Read calls fn with the current state.
func (h *MemHost) Read(ctx context.Context, fn func(Reader) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	return fn(h.mem)
}

// LeaderAddr returns "": this host is always its own leader.
func (h *MemHost) LeaderAddr() string { return "" }
