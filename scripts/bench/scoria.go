package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// diskServers is the number of disk servers of a measured system: 4+2 needs six.
const diskServers = 6

// scoria is a whole system: one process, or a gateway with disk servers of their own.
type scoria struct {
	env     *environment
	dir     string
	admin   string
	sock    string
	tcp     string
	gateway *child
	osds    []*child
	osdArgs []string // --osd ADDRESS of each
}

// newScoria prepares a system in a folder; remote starts its disk servers as processes.
func (e *environment) newScoria(ctx context.Context, dir string, remote bool) (*scoria, error) {
	s := &scoria{env: e, dir: dir, sock: filepath.Join(dir, "sock")}
	var err error
	if s.admin, err = freePort(); err != nil {
		return nil, err
	}
	if s.tcp, err = freePort(); err != nil {
		return nil, err
	}
	for i := 0; remote && i < diskServers; i++ {
		if err := s.startOSD(ctx, i); err != nil {
			return nil, errors.Join(err, s.stop())
		}
	}
	return s, nil
}

func (s *scoria) startOSD(ctx context.Context, i int) error {
	addr, err := freePort()
	if err != nil {
		return err
	}
	dir := filepath.Join(s.dir, fmt.Sprintf("remote-%d", i))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	c, err := spawn(dir, s.env.scoria, "osd", "serve", "--dir", filepath.Join(dir, "data"), "--listen", addr)
	if err != nil {
		return err
	}
	s.osds, s.osdArgs = append(s.osds, c), append(s.osdArgs, "--osd", addr)
	return c.waitReady(ctx)
}

// start starts the gateway and waits until it serves.
func (s *scoria) start(ctx context.Context, more ...string) error {
	args := []string{"serve", "--data", filepath.Join(s.dir, "data"), "--admin", s.admin, "--nbd", "unix:" + s.sock, "--nbd", s.tcp}
	args = append(append(append(args, s.osdArgs...), s.env.scoriaArgs...), more...)
	c, err := spawn(s.dir, s.env.scoria, args...)
	if err != nil {
		return err
	}
	s.gateway = c
	return c.waitReady(ctx)
}

// breakDisk starts the gateway anew without one of the disk servers in its process: in the
// place of its directory is one that it does not know.
func (s *scoria) breakDisk(ctx context.Context, more ...string) error {
	if err := s.stopGateway(); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, "data", "osd-0")
	if err := os.Rename(dir, filepath.Join(s.dir, "osd-0-aside")); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "foreign"), 0o700); err != nil {
		return err
	}
	return s.start(ctx, more...)
}

// stopGateway stops the gateway alone, cleanly.
func (s *scoria) stopGateway() error {
	c := s.gateway
	s.gateway = nil
	if c == nil {
		return nil
	}
	return c.stop()
}

// stop stops all processes.
func (s *scoria) stop() error {
	err := s.stopGateway()
	for _, c := range s.osds {
		err = errors.Join(err, c.stop())
	}
	s.osds = nil
	return err
}

// run runs an admin command.
func (s *scoria) run(ctx context.Context, args ...string) error {
	return command(ctx, s.env.scoria, append(args, "--admin", s.admin)...)
}

func (s *scoria) create(ctx context.Context, volume string, size int64) error {
	return s.run(ctx, "volume", "create", volume, "--size", strconv.FormatInt(size, 10))
}

func (s *scoria) uri(volume string, tcp bool) string {
	if tcp {
		return "nbd://" + s.tcp + "/" + volume
	}
	return "nbd+unix:///" + volume + "?socket=" + s.sock
}

// target makes a volume of the system a target.
func (s *scoria) target(volume string, tcp bool) *target {
	t := &target{name: "scoria", kind: kinds["scoria"], uri: s.uri(volume, tcp), stop: s.stop,
		drain:  func(ctx context.Context) error { return s.run(ctx, "volume", "drain", volume, "--wait") },
		counts: s.counters, pids: []int{s.gateway.pid()}}
	for _, c := range s.osds {
		t.pids = append(t.pids, c.pid())
	}
	return t
}

func (e *environment) startScoria(ctx context.Context, dir string, remote, tcp bool) (*target, error) {
	s, err := e.newScoria(ctx, dir, remote)
	if err != nil {
		return nil, err
	}
	if err = s.start(ctx); err == nil {
		err = s.create(ctx, "bench", e.size)
	}
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s.target("bench", tcp), nil
}

// counters reads the unlabelled figures of /metrics.
func (s *scoria) counters(ctx context.Context) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the counters of scoria: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	out := map[string]float64{}
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		name, value, ok := strings.Cut(sc.Text(), " ")
		if !ok || strings.HasPrefix(name, "#") || strings.Contains(name, "{") {
			continue
		}
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			out[name] = n
		}
	}
	return out, sc.Err()
}

// commandTimeout bounds the longest command: a drain of all that a write buffer holds.
const commandTimeout = 15 * time.Minute

// command runs a program and returns what it printed when it fails.
func command(ctx context.Context, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, tail(string(out)))
	}
	return nil
}
