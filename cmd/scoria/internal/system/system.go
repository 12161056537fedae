package system

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"scoria/alba"
	"scoria/alba/maintenance"
	"scoria/cmd/scoria/internal/admin"
	"scoria/metadata"
	"scoria/metadata/abm"
	abmstate "scoria/metadata/abm/state"
	"scoria/metadata/nsm"
	nsmstate "scoria/metadata/nsm/state"
	"scoria/metadata/raftnode"
	"scoria/nbd"
	"scoria/volumedriver"
)

// nsmHost is the only NSM host of the one-machine system.
const (
	nsmHost = "nsm-0"
	nsmAddr = "inproc:" + nsmHost
)

// DefaultPreset is what a new system starts with: 4+2, and what is taken while fewer disk
// servers are usable. All of them may be on one node here.
func DefaultPreset() metadata.Preset {
	return metadata.Preset{
		Name: "default", Version: 1, Default: true,
		Policies:  []metadata.Policy{{K: 4, M: 2, C: 5, X: 6}, {K: 2, M: 1, C: 3, X: 3}, {K: 1, M: 0, C: 1, X: 1}},
		ChunkSize: 8 << 20, InlineLimit: 16 << 10,
		Compression: metadata.CompressNone, Encryption: metadata.EncryptNone,
	}
}

// System is a running one-machine system.
type System struct {
	cfg     Config
	started time.Time
	parts   Parts
	data    *dataDir // nil: joined
	disks   *disks   // nil: joined
	backend string   // id of this system, to which disk servers are bound
	node    string   // name of this machine
	abm     abm.API
	nsm     nsm.API
	client  *alba.Client
	driver  *volumedriver.Driver
	agent   *maintenance.Agent
	nbd     *nbd.Server
	admin   *admin.Server
	nbdLns  []net.Listener
	adminLn net.Listener

	bg      context.Context // of what runs in the background
	stop    context.CancelFunc
	running sync.WaitGroup
	failed  chan error // a part that has ended by itself

	ready struct {
		sync.Mutex
		why error // nil: ready
	}
	failures failures
	closers  []func(context.Context) error // in the order of opening; closed in reverse
	once     sync.Once
	err      error
}

// Start starts a whole system and returns when it serves. On an error everything that was
// started has been stopped again. The order: what is below first, clients last.
func Start(ctx context.Context, cfg Config) (*System, error) {
	if err := cfg.ensureDefaults(); err != nil {
		return nil, err
	}
	s := &System{cfg: cfg}
	err := s.run(ctx, s.openData, s.listen, s.openMetadata, s.openDisks, s.openStore, s.openDriver, s.serve)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// onClose adds a step to Close.
func (s *System) onClose(f func(context.Context) error) { s.closers = append(s.closers, f) }

func (s *System) openData(context.Context, context.Context) error {
	d, err := openDataDir(s.cfg.Data)
	if err != nil {
		return err
	}
	s.data = d
	s.parts.Gateway, s.parts.Dir = d.id.Gateway, s.cfg.dir(d, "gateway")
	s.onClose(func(context.Context) error { return d.Close() })
	return nil
}

// listen takes the addresses before anything slow is done, so that one in use is told at once.
func (s *System) listen(context.Context, context.Context) error {
	for _, addr := range s.cfg.NBD {
		ln, err := listen(addr)
		if err != nil {
			return fmt.Errorf("NBD: %w", err)
		}
		s.nbdLns = append(s.nbdLns, ln)
		s.onClose(func(context.Context) error { return closeListener(ln) })
	}
	ln, err := listen(s.cfg.Admin)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	s.adminLn = ln
	s.onClose(func(context.Context) error { return closeListener(ln) })
	return nil
}

// closeListener closes a listener that its server may have closed already.
func closeListener(ln net.Listener) error {
	if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (s *System) openMetadata(ctx context.Context, _ context.Context) error {
	open := func(part string, opts raftnode.Options) (*raftnode.Node, error) {
		opts.Dir, opts.ID, opts.Solo, opts.Bootstrap, opts.Logger = s.cfg.dir(s.data, part), part, true, true, s.cfg.Logger
		n, err := raftnode.Open(opts)
		if err != nil {
			return nil, fmt.Errorf("metadata node %s: %w", part, err)
		}
		s.onClose(func(context.Context) error { return n.Close() })
		return n, n.WaitLeader(ctx)
	}
	a, err := open("abm", raftnode.Options{Machine: abmstate.Machine{}})
	if err != nil {
		return err
	}
	n, err := open(nsmHost, raftnode.Options{Machine: nsmstate.Machine{}})
	if err != nil {
		return err
	}
	s.abm, s.nsm = abm.NewService(a), nsm.NewService(n)
	if err := s.abm.AddNSMHost(ctx, metadata.NSMHost{ID: nsmHost, Addrs: []string{nsmAddr}}); err != nil {
		return fmt.Errorf("register %s: %w", nsmHost, err)
	}
	return s.ensurePreset(ctx)
}

// ensurePreset makes the default preset of a new system.
func (s *System) ensurePreset(ctx context.Context) error {
	ps, err := s.abm.Presets(ctx)
	if err != nil {
		return fmt.Errorf("list presets: %w", err)
	}
	if len(ps) > 0 {
		return nil
	}
	if err := s.abm.CreatePreset(ctx, DefaultPreset()); err != nil {
		return fmt.Errorf("make the default preset: %w", err)
	}
	return nil
}

func (s *System) openDisks(ctx context.Context, _ context.Context) error {
	ds, err := openDisks(s.data, &s.cfg)
	if err != nil {
		return err
	}
	s.disks, s.parts.OSD = ds, ds.api
	s.onClose(func(context.Context) error { return ds.Close() })
	if s.backend, err = s.abm.BackendID(ctx); err != nil {
		return fmt.Errorf("backend id: %w", err)
	}
	if s.node, err = os.Hostname(); err != nil {
		s.node = "localhost"
	}
	if len(s.cfg.RemoteOSDs) > 0 {
		_, err := s.tend(ctx)
		return err
	}
	return ds.register(ctx, s.abm, s.backend, s.node)
}

func (s *System) serve(_, run context.Context) error {
	limit, err := descriptorLimit()
	if err != nil {
		return err
	}
	conns, err := connectionLimit(limit, len(s.disks.known()))
	if err != nil {
		return err
	}
	if conns < maxConnections {
		s.cfg.Logger.Warn("few files and sockets may be open; raise the limit (ulimit -n) for more NBD connections", "limit", limit, "connections", conns)
	}
	srv, err := nbd.NewServer(nbd.Options{Exports: exports{s.driver, &s.failures}, MaxConns: conns, MaxHandshakes: min(conns, 256), Logger: s.cfg.Logger})
	if err != nil {
		return fmt.Errorf("NBD server: %w", err)
	}
	s.nbd = srv
	s.onClose(func(ctx context.Context) error { return errors.Join(srv.Shutdown(ctx), srv.Close()) })
	for _, ln := range s.nbdLns {
		s.background("NBD server on "+ln.Addr().String(), func() error {
			if err := srv.Serve(run, ln); !errors.Is(err, nbd.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	if s.adminLn == nil {
		return nil
	}
	s.admin = admin.NewServer(admin.Options{Volumes: s, Store: s, Metrics: s.metricsHandler(), Ready: s.notReady, Logger: s.cfg.Logger})
	s.onClose(s.admin.Shutdown)
	s.background("admin server", func() error { return s.admin.Serve(s.adminLn) })
	return nil
}

// background runs a part; its error ends up in Failed.
func (s *System) background(what string, f func() error) {
	s.running.Go(func() {
		if err := f(); err != nil && !errors.Is(err, context.Canceled) {
			select {
			case s.failed <- fmt.Errorf("%s: %w", what, err):
			default: // others have failed before; one is enough to stop
			}
		}
	})
}

// Failed tells of parts that have ended by themselves; the system should then be closed.
func (s *System) Failed() <-chan error { return s.failed }

func (s *System) notReady() error {
	s.ready.Lock()
	defer s.ready.Unlock()
	return s.ready.why
}

// URIs returns how clients name a volume ("" for the server), one per listener.
func (s *System) URIs(volume string) []string {
	var out []string
	for _, ln := range s.nbdLns {
		out = append(out, uri(ln, volume))
	}
	return out
}

// AdminAddr returns the address of the admin server.
func (s *System) AdminAddr() string { return s.adminLn.Addr().String() }

// Data returns the absolute path of the data directory; "" when there is none (Join).
func (s *System) Data() string {
	if s.data == nil {
		return ""
	}
	return s.data.path
}

// Close stops clients first, flushes, and closes everything in reverse order of its start.
// ctx bounds how long requests that are under way may take. Idempotent.
func (s *System) Close(ctx context.Context) error {
	s.once.Do(func() {
		s.ready.Lock()
		s.ready.why = errors.New("stopping")
		s.ready.Unlock()
		var errs []error
		for i := len(s.closers) - 1; i >= 0; i-- {
			errs = append(errs, s.closers[i](ctx))
		}
		s.stop()
		s.running.Wait()
		s.err = errors.Join(errs...)
	})
	return s.err
}

// newUUID returns a random identity for a disk server (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
