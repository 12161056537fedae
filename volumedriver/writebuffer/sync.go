package writebuffer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
)

// syncState is the group commit: one goroutine syncs for all that wait.
type syncState struct {
	mu      sync.Mutex
	running bool
	done    chan struct{} // closed at the end of the running sync; nil: nobody waits for it
	err     error         // the first failure sticks
	closed  bool
}

func (s *syncState) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// fail makes err the sticky failure.
func (s *syncState) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	return s.err
}

// close refuses later syncs and waits for the running one.
func (s *syncState) close() {
	s.mu.Lock()
	s.closed = true
	for s.running {
		ch := s.waitLocked()
		s.mu.Unlock()
		<-ch
		s.mu.Lock()
	}
	s.mu.Unlock()
}

func (s *syncState) waitLocked() chan struct{} {
	if s.done == nil {
		s.done = make(chan struct{})
	}
	return s.done
}

// Sync makes all that was appended before the call durable. Calls share syncs; appends go on
// meanwhile. After a failure it is ErrFailed for good. When ctx ends, the sync goes on.
func (b *Buffer) Sync(ctx context.Context) error {
	b.stats.syncCalls.Add(1)
	return b.syncTo(ctx, b.lastSeq.Load())
}

// syncAlways is a target of syncTo that no record has: new names and headers count too.
const syncAlways = ^uint64(0)

func (b *Buffer) syncTo(ctx context.Context, target uint64) error {
	return b.syncOnce(ctx, func() bool { return b.synced.Load() >= target }, b.syncNow)
}

// SyncEnd makes the end of the log durable where no part of its newest segment is, and nothing
// before it: then disposable segments may be removed, of which much was perhaps never
// written to the disk, and need not be. It makes no promise about any record.
func (b *Buffer) SyncEnd(ctx context.Context) error {
	return b.syncOnce(ctx, func() bool { return b.newestBare() == nil }, b.syncEnd)
}

// syncOnce runs a sync, one at a time, unless it is done.
func (b *Buffer) syncOnce(ctx context.Context, done func() bool, run func() error) error {
	s := &b.sync
	s.mu.Lock()
	for {
		switch {
		case s.err != nil:
			defer s.mu.Unlock()
			return s.err
		case s.closed:
			s.mu.Unlock()
			return fmt.Errorf("write buffer %s: %w", b.opts.Dir, ErrClosed)
		case done():
			s.mu.Unlock()
			return nil
		case !s.running:
			s.running = true
			s.mu.Unlock()
			err := run()
			s.mu.Lock()
			s.running = false
			if s.done != nil {
				close(s.done)
				s.done = nil
			}
			s.mu.Unlock()
			return err
		}
		ch := s.waitLocked()
		s.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("write buffer %s: sync: %w", b.opts.Dir, ctx.Err())
		}
		s.mu.Lock()
	}
}

// syncNow syncs every file with unsynced data in order, then the directory if it has new
// names. One call at a time.
func (b *Buffer) syncNow() error {
	type part struct {
		seg  *segment
		size int64
	}
	var few [4]part
	parts := few[:0]
	b.beat()
	target := b.lastSeq.Load() // before the sizes: they cover it
	b.mu.Lock()
	for _, seg := range b.mu.unsynced {
		parts = append(parts, part{seg, seg.size})
	}
	dir := b.mu.newNames
	b.mu.Unlock()
	for _, p := range parts {
		h, err := b.pool.files.acquire(b.opts.FS, p.seg)
		if errors.Is(err, fs.ErrNotExist) && p.seg.removed.Load() {
			continue // evicted: the object store has it
		}
		if err == nil {
			err = errors.Join(h.f.Sync(), h.unref())
			b.stats.syncs.Add(1)
		}
		if err != nil {
			return b.failed(fmt.Errorf("sync %s: %w", p.seg.path, err))
		}
	}
	if dir > 0 {
		if err := b.opts.FS.SyncDir(b.opts.Dir); err != nil {
			return b.failed(fmt.Errorf("sync directory %s: %w", b.opts.Dir, err))
		}
	}
	var adopt []*segment
	b.mu.Lock()
	for _, p := range parts {
		p.seg.syncedSize = p.size
		if p.seg.state != stateOpen && p.size == p.seg.size {
			b.dropUnsyncedLocked(p.seg)
			adopt = append(adopt, p.seg)
		}
	}
	b.mu.newNames -= dir // others may have come up meanwhile
	free := b.evictableLocked()
	b.mu.Unlock()
	for _, seg := range adopt {
		b.pool.files.adopt(seg)
	}
	b.pool.enlist(b, free)
	if b.synced.Load() < target {
		b.synced.Store(target)
	}
	b.unmark()
	return nil
}

// newestBare returns the newest segment if nothing of it is known to be durable.
func (b *Buffer) newestBare() *segment {
	b.mu.Lock()
	defer b.mu.Unlock()
	segs := *b.segs.Load()
	if n := len(segs); n > 0 && segs[n-1].syncedSize == 0 {
		return segs[n-1]
	}
	return nil
}

// syncEnd syncs the newest segment and the directory. syncNow does not run meanwhile.
func (b *Buffer) syncEnd() error {
	seg := b.newestBare()
	if seg == nil {
		return nil
	}
	b.mu.Lock()
	size, dir := seg.size, b.mu.newNames
	b.mu.Unlock()
	h, err := b.pool.files.acquire(b.opts.FS, seg)
	if err == nil {
		err = errors.Join(h.f.Sync(), h.unref())
		b.stats.syncs.Add(1)
	}
	if err != nil {
		return b.failed(fmt.Errorf("sync %s: %w", seg.path, err))
	}
	// The names of the segments in front of it, too: else they could be missing between it
	// and what is removed.
	if err := b.opts.FS.SyncDir(b.opts.Dir); err != nil {
		return b.failed(fmt.Errorf("sync directory %s: %w", b.opts.Dir, err))
	}
	b.mu.Lock()
	seg.syncedSize = size
	whole := seg.state != stateOpen && size == seg.size
	if whole {
		b.dropUnsyncedLocked(seg)
	}
	b.mu.newNames -= dir
	free := b.evictableLocked()
	b.mu.Unlock()
	if whole {
		b.pool.files.adopt(seg)
	}
	b.pool.enlist(b, free)
	return nil
}
