package sim

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"scoria/alba"
	"scoria/alba/maintenance"
	"scoria/alba/osd"
	"scoria/cmd/scoria/internal/system"
	"scoria/internal/simnet"
	"scoria/internal/vfs"
	"scoria/metadata"
	"scoria/metadata/abm"
	"scoria/metadata/nsm"
	"scoria/nbd/nbdtest"
	"scoria/volumedriver"
)

const (
	gatewayHost = "gw"
	gatewayAddr = "gw:10809"
	clientHost  = "client"
	bufferBytes = 6 << 20
)

// gateway is the process with the NBD server, the volume driver, the ALBA client and maintenance.
type gateway struct {
	machine
	sys  *system.System
	lose atomic.Int32 // answers of metadata that are lost
	proc atomic.Pointer[process]
	out  *dialer
}

// dialer is a process' way to the disk servers. It ends with the process.
type dialer struct {
	host  *simnet.Host
	dead  *atomic.Bool
	mu    sync.Mutex
	conns map[string]*osd.Client
}

func newGateway(w *world) *gateway {
	g := &gateway{machine: machine{w: w, host: gatewayHost}}
	g.wipe()
	return g
}

// process is what clients ask about: is the gateway that they talk to still alive?
type process struct {
	dead *atomic.Bool
	fs   *vfs.Faulty
}

// dying tells that the present process has died, perhaps only just now.
func (g *gateway) dying() bool {
	p := g.proc.Load()
	return p == nil || p.dead.Load() || p.fs.Crashed()
}

// wipe gives the gateway an empty disk.
func (g *gateway) wipe() { g.mem = vfs.NewMem(vfs.MemOptions{Capacity: 64 << 20}) }

// start starts the gateway; it serves when start returns.
func (g *gateway) start(ctx context.Context, k int64, r *rand.Rand) error {
	g.boot()
	g.proc.Store(&process{g.dead, g.fs})
	if k > 0 {
		g.dieAt(k, r)
	}
	g.lose.Store(0)
	g.out = &dialer{host: g.w.net.Host(g.host), dead: g.dead, conns: map[string]*osd.Client{}}
	ln, err := g.w.net.Host(g.host).Listen(gatewayAddr)
	if err != nil {
		return err
	}
	dead := g.dead
	newLink := func(seed uint64) *link {
		return &link{m: g.w.meta, dead: dead, lose: &g.lose, r: rand.New(rand.NewPCG(g.w.plan.Seed, seed))}
	}
	a, n := newLink(1), newLink(2)
	a.host, n.host = g.w.meta.abm, g.w.meta.nsm
	sys, err := system.Join(ctx, system.Config{Logger: g.w.log.With("host", g.host)}, system.Parts{
		Gateway: "gw-1", Dir: "/gateway", NBD: []net.Listener{ln},
		ABM: abm.NewService(a), NSM: nsm.NewService(n), OSD: g.out.open,
		Client: alba.Options{
			BlockCacheBytes: 1 << 20, ManifestCacheBytes: 256 << 10, ReadTimeout: 3 * time.Second, WriteTimeout: 8 * time.Second,
			OSDRefresh: 3 * time.Second, NamespaceRefresh: 10 * time.Second, TagFlush: 5 * time.Second, UploadBytes: 8 << 20, ReadBytes: 8 << 20,
		},
		Agent: maintenance.Options{
			Interval: 2 * time.Second, Lease: 20 * time.Second, GCInterval: time.Minute, GCGrace: 30 * time.Second,
			ScrubInterval: 90 * time.Second, RepairAge: 5 * time.Second, RepairAfter: 3 * time.Minute,
		},
		Driver: volumedriver.Options{
			FS: slowFS{g.fs, &g.machine, g.mem}, WriteBufferBytes: bufferBytes, MapCacheBytes: 256 << 10, MapDiskBytes: 1 << 20,
			SCOClusters: 24, TLogSCOs: 4, Uploads: 3, ReadAheadBytes: 512 << 10, DrainDelay: 10 * time.Second, IdleDelay: 20 * time.Second,
			CheckpointDirty: 16 << 10, CheckpointTLogs: 3,
		},
	})
	if err != nil {
		_ = ln.Close() // perhaps by Join already
		g.up = false
		return err
	}
	g.sys = sys
	return nil
}

// open returns a client of a disk server. It connects only as long as the process lives.
func (d *dialer) open(o metadata.OSD) (osd.API, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := o.Addr + " " + o.UUID
	if c := d.conns[key]; c != nil {
		return c, nil
	}
	c := osd.Dial(o.Addr, o.UUID, osd.ClientOptions{DialTimeout: 2 * time.Second, IOTimeout: 5 * time.Second, Dial: d.dial})
	d.conns[key] = c
	return c, nil
}

func (d *dialer) dial(ctx context.Context, addr string) (net.Conn, error) {
	errDead := fmt.Errorf("dial %s: this process is dead", addr)
	if d.dead.Load() {
		return nil, errDead
	}
	nc, err := d.host.DialContext(ctx, "sim", addr)
	if err == nil && d.dead.Load() {
		_ = nc.Close()
		return nil, errDead
	}
	return nc, err
}

func (d *dialer) close() {
	d.mu.Lock()
	list := slices.Collect(maps.Values(d.conns))
	d.mu.Unlock()
	for _, c := range list { // not under the lock: closing waits, and virtual time with it
		_ = c.Close()
	}
}

// stop ends the gateway cleanly.
func (g *gateway) stop(ctx context.Context) error {
	if !g.up {
		return nil
	}
	err := g.sys.Close(ctx)
	g.out.close()
	g.up = false
	g.dead.Store(true)
	return err
}

// kill ends the gateway as kill -9 (mode CrashKept) or a power loss does.
func (g *gateway) kill(mode vfs.CrashMode, r *rand.Rand) {
	if !g.up {
		return
	}
	g.die()
	g.machine.lose(mode, r)
	sys := g.sys
	g.out.close()
	g.w.ghosts.Go(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = sys.Close(ctx)
	})
}

// dial connects a client to a volume.
func (w *world) dialNBD(ctx context.Context, volume string) (*nbdtest.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	nc, err := w.net.Host(clientHost).DialContext(ctx, "sim", gatewayAddr)
	if err != nil {
		return nil, err
	}
	if err := nc.SetDeadline(time.Now().Add(90 * time.Second)); err != nil {
		return nil, err
	}
	c, err := nbdtest.NewClient(nc)
	if err == nil {
		_, err = c.Negotiate(volume, "base:allocation")
	}
	if err == nil {
		err = c.Go(volume)
	}
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return c, nil
}
