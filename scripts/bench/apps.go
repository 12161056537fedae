package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// transactions of a run of the database: each inserts a row and changes another one.
const transactions = 2000

// runDatabase runs SQLite on ext4 on each target: a loop device on nbdfuse stands in for the
// kernel's NBD client, which needs a module that many machines lack. It costs all targets the same.
func (s *session) runDatabase(ctx context.Context, o *options) error {
	for _, tool := range []string{"sqlite3", "nbdfuse", "losetup", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil || os.Getuid() != 0 {
			return fmt.Errorf("the database needs root and %s (Debian packages sqlite3, nbdfuse, mount, e2fsprogs)", tool)
		}
	}
	return s.beside(ctx, o, "database", s.attachFS, func(ctx context.Context, a *attached) (values, error) {
		return database(ctx, a.dir)
	})
}

// runBoot boots a guest from a disk on each target: it reads all files of the disk, and syncs some small ones. The guest
// is emulated in software where there is no KVM; then most of the time is the processor's.
func (s *session) runBoot(ctx context.Context, o *options) error {
	const kernel = "build/vm"
	if err := command(ctx, "scripts/e2e/vm/image.sh", kernel); err != nil {
		return fmt.Errorf("a guest: %w", err)
	}
	disk := s.sub("guest.img")
	tree := s.sub("tree")
	script := fmt.Sprintf("mkdir %[1]s && gzip -dc %[2]s/initrd | (cd %[1]s && cpio -id --quiet) && mke2fs -q -t ext4 -d %[1]s %[3]s 256M", tree, kernel, disk)
	if err := command(ctx, "sh", "-c", script); err != nil {
		return fmt.Errorf("the guest's disk: %w", err)
	}
	install := func(ctx context.Context, t *target) (*attached, error) {
		err := command(ctx, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", disk, t.uri)
		if err == nil && t.drain != nil {
			err = t.drain(ctx)
		}
		return &attached{t: t}, err
	}
	return s.beside(ctx, o, "boot", install, func(ctx context.Context, a *attached) (values, error) {
		return boot(ctx, kernel, a.t.uri, s.sub("console"))
	})
}

// attached is a target that an application uses.
type attached struct {
	t       *target
	dir     string // where its file system is
	release []func() error
}

func (a *attached) close() error {
	var errs []error
	for i := len(a.release) - 1; i >= 0; i-- {
		errs = append(errs, a.release[i]())
	}
	return errors.Join(errs...)
}

// beside starts all targets, attaches them, and runs f on each in each round, the order rotating.
func (s *session) beside(ctx context.Context, o *options, row string, attach func(context.Context, *target) (*attached, error), f func(context.Context, *attached) (values, error)) (err error) {
	s.env.size = o.size
	defer s.cache(o.size)()
	var all []*attached
	defer func() {
		for _, a := range all {
			err = errors.Join(err, a.close(), a.t.stop())
		}
	}()
	for _, name := range o.targets {
		t, err := s.env.start(ctx, name)
		if err != nil {
			return err
		}
		s.note(t)
		a, err := attach(ctx, t)
		if a == nil {
			a = &attached{t: t}
		}
		all = append(all, a)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for round := range s.rounds {
		for _, a := range rotate(all, round) {
			v, err := f(ctx, a)
			if err != nil {
				s.fail(a.t, row, round, err)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				continue
			}
			if a.t.drain != nil { // late work is whose it is
				if err := a.t.drain(ctx); err != nil {
					return err
				}
			}
			if err := syncFS(s.env.dir); err != nil {
				return err
			}
			s.keep(a.t, row, round, v)
		}
	}
	return nil
}

// attachFS makes ext4 on a target and mounts it.
func (s *session) attachFS(ctx context.Context, t *target) (a *attached, err error) {
	a = &attached{t: t, dir: s.sub(t.name + "-fs")}
	fuse := s.sub(t.name + "-fuse")
	for _, d := range []string{a.dir, fuse} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return a, err
		}
	}
	disk := filepath.Join(fuse, "disk")
	c, err := spawn(fuse, "nbdfuse", disk, t.uri)
	if err != nil {
		return a, err
	}
	a.release = append(a.release, func() error {
		if err := command(context.WithoutCancel(ctx), "umount", fuse); err != nil {
			return errors.Join(err, c.stop())
		}
		<-c.done // it ends with its mount
		return nil
	})
	if err := appears(ctx, disk); err != nil {
		return a, err
	}
	out, err := exec.CommandContext(ctx, "losetup", "-f", "--show", "--direct-io=on", disk).Output()
	if err != nil {
		return a, fmt.Errorf("losetup: %w", err)
	}
	loop := strings.TrimSpace(string(out))
	a.release = append(a.release, func() error { return command(context.WithoutCancel(ctx), "losetup", "-d", loop) })
	if err := command(ctx, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", loop); err != nil {
		return a, err
	}
	if err := command(ctx, "mount", loop, a.dir); err != nil {
		return a, err
	}
	a.release = append(a.release, func() error { return command(context.WithoutCancel(ctx), "umount", a.dir) })
	return a, nil
}

func appears(ctx context.Context, name string) error {
	for end := time.Now().Add(startTimeout); ; {
		if _, err := os.Stat(name); err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s does not appear", name)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// database makes a new database and times its transactions, each of which is durable before the
// next begins.
func database(ctx context.Context, dir string) (values, error) {
	name := filepath.Join(dir, "db")
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.RemoveAll(name + suffix); err != nil {
			return nil, err
		}
	}
	run := func(script string) error {
		cmd := exec.CommandContext(ctx, "sqlite3", "-bail", name)
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("sqlite3: %w: %s", err, tail(string(out)))
		}
		return nil
	}
	if err := run("PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);\n"); err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString("PRAGMA synchronous=FULL;\n")
	for i := range transactions {
		fmt.Fprintf(&b, "BEGIN; INSERT INTO t(v) VALUES(randomblob(500)); UPDATE t SET v=randomblob(500) WHERE id=1+abs(random())%%%d; COMMIT;\n", i+1)
	}
	begin := time.Now()
	if err := run(b.String()); err != nil {
		return nil, err
	}
	return values{"tps": transactions / time.Since(begin).Seconds()}, nil
}

// boot boots the guest and waits for its end.
func boot(ctx context.Context, kernel, uri, console string) (values, error) {
	begin := time.Now()
	err := command(ctx, "qemu-system-x86_64", "-M", "q35", "-accel", "kvm", "-accel", "tcg,thread=multi", "-m", "768", "-smp", "2", "-display", "none",
		"-nodefaults", "-no-user-config", "-no-reboot", "-serial", "file:"+console,
		"-kernel", kernel+"/vmlinuz", "-initrd", kernel+"/initrd", "-append", "console=ttyS0 panic=-1 quiet e2e.step=boot",
		"-netdev", "user,id=n0,ipv6=off", "-device", "virtio-net-pci,netdev=n0,romfile=",
		"-drive", "file="+uri+",format=raw,if=virtio,cache=none")
	took := time.Since(begin)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(console)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(string(b), "E2E-OK") {
		return nil, fmt.Errorf("the guest did not come to its end: %s", tail(string(b)))
	}
	return values{"boot_s": took.Seconds()}, nil
}
