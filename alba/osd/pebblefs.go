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
// A full disk is not shown to pebble, which would retry a flush in a tight loop and take a
// failing manifest for fatal: the write waits, gives back the ballast and asks for space, and
// goes on when there is some, or fails when the store ends.
type indexFS struct {
	fs     vfs.FS
	onFull func()          // called once per wait; must not block
	done   <-chan struct{} // closed when waiting has no sense any more
	giveUp func()          // called when an operation then fails for want of space
}

var _ pvfs.FS = (*indexFS)(nil)

// fullRetry is how often a write that met a full disk is tried again.
const fullRetry = 20 * time.Millisecond

// persist runs op until it fails for another reason than a full disk.
func (x *indexFS) persist(op func() error) error {
	for {
		err := op()
		if err == nil || !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		x.onFull()
		t := time.NewTimer(fullRetry)
		select {
		case <-t.C:
		case <-x.done:
			t.Stop()
			if err = op(); errors.Is(err, syscall.ENOSPC) { // the ballast may have helped
				x.giveUp()
			}
			return err
		}
	}
}

func (x *indexFS) open(name string, flag int) (pvfs.File, error) {
	var f vfs.File
	err := x.persist(func() (err error) {
		f, err = x.fs.OpenFile(name, flag, 0o600)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &indexFile{fs: x, f: f, name: name}, nil
}

func (x *indexFS) Create(name string, _ pvfs.DiskWriteCategory) (pvfs.File, error) {
	// pebble wants a new inode: readers may still have the old file open.
	if err := x.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
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
	return &indexDir{fs: x.fs, name: name}, nil
}

// Link is used by pebble for ingestion and checkpoints only, which the index does without.
func (x *indexFS) Link(oldname, newname string) error {
	return &os.LinkError{Op: "link", Old: oldname, New: newname, Err: errors.ErrUnsupported}
}

func (x *indexFS) Remove(name string) error { return x.fs.Remove(name) }

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
	return x.fs.Remove(name)
}

func (x *indexFS) Rename(oldname, newname string) error {
	return x.persist(func() error { return x.fs.Rename(oldname, newname) })
}

func (x *indexFS) ReuseForWrite(oldname, newname string, c pvfs.DiskWriteCategory) (pvfs.File, error) {
	if err := x.fs.Remove(oldname); err != nil {
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
	err = i.fs.persist(func() (err error) {
		n, err = i.f.WriteAt(p, off)
		return err
	})
	return n, err
}

func (i *indexFile) Preallocate(int64, int64) error { return nil }

func (i *indexFile) Stat() (pvfs.FileInfo, error) {
	size, err := i.f.Size()
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", i.name, err)
	}
	return openInfo{name: path.Base(i.name), size: size}, nil
}

func (i *indexFile) Sync() error                { return i.fs.persist(i.f.Sync) }
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
	fs   vfs.FS
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
func (d *indexDir) Sync() error                        { return d.fs.SyncDir(d.name) }
func (d *indexDir) SyncData() error                    { return d.fs.SyncDir(d.name) }
func (d *indexDir) SyncTo(int64) (bool, error)         { return false, nil }
func (d *indexDir) Prefetch(int64, int64) error        { return nil }
func (d *indexDir) Fd() uintptr                        { return pvfs.InvalidFd }

func (d *indexDir) Stat() (pvfs.FileInfo, error) {
	fi, err := d.fs.Stat(d.name)
	if err != nil {
		return nil, err
	}
	return indexInfo{fi}, nil
}
