package osd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"scoria/internal/vfs"
)

const (
	lockFile    = "lock"
	indexDirNam = "index"
	// maxOpenSegments bounds the open files of a store's readers.
	maxOpenSegments = 96
)

// Store keeps one disk: a log of records in preallocated segments, and an index of it. It is an API.
type Store struct {
	opts Options
	dir  string
	fs   vfs.FS
	log  *slog.Logger
	lock io.Closer

	idMu sync.Mutex // orders claims; held over the write of the identity
	id   atomic.Pointer[identity]

	index *index
	segs  *segments
	space space
	queue queue
	over  overlay
	slots *semaphore.Weighted // bytes of waiting batches

	durable atomic.Uint64 // sequence number up to which records are synced
	written chan *group   // from the writer to the syncer
	upkeep  upkeep

	failure atomic.Pointer[string] // why it refuses writes
	failed  chan struct{}          // closed with the first failure
	quit    chan struct{}          // closed by Close, when the last group is done
	stats   counters

	calls    sync.WaitGroup // API calls that use the index
	loops    sync.WaitGroup // writer and syncer
	maintain sync.WaitGroup
	life     struct {
		sync.Mutex
		closed bool
	}
	closeOnce sync.Once
	closeErr  error
}

var _ API = (*Store)(nil)

type counters struct {
	applies, puts, deletes, reads, readBlocks atomic.Uint64
	bytesWritten, bytesRead, syncs, groups    atomic.Uint64
	assertFailures, corruptBlocks, wrote      atomic.Uint64
}

// Open opens the store in dir, which it makes if there is none, and recovers it to the state
// of the last acknowledged batch at least. Errors: vfs.ErrLocked (another process or Store has it),
// ErrWrongOSD (another identity than Options.UUID), frame.ErrMagic and frame.ErrVersion (foreign or newer),
// ErrCorrupt (the index is damaged).
func Open(dir string, opts Options) (*Store, error) {
	if err := opts.ensureDefaults(); err != nil {
		return nil, fmt.Errorf("osd %s: %w", dir, err)
	}
	s := &Store{
		opts:    opts,
		dir:     dir,
		fs:      opts.FS,
		log:     opts.Logger.With("osd", dir),
		segs:    newSegments(opts.FS, dir, maxOpenSegments),
		slots:   semaphore.NewWeighted(opts.QueueBytes),
		written: make(chan *group, maxInFlight),
		failed:  make(chan struct{}),
		quit:    make(chan struct{}),
	}
	s.queue.init()
	s.upkeep.wake = make(chan struct{}, 1)
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("osd %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) open() (err error) {
	if err := makeDir(s.fs, s.dir); err != nil {
		return err
	}
	if s.lock, err = vfs.Lock(s.fs, path.Join(s.dir, lockFile)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			close(s.quit)
			s.segs.close()
			if s.index != nil {
				err = errors.Join(err, s.index.close())
			}
			err = errors.Join(err, s.lock.Close())
		}
	}()
	if err := s.openIdentity(); err != nil {
		return err
	}
	s.space.init(s)
	fsys := &indexFS{fs: s.fs, onFull: s.diskFull, fatal: s.fail, done: s.quit, frozen: make(chan struct{})}
	if s.index, err = openIndex(path.Join(s.dir, indexDirNam), fsys, s.opts.Shared, s.log, s.fail); err != nil {
		return err
	}
	w, err := s.recover()
	if err == nil && fsys.isFrozen() {
		err = s.failedErr()
	}
	if err != nil {
		return err
	}
	s.space.refresh()
	s.loops.Go(w.run)
	s.loops.Go(s.runSyncer)
	s.maintain.Go(s.runMaintainer)
	return nil
}

// makeDir makes a directory and its missing parents, durably.
func makeDir(fsys vfs.FS, dir string) error {
	_, err := fsys.Stat(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := path.Dir(dir)
	if parent != dir {
		if err := makeDir(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return fsys.SyncDir(parent)
}

func (s *Store) openIdentity() error {
	id, err := readIdentity(s.fs, s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.checkNew(); err != nil {
			return err
		}
		id = identity{UUID: s.opts.UUID}
		if id.UUID == "" {
			id.UUID = newUUID()
		}
		err = writeIdentity(s.fs, s.dir, id)
	}
	if err != nil {
		return err
	}
	if s.opts.UUID != "" && s.opts.UUID != id.UUID {
		return fmt.Errorf("it is %s, not %s: %w", id.UUID, s.opts.UUID, ErrWrongOSD)
	}
	s.id.Store(&id)
	return nil
}

// checkNew refuses to make a store among the files of something else, or over one that lost its identity.
func (s *Store) checkNew() error {
	entries, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch e.Name() {
		case lockFile, identityFile + ".tmp", "lost+found":
		default:
			return fmt.Errorf("the directory holds %q but no OSD identity; give an empty directory, or put the file %q back: %w",
				e.Name(), identityFile, ErrCorrupt)
		}
	}
	return nil
}

// fail makes the store refuse writes from now on: after an I/O error nobody knows what is on the disk.
func (s *Store) fail(err error) {
	text := err.Error()
	if s.failure.CompareAndSwap(nil, &text) {
		s.log.Error("osd refuses writes after an error; reads go on", "err", err)
		close(s.failed)
	}
}

func (s *Store) failedErr() error {
	if why := s.failure.Load(); why != nil {
		return fmt.Errorf("osd %s refuses writes: %s: %w", s.dir, *why, ErrUnavailable)
	}
	return nil
}

// enter begins an API call; leave ends it.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.life.Lock()
	defer s.life.Unlock()
	if s.life.closed {
		return fmt.Errorf("osd %s is closed: %w", s.dir, ErrUnavailable)
	}
	s.calls.Add(1)
	return nil
}

func (s *Store) leave() { s.calls.Done() }

// UUID tells the identity.
func (s *Store) UUID() string { return s.id.Load().UUID }

// Info implements API.
func (s *Store) Info(ctx context.Context) (Info, error) {
	if err := s.enter(ctx); err != nil {
		return Info{}, err
	}
	defer s.leave()
	s.space.refresh()
	id := s.id.Load()
	in := Info{
		UUID: id.UUID, Backend: id.Backend, ID: id.ID,
		Capacity: s.space.capacity.Load(),
		Used:     s.space.used(),
		Keys:     s.index.keys.Load(),
		Full:     s.space.full.Load(),
		Stats: Stats{
			Applies: s.stats.applies.Load(), Puts: s.stats.puts.Load(), Deletes: s.stats.deletes.Load(),
			Reads: s.stats.reads.Load(), ReadBlocks: s.stats.readBlocks.Load(),
			BytesWritten: s.stats.bytesWritten.Load(), BytesRead: s.stats.bytesRead.Load(),
			Syncs: s.stats.syncs.Load(), Groups: s.stats.groups.Load(),
			AssertFailures: s.stats.assertFailures.Load(), CorruptBlocks: s.stats.corruptBlocks.Load(),
		},
	}
	if why := s.failure.Load(); why != nil {
		in.Failed = *why
	}
	return in, nil
}

// Claim implements API.
func (s *Store) Claim(ctx context.Context, backend string, id uint32) error {
	if err := ValidateClaim(backend, id); err != nil {
		return err
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	if err := s.failedErr(); err != nil {
		return err
	}
	s.idMu.Lock()
	defer s.idMu.Unlock()
	now := *s.id.Load()
	switch {
	case now.Backend == backend && now.ID == id:
		return nil
	case now.Backend != "":
		return fmt.Errorf("osd %s is claimed by backend %q as %d: %w", now.UUID, now.Backend, now.ID, ErrWrongOSD)
	}
	now.Backend, now.ID = backend, id
	if err := writeIdentity(s.fs, s.dir, now); err != nil {
		return fmt.Errorf("claim: %w: %w", err, ErrUnavailable)
	}
	s.id.Store(&now)
	return nil
}

// Close refuses new calls, finishes those that run, makes the index durable and waits for
// everything. A second Close waits and returns the same.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.life.Lock()
		s.life.closed = true
		s.life.Unlock()
		s.calls.Wait()
		s.queue.close()
		s.loops.Wait()
		close(s.quit)
		s.maintain.Wait()
		if s.failure.Load() == nil {
			s.pass(true)
		}
		s.segs.close()
		err := s.index.close()
		s.closeErr = errors.Join(err, s.lock.Close())
	})
	return s.closeErr
}
