package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"scoria/alba/osd"
	"scoria/metadata"
	"scoria/metadata/abm"
)

// maxReplaced is how many disk-server directories may be found gone at a start and be made
// anew by themselves: as many as the default preset can lose. When more are gone, a disk is
// more likely not mounted, and making new ones in its place would only bury that.
const maxReplaced = 2

// segmentSize is how much of a disk each in-process disk server takes at a time, in bytes: six
// of them on one small disk should not take 1.5 GiB for the first object.
const segmentSize = 64 << 20

// disk is a disk server of this system, in this process or reached over TCP.
type disk struct {
	name string // "osd-3" or HOST:PORT
	uuid string
	addr string // as the ABM knows it
	api  osd.API
	err  error // why it could not be opened (api is nil then), or is not in use

	strange bool // it answers, and err says why it is not used all the same
}

// disks are the disk servers, by address.
type disks struct {
	log    *slog.Logger
	shared *osd.Shared
	list   []*disk
	held   map[string]bool // see judge; of who tends the disks

	mu     sync.Mutex         // guards also uuid, err and strange of disks with addresses of their own
	remote map[string]osd.API // by address and identity, connected on demand
	closed bool
}

// inprocAddr is how the ABM knows a disk server of this process.
func inprocAddr(uuid string) string { return "inproc:" + uuid }

// known lists the disk servers that this system was told of; none when it was joined.
func (d *disks) known() []*disk {
	if d == nil {
		return nil
	}
	return d.list
}

// api returns the handle of the OSD that the ABM describes.
func (d *disks) api(o metadata.OSD) (osd.API, error) {
	if strings.HasPrefix(o.Addr, "inproc:") {
		for _, k := range d.list {
			if k.addr == o.Addr {
				if k.api == nil {
					return nil, fmt.Errorf("%s is not running: %w: %w", k.name, osd.ErrUnavailable, k.err)
				}
				return k.api, nil
			}
		}
		return nil, fmt.Errorf("disk server %s is not of this process: %w", o.UUID, osd.ErrUnavailable)
	}
	return d.dial(o.Addr, o.UUID)
}

func (d *disks) dial(addr, uuid string) (osd.API, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, osd.ErrUnavailable
	}
	key := addr + " " + uuid
	if c, ok := d.remote[key]; ok {
		return c, nil
	}
	c := osd.Dial(addr, uuid, osd.ClientOptions{})
	if d.remote == nil {
		d.remote = make(map[string]osd.API)
	}
	d.remote[key] = c
	return c, nil
}

// openDisks opens the disk servers under the data directory, all at once. One that cannot be
// opened does not stop the others: the system starts degraded and says so.
func openDisks(d *dataDir, cfg *Config) (*disks, error) {
	ds := &disks{log: cfg.Logger, shared: osd.NewShared(sharedIndexCache), held: make(map[string]bool)}
	if len(cfg.RemoteOSDs) > 0 {
		for _, addr := range cfg.RemoteOSDs {
			ds.list = append(ds.list, &disk{name: addr, addr: addr})
		}
		return ds, nil
	}
	if err := planDisks(d, cfg, ds); err != nil {
		ds.shared.Close()
		return nil, err
	}
	var g errgroup.Group
	for i, k := range ds.list {
		if k.err != nil {
			continue
		}
		g.Go(func() error {
			dir := cfg.dir(d, k.name)
			s, err := osd.Open(dir, osd.Options{
				UUID: d.id.OSDs[i], Capacity: cfg.OSDCapacity, Sharers: len(ds.list), Shared: ds.shared, SegmentSize: segmentSize,
				Logger: cfg.Logger.With("osd", k.name),
			})
			if err != nil {
				k.err = fmt.Errorf("%s: %w", dir, err)
				cfg.Logger.Error("disk server cannot be opened; the system runs without it", "osd", k.name, "err", err)
				return nil
			}
			k.api = s
			return nil
		})
	}
	return ds, g.Wait()
}

// sharedIndexCache is the memory for index blocks of all in-process disk servers, in bytes.
const sharedIndexCache = 32 << 20

// dir returns where a part of the data directory is.
func (c *Config) dir(d *dataDir, part string) string {
	if p, ok := c.Dirs[part]; ok {
		return p
	}
	return filepath.Join(d.path, part)
}

// planDisks fills ds.list. In a new data directory it gives out identities. In an old one,
// a directory that is gone gets a new identity (it is another disk), unless too many are gone.
func planDisks(d *dataDir, cfg *Config, ds *disks) error {
	fresh := len(d.id.OSDs) == 0
	if fresh {
		for range cfg.OSDs {
			d.id.OSDs = append(d.id.OSDs, newUUID())
		}
	}
	var gone []int
	for i := range d.id.OSDs {
		k := &disk{name: fmt.Sprintf("osd-%d", i)}
		ds.list = append(ds.list, k)
		if fresh {
			continue
		}
		empty, err := isGone(cfg.dir(d, k.name))
		if err != nil {
			k.err = err
		} else if empty {
			gone = append(gone, i)
		}
	}
	for _, i := range gone {
		k, dir := ds.list[i], cfg.dir(d, ds.list[i].name)
		if len(gone) > maxReplaced {
			k.err = fmt.Errorf("%s is gone, as are %d of %d disk-server directories: is a disk not mounted? Bring them back and start again; if they are lost for good, remove all but %d of them from %s",
				dir, len(gone), len(ds.list), maxReplaced, identityName)
			cfg.Logger.Error("disk server is missing", "osd", k.name, "err", k.err)
			continue
		}
		cfg.Logger.Warn("disk-server directory is gone; a new disk server takes its place and is filled by repair", "osd", k.name, "dir", dir, "old uuid", d.id.OSDs[i])
		d.id.OSDs[i] = newUUID()
	}
	if fresh || len(gone) > 0 {
		if err := d.save(); err != nil {
			return err
		}
	}
	for i, k := range ds.list {
		k.uuid = d.id.OSDs[i]
		k.addr = inprocAddr(k.uuid)
	}
	return nil
}

// isGone tells whether a disk-server directory does not exist or is empty.
func isGone(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, lerr := os.Lstat(dir); lerr == nil {
			return false, fmt.Errorf("%s is a link to nothing: is its disk not mounted?", dir)
		}
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return len(entries) == 0, nil
}

// register tells the ABM of the disk servers in this process and claims them. Those that were in this
// system before and are no more are declared lost, so that their data is repaired elsewhere.
func (ds *disks) register(ctx context.Context, reg abm.API, backend, node string) error {
	for _, k := range ds.list {
		if k.api == nil {
			continue
		}
		info, err := k.api.Info(ctx)
		if err != nil {
			k.err = fmt.Errorf("%s: %w", k.name, err)
			continue
		}
		if err := registerDisk(ctx, reg, k, info, backend, node); errors.Is(err, errNotClaimed) {
			k.err = err
			ds.log.Error("disk server does not accept its owner; the system runs without it", "osd", k.name, "err", err)
		} else if err != nil {
			return err
		}
	}
	return ds.declareLost(ctx, reg)
}

func (ds *disks) declareLost(ctx context.Context, reg abm.API) error {
	ours := make(map[string]bool)
	for _, k := range ds.list {
		ours[k.addr] = true
	}
	all, err := reg.ListOSDs(ctx)
	if err != nil {
		return fmt.Errorf("list disk servers: %w", err)
	}
	for _, o := range all {
		if strings.HasPrefix(o.Addr, "inproc:") && !ours[o.Addr] && (o.State == metadata.OSDClaimed || o.State == metadata.OSDDecommissioning) {
			ds.log.Warn("disk server was replaced; what it held is repaired elsewhere", "osd", o.ID, "uuid", o.UUID)
			if err := reg.SetOSDState(ctx, o.ID, metadata.OSDLost); err != nil {
				return fmt.Errorf("declare disk server %d lost: %w", o.ID, err)
			}
		}
	}
	return nil
}

// Close closes all disk servers and connections.
func (ds *disks) Close() error {
	ds.mu.Lock()
	ds.closed = true
	remote := ds.remote
	ds.mu.Unlock()
	var g errgroup.Group
	for _, k := range ds.list {
		if k.api != nil && strings.HasPrefix(k.addr, "inproc:") {
			g.Go(k.api.Close)
		}
	}
	for _, c := range remote {
		g.Go(c.Close)
	}
	err := g.Wait()
	ds.shared.Close()
	return err
}
