package alba

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"scoria/metadata"
	"scoria/metadata/nsm"
)

// spaces caches what is known of namespaces.
type spaces struct {
	c  *Client
	mu struct {
		sync.Mutex
		byID  map[metadata.NamespaceID]*space
		hosts map[string]nsm.API
	}
}

func (s *spaces) init(c *Client) {
	s.c = c
	s.mu.byID = map[metadata.NamespaceID]*space{}
	s.mu.hosts = map[string]nsm.API{}
}

// space is a namespace: its record, its NSM, and what has to be refreshed now and then.
type space struct {
	id  metadata.NamespaceID
	rec metadata.Namespace
	api nsm.API
	mu  struct {
		sync.Mutex
		preset  metadata.Preset
		epoch   metadata.GCEpoch
		fetched time.Time
	}
}

// get returns the namespace; metadata.ErrNotFound when there is none.
func (s *spaces) get(ctx context.Context, id metadata.NamespaceID) (*space, error) {
	s.mu.Lock()
	sp := s.mu.byID[id]
	s.mu.Unlock()
	if sp != nil {
		return sp, nil
	}
	rec, err := s.c.opts.ABM.NamespaceByID(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("namespace %d: %w", id, err)
	}
	return s.open(ctx, rec)
}

func (s *spaces) open(ctx context.Context, rec metadata.Namespace) (*space, error) {
	api, err := s.host(ctx, rec.NSM)
	if err != nil {
		return nil, fmt.Errorf("namespace %d (%s): %w", rec.ID, rec.Name, err)
	}
	sp := &space{id: rec.ID, rec: rec, api: api}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.mu.byID[rec.ID]; old != nil && old.rec.NSM == rec.NSM && old.api == api {
		return old, nil
	}
	if rec.State == metadata.NamespaceActive {
		s.mu.byID[rec.ID] = sp
	}
	return sp, nil
}

// forget drops a namespace that was deleted or has moved.
func (s *spaces) forget(id metadata.NamespaceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.byID, id)
}

// host returns the handle of an NSM host.
func (s *spaces) host(ctx context.Context, id string) (nsm.API, error) {
	s.mu.Lock()
	api := s.mu.hosts[id]
	s.mu.Unlock()
	if api != nil {
		return api, nil
	}
	hosts, err := s.c.opts.ABM.NSMHosts(ctx)
	if err != nil {
		return nil, fmt.Errorf("NSM hosts: %w", err)
	}
	for _, h := range hosts {
		if h.ID != id {
			continue
		}
		api, err := s.c.opts.NSM(h)
		if err != nil {
			return nil, fmt.Errorf("NSM host %s: %w", id, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if old := s.mu.hosts[id]; old != nil {
			return old, nil
		}
		s.mu.hosts[id] = api
		return api, nil
	}
	return nil, metadata.Errorf(metadata.KindUnavailable, "NSM host %s is not registered", id)
}

// terms returns the preset and the GC epoch under which to write now.
func (c *Client) terms(ctx context.Context, sp *space, age time.Duration) (metadata.Preset, metadata.GCEpoch, error) {
	sp.mu.Lock()
	preset, epoch, fetched := sp.mu.preset, sp.mu.epoch, sp.mu.fetched
	sp.mu.Unlock()
	if !fetched.IsZero() && time.Since(fetched) < age {
		return preset, epoch, nil
	}
	started := time.Now()
	_, next, err := sp.api.GCEpochs(ctx, sp.id, nsm.GCOp{})
	if err != nil {
		return preset, 0, fmt.Errorf("GC epoch of namespace %d: %w", sp.id, err)
	}
	if preset, err = c.preset(ctx, sp.rec.Preset); err != nil {
		return preset, 0, err
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.mu.preset, sp.mu.epoch, sp.mu.fetched = preset, next-1, started
	return preset, next - 1, nil
}

// preset looks a preset up by name; "" is the default one.
func (c *Client) preset(ctx context.Context, name string) (metadata.Preset, error) {
	list, err := c.opts.ABM.Presets(ctx)
	if err != nil {
		return metadata.Preset{}, fmt.Errorf("presets: %w", err)
	}
	for _, p := range list {
		if p.Name == name || (name == "" && p.Default) {
			return p, nil
		}
	}
	return metadata.Preset{}, metadata.Errorf(metadata.KindNotFound, "preset %q does not exist: see the list of presets", name)
}

// CreateNamespace makes a namespace that is ready for use. It may be repeated after a
// failure, and finds the namespace that is already there under the same preset;
// fs.ErrExist when the name belongs to one with another preset.
func (c *Client) CreateNamespace(ctx context.Context, name, preset string) (metadata.Namespace, error) {
	if err := c.checkOpen(); err != nil {
		return metadata.Namespace{}, err
	}
	p, err := c.preset(ctx, preset)
	if err != nil {
		return metadata.Namespace{}, border(err)
	}
	rec, err := c.opts.ABM.CreateNamespace(ctx, name, p.Name)
	if errors.Is(err, metadata.ErrExists) {
		old, lookErr := c.opts.ABM.Namespace(ctx, name)
		if lookErr != nil {
			return metadata.Namespace{}, border(errors.Join(err, lookErr))
		}
		if old.Preset != p.Name || old.State == metadata.NamespaceDeleting {
			return metadata.Namespace{}, border(err)
		}
		rec, err = old, nil
	}
	if err != nil {
		return metadata.Namespace{}, border(fmt.Errorf("create namespace %q: %w", name, err))
	}
	if rec.State == metadata.NamespaceActive {
		return rec, nil
	}
	sp, err := c.spaces.open(ctx, rec)
	if err != nil {
		return metadata.Namespace{}, border(err)
	}
	if err := sp.api.CreateNamespace(ctx, rec.ID, p); err != nil {
		return metadata.Namespace{}, border(fmt.Errorf("create namespace %q at NSM %s: %w", name, rec.NSM, err))
	}
	err = c.opts.ABM.SetNamespaceState(ctx, rec.ID, metadata.NamespaceActive)
	if errors.Is(err, metadata.ErrExists) { // somebody else was faster; ours is removed by maintenance
		if old, lookErr := c.opts.ABM.Namespace(ctx, name); lookErr == nil && old.Preset == p.Name && old.State == metadata.NamespaceActive {
			return old, nil
		}
	}
	if err != nil {
		return metadata.Namespace{}, border(fmt.Errorf("activate namespace %q: %w", name, err))
	}
	rec.State = metadata.NamespaceActive
	return rec, nil
}

// DeleteNamespace marks a namespace for removal; maintenance removes its objects. A
// namespace that is being deleted or has gone is fine.
func (c *Client) DeleteNamespace(ctx context.Context, id metadata.NamespaceID) error {
	if err := c.checkOpen(); err != nil {
		return err
	}
	rec, err := c.opts.ABM.NamespaceByID(ctx, id)
	if errors.Is(err, metadata.ErrNotFound) {
		return nil
	}
	if err != nil {
		return border(fmt.Errorf("delete namespace %d: %w", id, err))
	}
	c.spaces.forget(id)
	if rec.State == metadata.NamespaceDeleting {
		return nil
	}
	if err := c.opts.ABM.SetNamespaceState(ctx, id, metadata.NamespaceDeleting); err != nil {
		return border(fmt.Errorf("delete namespace %d (%s): %w", id, rec.Name, err))
	}
	return nil
}

// Namespace finds a namespace by name: fs.ErrNotExist.
func (c *Client) Namespace(ctx context.Context, name string) (metadata.Namespace, error) {
	rec, err := c.opts.ABM.Namespace(ctx, name)
	return rec, border(err)
}

// NSM returns the namespace manager of a namespace, for maintenance.
func (c *Client) NSM(ctx context.Context, rec metadata.Namespace) (nsm.API, error) {
	api, err := c.spaces.host(ctx, rec.NSM)
	return api, border(err)
}
