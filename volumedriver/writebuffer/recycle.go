package writebuffer

import (
	"errors"
	"os"
	"slices"

	"scoria/internal/vfs"
)

// A log that fills its Pool gets a new segment by taking the file of its oldest cached one, which
// had to go anyway: its blocks are allocated and its pages are in the page cache. To delete a file
// of 8 MiB and to fill a new one costs the file system's journal, and the writers that wait for
// it, more than the writing.
//
// What the old segment left in the file is told from new records as FORMAT.md says.

// reuse takes the file of the oldest cached segment for a new one with the name path, if the
// Pool would delete one soon. It returns nil when there is none, or when that failed.
func (b *Buffer) reuse(path string) (f vfs.File, size int64) {
	b.mu.Lock()
	segs := *b.segs.Load()
	if len(segs) == 0 || !segs[0].enlisted || segs[0].evicting || !b.pool.lend(segs[0].size) {
		b.mu.Unlock()
		return nil, 0
	}
	seg := segs[0]
	seg.evicting = true
	rest := slices.Clone(segs[1:])
	b.segs.Store(&rest)
	b.dropUnsyncedLocked(seg)
	b.mu.Unlock()
	err := b.pool.files.retire(seg)
	b.dropMemory(seg)
	if rerr := b.opts.FS.Rename(seg.path, path); rerr != nil {
		b.pool.unlend(seg.size, false)
		b.mu.Lock()
		seg.evicting = false
		b.mu.Unlock()
		err = errors.Join(err, rerr, b.evictSegment(seg)) // if this fails, the Pool tries again
		b.opts.Logger.Warn("a cached segment's file cannot be reused; it is deleted", "file", seg.path, "err", err)
		return nil, 0
	}
	b.mu.Lock()
	b.mu.cached -= seg.size
	b.mu.Unlock()
	b.pool.reused(b, seg)
	if f, err = b.opts.FS.OpenFile(path, os.O_RDWR, 0); err == nil {
		if size, err = f.Size(); err == nil {
			b.tail.lent = seg.size
			return f, size
		}
		err = errors.Join(err, f.Close())
	}
	b.opts.Logger.Warn("a cached segment's file cannot be reused; a new one is made", "file", path, "err", err)
	b.pool.unlend(seg.size, true)
	return nil, 0
}

// lend tells whether a cached segment of n bytes should be overwritten now. Its bytes
// count until unlend, as what is written over it does, so that the count is never too small.
func (p *Pool) lend(n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ok := p.mu.total > p.opts.reuseAbove && (p.mu.lent+n <= p.opts.HardBytes/16 || p.mu.lent == 0 && n <= p.opts.HardBytes/8)
	if ok {
		p.mu.lent += n
	}
	return ok
}

// reused takes a lent segment off the cached ones. Its bytes still count.
func (p *Pool) reused(b *Buffer, seg *segment) {
	p.mu.Lock()
	p.mu.cached = slices.DeleteFunc(p.mu.cached, func(e evictable) bool { return e.seg == seg && e.b == b })
	p.mu.stats.Reused++
	p.mu.Unlock()
}

// unlend ends a lend. gone tells that nothing of the old segment is on the disk any more.
func (p *Pool) unlend(n int64, gone bool) {
	p.mu.Lock()
	p.mu.lent -= n
	if gone {
		p.mu.total -= n
	}
	p.mu.Unlock()
	p.wake()
}
