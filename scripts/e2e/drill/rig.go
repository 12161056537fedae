package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"scoria/scripts/e2e/internal/e2e"
	"scoria/scripts/e2e/internal/history"
)

// rig is a running system: a gateway with its disk servers inside, or beside it as processes
// of their own, and the network between them and the clients.
type rig struct {
	bin, dir   string
	gateway    e2e.Process
	nbd, admin string // of the gateway
	front      *relay // between clients and gateway
	disks      []*diskServer
	volumes    []*volume
	host       *host         // what it takes from the machine, to be given back
	starts     time.Duration // longest start of the gateway
	flipped    []string      // directories of disk servers with damage that may not be healed yet
}

// diskServer is a disk server that is a process of its own.
type diskServer struct {
	name    string
	dir     string
	process e2e.Process
	listen  string // where it listens
	link    link   // how the gateway reaches it
	logged  int64  // length of the log when it was started
}

const (
	gatewayStarts = 90 * time.Second // longest start of a gateway, after any fault, on a loaded machine
	diskStarts    = 60 * time.Second
	volumeMiB     = 24 // of each volume are written
)

// newRig starts a system with two volumes: one with one writer, so that its prefix is exact,
// and one with several connections.
func newRig(o options, kind string, r *rand.Rand) (_ *rig, err error) {
	dir, err := os.MkdirTemp(o.dir, "scoria-drill-")
	if err != nil {
		return nil, err
	}
	g := &rig{bin: o.bin, dir: dir, host: new(host), starts: gatewayStarts}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close(true))
		}
	}()
	if g.nbd, err = e2e.FreePort(); err != nil {
		return nil, err
	}
	if g.admin, err = e2e.FreePort(); err != nil {
		return nil, err
	}
	if g.front, err = newRelay(g.nbd); err != nil {
		return nil, err
	}
	g.gateway.Log = filepath.Join(dir, "gateway.log")
	if kind == "guest" {
		err = g.makeGuest()
	} else {
		err = g.makeProcesses(kind)
	}
	if err != nil {
		return nil, err
	}
	if err := g.startGateway(); err != nil {
		return nil, err
	}
	for i, v := range []volume{{connections: 1, depth: 1}, {connections: 3, depth: 4}} {
		v.name = fmt.Sprintf("drill-%d", i)
		v.h = history.New(r.Uint64(), volumeMiB<<20/history.Sector)
		if _, err := g.command("volume", "create", v.name, "--size", "256MiB"); err != nil {
			return nil, err
		}
		g.volumes = append(g.volumes, &v)
	}
	return g, nil
}

// makeProcesses prepares the gateway, and starts disk servers beside it if they are not inside.
func (g *rig) makeProcesses(kind string) error {
	g.gateway.Args = []string{g.bin, "serve", "--data", filepath.Join(g.dir, "data"), "--nbd", g.nbd, "--admin", g.admin, "--write-buffer", "64MiB", "--block-cache", "16MiB", "--repair-age", "5s"}
	buffer, err := g.host.smallDisk(filepath.Join(g.dir, "buffer"), 1<<30)
	if err != nil {
		return err
	}
	g.gateway.Args = append(g.gateway.Args, "--dir", "gateway="+filepath.Join(buffer, "gateway"))
	if kind == "processes" {
		return g.startDisks(6)
	}
	return nil
}

func (g *rig) startDisks(n int) error {
	for i := range n {
		d := &diskServer{name: fmt.Sprintf("disk-%d", i)}
		if err := g.disk(d, i); err != nil {
			return err
		}
		if err := g.connect(d, i); err != nil {
			return err
		}
		d.process.Log = filepath.Join(g.dir, d.name+".log")
		d.process.Args = append(d.link.wrap(), g.bin, "osd", "serve", "--dir", d.dir, "--listen", d.listen)
		g.disks = append(g.disks, d)
		g.gateway.Args = append(g.gateway.Args, "--osd", d.link.addr())
		if err := d.start(); err != nil {
			return err
		}
	}
	for _, d := range g.disks {
		if err := d.ready(); err != nil {
			return err
		}
	}
	return nil
}

// disk makes the disk of a disk server: two of them can be slow and fail.
func (g *rig) disk(d *diskServer, i int) error {
	dir := filepath.Join(g.dir, d.name)
	d.dir = filepath.Join(dir, "osd")
	if i >= 4 {
		b, err := newBadDisk(dir, 4<<30)
		if err == nil {
			g.host.bad = append(g.host.bad, b)
			return nil
		}
		g.host.without("disks that are slow and fail", err)
	}
	_, err := g.host.smallDisk(dir, 4<<30)
	return err
}

func (d *diskServer) start() error {
	if i, err := os.Stat(d.process.Log); err == nil {
		d.logged = i.Size()
	}
	return d.process.Start()
}

// ready waits until a disk server that was started says that it is ready: its port may be in
// another network.
func (d *diskServer) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), diskStarts)
	defer cancel()
	return d.process.Until(ctx, func(context.Context) error {
		log, err := os.ReadFile(d.process.Log)
		if err != nil {
			return err
		}
		if !bytes.Contains(log[min(d.logged, int64(len(log))):], []byte("\nready\n")) {
			return errors.New("not ready")
		}
		return nil
	})
}

func (d *diskServer) kill() error { return d.process.End(syscall.SIGKILL, 10*time.Second) }

func (g *rig) startGateway() error {
	if err := g.gateway.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), g.starts)
	defer cancel()
	return g.gateway.Until(ctx, func(ctx context.Context) error { return e2e.AskReady(ctx, g.admin) })
}

func (g *rig) killGateway() error { return g.gateway.End(syscall.SIGKILL, 10*time.Second) }

// command runs the binary against the gateway, for at most two minutes.
func (g *rig) command(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, g.bin, append(args, "--admin", g.admin)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s: %w: %s", args, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// drain brings everything that is acknowledged to the disk servers.
func (g *rig) drain() error {
	for _, v := range g.volumes {
		b := v.h.Before(history.Drained)
		if _, err := g.command("volume", "drain", v.name, "--wait"); err != nil {
			return err
		}
		v.h.Done(b)
	}
	return nil
}

// health is what `scoria status` says.
type health struct {
	answered bool
	Health   string
	Problems []string
	Buffer   struct{ Limit, Dirty uint64 } `json:"write_buffer"`
	lost     []string                      // of Problems: what a wiped write buffer took; told until the volume is closed
}

// lostText is how a volume tells that its write buffer was gone.
const lostText = "recovered from the object store"

// exit code of `scoria status` when something is not well
const exitDegraded = 6

func (g *rig) status() (health, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, g.bin, "status", "-o", "json", "--admin", g.admin).Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != exitDegraded) {
		return health{}, nil // nobody answers
	}
	h := health{answered: true}
	if jerr := json.Unmarshal(out, &h); jerr != nil {
		return h, fmt.Errorf("status prints no JSON: %w: %q", jerr, out)
	}
	if (err != nil) != (h.Health != "ok") || (len(h.Problems) > 0) != (h.Health != "ok") {
		return h, fmt.Errorf("status contradicts itself: exit %v, %s, problems %q", err, h.Health, h.Problems)
	}
	for _, p := range h.Problems {
		if strings.Contains(p, lostText) {
			h.lost = append(h.lost, p)
		}
	}
	if h.Problems = slices.DeleteFunc(h.Problems, func(p string) bool { return strings.Contains(p, lostText) }); len(h.Problems) == 0 {
		h.Health = "ok"
	}
	return h, nil
}

// check compares all volumes with their histories.
func (g *rig) check(p history.Promise) error {
	for _, v := range g.volumes {
		data, err := readAll(g.nbd, v)
		if err != nil {
			return err
		}
		if _, err := v.h.Check(data, p); err != nil {
			return &wrongBytes{v.name, err}
		}
	}
	return nil
}

// bufferDir is the write buffer.
func (g *rig) bufferDir() string { return filepath.Join(g.dir, "buffer", "gateway") }

// inside returns the directories of the disk servers inside the gateway.
func (g *rig) inside() ([]string, error) { return filepath.Glob(filepath.Join(g.dir, "data", "osd-*")) }

// close ends everything. Data and logs stay when they are to be kept; what was mounted is in
// images beside its directory then.
func (g *rig) close(keep bool) error {
	errs := []error{g.killGateway()}
	for _, d := range g.disks {
		errs = append(errs, d.kill())
	}
	for _, d := range g.disks {
		errs = append(errs, d.link.close())
	}
	if g.front != nil {
		errs = append(errs, g.front.close())
	}
	errs = append(errs, g.host.release())
	if !keep {
		errs = append(errs, os.RemoveAll(g.dir))
	}
	return errors.Join(errs...)
}

// sent returns what was sent to all volumes so far.
func (g *rig) sent() (n history.Count) {
	for _, v := range g.volumes {
		c := v.h.Count()
		n.Sent, n.Acknowledged, n.Flushes = n.Sent+c.Sent, n.Acknowledged+c.Acknowledged, n.Flushes+c.Flushes
	}
	return n
}

// connect makes the network to a disk server: the first three are in network namespaces of
// their own where that is allowed, the others behind a relay.
func (g *rig) connect(d *diskServer, i int) (err error) {
	if i < 3 {
		l, err := newNamespace(i)
		if err == nil {
			d.link, d.listen = l, l.addr()
			return nil
		}
		g.host.without("network namespaces (relays stand in for them)", err)
	}
	if d.listen, err = e2e.FreePort(); err != nil {
		return err
	}
	l, err := newRelay(d.listen)
	if err != nil {
		return err
	}
	d.link = relayLink{l}
	return nil
}

func split(addr string) (host, port string) {
	host, port, _ = strings.Cut(addr, ":") // one of ours
	return host, port
}

func pid() string { return strconv.Itoa(os.Getpid()) }
