package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// kind says what a server promises, so that figures are not compared blindly.
type kind struct {
	Acknowledged string `json:"acknowledged"` // where a write is when it is acknowledged
	Flushed      string `json:"flushed"`      // where it is after FLUSH
	Checksums    string `json:"checksums"`
}

var kinds = map[string]kind{
	"scoria":      {"kernel of this machine: survives kill -9", "this machine's disk, then 4+2 on disk servers", "CRC32C per 4 KiB, end to end"},
	"nbdkit-mem":  {"memory of the server", "memory of the server", "none"},
	"nbdkit-file": {"page cache: survives kill -9", "this machine's disk", "none"},
	"qemu-raw":    {"disk's cache (O_DIRECT)", "this machine's disk", "none"},
	"qemu-qcow2":  {"page cache, its tables in the server", "this machine's disk", "none"},
	"ceph-rep":    {"journals of 3 OSDs", "the same", "CRC32C"},
	"ceph-ec":     {"journals of the OSDs, 4+2", "the same", "CRC32C"},
}

// target is a running server that is measured.
type target struct {
	name   string
	kind   kind
	uri    string
	pids   []int // their children count too
	stop   func() error
	drain  func(context.Context) error                       // until its acknowledged writes are where they belong; nil: nothing to do
	counts func(context.Context) (map[string]float64, error) // its own counters; nil: none
}

// environment is where servers run.
type environment struct {
	dir        string // for their data; deleted at the end
	scoria     string // the binary
	scoriaArgs []string
	size       int64 // bytes of an image
}

// start starts a server by its name; a suffix -tcp makes it serve on loopback TCP and not
// on a unix socket. NAME=URI or NAME=URI@PIDFILE is a server that runs already.
func (e *environment) start(ctx context.Context, name string) (*target, error) {
	if strings.Contains(name, "=") {
		return external(name)
	}
	dir := filepath.Join(e.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	base, tcp := strings.CutSuffix(name, "-tcp")
	var t *target
	var err error
	switch base {
	case "scoria", "scoria-remote":
		t, err = e.startScoria(ctx, dir, base == "scoria-remote", tcp)
	default:
		t, err = e.startAnchor(ctx, base, dir, tcp)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	t.name = name
	return t, nil
}

// external parses NAME=URI@PIDFILE.
func external(s string) (*target, error) {
	name, uri, _ := strings.Cut(s, "=")
	t := &target{name: name, uri: uri, kind: kinds[name], stop: func() error { return nil }}
	uri, path, ok := cutLast(uri, "@")
	if !ok {
		return t, nil
	}
	t.uri = uri
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the process ids of %s: %w", name, err)
	}
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		t.pids = append(t.pids, pid)
	}
	return t, nil
}

// startAnchor starts one of the servers that Debian has.
func (e *environment) startAnchor(ctx context.Context, name, dir string, tcp bool) (*target, error) {
	network, address := "unix", filepath.Join(dir, "sock")
	uri := "nbd+unix:///?socket=" + address
	kit, qemu := []string{"-f", "-U", address}, []string{"--persistent", "--shared=0", "-k", address}
	if tcp {
		var err error
		if address, err = freePort(); err != nil {
			return nil, err
		}
		network = "tcp"
		_, port, _ := strings.Cut(address, ":")
		uri = "nbd://" + address + "/"
		kit, qemu = []string{"-f", "-i", "127.0.0.1", "-p", port}, []string{"--persistent", "--shared=0", "-b", "127.0.0.1", "-p", port}
	}
	size, image := strconv.FormatInt(e.size, 10), filepath.Join(dir, "disk.img")
	program, args := "nbdkit", kit
	switch name {
	case "nbdkit-mem":
		args = append(args, "memory", size)
	case "nbdkit-file":
		args = append(args, "file", image)
	case "qemu-raw":
		program, args = "qemu-nbd", append(qemu, "-f", "raw", "--cache=none", "--aio=native", image)
	case "qemu-qcow2":
		program, args = "qemu-nbd", append(qemu, "-f", "qcow2", "--cache=writeback", image)
	default:
		return nil, errors.New("no such server: want scoria, scoria-remote, nbdkit-mem, nbdkit-file, qemu-raw, qemu-qcow2 (each also with -tcp), or NAME=URI@PIDFILE")
	}
	if err := makeImage(ctx, name, image, size); err != nil {
		return nil, err
	}
	c, err := spawn(dir, program, args...)
	if err != nil {
		return nil, err
	}
	if err := c.waitListening(ctx, network, address); err != nil {
		c.kill()
		return nil, err
	}
	return &target{kind: kinds[name], uri: uri, pids: []int{c.pid()}, stop: c.stop}, nil
}

func makeImage(ctx context.Context, name, image, size string) error {
	switch name {
	case "qemu-qcow2":
		return command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", image, size)
	case "nbdkit-mem":
		return nil
	}
	return command(ctx, "truncate", "-s", size, image)
}
