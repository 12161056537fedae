package clustermap

import (
	"math"
	"sync/atomic"
)

const (
	fanBits   = 8
	fanOut    = 1 << fanBits // entries of a leaf, children of an inner page
	fanMask   = fanOut - 1
	maxHeight = 4 // inner levels; 3 reach 16 TiB

	// MaxClusters is the largest number of clusters of a volume: 64 TiB.
	MaxClusters = 1 << 34
)

// Memory that a page takes, in bytes: the allocator's size class, checked by a test.
const (
	leafBytes  = 3456
	innerBytes = 10880
)

// span returns the number of clusters below one page of the level (0 = leaf).
func span(level int) uint64 { return 1 << (fanBits * (level + 1)) }

// ref is where a page lies on disk and how many clusters are mapped below it. The zero
// ref is an absent subtree: all holes.
type ref struct {
	pack, off, length, crc uint32
	count                  uint64
}

// unknownRef stands in partial pages for "whatever the page on disk says".
var unknownRef = ref{length: math.MaxUint32}

func (r ref) absent() bool  { return r.length == 0 }
func (r ref) unknown() bool { return r.length == math.MaxUint32 }
func (r ref) real() bool    { return !r.absent() && !r.unknown() }

// slot is the place of a child (or of the root): either a page in memory, or a ref.
type slot struct {
	leaf  *leaf
	inner *inner
	ref   ref // meaningful only when neither leaf nor inner is set
}

// page returns the page in memory, or nil.
func (s *slot) page() *header {
	switch {
	case s.leaf != nil:
		return &s.leaf.header
	case s.inner != nil:
		return &s.inner.header
	}
	return nil
}

func (s *slot) setPage(h *header) { s.leaf, s.inner, s.ref = h.leaf, h.inner, ref{} }

// count returns the clusters known to be mapped below s.
func (s *slot) count() int64 {
	if h := s.page(); h != nil {
		return h.count
	}
	return int64(s.ref.count) // 0 for absent and unknown
}

// empty tells that there is nothing below s, for certain.
func (s *slot) empty() bool { return s.page() == nil && s.ref.absent() }

// header is what leaves and inner pages have in common.
//
// A page is clean (ref is real: it is on disk and evictable) or dirty. A dirty page may be
// partial: base is then the page on disk that fills what is unknown, or unknownRef when
// that is to be learnt from the parent, which is partial too.
//
// Guarded by the map's locks (Map.wr for writers, Map.mu for readers), except as noted.
type header struct {
	prev, next *header // ring of the cache; guarded by Cache.mu, like ring
	owner      *Map    // constant
	leaf       *leaf   // constant: this page as a leaf,
	inner      *inner  // or as an inner page

	ref   ref
	base  ref
	wref  ref    // used only by the one running Checkpoint.Write
	index uint64 // constant: first cluster / span(level)
	gen   uint64 // constant: may be changed in place only while it is the map's generation
	count int64  // clusters mapped below; an estimate while anything below is partial
	level uint8  // constant

	// owed: this partial page accounts for the death of base when it is completed. A
	// copy of a page that is being checkpointed leaves that to the original.
	owed bool
	// superseded: frozen for the running checkpoint, but no longer in the live tree.
	superseded bool
	// orphan: frozen and partial, and the live tree has cut off its subtree: what its
	// completion brings to light is garbage after the running checkpoint.
	orphan bool
	ring   bool

	hot  atomic.Bool  // used since the clock hand came by
	kids atomic.Int32 // children in memory; changed under Map.mu, read by the clock
}

func (h *header) dirty() bool   { return h.ref.absent() }
func (h *header) partial() bool { return !h.base.absent() }

func (h *header) bytes() int64 {
	if h.leaf != nil {
		return leafBytes
	}
	return innerBytes
}

func (h *header) touch() {
	if !h.hot.Load() {
		h.hot.Store(true)
	}
}

// packed is an Entry in 12 bytes, so that location and sum share a cache line.
type packed struct{ lo, hi, sum uint32 }

func pack(e Entry) packed {
	if !e.Loc.Mapped() {
		return packed{}
	}
	return packed{uint32(e.Loc), uint32(e.Loc >> 32), e.Sum}
}

func (p packed) loc() Location { return Location(p.hi)<<32 | Location(p.lo) }
func (p packed) hole() bool    { return p.lo|p.hi == 0 }
func (p packed) unknown() bool { return p.loc() == unknownLocation }

// mapped returns 1 for data, 0 for holes and unknown entries.
func (p packed) mapped() int64 {
	if p.loc().Mapped() {
		return 1
	}
	return 0
}

var unknownEntry = packed{lo: uint32(unknownLocation)}

// leaf is a page of level 0.
type leaf struct {
	header
	unknowns int // unknown entries
	ent      [fanOut]packed
}

// inner is a page of level 1 or above.
type inner struct {
	header
	kid [fanOut]slot
}

func newLeaf(m *Map, index, gen uint64) *leaf {
	l := &leaf{}
	l.header.leaf, l.owner, l.index, l.gen = l, m, index, gen
	return l
}

func newInner(m *Map, level int, index, gen uint64) *inner {
	n := &inner{}
	n.header.inner, n.owner, n.level, n.index, n.gen = n, m, uint8(level), index, gen
	return n
}

// set stores entries from place i on and returns the change of count.
func (l *leaf) set(i int, entries []Entry) (delta int64) {
	for k, e := range entries {
		delta += l.put(i+k, pack(e))
	}
	return delta
}

func (l *leaf) put(i int, p packed) (delta int64) {
	old := l.ent[i]
	if old.unknown() {
		l.unknowns--
	}
	l.ent[i] = p
	return p.mapped() - old.mapped()
}

// recount sets the exact count of a leaf without unknown entries and returns the change.
func (l *leaf) recount() int64 {
	var n int64
	for i := range l.ent {
		n += l.ent[i].mapped()
	}
	delta := n - l.count
	l.count = n
	return delta
}

// recount adds up the children and returns the change of count.
func (n *inner) recount() int64 {
	var c int64
	for i := range n.kid {
		c += n.kid[i].count()
	}
	delta := c - n.count
	n.count = c
	return delta
}

// kidIndex returns the page index of child i.
func (n *inner) kidIndex(i int) uint64 { return n.index<<fanBits | uint64(i) }
