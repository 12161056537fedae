package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"syscall"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"scoria/internal/vfs"
	"scoria/metadata"
)

// walkLimit is the size up to which a bbolt file is read through before it is opened.
const walkLimit = 256 << 20

// openBolt opens a bbolt file. bbolt takes damage for a bug: it panics, in goroutines of
// its own too, and faults on a file that is too short. So the file is looked at first, and
// damage is ErrCorrupt.
func openBolt(path string, opts *bbolt.Options) (db *bbolt.DB, err error) {
	if err := checkBolt(path); err != nil {
		return nil, err
	}
	defer guard(path, &err)()
	db, err = bbolt.Open(path, 0o600, opts)
	return db, boltError(path, err)
}

func boltError(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("open %s: %w", path, vfs.ErrLocked)
	case errors.Is(err, metadata.ErrCorrupt) || isSystem(err):
		return fmt.Errorf("open %s: %w", path, err)
	}
	return fmt.Errorf("open %s: %w: %w", path, err, metadata.ErrCorrupt)
}

// isSystem reports whether err comes from the operating system rather than from a file's content.
func isSystem(err error) bool {
	var no syscall.Errno
	return errors.As(err, &no) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)
}

// guard makes an error out of a panic or memory fault while path is worked on.
// Use: defer guard(path, &err)().
func guard(path string, err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if r := recover(); r != nil {
			*err = fmt.Errorf("%s: %v: %w", path, r, metadata.ErrCorrupt)
		}
	}
}

// checkBolt looks for damage of a file that is there: a length short of what its newest
// meta page needs, and (of files up to walkLimit) pages that are not what they should be.
func checkBolt(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	size, need, err := boltExtent(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if size == 0 {
		return nil // bbolt starts afresh
	}
	if need > size {
		return fmt.Errorf("%s has %d bytes of at least %d: %w", path, size, need, metadata.ErrCorrupt)
	}
	if size > walkLimit {
		return nil
	}
	return walkBolt(path)
}

// The layout of a bbolt meta page, as far as we look.
const (
	boltPage     = 4096
	boltMetaAt   = 16 // behind the page's header
	boltMagic    = 0xED0CDAED
	boltMetaHwm  = 40 // the first page number that was never used
	boltMetaTxid = 48
	boltMetaSum  = 56
	boltMetaSize = 64
)

// boltExtent returns a file's size and what its newest valid meta page needs (0: none found).
func boltExtent(f *os.File) (size, need int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	var newest uint64
	for page := range int64(2) {
		var m [boltMetaSize]byte
		if _, err := f.ReadAt(m[:], page*boltPage+boltMetaAt); err != nil {
			if errors.Is(err, io.EOF) {
				continue
			}
			return 0, 0, err
		}
		le := binary.LittleEndian
		h := fnv.New64a()
		_, _ = h.Write(m[:boltMetaSum]) // never fails
		if le.Uint32(m[:]) != boltMagic || le.Uint32(m[8:]) != boltPage || le.Uint64(m[boltMetaSum:]) != h.Sum64() {
			continue
		}
		if txid := le.Uint64(m[boltMetaTxid:]); txid >= newest {
			newest, need = txid, int64(min(le.Uint64(m[boltMetaHwm:]), 1<<50))*boltPage
		}
	}
	return info.Size(), need, nil
}

// walkBolt visits every page of every bucket, in this goroutine, where a panic can be caught.
func walkBolt(path string) (err error) {
	defer guard(path, &err)()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: boltTimeout})
	if err != nil {
		return boltError(path, err)
	}
	walk := func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			var last []byte
			return b.ForEach(func(k, _ []byte) error {
				if last != nil && string(k) <= string(last) {
					return fmt.Errorf("%s: keys of %q out of order: %w", path, name, metadata.ErrCorrupt)
				}
				last = k
				return nil
			})
		})
	}
	func() {
		defer guard(path, &err)()
		err = db.View(walk)
	}()
	return errors.Join(err, db.Close())
}
