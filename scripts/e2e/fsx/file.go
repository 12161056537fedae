package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// file is a file on a mounted file system.
type file struct {
	name string
	f    *os.File
}

func openFile(name string) (*file, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	return &file{name, f}, err
}

func (f *file) fixed() bool  { return false }
func (f *file) sync() error  { return f.f.Sync() }
func (f *file) close() error { return f.f.Close() }

func (f *file) read(p []byte, off int) error {
	if _, err := f.f.ReadAt(p, int64(off)); err != nil && !errors.Is(err, io.EOF) {
		return err
	} else if err != nil {
		return fmt.Errorf("the file is shorter than it should be: %w", err)
	}
	return nil
}

func (f *file) write(p []byte, off int) error {
	_, err := f.f.WriteAt(p, int64(off))
	return err
}

// reopen drops the file's pages, so that what is read next comes from the device.
func (f *file) reopen() error {
	if err := f.f.Sync(); err != nil {
		return err
	}
	if err := unix.Fadvise(int(f.f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	if err := f.f.Close(); err != nil {
		return err
	}
	var err error
	f.f, err = os.OpenFile(f.name, os.O_RDWR, 0)
	return err
}

func (f *file) other() []operation {
	return []operation{
		{"truncate", f.truncate}, {"mmap read", f.mmapRead}, {"mmap write", f.mmapWrite}, {"punch hole", f.punch},
		{"zero range", f.zeroRange}, {"fallocate", f.fallocate}, {"copy range", f.copyRange}, {"direct read", f.directRead},
	}
}

// truncate sets the length anywhere in the range. What comes by growing is zeroes.
func (f *file) truncate(x *exerciser, off, n int) error {
	to := off + x.r.IntN(n+1)
	if err := f.f.Truncate(int64(to)); err != nil {
		return err
	}
	x.model = x.model[:min(to, len(x.model)):min(to, len(x.model))]
	x.grow(to)
	info, err := f.f.Stat()
	if err == nil && info.Size() != int64(to) {
		err = fmt.Errorf("truncated to %d, but the file has %d bytes", to, info.Size())
	}
	return err
}

// mapped maps the pages around the range and calls do with it.
func (f *file) mapped(off, n int, do func(b []byte)) (err error) {
	page := off &^ (os.Getpagesize() - 1)
	m, err := unix.Mmap(int(f.f.Fd()), int64(page), off-page+n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(m)) }()
	do(m[off-page:])
	return nil
}

func (f *file) mmapRead(x *exerciser, off, n int) error {
	if n = min(n, len(x.model)-off); n <= 0 {
		return nil
	}
	got := make([]byte, n)
	if err := f.mapped(off, n, func(b []byte) { copy(got, b) }); err != nil {
		return err
	}
	return x.compare("mmap", got, off)
}

func (f *file) mmapWrite(x *exerciser, off, n int) error {
	if n = min(n, len(x.model)-off); n <= 0 {
		return nil
	}
	data := x.random(n)
	if err := f.mapped(off, n, func(b []byte) { copy(b, data) }); err != nil {
		return err
	}
	x.put(off, data)
	return nil
}

func (f *file) punch(x *exerciser, off, n int) error {
	if err := unix.Fallocate(int(f.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)); err != nil {
		return err
	}
	x.zero(off, n)
	return nil
}

func (f *file) zeroRange(x *exerciser, off, n int) error {
	if err := unix.Fallocate(int(f.f.Fd()), unix.FALLOC_FL_ZERO_RANGE, int64(off), int64(n)); err != nil {
		return err
	}
	x.grow(off + n)
	x.zero(off, n)
	return nil
}

func (f *file) fallocate(x *exerciser, off, n int) error {
	mode := uint32(0)
	if x.r.IntN(2) == 0 {
		mode = unix.FALLOC_FL_KEEP_SIZE
	}
	if err := unix.Fallocate(int(f.f.Fd()), mode, int64(off), int64(n)); err != nil {
		return err
	}
	if mode == 0 {
		x.grow(off + n)
	}
	return nil
}

// copyRange copies within the file, to a place that does not overlap.
func (f *file) copyRange(x *exerciser, off, n int) error {
	if n = min(n, len(x.model)-off); n <= 0 {
		return nil
	}
	to := x.r.IntN(x.size - n + 1)
	if to < off+n && off < to+n {
		return nil
	}
	for done := 0; done < n; {
		from, into := int64(off+done), int64(to+done)
		k, err := unix.CopyFileRange(int(f.f.Fd()), &from, int(f.f.Fd()), &into, n-done, 0)
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOSYS) {
			return errUnsupported
		}
		if err != nil {
			return err
		}
		if k == 0 {
			return fmt.Errorf("copied only %d of %d bytes", done, n)
		}
		x.put(to+done, x.model[off+done:off+done+k])
		done += k
	}
	return nil
}

// directRead reads whole pages past the page cache.
func (f *file) directRead(x *exerciser, off, n int) error {
	const align = 4096
	off &^= align - 1
	if n = min((n+align-1)&^(align-1), (len(x.model)-off)&^(align-1)); n <= 0 {
		return nil
	}
	d, err := os.OpenFile(f.name, os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return errUnsupported
	}
	if err != nil {
		return err
	}
	buf, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return errors.Join(err, d.Close())
	}
	if _, err = d.ReadAt(buf, int64(off)); err == nil {
		err = x.compare("direct read", buf, off)
	}
	return errors.Join(err, unix.Munmap(buf), d.Close())
}
