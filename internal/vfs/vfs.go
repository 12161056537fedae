// Package vfs is the file-system seam: everything of Scoria that keeps data on a
// local disk goes through FS, so that tests can put a simulated disk below it that
// loses power, tears writes, runs full or fails at the k-th operation.
//
// OS is the real file system. Mem is an in-memory one that knows what has been
// synced and can be forked as it would look after a power loss. Faulty wraps any
// FS and fails or crashes at chosen operations. Lock, WriteFile and ReadFile work on
// any of them.
package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
)

// ErrTooLong is returned (wrapped) by ReadFile for a file that is longer than its kind may be.
var ErrTooLong = errors.New("file too long")

// ErrLocked is returned (wrapped) by LockFile when another process holds the lock.
var ErrLocked = errors.New("locked by another process")

// ODirect is the open flag that bypasses the page cache. A file opened with it
// takes only reads and writes whose offset, length and memory are multiples of
// DirectAlign. File systems that do not support it (tmpfs) open without it.
const ODirect = syscall.O_DIRECT

// DirectAlign is the alignment, in bytes, that ODirect files ask for.
const DirectAlign = 4096

// FS is a file system. Names are slash-separated paths of the underlying system.
// Implementations are safe for concurrent use. Absence is reported as fs.ErrNotExist,
// a full disk as syscall.ENOSPC, both possibly wrapped.
type FS interface {
	// OpenFile opens name with os.O_* flags (and ODirect).
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Remove deletes a file or an empty directory.
	Remove(name string) error
	// Rename moves oldname over newname atomically. It is durable after SyncDir of the parent(s).
	Rename(oldname, newname string) error
	// MkdirAll creates a directory and its missing parents.
	MkdirAll(name string, perm fs.FileMode) error
	// ReadDir lists a directory sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Stat describes a file.
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes creations, removals and renames in the directory durable.
	SyncDir(name string) error
	// Space tells the bytes that the file system of name has in all and free for us.
	Space(name string) (total, free uint64, err error)
}

// Locker is what Lock needs of an FS. OS, Mem and Faulty have it.
type Locker interface {
	// Lock takes an exclusive lock on name, which it creates if it is missing, until Close
	// (or the end of the process). ErrLocked is returned (wrapped) when another one holds it.
	Lock(name string) (io.Closer, error)
}

// Lock takes an exclusive lock on name in fsys; see Locker.
func Lock(fsys FS, name string) (io.Closer, error) {
	l, ok := fsys.(Locker)
	if !ok {
		return nil, fmt.Errorf("lock %s: %T cannot lock files: %w", name, fsys, errors.ErrUnsupported)
	}
	return l.Lock(name)
}

// File is an open file. ReadAt and WriteAt may be called concurrently.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// WriteVAt writes all bufs back to back at off (pwritev), in full or with an error.
	WriteVAt(bufs [][]byte, off int64) (int, error)
	// Sync makes data and size durable (fdatasync).
	Sync() error
	// StartWrite begins to write what was written to the range to the disk, and does not wait
	// for the end (sync_file_range). It promises nothing: a Sync that follows is quicker.
	StartWrite(off, length int64) error
	// Truncate sets the size.
	Truncate(size int64) error
	// Size tells the current size in bytes.
	Size() (int64, error)
	// Allocate reserves disk space for the range and extends the file over it.
	Allocate(off, length int64) error
	// Punch gives the disk space of the range back; it reads as zeroes afterwards.
	Punch(off, length int64) error
}
