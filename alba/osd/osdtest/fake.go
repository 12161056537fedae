// Package osdtest holds what tests of the disk server and of its users need: Fake, an in-memory
// OSD with fault knobs, and Run, the conformance suite that every osd.API must pass.
package osdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"scoria/alba/osd"
	"scoria/internal/blocksum"
)

// Op names a method of osd.API, for Fake.SetHook and Fake.Calls.
type Op string

// The operations.
const (
	OpApply       Op = "apply"
	OpRead        Op = "read"
	OpList        Op = "list"
	OpDeleteRange Op = "delete range"
	OpVerify      Op = "verify"
	OpInfo        Op = "info"
	OpClaim       Op = "claim"
)

type value struct {
	data []byte
	sums []uint32
}

// Fake is an in-memory osd.API with the semantics of the real one. Its knobs may be turned at
// any time, also while requests are waiting.
type Fake struct {
	mu     sync.Mutex
	vals   map[string]*value
	info   osd.Info
	full   bool
	down   bool
	closed bool
	delay  map[Op]time.Duration
	hook   func(ctx context.Context, op Op) error
	calls  map[Op]int
	change chan struct{} // closed and replaced when a knob is turned
	hung   map[Op]bool
}

var _ osd.API = (*Fake)(nil)

// NewFake returns an empty OSD with 1 TiB of capacity.
func NewFake() *Fake {
	return &Fake{
		vals:   map[string]*value{},
		info:   osd.Info{UUID: "00000000-0000-4000-8000-000000000001", Capacity: 1 << 40},
		delay:  map[Op]time.Duration{},
		calls:  map[Op]int{},
		hung:   map[Op]bool{},
		change: make(chan struct{}),
	}
}

func (f *Fake) turn(set func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	set()
	close(f.change)
	f.change = make(chan struct{})
}

// SetUUID gives the OSD an identity.
func (f *Fake) SetUUID(uuid string) { f.turn(func() { f.info.UUID = uuid }) }

// SetCapacity sets the bytes of values it takes before it is full.
func (f *Fake) SetCapacity(bytes uint64) { f.turn(func() { f.info.Capacity = bytes }) }

// SetDown makes every call fail with ErrUnavailable, also those that are waiting.
func (f *Fake) SetDown(down bool) { f.turn(func() { f.down = down }) }

// SetFull makes sets fail with ErrFull.
func (f *Fake) SetFull(full bool) { f.turn(func() { f.full = full }) }

// SetDelay makes calls of op take at least d; the context ends the wait.
func (f *Fake) SetDelay(op Op, d time.Duration) { f.turn(func() { f.delay[op] = d }) }

// SetHang makes calls of op wait until their context ends, the knob is turned back or the OSD goes down.
func (f *Fake) SetHang(op Op, hang bool) { f.turn(func() { f.hung[op] = hang }) }

// SetHook calls hook before each operation; an error of it is the operation's result. nil removes it.
func (f *Fake) SetHook(hook func(ctx context.Context, op Op) error) { f.turn(func() { f.hook = hook }) }

// Calls tells how often op was called.
func (f *Fake) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Corrupt flips a bit of the block of the stored value that holds byte off; reads of it then
// fail with ErrCorrupt. It tells whether there was such a byte.
func (f *Fake) Corrupt(key []byte, off int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := f.vals[string(key)]
	if v == nil || off < 0 || off >= len(v.data) {
		return false
	}
	v.data = bytes.Clone(v.data)
	v.data[off] ^= 1
	return true
}

// Lose removes a key behind the user's back. It tells whether it was there.
func (f *Fake) Lose(key []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.vals[string(key)]
	f.removeLocked(string(key))
	return ok
}

// Wipe loses everything, like a disk that was replaced.
func (f *Fake) Wipe() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.vals)
	f.info.Keys, f.info.Used = 0, 0
}

// Keys returns all keys in order.
func (f *Fake) Keys() [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keysLocked(nil, nil)
}

func (f *Fake) keysLocked(from, to []byte) [][]byte {
	var ks [][]byte
	for k := range f.vals {
		if k >= string(from) && (to == nil || k < string(to)) {
			ks = append(ks, []byte(k))
		}
	}
	sort.Slice(ks, func(i, j int) bool { return bytes.Compare(ks[i], ks[j]) < 0 })
	return ks
}

func (f *Fake) removeLocked(key string) {
	if v, ok := f.vals[key]; ok {
		f.info.Used -= uint64(len(v.data))
		f.info.Keys--
		delete(f.vals, key)
	}
}

// enter counts the call and lives through the knobs.
func (f *Fake) enter(ctx context.Context, op Op) error {
	f.mu.Lock()
	f.calls[op]++
	hook, delay := f.hook, f.delay[op]
	f.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, op); err != nil {
			return err
		}
	}
	var timer <-chan time.Time
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		timer = t.C
	}
	for {
		f.mu.Lock()
		down, hung, change := f.down || f.closed, f.hung[op], f.change
		f.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return err
		}
		if down {
			return fmt.Errorf("fake is down: %w", osd.ErrUnavailable)
		}
		if !hung && timer == nil {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-change:
		case <-timer:
			timer = nil
		}
	}
}

// Apply implements osd.API.
func (f *Fake) Apply(ctx context.Context, b *osd.Batch) error {
	if err := b.Validate(); err != nil {
		return err
	}
	if err := f.enter(ctx, OpApply); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range b.Asserts {
		v, ok := f.vals[string(a.Key)]
		if ok != a.Exists || (ok && !bytes.Equal(v.data, a.Value)) {
			f.info.Stats.AssertFailures++
			return fmt.Errorf("assert on %x: %w", a.Key, osd.ErrAssertFailed)
		}
	}
	if len(b.Puts) > 0 {
		need := f.info.Used
		for _, p := range b.Puts {
			need += uint64(len(p.Value))
		}
		if f.full || need > f.info.Capacity {
			return fmt.Errorf("fake is full: %w", osd.ErrFull)
		}
	}
	for _, p := range b.Puts {
		sums := slices.Clone(p.Sums)
		if p.Sums == nil {
			sums = blocksum.Sums(nil, p.Value)
		}
		f.removeLocked(string(p.Key))
		f.vals[string(p.Key)] = &value{data: bytes.Clone(p.Value), sums: sums}
		f.info.Used += uint64(len(p.Value))
		f.info.Keys++
		f.info.Stats.Puts++
		f.info.Stats.BytesWritten += uint64(len(p.Value))
	}
	for _, k := range b.Deletes {
		f.removeLocked(string(k))
		f.info.Stats.Deletes++
	}
	f.info.Stats.Applies++
	f.info.Stats.Groups++
	return nil
}

// Read implements osd.API.
func (f *Fake) Read(ctx context.Context, reads []osd.Read) error {
	if err := osd.ValidateReads(reads); err != nil {
		return err
	}
	if err := f.enter(ctx, OpRead); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range reads {
		reads[i].Err = f.readLocked(&reads[i])
	}
	return nil
}

func (f *Fake) readLocked(r *osd.Read) error {
	r.Sums, r.Size = r.Sums[:0], 0
	if err := r.Validate(); err != nil {
		return err
	}
	v, ok := f.vals[string(r.Key)]
	if !ok {
		return osd.NotFound(r.Key)
	}
	r.Size = uint64(len(v.data))
	if err := r.CheckSize(r.Size); err != nil {
		return err
	}
	f.info.Stats.Reads++
	copy(r.Buf, v.data[r.Off:])
	first := int(r.Off / osd.BlockSize)
	r.Sums = blocksum.Sums(r.Sums, r.Buf)
	for i, s := range r.Sums {
		if s != v.sums[first+i] {
			f.info.Stats.CorruptBlocks++
			return fmt.Errorf("key %x, block %d: %w", r.Key, first+i, osd.ErrCorrupt)
		}
	}
	f.info.Stats.ReadBlocks += uint64(len(r.Sums))
	f.info.Stats.BytesRead += uint64(len(r.Buf))
	return nil
}

// List implements osd.API.
func (f *Fake) List(ctx context.Context, from, to []byte, limit int) ([]osd.Item, error) {
	if err := errors.Join(osd.ValidateRange(from, to), osd.ValidateLimit(limit)); err != nil {
		return nil, err
	}
	if err := f.enter(ctx, OpList); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var items []osd.Item
	for _, k := range f.keysLocked(from, to) {
		if len(items) == limit {
			break
		}
		items = append(items, osd.Item{Key: k, Size: uint64(len(f.vals[string(k)].data))})
	}
	return items, nil
}

// DeleteRange implements osd.API.
func (f *Fake) DeleteRange(ctx context.Context, from, to []byte) error {
	if err := osd.ValidateRange(from, to); err != nil {
		return err
	}
	if err := f.enter(ctx, OpDeleteRange); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.keysLocked(from, to) {
		f.removeLocked(string(k))
	}
	return nil
}

// verifyBytes is about how much one Verify checks.
const verifyBytes = 16 << 20

// Verify implements osd.API.
func (f *Fake) Verify(ctx context.Context, from, to []byte) (bad []osd.Bad, checked uint64, next []byte, err error) {
	if err := osd.ValidateRange(from, to); err != nil {
		return nil, 0, nil, err
	}
	if err := f.enter(ctx, OpVerify); err != nil {
		return nil, 0, nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.keysLocked(from, to) {
		if checked >= verifyBytes {
			return bad, checked, k, nil
		}
		v := f.vals[string(k)]
		checked += uint64(len(v.data))
		for i, s := range blocksum.Sums(nil, v.data) {
			if s != v.sums[i] {
				bad = append(bad, osd.Bad{Key: k, Block: uint32(i), Text: "checksum mismatch"})
				break
			}
		}
	}
	return bad, checked, nil, nil
}

// Info implements osd.API.
func (f *Fake) Info(ctx context.Context) (osd.Info, error) {
	if err := f.enter(ctx, OpInfo); err != nil {
		return osd.Info{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.info
	in.Full = f.full || in.Used >= in.Capacity
	return in, nil
}

// Claim implements osd.API.
func (f *Fake) Claim(ctx context.Context, backend string, id uint32) error {
	if err := osd.ValidateClaim(backend, id); err != nil {
		return err
	}
	if err := f.enter(ctx, OpClaim); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.info.Backend != "" && (f.info.Backend != backend || f.info.ID != id) {
		return fmt.Errorf("claimed by backend %q as %d: %w", f.info.Backend, f.info.ID, osd.ErrWrongOSD)
	}
	f.info.Backend, f.info.ID = backend, id
	return nil
}

// Close implements osd.API: later calls fail with ErrUnavailable.
func (f *Fake) Close() error {
	f.turn(func() { f.closed = true })
	return nil
}
