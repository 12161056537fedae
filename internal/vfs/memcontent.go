package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

const (
	pageSize   = 4096
	sectorSize = 512
	chunkPages = 512 // pages of one chunk: 2 MiB
)

type page [pageSize]byte

// zeroPage stands for an allocated page that was never written. It is never written to.
var zeroPage page

// content is what a file holds, now and after a power loss. Pages that are not dirty
// are never changed in place: a write replaces them. So forks share them freely.
type content struct {
	size, durable int64 // bytes, now and as last synced
	pages         int64 // pages in use now
	chunks        map[int64]*chunk
	dirty         map[int64]*chunk // chunks with a dirty page
	dropped       map[int64]bool   // dirty pages that a failed sync has given up: later syncs pass them by
}

type chunk struct {
	cur [chunkPages]*page  // nil is a hole
	old *[chunkPages]*page // where dirty: the durable page; nil while nothing is dirty
	set [chunkPages / 64]uint64
}

func (k *chunk) isDirty(i int64) bool { return k.set[i/64]&(1<<(i%64)) != 0 }

// chunkOf returns the chunk of a page and the page's place in it.
func (c *content) chunkOf(pg int64, create bool) (*chunk, int64) {
	k := c.chunks[pg/chunkPages]
	if k == nil && create {
		if c.chunks == nil {
			c.chunks = make(map[int64]*chunk)
		}
		k = new(chunk)
		c.chunks[pg/chunkPages] = k
	}
	return k, pg % chunkPages
}

func (c *content) page(pg int64) *page {
	k, i := c.chunkOf(pg, false)
	if k == nil {
		return nil
	}
	return k.cur[i]
}

// touch remembers the durable page before the first change.
func (c *content) touch(pg int64) (*chunk, int64) {
	delete(c.dropped, pg) // it is to be written back again
	k, i := c.chunkOf(pg, true)
	if k.isDirty(i) {
		return k, i
	}
	if k.old == nil {
		k.old = new([chunkPages]*page)
		if c.dirty == nil {
			c.dirty = make(map[int64]*chunk)
		}
		c.dirty[pg/chunkPages] = k
	}
	k.old[i] = k.cur[i]
	k.set[i/64] |= 1 << (i % 64)
	return k, i
}

// write changes one page; a hole must have been paid for by the caller.
func (c *content) write(pg int64, off int, p []byte) {
	k, i := c.chunkOf(pg, true)
	was := k.cur[i]
	inPlace := was != nil && was != &zeroPage && k.isDirty(i)
	c.touch(pg)
	if was == nil {
		c.pages++
	}
	if !inPlace {
		k.cur[i] = new(page)
		if was != nil && len(p) < pageSize {
			*k.cur[i] = *was
		}
	}
	copy(k.cur[i][off:], p)
}

// drop makes a hole of one page and tells how many pages that freed.
func (c *content) drop(pg int64) int64 {
	if c.page(pg) == nil {
		return 0
	}
	k, i := c.touch(pg)
	k.cur[i] = nil
	c.pages--
	return 1
}

// dropFrom makes holes of [from, to) and tells how many pages that freed. It visits only chunks that exist.
func (c *content) dropFrom(from, to int64) (freed int64) {
	for at := range c.chunks {
		for pg := max(from, at*chunkPages); pg < min(to, (at+1)*chunkPages); pg++ {
			freed += c.drop(pg)
		}
	}
	return freed
}

// truncate sets the size and tells how many pages that freed.
func (c *content) truncate(size int64) (freed int64) {
	if size < c.size {
		freed = c.dropFrom((size+pageSize-1)/pageSize, 1<<62/pageSize)
		if tail := size % pageSize; tail != 0 && c.page(size/pageSize) != nil {
			c.write(size/pageSize, int(tail), zeroPage[tail:])
		}
	}
	c.size = size
	return freed
}

// commit makes everything durable, but for what a failed sync has given up.
func (c *content) commit() {
	c.durable = c.size
	if len(c.dropped) == 0 {
		for _, k := range c.dirty {
			k.old, k.set = nil, [chunkPages / 64]uint64{}
		}
		clear(c.dirty)
		return
	}
	for at, k := range c.dirty {
		for i := range int64(chunkPages) {
			if k.isDirty(i) && !c.dropped[at*chunkPages+i] {
				k.clean(i)
			}
		}
		if k.old == nil {
			delete(c.dirty, at)
		}
	}
}

// clean makes a dirty page durable.
func (k *chunk) clean(i int64) {
	k.old[i] = nil
	k.set[i/64] &^= 1 << (i % 64)
	if k.set == [chunkPages / 64]uint64{} {
		k.old = nil
	}
}

// giveUp is what the kernel does with dirty pages that could not be written back.
func (c *content) giveUp() {
	if c.dropped == nil {
		c.dropped = make(map[int64]bool)
	}
	for at, k := range c.dirty {
		for i := range int64(chunkPages) {
			if k.isDirty(i) {
				c.dropped[at*chunkPages+i] = true
			}
		}
	}
}

// commitPages makes some pages durable, and the size.
func (c *content) commitPages(from, to int64) {
	for pg := from; pg < to; pg++ {
		if k, i := c.chunkOf(pg, false); k != nil && k.isDirty(i) {
			if k.clean(i); k.old == nil {
				delete(c.dirty, pg/chunkPages)
			}
		}
	}
	c.durable = c.size
}

// fork returns the content after a power loss. The bytes behind its size are zero.
func (c *content) fork(r *rand.Rand, mode CrashMode) content {
	size := c.size
	switch mode {
	case CrashLost:
		size = c.durable
	case CrashTorn, CrashTornPages:
		size = tornSize(r, c.durable, c.size)
	}
	out := content{size: size, durable: size, chunks: make(map[int64]*chunk, len(c.chunks))}
	keep := 0.0 // share of unsynced sectors that survive; per file, so that extremes are common
	if r != nil {
		keep = float64(r.IntN(5)) / 4
	}
	for _, at := range slices.Sorted(maps.Keys(c.chunks)) { // in order: r must give the same for the same seed
		k, n := c.chunks[at], new(chunk)
		for i := range int64(chunkPages) {
			pg := at*chunkPages + i
			if pg*pageSize >= size {
				break
			}
			p := k.cur[i]
			if k.isDirty(i) {
				p = survive(r, mode, keep, k.old[i], p)
			}
			if tail := size - pg*pageSize; p != nil && tail < pageSize {
				q := *p
				clear(q[tail:])
				p = &q
			}
			if n.cur[i] = p; p != nil {
				out.pages++
			}
		}
		out.chunks[at] = n
	}
	return out
}

// tornSize picks one of the sizes that the file had or may be seen with.
func tornSize(r *rand.Rand, durable, now int64) int64 {
	switch r.IntN(3) {
	case 0:
		return durable
	case 1:
		return now
	}
	lo, hi := min(durable, now), max(durable, now)
	return lo + r.Int64N((hi-lo)/sectorSize+1)*sectorSize
}

// survive returns what is left of an unsynced page.
func survive(r *rand.Rand, mode CrashMode, keep float64, old, now *page) *page {
	switch {
	case mode == CrashLost:
		return old
	case mode == CrashKept:
		return copyPage(now)
	case mode == CrashTornPages:
		if r.Float64() < keep {
			return copyPage(now)
		}
		return old
	}
	var out page
	kept := 0
	for s := 0; s < pageSize; s += sectorSize {
		from := old
		if r.Float64() < keep {
			from = now
			kept++
		}
		if from != nil {
			copy(out[s:s+sectorSize], from[s:])
		}
	}
	if kept == 0 || old == nil && now == nil {
		return old
	}
	return &out
}

// copyPage copies a dirty page, which its owner may still change in place.
func copyPage(p *page) *page {
	if p == nil || p == &zeroPage {
		return p
	}
	q := *p
	return &q
}

// writeback lets a random share of the unsynced sectors reach the disk.
func (c *content) writeback(r *rand.Rand) {
	keep := float64(r.IntN(5)) / 4
	for _, at := range slices.Sorted(maps.Keys(c.dirty)) {
		k := c.dirty[at]
		for i := range int64(chunkPages) {
			if k.isDirty(i) {
				k.old[i] = survive(r, CrashTorn, keep, k.old[i], k.cur[i])
			}
		}
	}
}
