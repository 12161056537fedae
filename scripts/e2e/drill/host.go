package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// host gives what a drill takes from the machine, and takes it back.
type host struct {
	mounts []string
	bad    []*badDisk
	lacks  []string // what it could not have, and why
}

func (h *host) without(what string, err error) {
	text := what + ": " + err.Error()
	if !slices.Contains(h.lacks, text) {
		h.lacks = append(h.lacks, text)
	}
}

// tool runs a program and returns what it prints.
func tool(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}

// smallDisk makes a directory that is a file system of its own where that is allowed, so that
// it can be filled without filling the machine's.
func (h *host) smallDisk(dir string, size int64) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := h.mount(dir, size); err != nil {
		h.without("small disks (nothing is filled)", err)
	}
	return dir, nil
}

func (h *host) mount(dir string, size int64) error {
	if os.Getuid() != 0 {
		return errors.New("not root")
	}
	image := dir + ".img"
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, size); err != nil {
		return err
	}
	if _, err := tool("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", image); err != nil {
		return err
	}
	if _, err := tool("mount", "-o", "loop", image, dir); err != nil {
		return err
	}
	h.mounts = append(h.mounts, dir)
	return nil
}

// isolated tells whether a directory is a file system of its own.
func (h *host) isolated(dir string) bool {
	for _, m := range h.mounts {
		if m == dir || strings.HasPrefix(dir, m+"/") {
			return true
		}
	}
	return false
}

// fill takes all free space of the file system of dir but about keep bytes, and returns what gives it back.
func fill(dir string, keep uint64) (free func() error, err error) {
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	free = func() error { return os.Remove(name) }
	var off int64
	for step := int64(1 << 30); step >= 64<<10; {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil {
			return nil, errors.Join(err, f.Close(), free())
		}
		if st.Bavail*uint64(st.Bsize) <= keep+uint64(step) {
			step /= 2
			continue
		}
		if err := syscall.Fallocate(int(f.Fd()), 0, off, step); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				return nil, errors.Join(err, f.Close(), free())
			}
			step /= 2
			continue
		}
		off += step
	}
	return free, f.Close()
}

func (h *host) release() error {
	var errs []error
	for i := len(h.mounts) - 1; i >= 0; i-- {
		errs = append(errs, unmount(h.mounts[i]))
	}
	for _, d := range h.bad {
		errs = append(errs, d.close())
	}
	h.mounts, h.bad = nil, nil
	return errors.Join(errs...)
}

func unmount(dir string) (err error) {
	for range 20 { // the processes that used it are only just gone
		if _, err = tool("umount", dir); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// link is the network between the gateway and a disk server.
type link interface {
	addr() string   // as the gateway dials it
	wrap() []string // what a command in the disk server's network is prefixed with
	part() error    // nothing gets through, and nobody is told
	heal() error
	close() error
}

type relayLink struct{ *relay }

func (l relayLink) wrap() []string { return nil }
func (l relayLink) part() error    { l.set(true, 0); return nil }
func (l relayLink) heal() error    { l.set(false, 0); return nil }

// namespace is a network namespace with a cable to ours.
type namespace struct {
	name, outer, network string
}

func newNamespace(i int) (*namespace, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("not root")
	}
	n := &namespace{name: fmt.Sprintf("scoria-drill-%s-%d", pid(), i), outer: fmt.Sprintf("sd%s-%d", pid(), i), network: fmt.Sprintf("10.213.%d", (os.Getpid()+i)%250)}
	for _, args := range []string{
		"netns add " + n.name,
		"link add " + n.outer + " type veth peer name eth0 netns " + n.name,
		"addr add " + n.network + ".1/30 dev " + n.outer,
		"link set " + n.outer + " up",
		"-n " + n.name + " addr add " + n.network + ".2/30 dev eth0",
		"-n " + n.name + " link set eth0 up",
		"-n " + n.name + " link set lo up",
	} {
		if _, err := tool("ip", strings.Fields(args)...); err != nil {
			return nil, errors.Join(err, n.close())
		}
	}
	return n, nil
}

func (n *namespace) addr() string   { return n.network + ".2:10820" }
func (n *namespace) wrap() []string { return []string{"ip", "netns", "exec", n.name} }

// part takes the inner end of the cable down: what is sent is lost without a word.
func (n *namespace) part() error {
	_, err := tool("ip", "-n", n.name, "link", "set", "eth0", "down")
	return err
}

func (n *namespace) heal() error {
	_, err := tool("ip", "-n", n.name, "link", "set", "eth0", "up")
	return err
}

func (n *namespace) close() error {
	_, err := tool("ip", "netns", "del", n.name) // the cable goes with it
	return err
}

// has tells whether a program is there.
func has(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}
