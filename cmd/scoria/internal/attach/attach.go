package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Options of Attach.
type Options struct {
	Target      Target
	Index       int           // N of /dev/nbdN, < 0: the kernel chooses
	Connections int           // 1..16; more than one only if the server allows it
	BlockSize   uint64        // logical block size of the device, 512..4096
	DeadTimeout time.Duration // how long I/O waits for a new connection before it fails, ≥ 1 s
	Log         func(format string, args ...any)
}

// Device is an attached block device.
type Device struct {
	Path   string // /dev/nbdN
	Export Export
	index  int
	opts   Options
}

// ParseDevice turns "/dev/nbd3", "nbd3" or "3" into 3.
func ParseDevice(s string) (int, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimPrefix(s, "/dev/"), "nbd"), 10, 20)
	if err != nil {
		return 0, fmt.Errorf("device %q: want /dev/nbdN", s)
	}
	return int(n), nil
}

// Attach connects, negotiates and makes the device. The device lives on when the process ends.
func Attach(ctx context.Context, o Options) (*Device, error) {
	files, exp, err := dialAll(ctx, o)
	defer closeAll(files) // the kernel holds its own references
	if err != nil {
		return nil, err
	}
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	defer k.Close() //nolint:errcheck // nothing was left undone
	index, err := k.connect(o.Index, exp, max(o.BlockSize, uint64(exp.MinBlock)), seconds(o.DeadTimeout), files)
	if err != nil {
		return nil, err
	}
	return &Device{Path: fmt.Sprintf("/dev/nbd%d", index), Export: exp, index: index, opts: o}, nil
}

func dialAll(ctx context.Context, o Options) ([]*os.File, Export, error) {
	f, exp, err := Connect(ctx, o.Target)
	if err != nil {
		return nil, Export{}, err
	}
	files := []*os.File{f}
	if o.Connections > 1 && !exp.MultiConn() {
		return files, exp, fmt.Errorf("server does not allow several connections to %q; use --connections 1", o.Target.Volume)
	}
	for len(files) < o.Connections {
		f, _, err := Connect(ctx, o.Target)
		if err != nil {
			return files, exp, err
		}
		files = append(files, f)
	}
	return files, exp, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // a duplicate; the kernel's own reference counts
	}
}

func seconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }

// Keep replaces dead connections until ctx ends or the device is detached. While no
// server answers it tries again, from 100 ms up to every 2 s.
func (d *Device) Keep(ctx context.Context) error {
	notices, err := openKernel()
	if err != nil {
		return err
	}
	if err := notices.subscribe(); err != nil {
		return errors.Join(err, notices.Close())
	}
	dead := make(chan struct{}, 64)
	failed := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			index, err := notices.deadLink()
			if err != nil {
				failed <- err
				return
			}
			if index == d.index {
				select {
				case dead <- struct{}{}:
				default: // more notices wait than there can be connections
				}
			}
		}
	})
	defer wg.Wait()
	defer notices.Close() //nolint:errcheck // ends the goroutine above
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return fmt.Errorf("wait for notices of the kernel: %w", err)
		case <-tick.C:
			if !d.attached() {
				return nil
			}
		case <-dead:
			d.logf("a connection of %s is dead, reconnecting", d.Path)
			if err := d.replace(ctx); err != nil {
				return err
			}
		}
	}
}

// attached tells whether the kernel still serves the device.
func (d *Device) attached() bool {
	_, err := os.Stat(fmt.Sprintf("/sys/block/nbd%d/pid", d.index))
	return err == nil
}

func (d *Device) replace(ctx context.Context) error {
	wait := 100 * time.Millisecond
	for d.attached() {
		err := d.reconnect(ctx)
		if err == nil {
			d.logf("%s is connected again", d.Path)
			return nil
		}
		d.logf("%v; trying again", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, 2*time.Second)
	}
	return nil
}

func (d *Device) reconnect(ctx context.Context) error {
	f, exp, err := Connect(ctx, d.opts.Target)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // a duplicate
	if exp.Size < d.Export.Size {
		return fmt.Errorf("volume %q has shrunk from %d to %d bytes: not the volume that was attached", d.opts.Target.Volume, d.Export.Size, exp.Size)
	}
	k, err := openKernel()
	if err != nil {
		return err
	}
	defer k.Close() //nolint:errcheck // nothing was left undone
	if err := k.reconfigure(d.index, seconds(d.opts.DeadTimeout), []*os.File{f}); err != nil {
		return fmt.Errorf("give %s a new connection: %w", d.Path, err)
	}
	return nil
}

func (d *Device) logf(format string, args ...any) {
	if d.opts.Log != nil {
		d.opts.Log(format, args...)
	}
}

// Detach ends /dev/nbd<index>. What the kernel has not written yet is flushed first by the
// kernel if the device is closed; unmount before.
func Detach(index int) error {
	k, err := openKernel()
	if err != nil {
		return err
	}
	defer k.Close() //nolint:errcheck // nothing was left undone
	if err := k.disconnect(index); err != nil {
		return fmt.Errorf("detach /dev/nbd%d: %w", index, err)
	}
	return nil
}
