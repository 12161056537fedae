package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// errSkipped: the fault needs what this machine does not give.
var errSkipped = errors.New("skipped")

func send(s syscall.Signal) func(*diskServer) error {
	return func(d *diskServer) error { return d.process.Signal(s) }
}

func startDisk(d *diskServer) error {
	if err := d.start(); err != nil {
		return err
	}
	return d.ready()
}

// disksAway takes up to n disk servers away for some time. Status has to tell.
func disksAway(away, back func(*diskServer) error, n int, exactly bool) func(*round) error {
	return func(r *round) error {
		chosen := some(r.r, r.disks, n, exactly)
		r.note = fmt.Sprintf("%d of %d", len(chosen), len(r.disks))
		for _, d := range chosen {
			if err := away(d); err != nil {
				return err
			}
		}
		if err := r.hold(r.between(500*time.Millisecond, 12*time.Second), true); err != nil {
			return err
		}
		for _, d := range chosen {
			if err := back(d); err != nil {
				return err
			}
		}
		return nil
	}
}

func killStartingDisks(r *round) error {
	chosen := some(r.r, r.disks, 2, false)
	n := 2 + r.r.IntN(4)
	r.note = fmt.Sprintf("%d of %d, %d times", len(chosen), len(r.disks), n)
	begin := time.Now()
	for i := range n {
		for _, d := range chosen {
			if err := d.kill(); err != nil {
				return err
			}
			if i == n-1 {
				continue
			}
			if err := d.start(); err != nil {
				return err
			}
		}
		time.Sleep(r.between(0, 300*time.Millisecond))
	}
	for _, d := range chosen {
		if err := startDisk(d); err != nil {
			return err
		}
	}
	r.held += time.Since(begin)
	return nil
}

// killAll ends everything at once, as a crash of the machine would but for its page cache.
func killAll(r *round) error {
	errs := []error{r.killGateway()}
	for _, d := range r.disks {
		errs = append(errs, d.kill())
	}
	for _, d := range r.disks {
		errs = append(errs, d.start())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return r.startGateway() // while the disk servers start
}

func (r *round) relays() (list []*relay) {
	for _, d := range r.disks {
		if l, ok := d.link.(relayLink); ok {
			list = append(list, l.relay)
		}
	}
	return list
}

func slowNetwork(r *round) error {
	chosen := some(r.r, r.relays(), 2, false)
	delay := r.between(5*time.Millisecond, 500*time.Millisecond)
	r.note = fmt.Sprintf("%d of %d, %v each way and piece", len(chosen), len(r.disks), delay.Round(time.Millisecond))
	for _, l := range chosen {
		l.set(false, delay)
	}
	err := r.hold(r.between(2*time.Second, 8*time.Second), false) // slow is not degraded
	for _, l := range chosen {
		l.set(false, 0)
	}
	return err
}

func cutDisks(r *round) error {
	cuts := 0
	for range 3 + r.r.IntN(5) {
		for _, l := range some(r.r, r.relays(), 3, false) {
			cuts += l.cut(r.r)
		}
		time.Sleep(r.between(10*time.Millisecond, 500*time.Millisecond))
	}
	r.note = fmt.Sprintf("%d connections", cuts)
	return nil
}

// fullDisks fills the file systems of some disk servers, at times of most.
func fullDisks(r *round) error {
	var small []*diskServer
	for _, d := range r.disks {
		if r.host.isolated(d.dir) {
			small = append(small, d)
		}
	}
	if len(small) == 0 {
		return errSkipped
	}
	chosen := some(r.r, small, len(small), false)
	r.note = fmt.Sprintf("%d of %d", len(chosen), len(r.disks))
	var frees []func() error
	for _, d := range chosen {
		free, err := fill(filepath.Dir(d.dir), 0)
		if err != nil {
			return err
		}
		frees = append(frees, free)
	}
	err := r.hold(r.between(2*time.Second, 10*time.Second), true)
	for _, free := range frees {
		err = errors.Join(err, free())
	}
	return err
}

// flip changes up to n bytes that were written, in the large files of some directories.
func flip(dirs []string, n int, r *rand.Rand) (flipped int, err error) {
	var files []string
	for _, d := range dirs {
		err := filepath.WalkDir(d, func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			if info, err := e.Info(); err != nil {
				return err
			} else if info.Size() >= 1<<20 { // fragments, not identities and indexes
				files = append(files, name)
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	if len(files) == 0 {
		return 0, fmt.Errorf("no file of 1 MiB or more in %v to damage", dirs)
	}
	slices.Sort(files)
	for range n {
		done, err := flipOne(files[r.IntN(len(files))], r)
		if err != nil {
			return flipped, err
		}
		if done {
			flipped++
		}
	}
	return flipped, nil
}

func flipOne(name string, r *rand.Rand) (done bool, err error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	b := make([]byte, 1)
	for range 10000 { // preallocated space that was never written harms nobody
		at := r.Int64N(info.Size())
		if _, err := f.ReadAt(b, at); err != nil {
			return false, err
		}
		if b[0] != 0 {
			b[0] ^= byte(1 + r.IntN(255))
			_, err = f.WriteAt(b, at)
			return err == nil, err
		}
	}
	return false, nil
}
