// Package nbdtest helps to test what nbd serves and what serves nbd: a conformance suite for
// devices (TestDevice), a device in memory with faults at will (Memory), and a client that
// speaks the whole protocol and can also break it (Client).
package nbdtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"scoria/nbd"
)

// pageSize is the unit of allocation of a Memory.
const pageSize = 4096

// Op names a call of a device, for faults.
type Op string

// The calls of a device.
const (
	OpRead        = Op("read")
	OpWrite       = Op("write")
	OpFlush       = Op("flush")
	OpTrim        = Op("trim")
	OpWriteZeroes = Op("zeroes")
	OpCache       = Op("cache")
	OpExtents     = Op("extents")
)

// Memory is a device in memory, with the optional fast paths. It knows which pages are
// allocated and, when made by NewDurable, what would survive a loss of power.
type Memory struct {
	size atomic.Uint64
	// hook, if set, is called before each call; what it returns is the call's error. It may
	// wait. While it is set the fast paths decline, as they may not wait.
	hook atomic.Pointer[func(ctx context.Context, op Op, off, length uint64) error]
	// declines makes the fast paths decline.
	declines atomic.Bool
	fast     atomic.Uint64

	mu      sync.RWMutex // guards what follows
	data    []byte
	mapped  []uint64 // bit per page
	durable []byte   // nil: not kept
	calls   map[Op]int
}

var (
	_ nbd.Device     = (*Memory)(nil)
	_ nbd.HoleReader = (*Memory)(nil)
	_ nbd.TryWriter  = (*Memory)(nil)
)

// NewMemory returns a device of size bytes, all of them holes.
func NewMemory(size uint64) *Memory {
	m := &Memory{data: make([]byte, size), mapped: make([]uint64, (size+pageSize*64-1)/(pageSize*64)), calls: map[Op]int{}}
	m.size.Store(size)
	return m
}

// NewDurable is NewMemory for a device that also tracks what is durable; see Durable.
func NewDurable(size uint64) *Memory {
	m := NewMemory(size)
	m.durable = make([]byte, size)
	return m
}

// Hook sets a function that is called before each call of the device with its range; its
// error becomes the call's. nil removes it.
func (m *Memory) Hook(f func(ctx context.Context, op Op, off, length uint64) error) {
	if f == nil {
		m.hook.Store(nil)
		return
	}
	m.hook.Store(&f)
}

// Decline makes the fast paths decline every call, as if I/O were needed.
func (m *Memory) Decline(on bool) { m.declines.Store(on) }

// FastCalls is how many reads and batches the fast paths carried out.
func (m *Memory) FastCalls() uint64 { return m.fast.Load() }

// Calls is how many calls of a kind came by the slow path.
func (m *Memory) Calls(op Op) int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.calls[op]
}

// Durable returns a copy of what would be read after a loss of power.
func (m *Memory) Durable() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return append([]byte(nil), m.durable...)
}

// Bytes returns a copy of the whole content.
func (m *Memory) Bytes() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return append([]byte(nil), m.data...)
}

// Grow makes the device larger.
func (m *Memory) Grow(size uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	data := make([]byte, size)
	copy(data, m.data)
	mapped := make([]uint64, (size+pageSize*64-1)/(pageSize*64))
	copy(mapped, m.mapped)
	m.data, m.mapped = data, mapped
	if m.durable != nil {
		m.durable = append(m.durable, make([]byte, size-uint64(len(m.durable)))...)
	}
	m.size.Store(size)
}

// Size implements nbd.Device.
func (m *Memory) Size() uint64 { return m.size.Load() }

func (m *Memory) check(off, length uint64) error {
	if size := m.size.Load(); length > size || off > size-length {
		return fmt.Errorf("nbdtest: range %d+%d of %d bytes: %w", off, length, size, syscall.EINVAL)
	}
	return nil
}

// begin is the start of every slow call; the caller does the work under the lock it takes.
func (m *Memory) begin(ctx context.Context, op Op, off, length uint64) error {
	if err := m.check(off, length); err != nil {
		return err
	}
	m.mu.Lock()
	m.calls[op]++
	m.mu.Unlock()
	if h := m.hook.Load(); h != nil {
		return (*h)(ctx, op, off, length)
	}
	return nil
}

// ReadAt implements nbd.Device.
func (m *Memory) ReadAt(ctx context.Context, p []byte, off uint64) error {
	if err := m.begin(ctx, OpRead, off, uint64(len(p))); err != nil {
		return err
	}
	m.mu.RLock()
	copy(p, m.data[off:])
	m.mu.RUnlock()
	return nil
}

// TryReadAt implements nbd.TryReader.
func (m *Memory) TryReadAt(p []byte, off uint64) (bool, error) {
	if m.declines.Load() || m.hook.Load() != nil {
		return false, nil
	}
	if err := m.check(off, uint64(len(p))); err != nil {
		return true, err
	}
	m.mu.RLock()
	copy(p, m.data[off:])
	m.mu.RUnlock()
	m.fast.Add(1)
	return true, nil
}

// TryReadHole implements nbd.HoleReader.
func (m *Memory) TryReadHole(p []byte, off uint64) (done, hole bool, err error) {
	if m.declines.Load() || m.hook.Load() != nil || m.check(off, uint64(len(p))) != nil {
		done, err = m.TryReadAt(p, off)
		return done, false, err
	}
	end := off + uint64(len(p))
	m.mu.RLock()
	for hole = true; hole && off < end; off = (off/pageSize + 1) * pageSize {
		hole = m.holeLocked(off)
	}
	m.mu.RUnlock()
	if hole {
		m.fast.Add(1)
		return true, true, nil
	}
	done, err = m.TryReadAt(p, end-uint64(len(p)))
	return done, false, err
}

// WriteAt implements nbd.Device.
func (m *Memory) WriteAt(ctx context.Context, p []byte, off uint64, fua bool) error {
	if err := m.begin(ctx, OpWrite, off, uint64(len(p))); err != nil {
		return err
	}
	m.mu.Lock()
	m.putLocked(p, off)
	if fua {
		m.persistLocked(off, uint64(len(p)))
	}
	m.mu.Unlock()
	return nil
}

// TryWriteBatch implements nbd.TryWriter.
func (m *Memory) TryWriteBatch(offs []uint64, data [][]byte, errs []error) bool {
	if m.declines.Load() || m.hook.Load() != nil {
		return false
	}
	m.mu.Lock()
	for i, off := range offs {
		if errs[i] = m.check(off, uint64(len(data[i]))); errs[i] == nil {
			m.putLocked(data[i], off)
		}
	}
	m.mu.Unlock()
	m.fast.Add(1)
	return true
}

func (m *Memory) putLocked(p []byte, off uint64) {
	copy(m.data[off:], p)
	if len(p) > 0 {
		for page := off / pageSize; page <= (off+uint64(len(p))-1)/pageSize; page++ {
			m.mapped[page/64] |= 1 << (page % 64)
		}
	}
}

func (m *Memory) persistLocked(off, length uint64) {
	if m.durable != nil {
		copy(m.durable[off:off+length], m.data[off:off+length])
	}
}

// Flush implements nbd.Device.
func (m *Memory) Flush(ctx context.Context) error {
	if err := m.begin(ctx, OpFlush, 0, 0); err != nil {
		return err
	}
	m.mu.Lock()
	m.persistLocked(0, uint64(len(m.data)))
	m.mu.Unlock()
	return nil
}

// Trim implements nbd.Device: what lies wholly inside becomes a hole, the rest stays.
func (m *Memory) Trim(ctx context.Context, off, length uint64, fua bool) error {
	if err := m.begin(ctx, OpTrim, off, length); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if from, to := (off+pageSize-1)/pageSize*pageSize, (off+length)/pageSize*pageSize; from < to {
		clear(m.data[from:to])
		m.unmapLocked(from, to)
	}
	if fua {
		m.persistLocked(off, length)
	}
	return nil
}

// WriteZeroes implements nbd.Device.
func (m *Memory) WriteZeroes(ctx context.Context, off, length uint64, noHole, fua bool) error {
	if err := m.begin(ctx, OpWriteZeroes, off, length); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+length])
	from, to := (off+pageSize-1)/pageSize*pageSize, (off+length)/pageSize*pageSize
	if noHole {
		for page := off / pageSize; length > 0 && page <= (off+length-1)/pageSize; page++ {
			m.mapped[page/64] |= 1 << (page % 64)
		}
	} else if from < to {
		m.unmapLocked(from, to)
	}
	if fua {
		m.persistLocked(off, length)
	}
	return nil
}

func (m *Memory) unmapLocked(from, to uint64) {
	for page := from / pageSize; page < to/pageSize; page++ {
		m.mapped[page/64] &^= 1 << (page % 64)
	}
}

// Cache implements nbd.Device.
func (m *Memory) Cache(ctx context.Context, off, length uint64) error {
	return m.begin(ctx, OpCache, off, length)
}

// Extents implements nbd.Device: pages never written, or trimmed, are holes.
func (m *Memory) Extents(ctx context.Context, off, length uint64, yield func(uint64, bool, bool) bool) error {
	if err := m.begin(ctx, OpExtents, off, length); err != nil {
		return err
	}
	end := off + length
	for off < end {
		m.mu.RLock()
		hole := m.holeLocked(off)
		next := off
		for next < end && m.holeLocked(next) == hole {
			next = (next/pageSize + 1) * pageSize
		}
		m.mu.RUnlock()
		next = min(next, end)
		if !yield(next-off, hole, hole) {
			return nil
		}
		off = next
	}
	return nil
}

func (m *Memory) holeLocked(off uint64) bool {
	page := off / pageSize
	return m.mapped[page/64]&(1<<(page%64)) == 0
}
