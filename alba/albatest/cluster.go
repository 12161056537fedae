// Package albatest runs a whole object store in the process: ABM and NSM in memory, fake
// disk servers with fault knobs, and Clients over them.
package albatest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"scoria/alba"
	"scoria/alba/osd"
	"scoria/alba/osd/osdtest"
	"scoria/metadata"
	"scoria/metadata/abm"
	"scoria/metadata/metatest"
	"scoria/metadata/nsm"
)

// NSMHost is the id of the cluster's only NSM host.
const NSMHost = "nsm-0"

// Config shapes a Cluster. The zero value has 6 disk servers, each a node of its own.
type Config struct {
	OSDs        int
	PerNode     int // disk servers of one node; 1
	Preset      metadata.Preset
	Client      alba.Options // ABM, NSM and OSD are filled in
	WrapNSM     func(nsm.API) nsm.API
	RealOSD     func(t testing.TB, i int) osd.API // instead of fakes
	OSDCapacity uint64
}

// Cluster is an object store in memory.
type Cluster struct {
	T      testing.TB
	ABM    abm.API
	NSM    nsm.API
	Client *alba.Client
	Config Config

	mu   sync.Mutex
	osds []*Disk
}

// Disk is a disk server of the cluster.
type Disk struct {
	*osdtest.Fake // nil when real
	API           osd.API
	Record        metadata.OSD
}

// Preset returns a preset of 4+2 (needing 5) with fallback 2+1 and 1+0, without compression
// and encryption, in chunks of 1 MiB, nothing inline.
func Preset() metadata.Preset {
	return metadata.Preset{
		Name: "default", Default: true, ChunkSize: 1 << 20,
		Policies:    []metadata.Policy{{K: 4, M: 2, C: 5, X: 1}, {K: 2, M: 1, C: 2, X: 1}, {K: 1, M: 0, C: 1, X: 1}},
		Compression: metadata.CompressNone, Encryption: metadata.EncryptNone,
	}
}

// New starts a cluster that ends with the test.
func New(t testing.TB, cfg Config) *Cluster {
	t.Helper()
	if cfg.OSDs == 0 {
		cfg.OSDs = 6
	}
	if cfg.PerNode == 0 {
		cfg.PerNode = 1
	}
	if cfg.Preset.Name == "" {
		cfg.Preset = Preset()
	}
	c := &Cluster{T: t, ABM: metatest.NewABM(), NSM: metatest.NewNSM(), Config: cfg}
	if cfg.WrapNSM != nil {
		c.NSM = cfg.WrapNSM(c.NSM)
	}
	ctx := t.Context()
	must(t, c.ABM.CreatePreset(ctx, cfg.Preset))
	must(t, c.ABM.AddNSMHost(ctx, metadata.NSMHost{ID: NSMHost, Addrs: []string{"inproc:" + NSMHost}}))
	for range cfg.OSDs {
		c.AddOSD()
	}
	c.Client = c.NewClient(cfg.Client)
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// AddOSD adds and claims a disk server.
func (c *Cluster) AddOSD() *Disk {
	c.T.Helper()
	ctx := c.T.Context()
	c.mu.Lock()
	i := len(c.osds)
	c.mu.Unlock()
	d := &Disk{}
	uuid := fmt.Sprintf("00000000-0000-4000-8000-%012d", i+1)
	if c.Config.RealOSD != nil {
		d.API = c.Config.RealOSD(c.T, i)
		info, err := d.API.Info(ctx)
		must(c.T, err)
		uuid = info.UUID
	} else {
		d.Fake = osdtest.NewFake()
		d.SetUUID(uuid)
		if c.Config.OSDCapacity > 0 {
			d.SetCapacity(c.Config.OSDCapacity)
		}
		d.API = d.Fake
	}
	_, err := c.ABM.SeenOSD(ctx, metadata.OSD{
		UUID: uuid, Node: fmt.Sprintf("node-%d", i/c.Config.PerNode), Addr: fmt.Sprintf("inproc:%d", i),
		Capacity: 1 << 40, LastSeen: time.Now(),
	})
	must(c.T, err)
	d.Record, err = c.ABM.ClaimOSD(ctx, uuid)
	must(c.T, err)
	backend, err := c.ABM.BackendID(ctx)
	must(c.T, err)
	must(c.T, d.API.Claim(ctx, backend, uint32(d.Record.ID)))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.osds = append(c.osds, d)
	return d
}

// OSD returns disk server i, from 0.
func (c *Cluster) OSD(i int) *Disk {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.osds[i]
}

// OSDs returns all disk servers.
func (c *Cluster) OSDs() []*Disk {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Disk(nil), c.osds...)
}

// ByID returns the disk server with the id; nil when there is none.
func (c *Cluster) ByID(id metadata.OSDID) *Disk {
	for _, d := range c.OSDs() {
		if d.Record.ID == id {
			return d
		}
	}
	return nil
}

// NewClient returns one more client, which ends with the test.
func (c *Cluster) NewClient(opts alba.Options) *alba.Client {
	c.T.Helper()
	opts.ABM = c.ABM
	opts.NSM = func(metadata.NSMHost) (nsm.API, error) { return c.NSM, nil }
	opts.OSD = func(r metadata.OSD) (osd.API, error) {
		if d := c.ByID(r.ID); d != nil {
			return d.API, nil
		}
		return nil, fmt.Errorf("no OSD %d: %w", r.ID, osd.ErrUnavailable)
	}
	cl, err := alba.New(opts)
	must(c.T, err)
	c.T.Cleanup(func() { must(c.T, cl.Close()) })
	return cl
}

// Namespace makes a namespace.
func (c *Cluster) Namespace(name string) metadata.NamespaceID {
	c.T.Helper()
	ns, err := c.Client.CreateNamespace(c.T.Context(), name, "")
	must(c.T, err)
	return ns.ID
}

// SetState moves an OSD in the ABM.
func (c *Cluster) SetState(d *Disk, s metadata.OSDState) {
	c.T.Helper()
	must(c.T, c.ABM.SetOSDState(c.T.Context(), d.Record.ID, s))
}

// Manifest returns the newest manifest of an object.
func (c *Cluster) Manifest(ns metadata.NamespaceID, name string) *metadata.Manifest {
	c.T.Helper()
	m, err := c.Client.Stat(c.T.Context(), ns, name)
	must(c.T, err)
	return m
}

// Eventually polls until ok holds; it fails the test after ten seconds.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		case <-tick.C:
		}
	}
}
