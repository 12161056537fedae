// Package volumetest has what tests of the volume driver stand on: an object store and a
// registry in memory that enforce owner epochs and fail where they are told to, a model of
// a volume that knows every state it went through, and a loop that crashes a driver at
// every k-th operation and holds what comes back against the model.
package volumetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"scoria/internal/blocksum"
	"scoria/volumedriver"
)

// StoreOp is a kind of call of an object store.
type StoreOp uint8

// The calls that a StoreHook sees.
const (
	OpApply StoreOp = 1
	OpRead  StoreOp = 2
	OpGet   StoreOp = 3
	OpList  StoreOp = 4
)

// StoreCall describes one call to a StoreHook.
type StoreCall struct {
	Op        StoreOp
	Namespace uint64
	Names     []string // objects named by the call, puts before deletes
}

// StoreHook decides about a call before it is done: nil lets it pass, an error is returned
// instead of doing it, and an error wrapped in *Done is returned after doing it (the answer
// was lost). It may wait, to be slow. It may be called from many goroutines.
type StoreHook func(ctx context.Context, call StoreCall) error

// Done is a fault that lets the call happen and fails its answer.
type Done struct{ Err error }

func (d *Done) Error() string { return "answer lost: " + d.Err.Error() }
func (d *Done) Unwrap() error { return d.Err }

// Store is an object store in memory, shared by all gateways of a test. It checks what the
// contract asks of its callers: sums that fit the data, memory that does not change before
// Release, an epoch in each transaction.
type Store struct {
	hook atomic.Pointer[StoreHook]
	// Violation is called when a caller breaks the contract. It panics unless replaced
	// before use.
	Violation func(format string, args ...any)

	applies, reads, bytesIn, bytesRead atomic.Int64

	mu struct {
		sync.RWMutex
		spaces map[uint64]*space
		held   []held // puts whose Release is still to come
		hold   int    // how many puts are held back
		cached bool   // TryRead answers
		lie    bool   // Read returns damaged data as good
	}
}

type space struct {
	fence   uint64
	objects map[string]*object
}

type object struct {
	data []byte
	sums []uint32 // as they were at Apply: tells rot
}

// held is a put that the store pretends to be still using.
type held struct {
	name string
	data []byte
	sum  uint32
	free func()
}

// NewStore returns an empty store.
func NewStore() *Store {
	s := &Store{Violation: func(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }}
	s.mu.spaces = make(map[uint64]*space)
	return s
}

// SetHook replaces the hook; nil lets everything pass.
func (s *Store) SetHook(hook StoreHook) {
	if hook == nil {
		s.hook.Store(nil)
		return
	}
	s.hook.Store(&hook)
}

// HoldReleases makes the store keep using the memory of the newest n puts after Apply
// returned, as a real one does while late fragments are on their way.
func (s *Store) HoldReleases(n int) {
	s.mu.Lock()
	s.mu.hold = n
	free := s.trimHeldLocked()
	s.mu.Unlock()
	s.release(free)
}

// SetCached decides whether TryRead answers (a cache that holds everything) or not.
func (s *Store) SetCached(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.cached = on
}

// SetLie makes Read hand out damaged data as if it were good: what a broken store would do.
func (s *Store) SetLie(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.lie = on
}

// Applies, Reads and BytesIn count what was done: transactions, read calls, bytes put.
func (s *Store) Applies() int64 { return s.applies.Load() }

// Reads counts the Read calls.
func (s *Store) Reads() int64 { return s.reads.Load() }

// BytesIn counts the bytes of all puts.
func (s *Store) BytesIn() int64 { return s.bytesIn.Load() }

func (s *Store) spaceLocked(ns uint64) *space {
	sp := s.mu.spaces[ns]
	if sp == nil {
		sp = &space{objects: make(map[string]*object)}
		s.mu.spaces[ns] = sp
	}
	return sp
}

// enter runs the hook. after is what the call must return once it is done.
func (s *Store) enter(ctx context.Context, call StoreCall) (before, after error) {
	if err := ctx.Err(); err != nil {
		return err, nil
	}
	hook := s.hook.Load()
	if hook == nil {
		return nil, nil
	}
	err := (*hook)(ctx, call)
	if done := (*Done)(nil); errors.As(err, &done) {
		return nil, err
	}
	return err, nil
}

// Apply implements volumedriver.ObjectStore.
func (s *Store) Apply(ctx context.Context, ns uint64, txn volumedriver.Txn) error {
	names := make([]string, 0, len(txn.Puts)+len(txn.Deletes))
	for _, p := range txn.Puts {
		names = append(names, p.Name)
	}
	names = append(names, txn.Deletes...)
	before, after := s.enter(ctx, StoreCall{Op: OpApply, Namespace: ns, Names: names})
	if before != nil {
		for _, p := range txn.Puts {
			if p.Release != nil {
				p.Release()
			}
		}
		return before
	}
	objects := make([]*object, len(txn.Puts))
	for i, p := range txn.Puts {
		objects[i] = &object{data: bytes.Clone(p.Data), sums: blocksum.Sums(nil, p.Data)}
		if p.Sums != nil && !slices.Equal(p.Sums, objects[i].sums) {
			s.Violation("put %s: its sums are not those of its data", p.Name)
		}
		s.bytesIn.Add(int64(len(p.Data)))
	}
	free, err := s.commit(ns, txn, objects)
	s.release(free)
	if err != nil {
		return err
	}
	s.applies.Add(1)
	return after
}

// commit is the transaction itself.
func (s *Store) commit(ns uint64, txn volumedriver.Txn, objects []*object) (free []held, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range txn.Puts {
		s.mu.held = append(s.mu.held, held{name: p.Name, data: p.Data, sum: blocksum.Of(objects[i].data), free: p.Release})
	}
	free = s.trimHeldLocked()
	sp := s.spaceLocked(ns)
	if txn.Epoch == 0 {
		return free, fmt.Errorf("transaction without an epoch: %w", volumedriver.ErrInvalid)
	}
	if txn.Epoch < sp.fence {
		return free, fmt.Errorf("epoch %d, newest is %d: %w", txn.Epoch, sp.fence, volumedriver.ErrFenced)
	}
	sp.fence = txn.Epoch
	for i, p := range txn.Puts {
		sp.objects[p.Name] = objects[i]
	}
	for _, name := range txn.Deletes {
		delete(sp.objects, name)
	}
	return free, nil
}

func (s *Store) trimHeldLocked() []held {
	n := max(0, len(s.mu.held)-s.mu.hold)
	free := slices.Clone(s.mu.held[:n])
	s.mu.held = slices.Delete(s.mu.held, 0, n)
	return free
}

// release gives memory back, and tells when somebody changed it in the meantime.
func (s *Store) release(free []held) {
	for _, h := range free {
		if blocksum.Of(h.data) != h.sum {
			s.Violation("put %s: its data changed before Release", h.name)
		}
		if h.free != nil {
			h.free()
		}
	}
}

// Read implements volumedriver.ObjectStore.
func (s *Store) Read(ctx context.Context, ns uint64, slices []volumedriver.Slice) error {
	names := make([]string, len(slices))
	for i, sl := range slices {
		names[i] = sl.Name
	}
	before, after := s.enter(ctx, StoreCall{Op: OpRead, Namespace: ns, Names: names})
	if before != nil {
		return before
	}
	s.reads.Add(1)
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, sl := range slices {
		if err := s.readLocked(ns, sl); err != nil {
			return err
		}
		s.bytesRead.Add(int64(len(sl.Data)))
	}
	return after
}

func (s *Store) readLocked(ns uint64, sl volumedriver.Slice) error {
	o, err := s.objectLocked(ns, sl.Name)
	if err != nil {
		return err
	}
	if sl.Off+uint64(len(sl.Data)) > uint64(len(o.data)) {
		return fmt.Errorf("object %s: %d bytes at %d, it has %d: %w", sl.Name, len(sl.Data), sl.Off, len(o.data), volumedriver.ErrInvalid)
	}
	copy(sl.Data, o.data[sl.Off:])
	if s.mu.lie {
		sl.Data[len(sl.Data)/2] ^= 0x20
		return nil
	}
	first, last := sl.Off/blocksum.BlockSize, (sl.Off+uint64(len(sl.Data))-1)/blocksum.BlockSize
	for b := first; b <= last && len(sl.Data) > 0; b++ {
		end := min((b+1)*blocksum.BlockSize, uint64(len(o.data)))
		if blocksum.Of(o.data[b*blocksum.BlockSize:end]) != o.sums[b] {
			return fmt.Errorf("object %s: block %d: %w", sl.Name, b, volumedriver.ErrCorrupt)
		}
	}
	if sl.Sums != nil && !slices.Equal(blocksum.Sums(nil, sl.Data), sl.Sums) {
		return fmt.Errorf("object %s: not the data that was asked for: %w", sl.Name, volumedriver.ErrCorrupt)
	}
	return nil
}

func (s *Store) objectLocked(ns uint64, name string) (*object, error) {
	sp := s.mu.spaces[ns]
	if sp == nil || sp.objects[name] == nil {
		return nil, fmt.Errorf("object %s of namespace %d: %w", name, ns, fs.ErrNotExist)
	}
	return sp.objects[name], nil
}

// TryRead implements volumedriver.ObjectStore.
func (s *Store) TryRead(ns uint64, sl volumedriver.Slice) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mu.cached && s.readLocked(ns, sl) == nil
}

// Get implements volumedriver.ObjectStore.
func (s *Store) Get(ctx context.Context, ns uint64, name string, limit int) ([]byte, error) {
	before, after := s.enter(ctx, StoreCall{Op: OpGet, Namespace: ns, Names: []string{name}})
	if before != nil {
		return nil, before
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, err := s.objectLocked(ns, name)
	if err != nil {
		return nil, err
	}
	if len(o.data) > limit {
		return nil, fmt.Errorf("object %s has %d bytes, limit %d: %w", name, len(o.data), limit, volumedriver.ErrInvalid)
	}
	data := make([]byte, len(o.data))
	if len(data) > 0 {
		if err := s.readLocked(ns, volumedriver.Slice{Name: name, Data: data}); err != nil {
			return nil, err
		}
	}
	return data, after
}

// List implements volumedriver.ObjectStore.
func (s *Store) List(ctx context.Context, ns uint64, prefix, after string, limit int) ([]string, error) {
	before, late := s.enter(ctx, StoreCall{Op: OpList, Namespace: ns})
	if before != nil {
		return nil, before
	}
	names := s.Names(ns, prefix)
	names = slices.DeleteFunc(names, func(n string) bool { return n <= after })
	return names[:min(len(names), limit)], late
}

// Names lists the objects of a namespace that start with prefix, in order.
func (s *Store) Names(ns uint64, prefix string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var names []string
	if sp := s.mu.spaces[ns]; sp != nil {
		names = slices.Sorted(maps.Keys(sp.objects))
	}
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, prefix) })
}

// Fence returns the newest owner epoch that the namespace knows.
func (s *Store) Fence(ns uint64) uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if sp := s.mu.spaces[ns]; sp != nil {
		return sp.fence
	}
	return 0
}

// Damage lets f change the bytes of an object without the store noticing.
func (s *Store) Damage(ns uint64, name string, f func(data []byte)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.objectLocked(ns, name)
	if err != nil {
		return err
	}
	f(o.data)
	return nil
}

// Replace puts an object behind the back of its owner, with right sums.
func (s *Store) Replace(ns uint64, name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spaceLocked(ns).objects[name] = &object{data: bytes.Clone(data), sums: blocksum.Sums(nil, data)}
}

// Remove takes an object away behind the back of its owner.
func (s *Store) Remove(ns uint64, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.spaceLocked(ns).objects, name)
}

// Drop removes a namespace.
func (s *Store) Drop(ns uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.spaces, ns)
}

// Clone returns an independent copy of what the store holds, without faults: to try what a
// later moment makes of this one.
func (s *Store) Clone() *Store {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := NewStore()
	for ns, sp := range s.mu.spaces {
		c.mu.spaces[ns] = &space{fence: sp.fence, objects: maps.Clone(sp.objects)}
	}
	return c
}

// Conn is one gateway's way to a Store. A gateway that is killed in a test loses it: what it
// still tries afterwards does not happen.
type Conn struct {
	*Store
	cut  atomic.Bool
	runs sync.RWMutex // held shared by Apply
}

// Connect returns a new way to the store.
func (s *Store) Connect() *Conn { return &Conn{Store: s} }

// Cut ends the connection and returns when no Apply of it is running any more.
func (c *Conn) Cut() {
	c.cut.Store(true)
	c.runs.Lock()
	defer c.runs.Unlock()
}

func (c *Conn) check() error {
	if c.cut.Load() {
		return fmt.Errorf("the connection is cut: %w", volumedriver.ErrUnavailable)
	}
	return nil
}

// Apply implements volumedriver.ObjectStore.
func (c *Conn) Apply(ctx context.Context, ns uint64, txn volumedriver.Txn) error {
	c.runs.RLock()
	defer c.runs.RUnlock()
	if err := c.check(); err != nil {
		for _, p := range txn.Puts {
			if p.Release != nil {
				p.Release()
			}
		}
		return err
	}
	return c.Store.Apply(ctx, ns, txn)
}

// Read implements volumedriver.ObjectStore.
func (c *Conn) Read(ctx context.Context, ns uint64, slices []volumedriver.Slice) error {
	if err := c.check(); err != nil {
		return err
	}
	return c.Store.Read(ctx, ns, slices)
}

// Get implements volumedriver.ObjectStore.
func (c *Conn) Get(ctx context.Context, ns uint64, name string, limit int) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return c.Store.Get(ctx, ns, name, limit)
}

// List implements volumedriver.ObjectStore.
func (c *Conn) List(ctx context.Context, ns uint64, prefix, after string, limit int) ([]string, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return c.Store.List(ctx, ns, prefix, after, limit)
}

var _ volumedriver.ObjectStore = (*Conn)(nil)
