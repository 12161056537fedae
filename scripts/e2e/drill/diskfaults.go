package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"scoria/scripts/e2e/internal/e2e"
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

// overfill stops so many disk servers that nothing drains, until the write buffer is full and writers wait,
// and for some seconds more: memory stays bounded, and status tells.
func overfill(r *round) (err error) {
	chosen := some(r.r, r.disks, 4, true)
	begin := time.Now()
	for _, d := range chosen {
		if err := d.process.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
	}
	defer func() {
		r.held += time.Since(begin)
		for _, d := range chosen {
			err = errors.Join(err, d.process.Signal(syscall.SIGCONT))
		}
	}()
	var h health
	for waits := false; !waits; {
		if h, err = r.status(); err != nil {
			return err
		}
		waits = h.Buffer.Limit > 0 && h.Buffer.Dirty > h.Buffer.Limit*3/4 && r.load.silent() > time.Second
		if time.Since(begin) > overfillWithin {
			return fmt.Errorf("%d of %d bytes of the write buffer are in use after %v, and writers do not wait", h.Buffer.Dirty, h.Buffer.Limit, overfillWithin)
		}
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(r.between(time.Second, 5*time.Second))
	if h, err = r.status(); err != nil {
		return err
	}
	r.told = append(r.told, h.Problems...)
	memory, err := e2e.Resident(r.gateway.Pid())
	if err != nil {
		return err
	}
	r.note = fmt.Sprintf("%d of %d MiB, %d MiB of memory", h.Buffer.Dirty>>20, h.Buffer.Limit>>20, memory>>20)
	if h.answered && h.Health == "ok" {
		return errors.New("the write buffer is full, and status says ok")
	}
	if memory > mostMemory {
		return fmt.Errorf("%d MiB of memory while writers wait", memory>>20)
	}
	return nil
}

const (
	overfillWithin = 90 * time.Second // of writing, for a load that pauses much
	mostMemory     = 700 << 20
)

// wipeDisks ends one or two disk servers and starts them with empty directories: they are claimed
// while the gateway runs, and what they held is told as lost until it is made anew.
func wipeDisks(r *round) error {
	chosen := some(r.r, r.disks, 2, false)
	r.note = fmt.Sprintf("%d of %d", len(chosen), len(r.disks))
	begin := time.Now()
	for _, d := range chosen {
		if err := d.kill(); err != nil {
			return err
		}
	}
	for _, d := range chosen {
		if err := r.wipe(d.dir); err != nil {
			return err
		}
		if err := startDisk(d); err != nil {
			return err
		}
	}
	r.held += time.Since(begin)
	return r.hold(r.between(5*time.Second, 10*time.Second), true)
}
