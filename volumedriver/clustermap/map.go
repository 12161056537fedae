package clustermap

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// Map is the cluster map of one volume. All methods may be called concurrently; the order
// of Set, Clear and BeginCheckpoint is the caller's business (the order of the log).
type Map struct {
	cache *Cache
	store PackStore

	// wr is held by all that change the tree's content or the accounts. It is taken
	// before mu. No I/O happens under either.
	wr sync.Mutex

	// mu guards the tree for readers. Eviction and loading change, under mu, which pages
	// are in memory; content changes under wr and mu.
	mu       sync.RWMutex
	root     slot
	height   int // levels of inner pages above the leaves
	clusters uint64
	closed   bool

	// Guarded by wr.
	gen       uint64      // pages of this generation may be changed in place
	seq       uint64      // of the newest written checkpoint
	cp        *Checkpoint // the running one; set under wr and mu
	acct      account
	packs     []PackInfo // of the newest written checkpoint
	nextPack  uint32
	lineage   []uint32        // constant
	dropped   []drop          // of the newest written checkpoint, not yet walked
	condemned map[uint32]bool // packs of which the cleaning made all live pages dirty

	dirty atomic.Int64 // bytes of dirty pages, frozen ones too

	flight struct {
		sync.Mutex
		pages map[pageKey]chan struct{} // closed when the page's load has ended
	}

	stats struct {
		loads, loadBytes, cleaned, cleanErrors atomic.Uint64
	}
}

// account collects what became garbage since the last checkpoint began.
type account struct {
	dead    map[uint32]int64 // bytes by pack
	dropped []drop
}

func (a *account) charge(r ref) {
	if a.dead == nil {
		a.dead = make(map[uint32]int64)
	}
	a.dead[r.pack] += int64(r.length)
}

// drop accounts for a subtree on disk that was cut off.
func (a *account) drop(r ref, level int, index uint64) {
	if level == 0 {
		a.charge(r)
		return
	}
	a.dropped = append(a.dropped, drop{r, level, index})
}

func (a *account) merge(b account) {
	for p, n := range b.dead {
		if a.dead == nil {
			a.dead = make(map[uint32]int64)
		}
		a.dead[p] += n
	}
	a.dropped = append(a.dropped, b.dropped...)
}

// New returns the empty map of a volume of the given number of clusters.
func New(cache *Cache, store PackStore, clusters uint64) *Map {
	return &Map{cache: cache, store: store, clusters: clusters, gen: 1, nextPack: 1}
}

// Open returns the map as a checkpoint record describes it. It reads no page.
func Open(cache *Cache, store PackStore, record []byte) (*Map, error) {
	r, err := decodeRecord(record)
	if err != nil {
		return nil, err
	}
	return &Map{
		cache: cache, store: store,
		root: slot{ref: r.root}, height: r.height, clusters: r.clusters,
		gen: 1, seq: r.seq, packs: r.packs, nextPack: r.nextPack, lineage: r.lineage, dropped: r.dropped,
	}, nil
}

// ReservePacks makes the map number new packs from next on, if it would start lower: after
// a rollback to an older record, the numbers given since must not be given again.
func (m *Map) ReservePacks(next uint32) {
	m.wr.Lock()
	m.nextPack = max(m.nextPack, next)
	m.wr.Unlock()
}

// Close gives the map's memory back. What was not written by a checkpoint is lost; the
// log has it. ErrBusy is returned while a checkpoint is being written: end that first.
// Afterwards nothing is resident and loads fail with ErrClosed.
func (m *Map) Close() error {
	m.wr.Lock()
	defer m.wr.Unlock()
	if m.cp != nil {
		return fmt.Errorf("close cluster map: %w", ErrBusy)
	}
	m.mu.Lock()
	root := m.root
	m.root, m.closed = slot{ref: unknownRef}, true
	m.mu.Unlock()
	m.release(&root)
	m.acct = account{}
	return nil
}

// release forgets the pages in memory below a slot that is no longer in the tree.
func (m *Map) release(s *slot) {
	h := s.page()
	if h == nil {
		return
	}
	m.cache.remove(h)
	m.cache.used.Add(-h.bytes())
	if h.dirty() {
		m.addDirty(-h.bytes())
	}
	if s.inner != nil && h.kids.Load() > 0 {
		for i := range s.inner.kid {
			m.release(&s.inner.kid[i])
		}
	}
}

func (m *Map) addDirty(n int64) {
	m.dirty.Add(n)
	m.cache.dirty.Add(n)
}

// DirtyBytes returns the memory, in bytes, of pages that wait for a checkpoint. Start one
// when it passes a threshold.
func (m *Map) DirtyBytes() int64 { return m.dirty.Load() }

// Clusters returns the size of the volume, in clusters.
func (m *Map) Clusters() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.clusters
}

// MappedClusters returns the number of clusters with data. While there are partial pages
// (updates of pages that were not in memory) it is an estimate; checkpoint records are exact.
func (m *Map) MappedClusters() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return uint64(max(0, m.root.count()))
}

// Grow sets the size of the volume to at least clusters. It costs nothing: the tree grows
// with the addresses that are used.
func (m *Map) Grow(clusters uint64) {
	m.wr.Lock()
	m.mu.Lock()
	m.clusters = max(m.clusters, min(clusters, MaxClusters))
	m.mu.Unlock()
	m.wr.Unlock()
}

// Stats are figures of one map.
type Stats struct {
	Clusters    uint64 // size
	Mapped      uint64 // clusters with data (see MappedClusters)
	DirtyBytes  int64  // memory of pages that wait for a checkpoint
	Seq         uint64 // of the newest written checkpoint
	Packs       int    // packs it refers to
	PackBytes   int64  // their size
	LiveBytes   int64  // bytes of them that are in use
	NextPack    uint32 // number of the next pack
	Dropped     int    // subtrees cut off and not yet accounted for
	Loads       uint64 // pages read
	LoadBytes   uint64 // bytes of them
	Cleaned     uint64 // pages that pack cleaning had rewritten
	CleanErrors uint64 // failures of pack cleaning (it goes on with the next checkpoint)
}

// Stats returns current figures.
func (m *Map) Stats() Stats {
	m.wr.Lock()
	s := Stats{Seq: m.seq, Packs: len(m.packs), NextPack: m.nextPack, Dropped: len(m.dropped) + len(m.acct.dropped)}
	for _, p := range m.packs {
		s.PackBytes += p.Size
		s.LiveBytes += p.Live
	}
	m.wr.Unlock()
	s.Clusters, s.Mapped, s.DirtyBytes = m.Clusters(), m.MappedClusters(), m.DirtyBytes()
	s.Loads, s.LoadBytes = m.stats.loads.Load(), m.stats.loadBytes.Load()
	s.Cleaned, s.CleanErrors = m.stats.cleaned.Load(), m.stats.cleanErrors.Load()
	return s
}

// Packs returns the packs that the newest written checkpoint refers to, ascending.
func (m *Map) Packs() []PackInfo {
	m.wr.Lock()
	defer m.wr.Unlock()
	return slices.Clone(m.packs)
}

// find returns the slot of a page (and the inner page it is in, nil for the root), or nil
// when the way there is not in memory.
func (s *slot) find(height, level int, index uint64) (*slot, *inner) {
	if level > height || index>>(fanBits*(height-level)) != 0 {
		return nil, nil
	}
	var parent *inner
	for l := height; l > level; l-- {
		if parent = s.inner; parent == nil {
			return nil, nil
		}
		s = &parent.kid[index>>(fanBits*(l-1-level))&fanMask]
	}
	return s, parent
}

// Lookup fills out with the entries from cluster addr on and returns true, or returns false
// when a page that is needed is not in memory: then call Get, or Load and Lookup again.
// Clusters beyond the volume's end are holes. It does not allocate or wait for I/O.
func (m *Map) Lookup(addr uint64, out []Entry) (resident bool) {
	m.mu.RLock()
	for len(out) > 0 {
		n := m.lookup(addr, out)
		if n == 0 {
			m.mu.RUnlock()
			return false
		}
		addr += uint64(n)
		out = out[n:]
	}
	m.mu.RUnlock()
	return true
}

// lookup fills the part of out that lies in one page or absent subtree and returns its
// length, or 0 when a page is missing. m.mu is held.
func (m *Map) lookup(addr uint64, out []Entry) int {
	s := &m.root
	if addr>>(fanBits*(m.height+1)) != 0 {
		if m.closed {
			return 0
		}
		clear(out)
		return len(out)
	}
	level := m.height // inner pages need no touch: those with children are not evicted
	for level > 0 && s.inner != nil {
		s = &s.inner.kid[addr>>(fanBits*level)&fanMask]
		level--
	}
	i := int(addr & fanMask)
	if l := s.leaf; l != nil {
		l.touch()
		n := min(fanOut-i, len(out))
		for k := range n {
			p := l.ent[i+k]
			if p.unknown() {
				return 0
			}
			out[k] = Entry{p.loc(), p.sum}
		}
		return n
	}
	if !s.empty() {
		return 0
	}
	left := span(level) - addr&(span(level)-1)
	n := int(min(left, uint64(len(out))))
	clear(out[:n])
	return n
}

// Get fills out with the entries from cluster addr on, loading pages as needed. A range of
// many leaves is read leaf by leaf, not at one moment.
func (m *Map) Get(ctx context.Context, addr uint64, out []Entry) error {
	if m.Lookup(addr, out) {
		return nil
	}
	defer m.cache.trim()
	for len(out) > 0 {
		n := min(fanOut-int(addr&fanMask), len(out))
		for !m.Lookup(addr, out[:n]) {
			if err := m.loadOnce(ctx, addr, uint64(len(out))); err != nil {
				return err
			}
		}
		addr += uint64(n)
		out = out[n:]
	}
	return nil
}

// Load reads the pages that Lookup of the range needs and that are not in memory. When the
// range is larger than the cache, its first pages may be gone again at the end.
func (m *Map) Load(ctx context.Context, addr, n uint64) error {
	defer m.cache.trim()
	for n > 0 {
		part := min(n, maxWants*fanOut-addr%(maxWants*fanOut))
		for {
			done, err := m.loadPart(ctx, addr, part)
			if err != nil {
				return err
			}
			if done {
				break
			}
		}
		m.cache.trim()
		addr += part
		n -= part
	}
	return nil
}
