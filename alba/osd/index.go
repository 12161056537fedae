package osd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"

	"scoria/internal/frame"
)

// Keys of the index. User keys stand behind prefixUser; the rest is the index's own book-keeping,
// written in the same pebble batch as the change it is about.
const (
	prefixState   = 0x01 // one key: logState
	prefixSegment = 0x02 // + segment (u32, big-endian): segState
	prefixDead    = 0x03 // + segment (u32) + offset (u64): uvarint length of bytes that wait for being punched
	prefixUser    = 0x10 // + key: entry
)

// indexFormat is the version of the index's own keys and values.
const indexFormat = 1

// pebbleFormat is pinned: a newer pebble must not silently make directories unreadable for the former release.
const pebbleFormat = pebble.FormatColumnarBlocks

// logState is how far the index knows the log.
type logState struct {
	Seq  uint64 // of the last applied record
	Seg  uint32 // where it ends: replay goes on here
	Off  uint64
	Keys uint64
}

// segState is what the index knows of a segment.
type segState struct {
	size int64 // written bytes
	live int64 // bytes of values that keys refer to
	dead int64 // bytes that nobody needs any more and that are not punched yet

	// Not stored.
	changed uint64 // sequence number of the last change
	fresh   bool   // has dead ranges that the last reaping did not see
}

// index is the pebble database and the totals over it. Reads are safe at any time; changes are ordered by mu.
type index struct {
	db      *pebble.DB
	fs      *indexFS
	flushed atomic.Uint64 // sequence number up to which the index is durable
	keys    atomic.Uint64
	used    atomic.Int64 // bytes of the log on disk
	bytes   atomic.Int64 // of the index itself, as of the last flush
	fresh   atomic.Int64 // bytes that died since the last reaping

	mu struct {
		sync.Mutex // no reader takes it
		state      logState
		segs       map[uint32]*segState
		edits      uint64 // pebble batches that changed something since the last flush
	}
}

// pebbleLogger sends pebble's words to slog, and its fatal ones to the store.
type pebbleLogger struct {
	log   *slog.Logger
	fatal func(error)
}

func (p pebbleLogger) Infof(string, ...any) {}
func (p pebbleLogger) Errorf(format string, args ...any) {
	p.log.Error("osd index", "text", fmt.Sprintf(format, args...))
}

// Fatalf must not end the process: five other disks live in it.
func (p pebbleLogger) Fatalf(format string, args ...any) {
	p.fatal(fmt.Errorf("index: %s", fmt.Sprintf(format, args...)))
}

func openIndex(dir string, fsys *indexFS, shared *Shared, log *slog.Logger, fatal func(error)) (*index, error) {
	o := &pebble.Options{
		FS:                          fsys,
		Logger:                      pebbleLogger{log, fatal},
		DisableWAL:                  true, // the data log is the log
		DisableTableStats:           true, // on a disk that cannot be read their collection spins
		FormatMajorVersion:          pebbleFormat,
		MemTableSize:                1 << 20,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       64,
		LBaseMaxBytes:               16 << 20,
		MaxManifestFileSize:         1 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
	}
	cs := &compactions{fs: fsys, running: true}
	o.Experimental.CompactionScheduler = cs
	o.EventListener = &pebble.EventListener{
		BackgroundError: fsys.mark,
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			log.Error("osd index is corrupt", "info", i.String())
		},
	}
	if shared != nil {
		o.Cache, o.FileCache = shared.cache, shared.files
	} else {
		o.CacheSize = defaultCache
	}
	for i := range o.Levels {
		l := &o.Levels[i]
		// Sums do not compress; a lookup should read little.
		l.Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
		l.BlockSize = 8 << 10
		l.FilterPolicy = bloom.FilterPolicy(10)
	}
	var db *pebble.DB
	err := fsys.guard(func() (err error) {
		db, err = pebble.Open(dir, o)
		return err
	})
	if err != nil {
		if errors.Is(err, pebble.ErrCorruption) {
			return nil, fmt.Errorf("open index: %w: %w", err, ErrCorrupt)
		}
		return nil, fmt.Errorf("open index: %w", err)
	}
	cs.enable()
	x := &index{db: db, fs: fsys}
	x.mu.segs = map[uint32]*segState{}
	if err := x.load(); err != nil {
		return nil, errors.Join(err, x.close())
	}
	return x, nil
}

// close ends pebble.
func (x *index) close() error { return x.fs.guard(x.db.Close) }

// load reads the state and the segments.
func (x *index) load() error {
	v, closer, err := x.db.Get([]byte{prefixState})
	if errors.Is(err, pebble.ErrNotFound) {
		return nil // a new one
	}
	if err != nil {
		return fmt.Errorf("index state: %w", err)
	}
	d := frame.NewDecoder(v)
	if f := d.Uvarint(); d.Err() == nil && f != indexFormat {
		return errors.Join(fmt.Errorf("index format %d, this program knows %d: %w", f, indexFormat, frame.ErrVersion), closer.Close())
	}
	x.mu.state = logState{Seq: d.Uvarint(), Seg: uint32(d.Uvarint()), Off: d.Uvarint(), Keys: d.Uvarint()}
	if err := errors.Join(d.Finish(), closer.Close()); err != nil {
		return fmt.Errorf("index state: %w", err)
	}
	x.flushed.Store(x.mu.state.Seq)
	x.keys.Store(x.mu.state.Keys)
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixSegment}, UpperBound: []byte{prefixSegment + 1}})
	if err != nil {
		return fmt.Errorf("index segments: %w", err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		d := frame.NewDecoder(it.Value())
		s := &segState{size: int64(d.Uvarint()), live: int64(d.Uvarint()), dead: int64(d.Uvarint()), fresh: true}
		if len(it.Key()) != 5 || d.Finish() != nil {
			return errors.Join(fmt.Errorf("index segment %x: %w", it.Key(), ErrCorrupt), it.Close())
		}
		x.mu.segs[binary.BigEndian.Uint32(it.Key()[1:])] = s
		x.used.Add(segmentHeader + s.live + s.dead)
	}
	x.measure()
	return it.Close()
}

func (x *index) measure() { x.bytes.Store(int64(x.db.Metrics().DiskSpaceUsage())) }

func userKey(dst, key []byte) []byte { return append(append(dst, prefixUser), key...) }

func segKey(seg uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixSegment}, seg)
}

func deadKey(seg uint32, off uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32([]byte{prefixDead}, seg), off)
}

// get looks a key up. The entry is valid until done is called; found tells whether there is one.
func (x *index) get(key []byte) (e entry, done func(), found bool, err error) {
	var buf [MaxKey + 1]byte
	v, closer, err := x.db.Get(userKey(buf[:0], key))
	if errors.Is(err, pebble.ErrNotFound) {
		return entry{}, nil, false, nil
	}
	if err != nil {
		return entry{}, nil, false, fmt.Errorf("index lookup of %x: %w: %w", key, err, ErrCorrupt)
	}
	release := func() { _ = closer.Close() } // never fails
	e, err = parseEntry(v)
	if err != nil {
		release()
		return entry{}, nil, false, fmt.Errorf("index lookup of %x: %w: %w", key, err, ErrCorrupt)
	}
	return e, release, true, nil
}

// edit is a change of the index being put together, under mu.
type edit struct {
	x     *index
	b     *pebble.Batch
	segs  map[uint32]struct{} // touched
	local map[string][]byte   // what the edit itself did to keys; nil: deleted
	used  int64
	keys  int64
	seq   uint64
}

func (e *edit) seg(no uint32) *segState {
	s := e.x.mu.segs[no]
	if s == nil {
		s = &segState{}
		e.x.mu.segs[no] = s
		e.used += segmentHeader
	}
	s.changed = e.seq
	e.segs[no] = struct{}{}
	return s
}

// kill marks a range as dead.
func (e *edit) kill(seg uint32, off uint64, n int64) error {
	s := e.seg(seg)
	s.dead += n
	s.fresh = true
	e.x.fresh.Add(n)
	return e.b.Set(deadKey(seg, off), binary.AppendUvarint(nil, uint64(n)), nil)
}

// forget accounts for the end of what the key held so far.
func (e *edit) forget(key []byte) (existed bool, err error) {
	old, known := e.local[string(key)]
	if !known {
		var buf [MaxKey + 1]byte
		v, closer, err := e.x.db.Get(userKey(buf[:0], key))
		if errors.Is(err, pebble.ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		defer closer.Close() //nolint:errcheck // never fails
		old = v
	}
	if old == nil {
		return false, nil
	}
	was, err := parseEntry(old)
	if err != nil {
		return false, err
	}
	if n := was.padded(); n > 0 {
		e.seg(was.seg).live -= n // dead, but still in use until it is punched
		if err := e.kill(was.seg, was.off, n); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (e *edit) do(o *op) error {
	existed, err := e.forget(o.key)
	if err != nil {
		return fmt.Errorf("index entry of %x: %w", o.key, err)
	}
	var buf [MaxKey + 1]byte
	k := userKey(buf[:0], o.key)
	if o.kind == opDelete {
		if existed {
			e.keys--
			e.local[string(o.key)] = nil
			return e.b.Delete(k, nil)
		}
		return nil
	}
	if !existed {
		e.keys++
	}
	e.local[string(o.key)] = o.entry
	if o.kind == opPut {
		n := alignUp(int64(entrySize(o.entry)))
		e.seg(entrySegment(o.entry)).live += n
		e.used += n
	}
	return e.b.Set(k, o.entry, nil)
}

func entrySegment(e []byte) uint32 { return binary.LittleEndian.Uint32(e[1:]) }

func entrySize(e []byte) uint64 {
	n, _ := binary.Uvarint(entryBody(e))
	return n
}

// apply makes the changes of a record visible. end is where the record ends.
func (x *index) apply(r recordInfo, header int64, ops []op) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := &edit{x: x, b: x.db.NewBatch(), segs: map[uint32]struct{}{}, local: map[string][]byte{}, seq: r.Seq}
	for i := range ops {
		if err := e.do(&ops[i]); err != nil {
			return errors.Join(err, e.b.Close())
		}
	}
	// The header is needed for replay only.
	if err := e.kill(r.Segment, r.Off, header); err != nil {
		return errors.Join(err, e.b.Close())
	}
	e.used += header
	end := r.Off + uint64(header) + r.Values
	e.seg(r.Segment).size = int64(end)
	st := x.mu.state
	st.Seq, st.Seg, st.Off = r.Seq, r.Segment, end
	st.Keys = uint64(int64(st.Keys) + e.keys)
	if err := e.commit(st); err != nil {
		return err
	}
	return nil
}

// commit writes the state, the touched segments and the edit.
func (e *edit) commit(st logState) error {
	v := binary.AppendUvarint(nil, indexFormat)
	for _, n := range []uint64{st.Seq, uint64(st.Seg), st.Off, st.Keys} {
		v = binary.AppendUvarint(v, n)
	}
	err := e.b.Set([]byte{prefixState}, v, nil)
	for no := range e.segs {
		if s := e.x.mu.segs[no]; s != nil && err == nil {
			v := binary.AppendUvarint(nil, uint64(s.size))
			v = binary.AppendUvarint(v, uint64(s.live))
			err = e.b.Set(segKey(no), binary.AppendUvarint(v, uint64(s.dead)), nil)
		}
	}
	if err == nil {
		err = e.b.Commit(pebble.NoSync)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("index commit: %w", err), e.b.Close())
	}
	e.x.mu.state = st
	e.x.mu.edits++
	e.x.keys.Store(st.Keys)
	e.x.used.Add(e.used)
	return e.b.Close()
}

// flush makes durable what is applied, or fails because the index is frozen.
func (x *index) flush() error {
	x.mu.Lock()
	seq, edits := x.mu.state.Seq, x.mu.edits
	x.mu.Unlock()
	if edits == 0 {
		return nil
	}
	err := x.fs.guard(x.db.Flush)
	if err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	x.mu.Lock()
	x.mu.edits -= edits
	x.mu.Unlock()
	x.flushed.Store(max(seq, x.flushed.Load()))
	return x.fs.guard(func() error {
		x.measure()
		return nil
	})
}

// scan calls fn for the entries in [from, to) in order until it returns false. The bytes are the
// iterator's: they hold until fn returns.
func (x *index) scan(ctx context.Context, from, to []byte, fn func(key []byte, e entry) bool) error {
	lower, upper := userKey(nil, from), []byte{prefixUser + 1}
	if to != nil {
		upper = userKey(nil, to)
	}
	if bytes.Compare(lower, upper) >= 0 {
		return nil
	}
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return fmt.Errorf("index scan: %w", err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, it.Close())
		}
		e, err := parseEntry(it.Value())
		if err != nil {
			return errors.Join(fmt.Errorf("index entry of %x: %w: %w", it.Key()[1:], err, ErrCorrupt), it.Close())
		}
		if !fn(it.Key()[1:], e) {
			break
		}
	}
	if err := it.Close(); err != nil {
		return fmt.Errorf("index scan: %w: %w", err, ErrCorrupt)
	}
	return nil
}
