package volumedriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/writebuffer"
)

// Volume is an open volume. It has the shape of a block device, and all methods may be
// called concurrently. A volume has goroutines only while something is being drained.
//
// Errors: ErrFenced once another gateway owns the volume, ErrClosed, ErrCorrupt (wrapped)
// for data that cannot be read as it was written, ErrUnavailable when it is out of reach,
// syscall.ENOSPC when there is no room, syscall.EINVAL for a range outside of the volume.
type Volume struct {
	d          *Driver
	id, ns     uint64
	epoch      uint64
	dir        string
	log        *slog.Logger
	ctx        context.Context // ends when the volume closes or fails
	cancel     context.CancelFunc
	background sync.WaitGroup // goroutines of the volume; see spawn

	name atomic.Pointer[string]
	size atomic.Uint64 // bytes

	buf   *writebuffer.Buffer
	cmap  *clustermap.Map
	packs *packStore
	locks rangeLocks
	ahead readAhead

	// life is held shared by every operation and exclusively by the end.
	life struct {
		sync.RWMutex
		closed bool
	}
	failure atomic.Pointer[error] // why the volume stopped serving: ErrFenced

	// apply orders the application of records to the map against the beginning of checkpoints.
	apply struct {
		sync.Mutex
		seq     uint64 // last record that the map has
		entries []clustermap.Entry
	}

	drain   drainState
	ckpt    checkpointState
	trouble trouble
	stats   volumeCounters

	dirtySince atomic.Int64 // Unix nanoseconds; since when there is something to drain, 0: nothing
	lastUse    atomic.Int64 // Unix nanoseconds of the last operation, to the tick
	used       atomic.Bool  // since the last tick
	garbage    []string     // objects to be deleted with the next commit, which alone uses it
	readsWait  atomic.Bool  // readTrouble is set
	settling   atomic.Bool  // a background sync of the log runs
	noting     atomic.Bool  // the log writes its note
	starved    atomic.Int32 // writes that found the file system full
	lost       string       // what recovery could not bring back; "" for nothing. Set before use
}

// enter begins an operation; leave ends it.
func (v *Volume) enter() error {
	v.life.RLock()
	if v.life.closed || v.failure.Load() != nil {
		v.life.RUnlock()
		return v.gone()
	}
	if !v.used.Load() {
		v.used.Store(true)
	}
	return nil
}

// tryEnter is enter for those who may not wait.
func (v *Volume) tryEnter() bool {
	if !v.life.TryRLock() {
		return false
	}
	if v.life.closed || v.failure.Load() != nil {
		v.life.RUnlock()
		return false
	}
	if !v.used.Load() {
		v.used.Store(true)
	}
	return true
}

func (v *Volume) leave() { v.life.RUnlock() }

// gone tells why the volume does not serve.
func (v *Volume) gone() error {
	if err := v.failure.Load(); err != nil {
		return fmt.Errorf("volume %s: %w", v.Name(), *err)
	}
	return fmt.Errorf("volume %s: %w", v.Name(), ErrClosed)
}

// Name is the name of the volume. It may change.
func (v *Volume) Name() string { return *v.name.Load() }

// ID is the number of the volume, which never changes.
func (v *Volume) ID() uint64 { return v.id }

// Size is the size in bytes. It may grow.
func (v *Volume) Size() uint64 { return v.size.Load() }

// spawn runs f in a goroutine that the end of the volume waits for. false: it has ended.
func (v *Volume) spawn(f func()) bool {
	v.drain.mu.Lock()
	defer v.drain.mu.Unlock()
	if v.drain.mu.stopped {
		return false
	}
	v.background.Go(f)
	return true
}

// bound returns a context that ends with ctx and with the volume.
func (v *Volume) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(v.ctx, func() { cancel(v.gone()) })
	return ctx, func() { stop(); cancel(context.Canceled) }
}

// ended adds to an error that the volume has ended, if it has: then that is why.
func (v *Volume) ended(err error) error {
	if err == nil || v.ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("%w: %w", v.gone(), err)
}

// fail stops the volume for good: another owner exists. What is not drained stays in the
// local directory, which is set aside for inspection.
func (v *Volume) fail(cause error) {
	if !v.failure.CompareAndSwap(nil, &cause) {
		return
	}
	v.log.Error("volume stopped", "reason", cause)
	v.cancel()
	v.d.retire(v)
}

// check tells whether a range is inside the volume. outside is the error for one that is not.
func (v *Volume) check(op string, off, length uint64, outside error) error {
	if size := v.size.Load(); off > size || length > size-off {
		return fmt.Errorf("volume %s: %s of %d bytes at %d, beyond its size of %d: %w", v.Name(), op, length, off, size, outside)
	}
	return nil
}

// errOutside are the errors for ranges outside of the volume.
var (
	errReadOutside  = fmt.Errorf("%w: %w", ErrInvalid, syscall.EINVAL)
	errWriteOutside = fmt.Errorf("%w: %w", ErrInvalid, syscall.ENOSPC)
)

// applied updates the map. It is called by the write buffer with all records in order.
func (v *Volume) applied(entries []writebuffer.Entry) {
	v.apply.Lock()
	for i := range entries {
		v.applyLocked(&entries[i])
	}
	if v.dirtySince.Load() == 0 {
		v.dirtySince.Store(time.Now().UnixNano())
	}
	v.apply.Unlock()
	if v.cmap.DirtyBytes() > v.d.opts.CheckpointDirty {
		v.wantCheckpoint()
	}
}

// applyLocked applies one record to the map; v.apply is held (or the volume not yet open).
func (v *Volume) applyLocked(e *writebuffer.Entry) {
	if e.Kind == kindClear {
		v.cmap.Clear(e.Addr, e.Count)
	} else {
		ents := v.apply.entries[:0]
		loc := clustermap.NewLocation(e.SCO, uint16(e.Index), 0)
		for i, sum := range e.Sums {
			ents = append(ents, clustermap.Entry{Loc: loc + clustermap.Location(i), Sum: sum})
		}
		v.apply.entries = ents
		v.cmap.Set(e.Addr, ents)
	}
	v.apply.seq = e.Seq
}

// lookup fills out with the map entries from cluster addr on, loading what is not in memory.
func (v *Volume) lookup(ctx context.Context, addr uint64, out []clustermap.Entry) error {
	if v.cmap.Lookup(addr, out) {
		return nil
	}
	ctx, cancel := v.bound(ctx)
	defer cancel()
	return v.loadMap(ctx, func() error { return v.cmap.Get(ctx, addr, out) })
}

// loadMap calls load, which reads map pages, again where a second try helps: a pack that a
// checkpoint has just made superfluous is gone, a damaged local copy of a pack is replaced by
// that of the object store.
func (v *Volume) loadMap(ctx context.Context, load func() error) error {
	var err error
	for range 4 {
		err = v.patiently(ctx, load)
		var damage *clustermap.CorruptError
		switch {
		case errors.As(err, &damage) && v.packs.forgetLocal(damage.Pack):
			v.log.Warn("a local map pack is damaged; its copy in the object store is used", "pack", damage.Pack, "error", err)
		case !errors.Is(err, fs.ErrNotExist):
			return v.mapError(v.ended(err))
		}
	}
	return v.mapError(v.ended(err))
}

// mapError marks damage of the map as what it is to users of the volume.
func (v *Volume) mapError(err error) error {
	if errors.Is(err, clustermap.ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
		v.stats.corrupt.Add(1)
		return fmt.Errorf("volume %s: %w: %w", v.Name(), ErrCorrupt, err)
	}
	return err
}
