package volumedriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"scoria/internal/vfs"
)

// Create makes a volume of size bytes (see CheckSize) under a new name (see CheckName).
// fs.ErrExist when the name is taken.
func (d *Driver) Create(ctx context.Context, name string, size uint64, preset string) (Record, error) {
	if err := errors.Join(CheckName(name), CheckSize(size)); err != nil {
		return Record{}, err
	}
	rec, err := d.opts.Registry.Create(ctx, name, size, preset)
	if err != nil {
		return Record{}, fmt.Errorf("create volume %s: %w", name, err)
	}
	return rec, nil
}

// Lookup finds a volume by name. fs.ErrNotExist.
func (d *Driver) Lookup(ctx context.Context, name string) (Record, error) {
	if err := CheckName(name); err != nil {
		return Record{}, err
	}
	rec, err := d.opts.Registry.Lookup(ctx, name)
	if err != nil {
		return Record{}, fmt.Errorf("volume %s: %w", name, err)
	}
	return rec, nil
}

// List returns all volumes, those of other gateways too, by name.
func (d *Driver) List(ctx context.Context) ([]Record, error) {
	list, err := d.opts.Registry.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	return list, nil
}

// Resize makes a volume larger; clients see the new size at once. Making it smaller is
// refused (ErrInvalid).
func (d *Driver) Resize(ctx context.Context, name string, size uint64) error {
	if err := CheckSize(size); err != nil {
		return err
	}
	h, err := d.OpenVolume(ctx, name)
	if err != nil {
		return err
	}
	defer h.Close() //nolint:errcheck // never fails
	v := h.Volume
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if now := v.Size(); size < now {
		return fmt.Errorf("resize volume %s: it has %d bytes and cannot shrink to %d; copy it to a smaller volume: %w", name, now, size, ErrInvalid)
	}
	if err := d.opts.Registry.Resize(ctx, v.id, v.epoch, size); err != nil {
		if errors.Is(err, ErrFenced) {
			v.fail(err)
		}
		return fmt.Errorf("resize volume %s: %w", name, err)
	}
	v.cmap.Grow(size / ClusterSize)
	for {
		now := v.size.Load()
		if size <= now || v.size.CompareAndSwap(now, size) {
			return nil
		}
	}
}

// Rename gives a volume a new name; open handles go on. fs.ErrExist when it is taken.
func (d *Driver) Rename(ctx context.Context, name, to string) error {
	if err := CheckName(to); err != nil {
		return err
	}
	rec, err := d.Lookup(ctx, name)
	if err != nil {
		return err
	}
	if err := d.opts.Registry.Rename(ctx, rec.ID, to); err != nil {
		return fmt.Errorf("rename volume %s to %s: %w", name, to, err)
	}
	if v := d.peek(rec.ID); v != nil {
		v.name.Store(&to)
	}
	return nil
}

// ErrInUse is returned for the deletion of a volume that clients have open.
var ErrInUse = errors.New("the volume is in use")

// Delete removes a volume and all its data. It is refused (ErrInUse) while there are
// handles, unless force, which ends them.
func (d *Driver) Delete(ctx context.Context, name string, force bool) error {
	rec, err := d.Lookup(ctx, name)
	if err != nil {
		return err
	}
	e, err := d.detach(ctx, rec, force)
	if err != nil {
		return err
	}
	if e != nil {
		// Dropping what is not drained is the point: no flush, no checkpoint, no release.
		cause := fmt.Errorf("deleted: %w", ErrClosed)
		e.v.failure.CompareAndSwap(nil, &cause)
		d.ignore(d.shut(ctx, e))
	}
	if err := d.opts.Registry.Delete(ctx, rec.ID); err != nil {
		return fmt.Errorf("delete volume %s: %w", name, err)
	}
	return d.removeLocal(rec.ID)
}

// detach takes an open volume out of service. nil: it is not open.
func (d *Driver) detach(ctx context.Context, rec Record, force bool) (*entry, error) {
	for {
		d.mu.Lock()
		e := d.mu.entries[rec.ID]
		var wait chan struct{}
		switch {
		case e == nil:
		case e.refs > 0 && !force:
			d.mu.Unlock()
			return nil, fmt.Errorf("delete volume %s: %d clients have it open; detach them or use force: %w", rec.Name, e.refs, ErrInUse)
		case e.going:
			wait = e.gone
		case e.v == nil:
			wait = e.ready
		default:
			e.going = true
		}
		d.mu.Unlock()
		if wait == nil {
			return e, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("delete volume %s: %w", rec.Name, context.Cause(ctx))
		}
	}
}

// Drain opens a volume if need be and drains it: see Volume.Drain.
func (d *Driver) Drain(ctx context.Context, name string, progress func(Drained)) error {
	h, err := d.OpenVolume(ctx, name)
	if err != nil {
		return err
	}
	defer h.Close() //nolint:errcheck // never fails
	return h.Drain(ctx, progress)
}

// readState reads the state file of a local directory.
func (d *Driver) readState(dir string) (*state, error) {
	b, err := vfs.ReadFile(d.opts.FS, stateFile(dir), maxHeadBytes)
	if err != nil {
		return nil, err
	}
	return decodeState(b)
}

// removeLocal removes the local directory of a volume, and what was set aside of it.
func (d *Driver) removeLocal(id uint64) error {
	err := removeTree(d.opts.FS, d.volumeDir(id))
	aside, lerr := d.asideOf(id)
	err = errors.Join(err, lerr)
	for _, dir := range aside {
		err = errors.Join(err, removeTree(d.opts.FS, dir))
	}
	if err != nil {
		return fmt.Errorf("remove local data of volume %d: %w", id, err)
	}
	return nil
}

// maxAside is how many local directories are kept for inspection, per volume.
const maxAside = 2

// setAside moves a local directory that cannot be used out of the way, where somebody may
// inspect it; one without anything of value is removed. Only the newest few are kept.
func (d *Driver) setAside(dir string, id uint64, why string) error {
	if _, err := d.opts.FS.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s, err := d.readState(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && s.Drained {
		if err := removeTree(d.opts.FS, dir); err != nil {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
		return nil
	}
	parent := filepath.Join(d.opts.Dir, asideDir)
	to := filepath.Join(parent, fmt.Sprintf("%016x-%016x", id, time.Now().UnixNano()))
	if err := d.opts.FS.Rename(dir, to); err != nil {
		return fmt.Errorf("set the local directory of volume %d aside: %w", id, err)
	}
	if err := errors.Join(d.opts.FS.SyncDir(parent), d.opts.FS.SyncDir(filepath.Dir(dir))); err != nil {
		return fmt.Errorf("set the local directory of volume %d aside: %w", id, err)
	}
	d.opts.Logger.Warn("the local directory of a volume is set aside", "id", id, "reason", why, "kept as", to)
	list, err := d.asideOf(id)
	for err == nil && len(list) > maxAside {
		err = removeTree(d.opts.FS, list[0])
		list = list[1:]
	}
	d.ignore(err)
	return nil
}

// asideOf lists what was set aside of a volume, oldest first.
func (d *Driver) asideOf(id uint64) ([]string, error) {
	parent := filepath.Join(d.opts.Dir, asideDir)
	list, err := d.opts.FS.ReadDir(parent)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range list {
		if strings.HasPrefix(e.Name(), fmt.Sprintf("%016x-", id)) {
			dirs = append(dirs, filepath.Join(parent, e.Name()))
		}
	}
	slices.Sort(dirs)
	return dirs, nil
}

// removeTree removes a directory with all that is in it. Absence is no error.
func removeTree(fsys vfs.FS, dir string) error {
	list, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range list {
		name := filepath.Join(dir, e.Name())
		if e.IsDir() {
			err = removeTree(fsys, name)
		} else {
			err = fsys.Remove(name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := fsys.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
