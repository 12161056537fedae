package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"scoria/scripts/e2e/internal/e2e"
	"scoria/scripts/e2e/internal/history"
)

// badDisk is a disk that can be slow, or fail to read, below a real file system: nbdkit's
// filters, nbdfuse and a loop device do what a kernel's device mapper does where there is one.
type badDisk struct {
	dir         string // mounted
	work        string // for sockets and switches
	kit, fuse   e2e.Process
	loop        string
	rate, fails string // files that switch it
}

const fullSpeed = "100G" // bits per second

// newBadDisk makes one and mounts it at dir.
func newBadDisk(dir string, size int64) (d *badDisk, err error) {
	d = &badDisk{dir: dir, work: dir + ".bad"}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if os.Getuid() != 0 || !has("nbdkit") || !has("nbdfuse") {
		return nil, errors.New("not root, or no nbdkit or nbdfuse")
	}
	for _, p := range []string{dir, filepath.Join(d.work, "fuse")} {
		if err := os.MkdirAll(p, 0o700); err != nil {
			return d, err
		}
	}
	image, socket := dir+".img", filepath.Join(d.work, "socket")
	d.rate, d.fails = filepath.Join(d.work, "rate"), filepath.Join(d.work, "fails")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size), os.WriteFile(d.rate, []byte(fullSpeed), 0o600)); err != nil {
		return d, err
	}
	d.kit.Log, d.fuse.Log = filepath.Join(d.work, "nbdkit.log"), filepath.Join(d.work, "nbdfuse.log")
	d.kit.Args = []string{"nbdkit", "-f", "-U", socket, "--filter=error", "--filter=rate", "file", image,
		"error-pread-rate=100%", "error-pread-file=" + d.fails, "rate=" + fullSpeed, "rate-file=" + d.rate}
	exported := filepath.Join(d.work, "fuse", "disk")
	d.fuse.Args = []string{"nbdfuse", exported, "nbd+unix:///?socket=" + socket}
	if err := d.kit.Start(); err != nil {
		return d, err
	}
	if err := appears(socket); err != nil {
		return d, err
	}
	if err := d.fuse.Start(); err != nil {
		return d, err
	}
	if err := appears(exported); err != nil {
		return d, err
	}
	// Past the page cache, or reads would not come to the disk.
	if d.loop, err = tool("losetup", "-f", "--show", "--direct-io=on", exported); err != nil {
		return d, err
	}
	if _, err := tool("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", d.loop); err != nil {
		return d, err
	}
	_, err = tool("mount", d.loop, dir)
	return d, err
}

func appears(name string) error {
	for range 500 {
		if _, err := os.Stat(name); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New(name + " does not appear")
}

func (d *badDisk) slow(bits string) error { return os.WriteFile(d.rate, []byte(bits), 0o600) }
func (d *badDisk) failReads() error       { return os.WriteFile(d.fails, nil, 0o600) }

func (d *badDisk) heal() error {
	err := d.slow(fullSpeed)
	if rerr := os.Remove(d.fails); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

func (d *badDisk) close() error {
	var errs []error
	if d.loop != "" {
		errs = append(errs, unmount(d.dir))
		_, err := tool("losetup", "-d", d.loop)
		errs = append(errs, err)
	}
	if d.fuse.Alive() {
		errs = append(errs, unmount(filepath.Join(d.work, "fuse")), d.fuse.End(syscall.SIGTERM, 10*time.Second))
	}
	return errors.Join(append(errs, d.kit.End(syscall.SIGTERM, 10*time.Second))...)
}

// slowDisks makes the disks of one or two disk servers slow.
func slowDisks(r *round) error {
	if len(r.host.bad) == 0 {
		return errSkipped
	}
	chosen := some(r.r, r.host.bad, 2, false)
	r.note = "to 1 MB/s"
	for _, d := range chosen {
		if err := d.slow("8M"); err != nil {
			return err
		}
	}
	err := r.hold(r.between(6*time.Second, 12*time.Second), false) // the filter looks every few seconds
	for _, d := range chosen {
		err = errors.Join(err, d.heal())
	}
	return err
}

// failReads reads everything from the disk servers while one or two of their disks cannot read.
func failReads(r *round) error {
	if len(r.host.bad) == 0 {
		return errSkipped
	}
	if err := wipeDrained(r); err != nil {
		return err
	}
	chosen := some(r.r, r.host.bad, 2, false)
	for _, d := range chosen {
		if err := d.failReads(); err != nil {
			return err
		}
	}
	err := r.check(history.Acknowledged)
	for _, d := range chosen {
		err = errors.Join(err, d.heal())
	}
	return err
}
