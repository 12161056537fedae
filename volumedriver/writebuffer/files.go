package writebuffer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"scoria/internal/vfs"
)

// handle is an open file with a count of its users. The cache (or the writer) holds one
// use; the file is closed when the last user is done.
type handle struct {
	f    vfs.File
	seg  *segment
	refs atomic.Int64
	used atomic.Bool // since the clock's hand came by
	// pooled: it is in the ring, or was. Set before the segment has it, by the cache.
	pooled atomic.Bool
}

func (h *handle) ref() bool {
	for {
		n := h.refs.Load()
		if n <= 0 {
			return false
		}
		if h.refs.CompareAndSwap(n, n+1) {
			if !h.used.Load() {
				h.used.Store(true)
			}
			return true
		}
	}
}

func (h *handle) unref() error {
	if h.refs.Add(-1) == 0 {
		return h.f.Close()
	}
	return nil
}

// fileCache bounds the files that are open for reading, over all buffers of a Pool. Files
// that have unsynced data are not in it: they stay open until they are synced, so that
// no write-back error is missed.
type fileCache struct {
	max int
	mu  struct {
		sync.Mutex
		ring []*handle
		hand int
	}
}

// acquire returns the open file of seg; call unref on it. fs.ErrNotExist when the
// segment was evicted.
func (c *fileCache) acquire(fsys vfs.FS, seg *segment) (*handle, error) {
	for {
		if h := seg.handle.Load(); h != nil && h.ref() {
			return h, nil
		}
		if seg.removed.Load() {
			return nil, fmt.Errorf("%s: %w", seg.path, fs.ErrNotExist)
		}
		f, err := fsys.OpenFile(seg.path, os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		h := &handle{f: f, seg: seg}
		h.refs.Store(2) // the cache's and the caller's
		if c.install(h) {
			return h, nil
		}
		if err := f.Close(); err != nil { // another one was faster, or the segment goes
			return nil, err
		}
	}
}

// install puts a handle into its segment and the ring; false when it may not.
func (c *fileCache) install(h *handle) bool {
	var victims []*handle
	c.mu.Lock()
	h.pooled.Store(true)
	if h.seg.removed.Load() || !h.seg.handle.CompareAndSwap(nil, h) {
		c.mu.Unlock()
		return false
	}
	c.mu.ring = append(c.mu.ring, h)
	for len(c.mu.ring) > c.max {
		victims = append(victims, c.victimLocked())
	}
	c.mu.Unlock()
	for _, v := range victims {
		if v.seg.handle.CompareAndSwap(v, nil) { // whoever takes it out gives its use back
			_ = v.unref() // it was only read (or is synced): a failing close loses nothing
		}
	}
	return true
}

// victimLocked takes the next handle out of the ring that was not used lately.
func (c *fileCache) victimLocked() *handle {
	for {
		if c.mu.hand >= len(c.mu.ring) {
			c.mu.hand = 0
		}
		h := c.mu.ring[c.mu.hand]
		if h.used.Swap(false) {
			c.mu.hand++
			continue
		}
		last := len(c.mu.ring) - 1
		c.mu.ring[c.mu.hand] = c.mu.ring[last]
		c.mu.ring[last] = nil
		c.mu.ring = c.mu.ring[:last]
		return h
	}
}

// adopt moves the handle of seg, which its writer opened, into the cache, if it is not there.
func (c *fileCache) adopt(seg *segment) {
	h := seg.handle.Load()
	if h == nil || h.pooled.Load() || !seg.handle.CompareAndSwap(h, nil) {
		return
	}
	if !c.install(h) {
		_ = h.unref() // synced: a failing close loses nothing
	}
}

// drop closes the file of seg, whoever held it.
func (c *fileCache) drop(seg *segment) error {
	h := seg.handle.Swap(nil)
	if h == nil {
		return nil
	}
	c.mu.Lock()
	for i, o := range c.mu.ring {
		if o == h {
			last := len(c.mu.ring) - 1
			c.mu.ring[i] = c.mu.ring[last]
			c.mu.ring[last] = nil
			c.mu.ring = c.mu.ring[:last]
			break
		}
	}
	c.mu.Unlock()
	return h.unref()
}

// retire closes the file of seg, which nobody opens again.
func (c *fileCache) retire(seg *segment) error {
	c.mu.Lock()
	seg.removed.Store(true) // under mu: install looks at it
	c.mu.Unlock()
	return c.drop(seg)
}

// remove closes and deletes the file of seg.
func (c *fileCache) remove(fsys vfs.FS, seg *segment) error {
	err := c.retire(seg)
	if rerr := fsys.Remove(seg.path); !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}
