package osd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

	pvfs "github.com/cockroachdb/pebble/v2/vfs"

	"scoria/internal/vfs"
)

// indexFS lets pebble, which keeps the index, do its I/O through the file-system seam, so that
// simulated power losses and disk faults hit the index as they hit the log.
//
// It also stands between pebble and the disk's bad days, since pebble retries what failed in a
// tight loop, and panics or ends the process when a manifest or a directory cannot be written, or
// when it is closed or fails to open with background work under way:
//   - on a full disk a change waits, gives back the ballast and asks for space, until there is
//     some or the store ends;
//   - after any other error the store has failed and the index is frozen: nothing of it changes on
//     the disk any more, and goroutines that would change it are parked for good. Reads go on. What
//     it costs, after a disk has failed, is some memory and open files until the process ends.
type indexFS struct {
	fs     vfs.FS
	onFull func()          // called when there is no space; must not block
	fatal  func(error)     // called with the first other error
	done   <-chan struct{} // closed when the store ends: a full disk is waited for no longer

	once   sync.Once
	frozen chan struct{} // closed by freeze
}

var _ pvfs.FS = (*indexFS)(nil)

// fullRetry is how often a write that met a full disk is tried again.
const fullRetry = 20 * time.Millisecond

// mark freezes the index.
func (x *indexFS) mark(err error) {
	x.once.Do(func() {
		x.fatal(fmt.Errorf("index: %w", err))
		close(x.frozen)
	})
}

// freeze freezes the index and parks the caller.
func (x *indexFS) freeze(err error) {
	x.mark(err)
	select {}
}

func (x *indexFS) isFrozen() bool {
	select {
	case <-x.frozen:
		return true
	default:
		return false
	}
}

// change runs op, which changes the disk. It returns when that has succeeded, or never.
func (x *indexFS) change(op func() error) {
	for last := false; ; {
		if x.isFrozen() {
			select {}
		}
		err := op()
		switch {
		case err == nil:
			return
		case last || !errors.Is(err, syscall.ENOSPC):
			x.freeze(err)
		}
		x.onFull()
		t := time.NewTimer(fullRetry)
		select {
		case <-t.C:
		case <-x.done:
			t.Stop()
			last = true // once more, as the ballast may have helped
		}
	}
}

// guard runs a function of pebble that changes the disk. It returns an error when the index is or gets
// frozen; fn may then be parked.
func (x *indexFS) guard(fn func() error) error {
	if x.isFrozen() {
		return errFrozen
	}
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-x.frozen:
		return errFrozen
	}
}

var errFrozen = fmt.Errorf("the index is frozen after an error: %w", ErrUnavailable)

func (x *indexFS) open(name string, flag int) (pvfs.File, error) {
	var f vfs.File
	var err error
	op := func() error {
		f, err = x.fs.OpenFile(name, flag, 0o600)
		return err
	}
	if flag&os.O_CREATE != 0 {
		x.change(op)
	} else if err = op(); err != nil {
		return nil, err
	}
	return &indexFile{fs: x, f: f, name: name}, nil
}

func (x *indexFS) Create(name string, _ pvfs.DiskWriteCategory) (pvfs.File, error) {
	// pebble wants a new inode: readers may still have the old file open.
	if err := x.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return x.open(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

func (x *indexFS) Open(name string, opts ...pvfs.OpenOption) (pvfs.File, error) {
	f, err := x.open(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o.Apply(f)
	}
	return f, nil
}

func (x *indexFS) OpenReadWrite(name string, _ pvfs.DiskWriteCategory, opts ...pvfs.OpenOption) (pvfs.File, error) {
	f, err := x.open(name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o.Apply(f)
	}
	return f, nil
}

func (x *indexFS) OpenDir(name string) (pvfs.File, error) {
	return &indexDir{fs: x, name: name}, nil
}

// Link is used by pebble for ingestion and checkpoints only, which the index does without.
func (x *indexFS) Link(oldname, newname string) error {
	return &os.LinkError{Op: "link", Old: oldname, New: newname, Err: errors.ErrUnsupported}
}

func (x *indexFS) Remove(name string) error {
	if x.isFrozen() {
		select {}
	}
	return x.fs.Remove(name)
}

func (x *indexFS) RemoveAll(name string) error {
	entries, err := x.fs.ReadDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		for _, e := range entries {
			if err := x.RemoveAll(path.Join(name, e.Name())); err != nil {
				return err
			}
		}
	}
	return x.Remove(name)
}

func (x *indexFS) Rename(oldname, newname string) error {
	x.change(func() error { return x.fs.Rename(oldname, newname) })
	return nil
}

func (x *indexFS) ReuseForWrite(oldname, newname string, c pvfs.DiskWriteCategory) (pvfs.File, error) {
	if err := x.Remove(oldname); err != nil {
		return nil, err
	}
	return x.Create(newname, c)
}

func (x *indexFS) MkdirAll(dir string, perm os.FileMode) error { return x.fs.MkdirAll(dir, perm) }

// Lock does nothing: the store holds the lock of its whole directory.
func (x *indexFS) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

func (x *indexFS) List(dir string) ([]string, error) {
	entries, err := x.fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (x *indexFS) Stat(name string) (pvfs.FileInfo, error) {
	fi, err := x.fs.Stat(name)
	if err != nil {
		return nil, err
	}
	return indexInfo{fi}, nil
}

func (x *indexFS) PathBase(p string) string       { return path.Base(p) }
func (x *indexFS) PathJoin(elem ...string) string { return path.Join(elem...) }
func (x *indexFS) PathDir(p string) string        { return path.Dir(p) }
func (x *indexFS) Unwrap() pvfs.FS                { return nil }

func (x *indexFS) GetDiskUsage(p string) (pvfs.DiskUsage, error) {
	total, free, err := x.fs.Space(p)
	if err != nil {
		return pvfs.DiskUsage{}, err
	}
	return pvfs.DiskUsage{AvailBytes: free, TotalBytes: total, UsedBytes: total - min(free, total)}, nil
}

type indexInfo struct{ fs.FileInfo }

func (indexInfo) DeviceID() pvfs.DeviceID { return pvfs.DeviceID{} }

// indexFile gives a vfs.File the sequential Read and Write that pebble wants.
type indexFile struct {
	fs   *indexFS
	f    vfs.File
	name string
	mu   sync.Mutex
	pos  struct{ read, write int64 }
}

func (i *indexFile) Close() error                            { return i.f.Close() }
func (i *indexFile) ReadAt(p []byte, off int64) (int, error) { return i.f.ReadAt(p, off) }

func (i *indexFile) Read(p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n, err := i.f.ReadAt(p, i.pos.read)
	i.pos.read += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (i *indexFile) Write(p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n, err := i.WriteAt(p, i.pos.write)
	i.pos.write += int64(n)
	return n, err
}

func (i *indexFile) WriteAt(p []byte, off int64) (n int, err error) {
	i.fs.change(func() (err error) {
		n, err = i.f.WriteAt(p, off)
		return err
	})
	return n, nil
}

func (i *indexFile) Sync() error {
	i.fs.change(i.f.Sync)
	return nil
}

func (i *indexFile) Preallocate(int64, int64) error { return nil }

func (i *indexFile) Stat() (pvfs.FileInfo, error) {
	size, err := i.f.Size()
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", i.name, err)
	}
	return openInfo{name: path.Base(i.name), size: size}, nil
}

func (i *indexFile) SyncData() error            { return i.Sync() }
func (i *indexFile) SyncTo(int64) (bool, error) { return false, nil }

func (i *indexFile) Prefetch(int64, int64) error { return nil }
func (i *indexFile) Fd() uintptr                 { return pvfs.InvalidFd }

// openInfo describes an open file; pebble asks for its size only.
type openInfo struct {
	name string
	size int64
}

func (o openInfo) Name() string            { return o.name }
func (o openInfo) Size() int64             { return o.size }
func (o openInfo) Mode() fs.FileMode       { return 0o600 }
func (o openInfo) ModTime() time.Time      { return time.Time{} }
func (o openInfo) IsDir() bool             { return false }
func (o openInfo) Sys() any                { return nil }
func (o openInfo) DeviceID() pvfs.DeviceID { return pvfs.DeviceID{} }

// indexDir is an open directory: something to sync.
type indexDir struct {
	fs   *indexFS
	name string
}

func (d *indexDir) err(op string) error {
	return &fs.PathError{Op: op, Path: d.name, Err: syscall.EISDIR}
}

func (d *indexDir) Close() error                       { return nil }
func (d *indexDir) Read([]byte) (int, error)           { return 0, d.err("read") }
func (d *indexDir) ReadAt([]byte, int64) (int, error)  { return 0, d.err("read") }
func (d *indexDir) Write([]byte) (int, error)          { return 0, d.err("write") }
func (d *indexDir) WriteAt([]byte, int64) (int, error) { return 0, d.err("write") }
func (d *indexDir) Preallocate(int64, int64) error     { return nil }
func (d *indexDir) SyncData() error                    { return d.Sync() }
func (d *indexDir) SyncTo(int64) (bool, error)         { return false, nil }
func (d *indexDir) Prefetch(int64, int64) error        { return nil }
func (d *indexDir) Fd() uintptr                        { return pvfs.InvalidFd }

func (d *indexDir) Sync() error {
	d.fs.change(func() error { return d.fs.fs.SyncDir(d.name) })
	return nil
}

func (d *indexDir) Stat() (pvfs.FileInfo, error) {
	fi, err := d.fs.fs.Stat(d.name)
	if err != nil {
		return nil, err
	}
	return indexInfo{fi}, nil
}
