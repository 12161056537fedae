package volumedriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/writebuffer"
)

// Driver serves the volumes of one gateway. All methods may be called concurrently.
type Driver struct {
	opts      Options
	pool      *writebuffer.Pool
	mapCache  *clustermap.Cache
	buffers   chan []byte // for SCOs on their way to the object store; also their bound
	pace      pace
	readAhead atomic.Int64 // bytes that read-ahead may still take
	ctx       context.Context
	cancel    context.CancelFunc
	tasks     sync.WaitGroup // housekeeping, openings, retirements
	relief    chan struct{}  // the write buffer is filling up; of capacity 1
	renewErr  trouble
	mapsFull  atomic.Bool // so many map pages wait for checkpoints that writers wait too

	mu struct {
		sync.Mutex
		closed  bool
		entries map[uint64]*entry // by volume id
	}
}

// entry is a volume that is open, or on its way to be or not to be.
type entry struct {
	ready chan struct{} // closed when v or err is set
	gone  chan struct{} // closed when the volume is closed and the entry removed
	v     *Volume
	err   error
	refs  int  // handles, and calls that wait for ready
	going bool // being closed: wait for gone
}

type openMode struct{ force, salvage bool }

// Handle is a client's hold on an open volume. The volume stays open at least until all its
// handles are closed.
type Handle struct {
	*Volume
	once sync.Once
	free func()
}

// Close gives the volume back. It does not flush. It is idempotent and never fails.
func (h *Handle) Close() error {
	h.once.Do(h.free)
	return nil
}

// Open starts a driver. Volumes that have local data which the object store lacks are
// opened and drained in the background.
func Open(ctx context.Context, opts Options) (*Driver, error) {
	opts.ensureDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	for _, dir := range []string{volumesDir, asideDir} {
		if err := opts.FS.MkdirAll(filepath.Join(opts.Dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("volume driver: %w", err)
		}
	}
	for _, dir := range []string{opts.Dir, filepath.Dir(opts.Dir)} {
		if err := opts.FS.SyncDir(dir); err != nil {
			return nil, fmt.Errorf("volume driver: %w", err)
		}
	}
	d := &Driver{
		opts: opts, pool: writebuffer.NewPool(opts.Pool), mapCache: clustermap.NewCache(opts.MapCacheBytes),
		buffers: make(chan []byte, opts.Uploads), relief: make(chan struct{}, 1),
	}
	for range opts.Uploads {
		d.buffers <- nil
	}
	d.pace.init()
	d.readAhead.Store(max(0, opts.ReadAheadBytes))
	d.mu.entries = make(map[uint64]*entry)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	undrained, err := d.undrained()
	if err != nil {
		d.cancel()
		return nil, errors.Join(err, d.pool.Close())
	}
	d.tasks.Go(d.housekeeping)
	if len(undrained) > 0 {
		d.tasks.Go(func() { d.drainLeftovers(undrained) })
	}
	return d, nil
}

// Close ends the driver cleanly: volumes are flushed, their maps checkpointed, and the
// drained ones released; an undrained one stays ours, since its newest data is here. It
// waits for everything that the driver has started, and may be called more than once.
func (d *Driver) Close(ctx context.Context) error {
	d.mu.Lock()
	d.mu.closed = true
	var all []*entry
	for _, e := range d.mu.entries {
		all = append(all, e)
	}
	d.mu.Unlock()
	d.cancel()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	limit := make(chan struct{}, closesAtOnce)
	for i, e := range all {
		limit <- struct{}{}
		wg.Go(func() {
			errs[i] = d.closeEntry(ctx, e)
			<-limit
		})
	}
	wg.Wait()
	d.tasks.Wait()
	return errors.Join(append(errs, d.pool.Close())...)
}

const closesAtOnce = 16

// closeEntry closes the volume of an entry, or waits for who does.
func (d *Driver) closeEntry(ctx context.Context, e *entry) error {
	<-e.ready
	d.mu.Lock()
	going := e.going
	e.going = true
	d.mu.Unlock()
	if going || e.err != nil {
		<-e.gone
		return nil
	}
	return d.shut(ctx, e)
}

// shut closes the volume of an entry that is marked as going, and removes the entry.
func (d *Driver) shut(ctx context.Context, e *entry) error {
	err := e.v.close(ctx)
	d.mu.Lock()
	delete(d.mu.entries, e.v.id)
	d.mu.Unlock()
	close(e.gone)
	return err
}

// retire takes a failed volume out of service, in the background.
func (d *Driver) retire(v *Volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.mu.entries[v.id]
	if e == nil || e.v != v || e.going || d.mu.closed {
		return // somebody is closing it, or it was never in service
	}
	e.going = true
	d.tasks.Go(func() { d.ignore(d.shut(context.WithoutCancel(d.ctx), e)) })
}

// acquire finds or opens a volume, and counts a reference to its entry.
func (d *Driver) acquire(ctx context.Context, rec Record, mode openMode) (*entry, error) {
	for {
		d.mu.Lock()
		if d.mu.closed {
			d.mu.Unlock()
			return nil, fmt.Errorf("open volume %s: the gateway is stopping: %w", rec.Name, ErrClosed)
		}
		e := d.mu.entries[rec.ID]
		if e != nil && e.going {
			d.mu.Unlock()
			select {
			case <-e.gone:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("open volume %s, which is being closed: %w", rec.Name, context.Cause(ctx))
			}
		}
		if e == nil {
			e = &entry{ready: make(chan struct{}), gone: make(chan struct{})}
			d.mu.entries[rec.ID] = e
			d.tasks.Go(func() { d.bring(e, rec, mode) })
		}
		e.refs++
		d.mu.Unlock()
		select {
		case <-e.ready:
			if e.err != nil {
				return nil, e.err
			}
			return e, nil
		case <-ctx.Done():
			d.unref(e)
			return nil, fmt.Errorf("open volume %s: %w", rec.Name, context.Cause(ctx))
		}
	}
}

// bring opens the volume of an entry.
func (d *Driver) bring(e *entry, rec Record, mode openMode) {
	ctx, cancel := context.WithTimeout(d.ctx, d.opts.OpenTimeout)
	defer cancel()
	v, err := d.openVolume(ctx, rec, mode)
	d.mu.Lock()
	defer d.mu.Unlock()
	e.v, e.err = v, err
	if err != nil {
		delete(d.mu.entries, rec.ID)
		close(e.gone)
	}
	close(e.ready)
	if err == nil && v.failure.Load() != nil && !e.going { // failed before it was in service
		e.going = true
		d.tasks.Go(func() { d.ignore(d.shut(context.WithoutCancel(d.ctx), e)) })
	}
}

func (d *Driver) unref(e *entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.refs--
	if e.v != nil {
		e.v.touch(time.Now())
	}
}

// OpenVolume opens a volume by name, or finds it open. ErrOwned when another gateway owns
// it, fs.ErrNotExist when there is none of the name. Close the handle after use.
func (d *Driver) OpenVolume(ctx context.Context, name string) (*Handle, error) {
	return d.open(ctx, name, openMode{})
}

// TakeOver is OpenVolume for a volume that another gateway owns, which is fenced: what that
// gateway has not drained is lost. Status tells.
func (d *Driver) TakeOver(ctx context.Context, name string) (*Handle, error) {
	return d.open(ctx, name, openMode{force: true})
}

// Salvage is OpenVolume for a volume whose local log is damaged: it goes on with what is
// before the damage. Status tells what was lost.
func (d *Driver) Salvage(ctx context.Context, name string) (*Handle, error) {
	return d.open(ctx, name, openMode{salvage: true})
}

func (d *Driver) open(ctx context.Context, name string, mode openMode) (*Handle, error) {
	rec, err := d.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	return d.handle(ctx, rec, mode)
}

func (d *Driver) handle(ctx context.Context, rec Record, mode openMode) (*Handle, error) {
	e, err := d.acquire(ctx, rec, mode)
	if err != nil {
		return nil, err
	}
	return &Handle{Volume: e.v, free: func() { d.unref(e) }}, nil
}

// peek returns the volume if it is open. It counts no reference.
func (d *Driver) peek(id uint64) *Volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.mu.entries[id]; e != nil && e.err == nil {
		return e.v
	}
	return nil
}

// volumes lists the open volumes.
func (d *Driver) volumes() []*Volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []*Volume
	for _, e := range d.mu.entries {
		if e.v != nil && !e.going {
			list = append(list, e.v)
		}
	}
	return list
}

// Local directories: volumes/<id, 16 hexadecimal digits>/ has state, log/ and map/; aside/
// keeps those that could not be used, for inspection.
const (
	volumesDir = "volumes"
	asideDir   = "aside"
)

func (d *Driver) volumeDir(id uint64) string {
	return filepath.Join(d.opts.Dir, volumesDir, fmt.Sprintf("%016x", id))
}

// newVolume makes a Volume that is not open yet.
func (d *Driver) newVolume(rec Record) *Volume {
	v := &Volume{d: d, id: rec.ID, ns: rec.Namespace, epoch: rec.Epoch, dir: d.volumeDir(rec.ID)}
	v.log = d.opts.Logger.With("volume", rec.Name, "id", rec.ID)
	v.ctx, v.cancel = context.WithCancel(context.Background())
	v.name.Store(&rec.Name)
	v.drain.wake = make(chan struct{}, 1)
	v.packs = newPackStore(d.opts.FS, filepath.Join(v.dir, "map"), d.opts.Store, rec.Namespace)
	if d.opts.ReadAheadBytes > 0 {
		v.ahead.budget = &d.readAhead
	}
	return v
}

// close ends a volume. What its goroutines are at is given up; the log has it.
func (v *Volume) close(ctx context.Context) error {
	v.drain.mu.Lock()
	v.drain.mu.stopped = true
	v.drain.mu.Unlock()
	v.cancel()
	v.life.Lock()
	v.life.closed = true
	v.life.Unlock()
	v.background.Wait()
	v.ahead.dropAll()
	var errs []error
	fenced := v.failure.Load() != nil
	if !fenced {
		if err := v.buf.Sync(ctx); err != nil {
			errs = append(errs, fmt.Errorf("close volume %s: flush: %w", v.Name(), err))
		} else if err := v.lastCheckpoint(ctx); err != nil {
			v.log.Warn("no map checkpoint at the end; the next start replays the log", "error", err)
		}
	}
	drained := v.buf.LastSeq() <= v.committed()
	if drained && !fenced && v.d.ctx.Err() == nil {
		// Idle: a closed log is not counted by the write buffer, so it must not hold much.
		v.d.ignore(v.buf.Evict(ctx))
	}
	if err := v.buf.Close(); err != nil {
		errs = append(errs, fmt.Errorf("close volume %s: %w", v.Name(), err))
	}
	v.d.ignore(v.cmap.Close())
	switch {
	case fenced:
		if err := v.d.setAside(v.dir, v.id, (*v.failure.Load()).Error()); err != nil {
			errs = append(errs, err)
		}
	case drained:
		if err := v.d.opts.Registry.Release(ctx, v.id, v.epoch); err != nil && !errors.Is(err, ErrFenced) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("release volume %s: %w", v.Name(), err))
		}
	default:
		v.log.Info("closed with data that is only in the local log; the volume stays ours", "records behind", v.committed())
	}
	return errors.Join(errs...)
}

// lastCheckpoint is finalCheckpoint within bounds: an object store out of reach shall not
// hold up the end.
func (v *Volume) lastCheckpoint(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lastCheckpointTime)
	defer cancel()
	return v.finalCheckpoint(ctx)
}

const lastCheckpointTime = 15 * time.Second

// undrained finds volumes with local data that the object store lacks.
func (d *Driver) undrained() ([]uint64, error) {
	list, err := d.opts.FS.ReadDir(filepath.Join(d.opts.Dir, volumesDir))
	if err != nil {
		return nil, fmt.Errorf("volume driver: %w", err)
	}
	var ids []uint64
	for _, e := range list {
		id, err := strconv.ParseUint(e.Name(), 16, 64)
		if err != nil || len(e.Name()) != 16 {
			d.opts.Logger.Warn("unknown file in the volumes directory", "name", e.Name())
			continue
		}
		s, err := d.readState(d.volumeDir(id))
		switch {
		case err == nil && !s.Drained:
			ids = append(ids, id)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			d.opts.Logger.Warn("local volume state cannot be read", "id", id, "error", err)
		}
	}
	return ids, nil
}

// drainLeftovers opens and drains volumes, a few at a time.
func (d *Driver) drainLeftovers(ids []uint64) {
	var recs map[uint64]Record
	for pause := firstPause; recs == nil; pause = min(2*pause, lastPause) {
		list, err := d.opts.Registry.List(d.ctx)
		if err == nil {
			recs = make(map[uint64]Record, len(list))
			for _, r := range list {
				recs[r.ID] = r
			}
			break
		}
		d.opts.Logger.Warn("cannot list volumes yet", "error", err)
		if !d.sleep(pause) {
			return
		}
	}
	var wg sync.WaitGroup
	limit := make(chan struct{}, 4)
	for _, id := range ids {
		rec, ok := recs[id]
		if !ok {
			d.ignore(d.setAside(d.volumeDir(id), id, "the registry does not know the volume any more"))
			continue
		}
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			d.drainLeftover(rec)
		})
	}
	wg.Wait()
}

func (d *Driver) drainLeftover(rec Record) {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		h, err := d.handle(d.ctx, rec, openMode{})
		if err == nil {
			err = h.Drain(d.ctx, nil)
			d.ignore(h.Close())
		}
		final := errors.Is(err, ErrFenced) || errors.Is(err, ErrOwned) || errors.Is(err, ErrCorrupt) || errors.Is(err, fs.ErrNotExist)
		if err == nil || d.ctx.Err() != nil || final {
			if final {
				d.opts.Logger.Error("a volume with undrained local data cannot be opened", "volume", rec.Name, "error", err)
			}
			return
		}
		d.opts.Logger.Warn("a volume with undrained local data cannot be drained yet", "volume", rec.Name, "error", err)
		if !d.sleep(pause) {
			return
		}
	}
}

// sleep waits; false: the driver ends.
func (d *Driver) sleep(pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-d.ctx.Done():
		return false
	}
}

// ignore notes an error that nobody can do anything about.
func (d *Driver) ignore(err error) {
	if err != nil {
		d.opts.Logger.Warn("ignored", "error", err)
	}
}
