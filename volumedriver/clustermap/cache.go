package clustermap

import (
	"sync"
	"sync/atomic"
)

// DefaultCacheBytes is the memory for the pages of all maps of a gateway unless set.
const DefaultCacheBytes = 256 << 20

// Cache bounds the memory that the pages of all its maps take. Clean pages beyond the
// bound are evicted by the clock algorithm. Dirty pages count but cannot be evicted:
// owners must write checkpoints when CacheStats.Dirty or Map.DirtyBytes grows too large.
// All methods may be called concurrently.
type Cache struct {
	max  int64
	used atomic.Int64 // bytes of all pages in memory

	dirty     atomic.Int64
	evictions atomic.Uint64

	mu struct {
		sync.Mutex
		hand  *header // next page to look at; nil when the ring is empty
		pages int
	}
}

// CacheStats are figures of a Cache, in bytes and counts.
type CacheStats struct {
	Max       int64  // bound
	Used      int64  // by all pages
	Dirty     int64  // of these, by pages that wait for a checkpoint
	Clean     int    // evictable pages
	Evictions uint64 // pages evicted since the start
}

// NewCache returns a cache of at most maxBytes (DefaultCacheBytes if 0 or less).
func NewCache(maxBytes int64) *Cache {
	if maxBytes <= 0 {
		maxBytes = DefaultCacheBytes
	}
	return &Cache{max: maxBytes}
}

// Stats returns current figures.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	n := c.mu.pages
	c.mu.Unlock()
	return CacheStats{c.max, c.used.Load(), c.dirty.Load(), n, c.evictions.Load()}
}

// add makes a clean page evictable.
func (c *Cache) add(h *header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.ring {
		return
	}
	h.ring = true
	c.mu.pages++
	if c.mu.hand == nil {
		h.next, h.prev = h, h
		c.mu.hand = h
		return
	}
	at := c.mu.hand // behind all others, as the hand sees it
	h.next, h.prev = at, at.prev
	at.prev.next, at.prev = h, h
}

// remove takes a page out of the ring, if it is in.
func (c *Cache) remove(h *header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeLocked(h)
}

func (c *Cache) removeLocked(h *header) {
	if !h.ring {
		return
	}
	h.ring = false
	c.mu.pages--
	if h.next == h {
		c.mu.hand = nil
	} else {
		h.prev.next, h.next.prev = h.next, h.prev
		if c.mu.hand == h {
			c.mu.hand = h.next
		}
	}
	h.next, h.prev = nil, nil
}

// trim evicts clean pages while there is more than the bound. No lock may be held.
func (c *Cache) trim() {
	for {
		over := c.used.Load() - c.max
		if over <= 0 {
			return
		}
		var batch [64]*header
		victims := c.victims(over, batch[:0])
		if len(victims) == 0 {
			return
		}
		freed := false
		for _, h := range victims {
			freed = h.owner.evict(h) || freed
		}
		if !freed {
			return // all came into use again; the next call tries on
		}
	}
}

// victims takes pages of about want bytes out of the ring, at most cap(dst).
func (c *Cache) victims(want int64, dst []*header) []*header {
	c.mu.Lock()
	defer c.mu.Unlock()
	for steps := 2*c.mu.pages + 1; steps > 0 && want > 0 && len(dst) < cap(dst) && c.mu.hand != nil; steps-- {
		h := c.mu.hand
		if h.hot.Load() {
			h.hot.Store(false)
			c.mu.hand = h.next
			continue
		}
		if h.kids.Load() > 0 {
			c.mu.hand = h.next
			continue
		}
		c.removeLocked(h)
		dst = append(dst, h)
		want -= h.bytes()
	}
	return dst
}

// evict cuts a page off that the cache took out of its ring, unless it is in use again.
func (m *Map) evict(h *header) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, parent := m.root.find(m.height, int(h.level), h.index)
	if s == nil || s.page() != h || h.dirty() {
		return false // cut off already; who did that has counted it
	}
	if h.kids.Load() > 0 {
		m.cache.add(h)
		return false
	}
	*s = slot{ref: h.ref}
	if parent != nil {
		parent.kids.Add(-1)
	}
	m.cache.used.Add(-h.bytes())
	m.cache.evictions.Add(1)
	return true
}
