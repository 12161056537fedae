package system

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"scoria/alba"
	"scoria/alba/maintenance"
	"scoria/alba/osd"
	"scoria/metadata"
	"scoria/metadata/abm"
	"scoria/metadata/nsm"
	"scoria/volumedriver"
)

// Parts are what a gateway with its maintenance stands on. Start makes them of one data
// directory; Join takes them from its caller, so that a simulation runs what Start runs.
type Parts struct {
	Gateway string // owner name of volumes, must not change
	Dir     string // of the gateway, in Driver.FS
	ABM     abm.API
	NSM     nsm.API
	OSD     func(metadata.OSD) (osd.API, error)
	NBD     []net.Listener
	// Further settings; what is joined here is filled in.
	Client alba.Options
	Agent  maintenance.Options
	Driver volumedriver.Options
}

// Join starts object store client, maintenance, volume driver and NBD server over parts that
// run already, and that the caller closes after the System. There is no admin server.
func Join(ctx context.Context, cfg Config, parts Parts) (*System, error) {
	if err := cfg.ensureDefaults(); err != nil {
		return nil, err
	}
	s := &System{cfg: cfg, parts: parts, abm: parts.ABM, nsm: parts.NSM, nbdLns: parts.NBD}
	if err := s.run(ctx, s.openStore, s.openDriver, s.serve); err != nil {
		return nil, err
	}
	return s, nil
}

// run takes the steps of a start. On an error everything that was started has been stopped again.
func (s *System) run(ctx context.Context, steps ...func(ctx, run context.Context) error) error {
	s.started, s.failed = time.Now(), make(chan error, 4)
	s.ready.why = errors.New("starting")
	run, stop := context.WithCancel(context.Background())
	s.bg, s.stop = run, stop
	for _, step := range steps {
		if err := step(ctx, run); err != nil {
			return errors.Join(err, s.Close(context.Background()))
		}
	}
	s.ready.Lock()
	s.ready.why = nil
	s.ready.Unlock()
	return nil
}

func (s *System) openStore(ctx, run context.Context) error {
	o := s.parts.Client
	o.ABM, o.OSD, o.Logger = s.abm, s.parts.OSD, s.cfg.Logger
	o.NSM = func(h metadata.NSMHost) (nsm.API, error) {
		if h.ID != nsmHost {
			return nil, fmt.Errorf("NSM host %q is not of this system: %w", h.ID, metadata.ErrUnavailable)
		}
		return s.nsm, nil
	}
	if o.BlockCacheBytes == 0 {
		o.BlockCacheBytes = s.cfg.BlockCache
	}
	c, err := alba.New(o)
	if err != nil {
		return fmt.Errorf("object store: %w", err)
	}
	s.client = c
	s.onClose(func(context.Context) error { return c.Close() })
	if len(s.cfg.RemoteOSDs) > 0 {
		s.background("disk servers", func() error { return s.tendDisks(run) })
	}
	reg := registry{abm: s.abm, client: c, gateway: s.parts.Gateway}
	if err := reg.finishDeletes(ctx); err != nil {
		return err
	}
	if err := reg.removeOrphans(ctx); err != nil {
		return err
	}
	m := s.parts.Agent
	m.Client, m.ABM, m.Name, m.Logger = c, s.abm, s.parts.Gateway, s.cfg.Logger
	if m.Interval == 0 {
		m.Interval = s.cfg.Maintenance
	}
	if m.RepairAge == 0 {
		m.RepairAge = s.cfg.RepairAge
	}
	agent, err := maintenance.New(m)
	if err != nil {
		return fmt.Errorf("maintenance: %w", err)
	}
	s.agent = agent
	s.background("maintenance", func() error { return agent.Run(run) })
	s.onClose(func(context.Context) error { s.stop(); s.running.Wait(); return nil })
	return nil
}

func (s *System) openDriver(ctx, _ context.Context) error {
	o := s.parts.Driver
	o.Dir, o.Store, o.Registry = s.parts.Dir, objectStore{s.client}, registry{abm: s.abm, client: s.client, gateway: s.parts.Gateway}
	o.GatewayID, o.Logger = s.parts.Gateway, s.cfg.Logger
	for _, d := range []struct{ to, from *int64 }{{&o.WriteBufferBytes, &s.cfg.WriteBuffer}, {&o.MapCacheBytes, &s.cfg.MapCache}} {
		if *d.to == 0 {
			*d.to = *d.from
		}
	}
	for _, d := range []struct{ to, from *time.Duration }{{&o.DrainDelay, &s.cfg.DrainDelay}, {&o.SpaceWait, &s.cfg.SpaceWait}} {
		if *d.to == 0 {
			*d.to = *d.from
		}
	}
	d, err := volumedriver.Open(ctx, o)
	if err != nil {
		return fmt.Errorf("volume driver: %w", err)
	}
	s.driver = d
	s.onClose(d.Close)
	return nil
}
