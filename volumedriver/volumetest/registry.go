package volumetest

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"scoria/volumedriver"
)

// Registry is a registry in memory, shared by all gateways of a test.
type Registry struct {
	store *Store // namespaces of deleted volumes are dropped there; may be nil
	hook  atomic.Pointer[func(call string) error]

	mu struct {
		sync.Mutex
		now     time.Time // moved by Advance only
		lastID  uint64
		volumes map[uint64]*registered
	}
}

type registered struct {
	rec   volumedriver.Record
	until time.Time // end of the lease
}

// NewRegistry returns an empty registry.
func NewRegistry(store *Store) *Registry {
	r := &Registry{store: store}
	r.mu.now = time.Unix(1_000_000_000, 0).UTC()
	r.mu.volumes = make(map[uint64]*registered)
	return r
}

// SetHook replaces the function that is asked before each call by its name ("Acquire");
// what it returns is returned instead of doing the call.
func (r *Registry) SetHook(hook func(call string) error) {
	if hook == nil {
		r.hook.Store(nil)
		return
	}
	r.hook.Store(&hook)
}

// Advance moves the registry's clock: leases that are not renewed end.
func (r *Registry) Advance(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.now = r.mu.now.Add(d)
}

func (r *Registry) enter(ctx context.Context, call string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if hook := r.hook.Load(); hook != nil {
		return (*hook)(call)
	}
	return nil
}

// with runs f on a volume under the lock.
func (r *Registry) with(ctx context.Context, call string, id uint64, f func(v *registered) error) error {
	if err := r.enter(ctx, call); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.mu.volumes[id]
	if v == nil {
		return fmt.Errorf("volume %d: %w", id, fs.ErrNotExist)
	}
	return f(v)
}

// Create implements volumedriver.Registry.
func (r *Registry) Create(ctx context.Context, name string, size uint64, preset string) (volumedriver.Record, error) {
	if err := r.enter(ctx, "Create"); err != nil {
		return volumedriver.Record{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.mu.volumes {
		if v.rec.Name == name {
			return volumedriver.Record{}, fmt.Errorf("volume %q: %w", name, fs.ErrExist)
		}
	}
	r.mu.lastID++
	v := &registered{rec: volumedriver.Record{ID: r.mu.lastID, Name: name, Namespace: 1000 + r.mu.lastID,
		Size: size, Preset: preset, Created: r.mu.now}}
	r.mu.volumes[v.rec.ID] = v
	return v.rec, nil
}

// Lookup implements volumedriver.Registry.
func (r *Registry) Lookup(ctx context.Context, name string) (volumedriver.Record, error) {
	if err := r.enter(ctx, "Lookup"); err != nil {
		return volumedriver.Record{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.mu.volumes {
		if v.rec.Name == name {
			return v.rec, nil
		}
	}
	return volumedriver.Record{}, fmt.Errorf("volume %q: %w", name, fs.ErrNotExist)
}

// List implements volumedriver.Registry.
func (r *Registry) List(ctx context.Context) ([]volumedriver.Record, error) {
	if err := r.enter(ctx, "List"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []volumedriver.Record
	for _, v := range r.mu.volumes {
		list = append(list, v.rec)
	}
	slices.SortFunc(list, func(a, b volumedriver.Record) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// Acquire implements volumedriver.Registry.
func (r *Registry) Acquire(ctx context.Context, id uint64, owner string, lease time.Duration, force bool) (rec volumedriver.Record, err error) {
	err = r.with(ctx, "Acquire", id, func(v *registered) error {
		if v.rec.Owner != "" && v.rec.Owner != owner && !force && r.mu.now.Before(v.until) {
			return fmt.Errorf("volume %q: owner is %s: %w", v.rec.Name, v.rec.Owner, volumedriver.ErrOwned)
		}
		v.rec.Epoch++
		if v.rec.LastOwner != owner {
			v.rec.OwnerSince = v.rec.Epoch
		}
		v.rec.Owner, v.rec.LastOwner = owner, owner
		v.until = r.mu.now.Add(lease)
		rec = v.rec
		return nil
	})
	return rec, err
}

// Renew implements volumedriver.Registry.
func (r *Registry) Renew(ctx context.Context, owner string, lease time.Duration) error {
	if err := r.enter(ctx, "Renew"); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.mu.volumes {
		if v.rec.Owner == owner {
			v.until = r.mu.now.Add(lease)
		}
	}
	return nil
}

// Release implements volumedriver.Registry.
func (r *Registry) Release(ctx context.Context, id, epoch uint64) error {
	return r.with(ctx, "Release", id, func(v *registered) error {
		if err := v.check(epoch); err != nil {
			return err
		}
		v.rec.Owner = ""
		return nil
	})
}

func (v *registered) check(epoch uint64) error {
	if v.rec.Epoch != epoch {
		return fmt.Errorf("volume %q: epoch %d, newest is %d: %w", v.rec.Name, epoch, v.rec.Epoch, volumedriver.ErrFenced)
	}
	return nil
}

// Resize implements volumedriver.Registry.
func (r *Registry) Resize(ctx context.Context, id, epoch, size uint64) error {
	return r.with(ctx, "Resize", id, func(v *registered) error {
		if err := v.check(epoch); err != nil {
			return err
		}
		v.rec.Size = size
		return nil
	})
}

// Rename implements volumedriver.Registry.
func (r *Registry) Rename(ctx context.Context, id uint64, name string) error {
	return r.with(ctx, "Rename", id, func(v *registered) error {
		for _, o := range r.mu.volumes {
			if o.rec.Name == name && o != v {
				return fmt.Errorf("volume %q: %w", name, fs.ErrExist)
			}
		}
		v.rec.Name = name
		return nil
	})
}

// Delete implements volumedriver.Registry.
func (r *Registry) Delete(ctx context.Context, id uint64) error {
	return r.with(ctx, "Delete", id, func(v *registered) error {
		delete(r.mu.volumes, id)
		if r.store != nil {
			r.store.Drop(v.rec.Namespace)
		}
		return nil
	})
}

// RegistryConn is one gateway's way to a Registry, which a killed gateway loses.
type RegistryConn struct {
	*Registry
	cut atomic.Bool
}

// Connect returns a new way to the registry.
func (r *Registry) Connect() *RegistryConn { return &RegistryConn{Registry: r} }

// Cut ends the connection.
func (c *RegistryConn) Cut() { c.cut.Store(true) }

func (c *RegistryConn) check() error {
	if c.cut.Load() {
		return fmt.Errorf("the connection is cut: %w", volumedriver.ErrUnavailable)
	}
	return nil
}

// Acquire implements volumedriver.Registry.
func (c *RegistryConn) Acquire(ctx context.Context, id uint64, owner string, lease time.Duration, force bool) (volumedriver.Record, error) {
	if err := c.check(); err != nil {
		return volumedriver.Record{}, err
	}
	return c.Registry.Acquire(ctx, id, owner, lease, force)
}

// Release implements volumedriver.Registry.
func (c *RegistryConn) Release(ctx context.Context, id, epoch uint64) error {
	if err := c.check(); err != nil {
		return err
	}
	return c.Registry.Release(ctx, id, epoch)
}

// Resize implements volumedriver.Registry.
func (c *RegistryConn) Resize(ctx context.Context, id, epoch, size uint64) error {
	if err := c.check(); err != nil {
		return err
	}
	return c.Registry.Resize(ctx, id, epoch, size)
}

// Renew implements volumedriver.Registry.
func (c *RegistryConn) Renew(ctx context.Context, owner string, lease time.Duration) error {
	if err := c.check(); err != nil {
		return err
	}
	return c.Registry.Renew(ctx, owner, lease)
}

var _ volumedriver.Registry = (*RegistryConn)(nil)
