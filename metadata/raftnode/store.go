package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"scoria/internal/vfs"
	"scoria/metadata"
	"scoria/metadata/fsm"
)

// Buckets and keys of the state file.
var (
	bucketMeta = []byte("scoria-meta")
	bucketKV   = []byte("kv")
	keyKind    = []byte("kind")
	keyFormat  = []byte("format")
	keyApplied = []byte("applied")
)

// stateFormat is the version of the state file's layout.
const stateFormat = 1

// mapSize is the address space reserved for the state file. While the file is smaller, a
// long read (a snapshot being streamed) never makes a writer wait for a remapping.
const mapSize = 64 << 30

// boltTimeout is how long to wait for the lock of a bbolt file.
const boltTimeout = time.Second

// store is the state on disk. One goroutine writes, many read.
type store struct {
	dir     *dir
	kind    string
	applied atomic.Uint64 // index of the last command in the state
	fault   func() error  // tests: makes commits fail

	mu     sync.RWMutex // guards db against being replaced (restore) while it is read
	db     *bbolt.DB
	closed bool
}

func stateOptions() *bbolt.Options {
	return &bbolt.Options{
		Timeout: boltTimeout, NoSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
		InitialMmapSize: mapSize, NoStatistics: true,
	}
}

// openStore opens the state, or starts an empty one when it is absent, torn or damaged:
// all of it is in snapshot and log. rebuilt tells why, "" when it was taken as it is.
func openStore(d *dir, kind string) (s *store, rebuilt string, err error) {
	s = &store{dir: d, kind: kind}
	path := d.file(stateFile)
	intact, err := d.stateIntact()
	if err != nil {
		return nil, "", err
	}
	if !intact {
		rebuilt = "the machine went down while it was in use"
		if err := removeIfThere(path); err != nil {
			return nil, "", fmt.Errorf("remove torn state: %w", err)
		}
	}
	// Before the file is written to, and after a torn one is gone: never is the file torn and marked with this boot.
	if err := d.markOpen(); err != nil {
		return nil, "", err
	}
	if err = s.open(path); err == nil || !errors.Is(err, metadata.ErrCorrupt) {
		return s, rebuilt, err
	}
	rebuilt = err.Error()
	if err := removeIfThere(path); err != nil {
		return nil, "", fmt.Errorf("remove damaged state: %w", err)
	}
	return s, rebuilt, s.open(path)
}

// open opens the file, and prepares it when it is new.
func (s *store) open(path string) (err error) {
	db, err := openBolt(path, stateOptions())
	if err != nil {
		return err
	}
	defer guard(path, &err)()
	var applied uint64
	err = db.Update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if meta == nil {
			if name, _ := tx.Cursor().First(); name != nil {
				return fmt.Errorf("%s has a bucket %q: %w", path, name, metadata.ErrCorrupt)
			}
			return initState(tx, s.kind)
		}
		if f := meta.Get(keyFormat); len(f) != 1 || f[0] != stateFormat {
			return fmt.Errorf("%s has format %v, known is %d: %w", path, f, stateFormat, ErrNewer)
		}
		if k := meta.Get(keyKind); string(k) != s.kind {
			return fmt.Errorf("%s is of kind %q, not %q: %w", path, k, s.kind, ErrForeign)
		}
		a := meta.Get(keyApplied)
		if len(a) != 8 || tx.Bucket(bucketKV) == nil {
			return fmt.Errorf("%s lacks its index or contents: %w", path, metadata.ErrCorrupt)
		}
		applied = binary.BigEndian.Uint64(a)
		return nil
	})
	if err != nil {
		return errors.Join(err, db.Close())
	}
	s.db = db
	s.applied.Store(applied)
	return nil
}

func initState(tx *bbolt.Tx, kind string) error {
	meta, err := tx.CreateBucket(bucketMeta)
	if err != nil {
		return err
	}
	if _, err := tx.CreateBucket(bucketKV); err != nil {
		return err
	}
	return errors.Join(meta.Put(keyFormat, []byte{stateFormat}), meta.Put(keyKind, []byte(kind)), putApplied(tx, 0))
}

func putApplied(tx *bbolt.Tx, index uint64) error {
	return tx.Bucket(bucketMeta).Put(keyApplied, binary.BigEndian.AppendUint64(nil, index))
}

// update runs fn in a transaction and sets the applied index with it.
func (s *store) update(index uint64, fn func(fsm.Tx) error) error {
	tx, err := s.db.Begin(true) // only the writer replaces db: no lock
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	t := &boltTx{boltReader: boltReader{tx.Bucket(bucketKV)}}
	if err := fn(t); err != nil {
		return err
	}
	if t.err == nil {
		t.err = putApplied(tx, index)
	}
	if t.err != nil {
		return fmt.Errorf("write state: %w", t.err)
	}
	if s.fault != nil {
		if err := s.fault(); err != nil {
			return fmt.Errorf("commit state: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit state: %w", err)
	}
	s.applied.Store(index)
	return nil
}

// view runs fn over a consistent state.
func (s *store) view(fn func(fsm.Reader) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return ErrClosed
	}
	return s.db.View(func(tx *bbolt.Tx) error { return fn(boltReader{tx.Bucket(bucketKV)}) })
}

// size is the size of the state file in bytes, with its free pages.
func (s *store) size() uint64 {
	var n int64
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.closed {
		_ = s.db.View(func(tx *bbolt.Tx) error { n = tx.Size(); return nil }) // cannot fail
	}
	return uint64(n)
}

// replace puts the state file at path, prepared and synced, in place of the present one.
func (s *store) replace(path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close old state: %w", err)
	}
	if err := vfs.OS.Rename(path, s.dir.file(stateFile)); err != nil {
		return errors.Join(fmt.Errorf("put restored state in place: %w", err), s.open(s.dir.file(stateFile)))
	}
	return s.open(s.dir.file(stateFile))
}

// close syncs the state so that it can be taken as it is next time.
func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.db.Sync()
	if cerr := s.db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("close state: %w", err) // the marker stays: it will be rebuilt after a power loss
	}
	return s.dir.markClosed()
}

// boltReader is a fsm.Reader over a bucket.
type boltReader struct{ b *bbolt.Bucket }

func (r boltReader) Get(key []byte) []byte { return r.b.Get(key) }

func (r boltReader) Scan(from, to []byte, fn func(k, v []byte) bool) {
	c := r.b.Cursor()
	for k, v := c.Seek(from); k != nil; k, v = c.Next() {
		if len(to) > 0 && string(k) >= string(to) || !fn(k, v) {
			return
		}
	}
}

// boltTx is a fsm.Tx over a bucket; the first failure sticks and fails the transaction.
type boltTx struct {
	boltReader
	err error
}

func (t *boltTx) Put(key, value []byte) {
	if t.err == nil {
		// bbolt keeps the value until the commit, and copies the key.
		t.err = t.b.Put(key, append([]byte{}, value...))
	}
}

func (t *boltTx) Delete(key []byte) {
	if t.err == nil {
		t.err = t.b.Delete(key)
	}
}
