package writebuffer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"scoria/internal/vfs"
	"scoria/volumedriver/sco"
	"scoria/volumedriver/tlog"
)

// Buffer is the log of one volume. All methods are safe for concurrent use.
type Buffer struct {
	opts Options
	pool *Pool

	// q orders appenders: whoever finds no leader becomes it, and appends for all.
	q struct {
		sync.Mutex
		head, tail *request
		leading    bool
		closed     bool
		idle       chan struct{} // closed by the last leader, when Close waits for it
	}
	tail tail // the leader's

	segs    atomic.Pointer[[]*segment] // by number; changed under mu by copying
	lastSeq atomic.Uint64              // handed to the kernel and applied
	synced  atomic.Uint64

	// mu guards the segments' states. No I/O under it.
	mu struct {
		sync.Mutex
		unsynced []*segment // in order
		newNames int        // files created since the last sync of the directory
		dirty    int64      // bytes of segments that are not disposable
		cached   int64
		closed   bool
	}
	sync   syncState
	rhythm rhythm

	// note guards what NoteSynced knows; it writes a small file under it.
	note struct {
		sync.Mutex
		seen  uint64
		noted atomic.Uint64 // changed under the lock
	}

	openBytes atomic.Int64 // of the open SCO; for the Pool
	pressed   atomic.Bool  // Pressure was called for the open SCO
	waiters   []*waiter    // guarded by Pool.mu

	stats struct {
		records, clusters, userBytes, writtenBytes, batches, directBytes atomic.Uint64
		syncs, syncCalls, reads, spaceWaits, aheadBytes                  atomic.Uint64
	}
	mended    atomic.Bool // a mark of a failed sync is to be removed after the next one
	closeOnce sync.Once
	closeErr  error
}

// tail is where the next record goes. Only the leader touches it.
type tail struct {
	nextSCO  uint64
	seq      uint64 // of the last record
	chain    uint32 // its checksum
	seg      *segment
	file     *handle  // of seg, for writing
	direct   vfs.File // of seg with O_DIRECT; nil until needed
	listed   bool     // seg has its header and is in Buffer.segs
	size     int64
	clusters uint32
	heads    int64 // bytes of headers
	section  tlog.Section
	tainted  bool  // bytes behind size must be cut off before the next write
	noDirect bool  // the file system refuses O_DIRECT
	zeroed   int64 // up to here the file has zeroes behind size that are on the disk; see extend
	noAhead  bool  // of seg: extend failed
	lent     int64 // size of the cached segment whose file seg has; 0: a new one
}

func newBuffer(opts Options) *Buffer {
	b := &Buffer{opts: opts, pool: opts.Pool}
	b.segs.Store(new([]*segment))
	return b
}

// Create makes an empty log in Options.Dir, whose first record will have number firstSeq.
// fs.ErrExist when there is a log already.
func Create(ctx context.Context, opts Options, firstSeq uint64) (*Buffer, error) {
	opts.ensureDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if firstSeq == 0 {
		return nil, fmt.Errorf("write buffer %s: the first record must not be 0: %w", opts.Dir, ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := opts.FS.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create write buffer: %w", err)
	}
	// The name of the log's directory counts too; its parent is the caller's matter.
	if err := opts.FS.SyncDir(filepath.Dir(opts.Dir)); err != nil {
		return nil, fmt.Errorf("create write buffer: %w", err)
	}
	files, err := listSegments(opts.FS, opts.Dir)
	if err != nil {
		return nil, err
	}
	if err := removeRemains(opts, files); err != nil {
		return nil, err
	}
	b := newBuffer(opts)
	b.tail.nextSCO, b.tail.seq = opts.MinSCO, firstSeq-1
	b.lastSeq.Store(firstSeq - 1)
	b.synced.Store(firstSeq - 1)
	if err := b.pool.register(b); err != nil {
		return nil, err
	}
	if err := b.plant(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("create write buffer %s: %w", opts.Dir, err), b.Close())
	}
	return b, nil
}

// removeRemains deletes what a crash during Create left; fs.ErrExist when there is a log.
func removeRemains(opts Options, files []segmentFile) error {
	for _, f := range files {
		if f.size > headerSize {
			return fmt.Errorf("create write buffer: %s holds data: %w", f.path, fs.ErrExist)
		}
		if _, _, err := readSegmentHeader(opts.FS, f.path); err == nil {
			return fmt.Errorf("create write buffer: %s: %w", f.path, fs.ErrExist)
		}
	}
	for _, f := range files {
		if err := opts.FS.Remove(f.path); err != nil {
			return fmt.Errorf("create write buffer: %w", err)
		}
	}
	return nil
}

// plant makes a new segment that has a header only, durably. The caller is the only user
// of the tail.
func (b *Buffer) plant(ctx context.Context) error {
	if err := b.openSegment(); err != nil {
		return err
	}
	s := takeScratch()
	defer giveScratch(s)
	s.begin(b)
	s.segmentHeader(b)
	if err := s.flush(b); err != nil {
		return err
	}
	return b.syncTo(ctx, syncAlways)
}

// RemoveAll removes the log in dir and the directory. The log must not be open. What is
// not there is no error.
func RemoveAll(ctx context.Context, fsys vfs.FS, dir string) error {
	files, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove write buffer: %w", err)
	}
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, ok := parseSegmentName(f.Name()); !ok && f.Name() != noteName && f.Name() != failedName {
			continue
		}
		if err := fsys.Remove(dir + "/" + f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove write buffer: %w", err)
		}
	}
	if err := fsys.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove write buffer: %w", err)
	}
	return nil
}

// openSegment starts a new segment. Its header goes with the first write.
func (b *Buffer) openSegment() error {
	t := &b.tail
	if t.nextSCO > sco.MaxNumber {
		return fmt.Errorf("write buffer %s: no SCO numbers are left: %w", b.opts.Dir, ErrInvalid)
	}
	path := segmentPath(b.opts.Dir, t.nextSCO)
	f, size := b.reuse(path)
	if f == nil {
		// The number was never used; a file of this name is what a failed attempt left.
		var err error
		if f, err = b.opts.FS.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
			return fmt.Errorf("new segment: %w", err)
		}
	}
	seg := &segment{number: t.nextSCO, path: path, firstSeq: t.seq + 1, lastSeq: t.seq, state: stateOpen}
	seg.indexed.Store(true)
	h := &handle{f: f, seg: seg}
	h.refs.Store(2) // the writer's, and the segment's until it is synced and in the cache
	seg.handle.Store(h)
	t.nextSCO++
	t.seg, t.file, t.listed, t.tainted = seg, h, false, false
	t.size, t.clusters, t.heads = 0, 0, 0
	t.zeroed, t.noAhead = size, false // what is there is as good as zeroes: blocks that have been written
	t.section.Reset(seg.number)
	return nil
}

// closeSegment ends the open segment.
func (b *Buffer) closeSegment() {
	t := &b.tail
	seg := t.seg
	if seg == nil {
		return
	}
	var entries []byte
	if t.section.Entries() > 0 {
		entries = append([]byte(nil), t.section.Bytes()...)
	}
	t.section = tlog.Section{} // an idle volume keeps no memory
	b.trimAhead()
	b.releaseTail()
	b.openBytes.Store(0)
	b.pressed.Store(false)
	soon := b.pool.Fill() == FillHigh // then what is old is uploaded and removed before long, and need not be written at all
	b.mu.Lock()
	seg.state, seg.entries = stateClosed, entries
	synced := seg.syncedSize == seg.size
	if synced {
		b.dropUnsyncedLocked(seg)
	}
	free := b.retireLocked(seg)
	var late []*segment
	if !soon {
		late = b.lateLocked()
	}
	b.mu.Unlock()
	if synced {
		b.pool.files.adopt(seg)
	}
	b.pool.writeLate(b, late)
	b.pool.enlist(b, free)
	if entries != nil {
		b.opts.Closed(seg.number)
	}
}

// releaseTail gives the writer's files back.
func (b *Buffer) releaseTail() {
	t := &b.tail
	var err error
	if t.direct != nil {
		err = t.direct.Close()
	}
	if err = errors.Join(err, t.file.unref()); err != nil {
		b.opts.Logger.Warn("closing a segment failed; what is durable is decided by its sync", "file", t.seg.path, "err", err)
	}
	if !t.listed { // nothing was ever written to it
		err := errors.Join(t.seg.handle.Swap(nil).unref(), b.opts.FS.Remove(t.seg.path))
		if err != nil {
			b.opts.Logger.Warn("removing an empty segment failed", "file", t.seg.path, "err", err)
		}
	}
	if t.lent > 0 {
		b.pool.unlend(t.lent, true)
	}
	t.seg, t.file, t.direct, t.lent = nil, nil, nil, 0
}

// retireLocked does what follows a change of a segment's state: a closed one without records
// is disposable, and disposable ones may be evicted once a later one is durable. It
// returns those that became evictable.
func (b *Buffer) retireLocked(seg *segment) []*segment {
	if seg.state == stateClosed && seg.lastSeq < seg.firstSeq {
		b.disposeLocked(seg)
	}
	return b.evictableLocked()
}

// disposeLocked makes a closed segment a read cache.
func (b *Buffer) disposeLocked(seg *segment) {
	seg.state, seg.entries = stateDisposable, nil
	b.mu.dirty -= seg.size
	b.mu.cached += seg.size
	uploaded := int64(0)
	if seg.uploaded {
		uploaded = seg.size
	}
	b.pool.disposable(seg.size, uploaded)
}

// evictableLocked returns the disposable segments in front of a durable one that are not
// enlisted yet, and marks them.
func (b *Buffer) evictableLocked() []*segment {
	segs := *b.segs.Load()
	keep := len(segs) - 1 // the last segment with a durable header stays: it holds the log's end
	for keep >= 0 && segs[keep].syncedSize == 0 {
		keep--
	}
	var out []*segment
	for _, s := range segs[:max(keep, 0)] {
		if s.state != stateDisposable {
			break
		}
		if !s.enlisted {
			s.enlisted = true
			out = append(out, s)
		}
	}
	return out
}

// evictSegment removes a disposable segment. The Pool calls it.
func (b *Buffer) evictSegment(seg *segment) error {
	b.mu.Lock()
	if seg.evicting || b.mu.closed {
		b.mu.Unlock() // gone, or somebody else does it, or the owner wants it to stay
		return nil
	}
	seg.evicting = true
	segs := slices.DeleteFunc(slices.Clone(*b.segs.Load()), func(s *segment) bool { return s == seg })
	b.segs.Store(&segs)
	b.dropUnsyncedLocked(seg)
	b.mu.Unlock()
	err := b.pool.files.remove(b.opts.FS, seg)
	b.dropMemory(seg)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		seg.evicting = false
		return fmt.Errorf("evict: %w", err)
	}
	if !b.mu.closed {
		b.mu.cached -= seg.size
		b.pool.uncache(seg.size)
	}
	return nil
}

func (b *Buffer) dropUnsyncedLocked(seg *segment) {
	for i, s := range b.mu.unsynced {
		if s == seg {
			b.mu.unsynced = append(b.mu.unsynced[:i:i], b.mu.unsynced[i+1:]...)
			return
		}
	}
}

// dropMemory gives the copy of a segment's data back.
func (b *Buffer) dropMemory(seg *segment) {
	seg.mu.Lock()
	mem := seg.mu.mem
	seg.mu.mem = nil
	seg.mu.Unlock()
	b.pool.giveMemory(mem)
}

// segment finds an SCO's segment; nil when it is not here.
func (b *Buffer) segment(number uint64) *segment {
	segs := *b.segs.Load()
	if len(segs) == 0 || number < segs[0].number {
		return nil
	}
	// Numbers are nearly always without gaps.
	if i := number - segs[0].number; i < uint64(len(segs)) && segs[i].number == number {
		return segs[i]
	}
	lo, hi := 0, len(segs)
	for lo < hi {
		if mid := (lo + hi) / 2; segs[mid].number < number {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(segs) && segs[lo].number == number {
		return segs[lo]
	}
	return nil
}

// LastSeq returns the number of the last record that was appended.
func (b *Buffer) LastSeq() uint64 { return b.lastSeq.Load() }

// SyncedSeq returns the number of the last record that is known to be durable.
func (b *Buffer) SyncedSeq() uint64 { return b.synced.Load() }

// Err returns the reason (ErrFailed) why the buffer takes no more records; nil when it does.
func (b *Buffer) Err() error { return b.sync.failure() }

// DirtyBytes returns the bytes in segments that are not disposable.
func (b *Buffer) DirtyBytes() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.dirty
}

// OldestDirtySeq returns the first record that is not disposable; 0 when there is none.
func (b *Buffer) OldestDirtySeq() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range *b.segs.Load() {
		if s.state != stateDisposable && s.lastSeq >= s.firstSeq {
			return s.firstSeq
		}
	}
	return 0
}

// Stats returns the figures of the moment.
func (b *Buffer) Stats() Stats {
	b.mu.Lock()
	s := Stats{DirtyBytes: b.mu.dirty, CachedBytes: b.mu.cached}
	segs := *b.segs.Load()
	if n := len(segs); n > 0 && segs[n-1].state == stateOpen {
		s.OpenSCO = segs[n-1].number
	}
	b.mu.Unlock()
	s.Segments = len(segs)
	s.LastSeq, s.SyncedSeq = b.LastSeq(), b.SyncedSeq()
	c := &b.stats
	s.Records, s.Clusters, s.UserBytes, s.WrittenBytes = c.records.Load(), c.clusters.Load(), c.userBytes.Load(), c.writtenBytes.Load()
	s.Batches, s.DirectBytes, s.AheadBytes = c.batches.Load(), c.directBytes.Load(), c.aheadBytes.Load()
	s.Syncs, s.SyncCalls, s.Reads, s.SpaceWaits = c.syncs.Load(), c.syncCalls.Load(), c.reads.Load(), c.spaceWaits.Load()
	return s
}

// Close refuses new calls, waits for those that append or sync, and closes the files. It does
// not sync, and leaves all on the disk. Idempotent.
func (b *Buffer) Close() error {
	b.closeOnce.Do(func() {
		b.q.Lock()
		b.q.closed = true
		idle := b.q.idle
		if b.q.leading {
			idle = make(chan struct{})
			b.q.idle = idle
		}
		b.q.Unlock()
		if idle != nil {
			<-idle
		}
		b.sync.close()
		b.note.Lock()
		if err := b.noteLocked(b.synced.Load()); err != nil {
			b.opts.Logger.Warn("no note of what was synced; a loss at the log's end would not be noticed", "err", err)
		}
		b.note.Unlock()
		var errs []error
		if b.tail.seg != nil {
			b.trimAhead()
			b.releaseTail()
		}
		b.mu.Lock()
		segs := *b.segs.Load()
		b.segs.Store(new([]*segment))
		dirty, cached := b.mu.dirty, b.mu.cached
		uploaded := int64(0)
		for _, s := range segs {
			if s.uploaded && s.state != stateDisposable {
				uploaded += s.size
			}
		}
		b.mu.dirty, b.mu.cached, b.mu.unsynced, b.mu.closed = 0, 0, nil, true
		b.mu.Unlock()
		for _, s := range segs {
			b.dropMemory(s)
			errs = append(errs, b.pool.files.retire(s))
		}
		b.pool.forget(dirty, cached, uploaded)
		b.pool.unregister(b)
		b.closeErr = errors.Join(errs...)
	})
	return b.closeErr
}
