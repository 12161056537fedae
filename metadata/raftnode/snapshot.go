package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"scoria/internal/frame"
	"scoria/internal/vfs"
	"scoria/metadata"
)

// A snapshot is a stream of frames: a header, pages of pairs in key order, and an end with
// their number, so that a stream cut short is not taken for whole.
const (
	snapMagic   = 0x504e5353 // "SSNP"
	snapHeader  = 1          // body: kind, applied index u64
	snapPage    = 2          // body: pairs of byte strings
	snapEnd     = 3          // body: number of pairs u64
	snapVersion = 1

	snapPageSize  = 256 << 10                   // a page is closed when it is this long
	snapPageLimit = snapPageSize + maxPair + 64 // bytes of a page's body
	maxPair       = 8 << 20                     // bytes of a key and its value
)

// writeSnapshot streams the state of a read transaction.
func writeSnapshot(w io.Writer, tx *bbolt.Tx, kind string) error {
	applied := tx.Bucket(bucketMeta).Get(keyApplied)
	head := binary.LittleEndian.AppendUint64(frame.AppendString(nil, kind), binary.BigEndian.Uint64(applied))
	var buf, page []byte
	send := func(typ uint8, body []byte) error {
		buf = frame.Append(buf[:0], snapMagic, typ, snapVersion, 0, body)
		_, err := w.Write(buf)
		return err
	}
	if err := send(snapHeader, head); err != nil {
		return err
	}
	var pairs uint64
	c := tx.Bucket(bucketKV).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		page = frame.AppendBytes(frame.AppendBytes(page, k), v)
		pairs++
		if len(page) >= snapPageSize {
			if err := send(snapPage, page); err != nil {
				return err
			}
			page = page[:0]
		}
	}
	if len(page) > 0 {
		if err := send(snapPage, page); err != nil {
			return err
		}
	}
	return send(snapEnd, binary.LittleEndian.AppendUint64(nil, pairs))
}

// snapshotReader reads a snapshot, checking everything.
type snapshotReader struct {
	r       io.Reader
	Kind    string
	Applied uint64
	pairs   uint64
}

func newSnapshotReader(r io.Reader) (*snapshotReader, error) {
	s := &snapshotReader{r: r}
	typ, d, err := s.frame()
	if err != nil {
		return nil, err
	}
	if typ != snapHeader {
		return nil, fmt.Errorf("snapshot begins with a frame of type %d: %w", typ, metadata.ErrCorrupt)
	}
	s.Kind, s.Applied = d.String(metadata.MaxName), d.U64()
	if err := d.Finish(); err != nil {
		return nil, fmt.Errorf("snapshot header: %w: %w", err, metadata.ErrCorrupt)
	}
	return s, nil
}

func (s *snapshotReader) frame() (uint8, *frame.Decoder, error) {
	h, body, err := frame.Read(s.r, snapMagic, snapPageLimit)
	switch {
	case errors.Is(err, io.EOF):
		return 0, nil, fmt.Errorf("snapshot ends early: %w", metadata.ErrCorrupt)
	case errors.Is(err, frame.ErrTruncated), errors.Is(err, frame.ErrMagic), errors.Is(err, frame.ErrChecksum), errors.Is(err, frame.ErrTooLong), errors.Is(err, io.ErrUnexpectedEOF):
		return 0, nil, fmt.Errorf("snapshot: %w: %w", err, metadata.ErrCorrupt)
	case err != nil:
		return 0, nil, fmt.Errorf("read snapshot: %w", err)
	case h.Version != snapVersion:
		return 0, nil, fmt.Errorf("snapshot frame of version %d, known is %d: %w", h.Version, snapVersion, ErrNewer)
	}
	return h.Type, frame.NewDecoder(body), nil
}

// page calls fn for the pairs of the next page; io.EOF when all were read.
func (s *snapshotReader) page(fn func(k, v []byte) error) error {
	typ, d, err := s.frame()
	if err != nil {
		return err
	}
	switch typ {
	case snapPage:
		for d.Rest() > 0 {
			k, v := d.Bytes(maxPair), d.Bytes(maxPair)
			if d.Err() != nil || len(k) == 0 {
				return fmt.Errorf("snapshot page: %v: %w", d.Err(), metadata.ErrCorrupt)
			}
			s.pairs++
			if err := fn(k, v); err != nil {
				return err
			}
		}
		return nil
	case snapEnd:
		if n := d.U64(); d.Finish() != nil || n != s.pairs {
			return fmt.Errorf("snapshot has %d pairs, its end says %d: %w", s.pairs, n, metadata.ErrCorrupt)
		}
		return io.EOF
	}
	return fmt.Errorf("snapshot frame of type %d: %w", typ, metadata.ErrCorrupt)
}

// restoreInto writes a snapshot into a new state file at path.
func restoreInto(path, kind string, r io.Reader) (err error) {
	snap, err := newSnapshotReader(r)
	if err != nil {
		return err
	}
	if snap.Kind != kind {
		return fmt.Errorf("snapshot of kind %q, not %q: %w", snap.Kind, kind, ErrForeign)
	}
	if err := removeIfThere(path); err != nil {
		return err
	}
	db, err := openBolt(path, stateOptions())
	if err != nil {
		return err
	}
	defer func() {
		if cerr := db.Close(); err == nil && cerr != nil {
			err = cerr
		}
		if err != nil {
			err = errors.Join(fmt.Errorf("restore snapshot: %w", err), removeIfThere(path))
		}
	}()
	if err := db.Update(func(tx *bbolt.Tx) error { return initState(tx, kind) }); err != nil {
		return err
	}
	for more := true; more; {
		err := db.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketKV)
			b.FillPercent = 0.9               // keys come in order
			for i := 0; i < 16 && more; i++ { // pages per transaction
				err := snap.page(b.Put)
				more = !errors.Is(err, io.EOF)
				if err != nil && more {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := db.Update(func(tx *bbolt.Tx) error { return putApplied(tx, snap.Applied) }); err != nil {
		return err
	}
	return db.Sync()
}

// fsmSnapshot is a read transaction on its way to a snapshot file.
type fsmSnapshot struct {
	tx   *bbolt.Tx
	kind string
	done func(error)
}

func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	err := writeSnapshot(sink, s.tx, s.kind)
	if err == nil {
		err = sink.Close()
	} else {
		err = errors.Join(err, sink.Cancel())
	}
	s.done(err)
	return err
}

func (s *fsmSnapshot) Release() { _ = s.tx.Rollback() } // a read transaction's end cannot fail

// syncedSnapshots is Raft's store of snapshot files with what it leaves out: it syncs the files
// and the directory of all snapshots, but not that of a snapshot. A power loss could leave one
// with its name but without its files, after older ones were removed and the log was shortened.
type syncedSnapshots struct {
	raft.SnapshotStore
	dir string
}

func (s syncedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, at uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, c, at, t)
	if err != nil {
		return nil, err
	}
	return &syncedSink{sink, filepath.Join(s.dir, sink.ID()+".tmp"), false}, nil
}

type syncedSink struct {
	raft.SnapshotSink
	dir  string // until the snapshot is finished and gets its name
	done bool
}

// Close syncs the directory before it gets its name; the files in it have theirs from the start.
// Raft closes once more, and closes what was cancelled.
func (s *syncedSink) Close() error {
	if s.done {
		return nil
	}
	s.done = true
	if err := vfs.OS.SyncDir(s.dir); err != nil {
		return errors.Join(fmt.Errorf("sync snapshot: %w", err), s.Cancel())
	}
	return s.SnapshotSink.Close()
}

func (s *syncedSink) Cancel() error {
	s.done = true
	return s.SnapshotSink.Cancel()
}
