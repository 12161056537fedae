package clustermap

import "fmt"

func checkRange(addr, n uint64) {
	if addr > MaxClusters || n > MaxClusters-addr {
		panic(fmt.Sprintf("clustermap: clusters %d + %d are over the limit of %d", addr, n, uint64(MaxClusters)))
	}
}

// Set maps consecutive clusters from addr on. An entry without a mapped Loc makes a hole.
// It never fails and never waits for I/O. It panics when the range passes MaxClusters; the
// volume's own size is not enforced.
func (m *Map) Set(addr uint64, entries []Entry) {
	checkRange(addr, uint64(len(entries)))
	if len(entries) == 0 {
		return
	}
	m.wr.Lock()
	m.mu.Lock()
	if !m.closed {
		m.cover(addr + uint64(len(entries)) - 1)
		for len(entries) > 0 {
			n := min(fanOut-int(addr&fanMask), len(entries))
			m.setLeaf(addr, entries[:n])
			addr += uint64(n)
			entries = entries[n:]
		}
	}
	m.mu.Unlock()
	m.wr.Unlock()
	m.cache.trim()
}

// CompareAndSet stores e at addr if the cluster still lies at old. It does nothing and
// returns resident == false when the leaf is not in memory: call Load and try again.
func (m *Map) CompareAndSet(addr uint64, old Location, e Entry) (swapped, resident bool) {
	checkRange(addr, 1)
	m.wr.Lock()
	defer m.wr.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	var now [1]Entry
	if m.lookup(addr, now[:]) == 0 {
		return false, false
	}
	if now[0].Loc != old || m.closed {
		return false, true
	}
	m.cover(addr)
	m.setLeaf(addr, []Entry{e})
	return true, true
}

// cover makes the root span addr. wr and mu are held, as in all that follows.
func (m *Map) cover(addr uint64) {
	for addr>>(fanBits*(m.height+1)) != 0 {
		if !m.root.empty() {
			n := newInner(m, m.height+1, 0, m.gen)
			n.kid[0] = m.root
			n.count = m.root.count()
			if m.root.page() != nil {
				n.kids.Store(1)
			}
			m.root = slot{inner: n}
			m.created(&n.header)
		}
		m.height++
	}
}

func (m *Map) created(h *header) {
	m.cache.used.Add(h.bytes())
	m.addDirty(h.bytes())
}

// path is the inner pages from the root down to a slot.
type path struct {
	page [maxHeight]*inner
	n    int
}

func (p *path) add(delta int64) {
	for _, n := range p.page[:p.n] {
		n.count += delta
	}
}

func (p *path) last() *inner {
	if p.n == 0 {
		return nil
	}
	return p.page[p.n-1]
}

// dirtyPath makes the inner pages above level on the way to addr changeable.
func (m *Map) dirtyPath(addr uint64, level int) (s *slot, p path) {
	s = &m.root
	for l := m.height; l > level; l-- {
		n := m.dirtyInner(s, p.last(), l, addr>>(fanBits*(l+1)))
		p.page[p.n] = n
		p.n++
		s = &n.kid[addr>>(fanBits*l)&fanMask]
	}
	return s, p
}

func (m *Map) setLeaf(addr uint64, entries []Entry) {
	s, p := m.dirtyPath(addr, 0)
	before := s.count()
	if s.leaf == nil && len(entries) == fanOut {
		// Nothing of the old page remains, so there is nothing to complete. If it is
		// not known yet which one that is, the parent drops it when it is completed.
		if s.ref.real() {
			m.acct.charge(s.ref)
		}
		s.ref = ref{}
	}
	l := m.dirtyLeaf(s, p.last(), addr>>fanBits)
	l.count += l.set(int(addr&fanMask), entries)
	m.settle(l)
	p.add(l.count - before)
}

// settle ends a leaf's being partial when no entry is unknown any more.
func (m *Map) settle(l *leaf) {
	if !l.partial() || l.unknowns > 0 {
		return
	}
	if l.owed && l.base.real() {
		m.accountOf(&l.header).charge(l.base)
	} // an unresolved base is dropped when the parent learns of it
	l.base, l.owed = ref{}, false
	l.recount()
}

// accountOf returns the account that a page's garbage belongs to.
func (m *Map) accountOf(h *header) *account {
	if m.cp != nil && h.gen <= m.cp.gen {
		return &m.cp.acct
	}
	return &m.acct
}

// dirtyLeaf returns the leaf in s, ready to be changed: made, copied, or begun as a
// partial page when the old one is only on disk.
func (m *Map) dirtyLeaf(s *slot, parent *inner, index uint64) *leaf {
	old := s.leaf
	if old != nil && old.gen == m.gen {
		return old
	}
	l := newLeaf(m, index, m.gen)
	if old != nil {
		l.ent, l.unknowns, l.count = old.ent, old.unknowns, old.count
		m.inherit(&l.header, &old.header)
		m.supersede(&old.header)
	} else {
		if !s.ref.absent() {
			for i := range l.ent {
				l.ent[i] = unknownEntry
			}
			l.unknowns = fanOut
			l.base, l.owed, l.count = s.ref, true, s.count()
		}
		if parent != nil {
			parent.kids.Add(1)
		}
	}
	*s = slot{leaf: l}
	m.created(&l.header)
	return l
}

// dirtyInner is dirtyLeaf for inner pages.
func (m *Map) dirtyInner(s *slot, parent *inner, level int, index uint64) *inner {
	old := s.inner
	if old != nil && old.gen == m.gen {
		return old
	}
	n := newInner(m, level, index, m.gen)
	if old != nil {
		n.kid, n.count = old.kid, old.count
		n.kids.Store(old.kids.Load())
		m.inherit(&n.header, &old.header)
		if m.frozen(&old.header) {
			old.forgetClean()
		}
		m.supersede(&old.header)
	} else {
		if !s.ref.absent() {
			for i := range n.kid {
				n.kid[i].ref = unknownRef
			}
			n.base, n.owed, n.count = s.ref, true, s.count()
		}
		if parent != nil {
			parent.kids.Add(1)
		}
	}
	*s = slot{inner: n}
	m.created(&n.header)
	return n
}

// frozen tells whether a page is part of the running checkpoint and not yet clean.
func (m *Map) frozen(h *header) bool {
	return m.cp != nil && h.dirty() && h.gen <= m.cp.gen
}

// inherit passes on what a copy of a partial page has to complete. While the original is
// being checkpointed, it is the original that accounts for the old page.
func (m *Map) inherit(h, old *header) {
	if !old.partial() {
		return
	}
	h.base, h.owed = old.base, old.owed
	if m.frozen(old) {
		h.owed = false
		m.cp.copies = append(m.cp.copies, copied{old, h})
	}
}

// forgetClean lets go of the clean children of a frozen page that was copied, so that each
// clean page has one parent and can be evicted.
func (n *inner) forgetClean() {
	for i := range n.kid {
		if h := n.kid[i].page(); h != nil && !h.dirty() {
			n.kid[i] = slot{ref: h.ref}
		}
	}
}

// supersede accounts for a page that has left the live tree.
func (m *Map) supersede(h *header) {
	switch {
	case !h.dirty():
		m.acct.charge(h.ref)
		m.cache.remove(h)
		m.cache.used.Add(-h.bytes())
	case m.frozen(h):
		h.superseded = true
		m.cp.superBytes += h.bytes()
	default:
		m.addDirty(-h.bytes())
		m.cache.used.Add(-h.bytes())
	}
}

// Clear makes holes of n clusters from addr on (TRIM, WRITE_ZEROES). Whole subtrees are
// cut off, neither visited on disk nor loaded: the cost is the pages at the two ends and,
// in memory, those that were cut off. It never fails and never waits for I/O. It panics
// when the range passes MaxClusters.
func (m *Map) Clear(addr, n uint64) {
	checkRange(addr, n)
	if n == 0 {
		return
	}
	m.wr.Lock()
	var cut []cutOff
	m.mu.Lock()
	if top := span(m.height); addr < top && !m.closed {
		to := min(addr+n, top)
		if addr+n == MaxClusters {
			to = top // nothing is mapped beyond
		}
		m.clear(&m.root, nil, m.height, 0, addr, to, &cut)
	}
	m.mu.Unlock()
	// What was cut off is ours alone now (and the running checkpoint's, which only
	// reads it): readers need not wait for the bookkeeping.
	for i := range cut {
		m.detached(&cut[i].s, cut[i].level, cut[i].index)
	}
	m.wr.Unlock()
	m.cache.trim()
}

type cutOff struct {
	s     slot
	level int
	index uint64
}

// clear empties [from, to) below s, a slot of the level whose first cluster is
// index*span(level), and returns the change of count.
func (m *Map) clear(s *slot, parent *inner, level int, index, from, to uint64, cut *[]cutOff) (delta int64) {
	if s.empty() {
		return 0
	}
	base := index * span(level)
	before := s.count()
	if from <= base && to >= base+span(level) {
		m.cutOff(s, parent, level, index, cut)
		return -before
	}
	from, to = max(from, base), min(to, base+span(level))
	if level == 0 {
		l := m.dirtyLeaf(s, parent, index)
		for i := from - base; i < to-base; i++ {
			l.count += l.put(int(i), packed{})
		}
		m.settle(l)
	} else {
		n := m.dirtyInner(s, parent, level, index)
		sub := span(level - 1)
		for i := (from - base) / sub; i <= (to-1-base)/sub; i++ {
			n.count += m.clear(&n.kid[i], n, level-1, n.kidIndex(int(i)), from, to, cut)
		}
	}
	h := s.page()
	if h.partial() || h.count > 0 || s.inner != nil && !s.inner.hollow() {
		return h.count - before
	}
	m.cutOff(s, parent, level, index, cut) // nothing is left
	return -before
}

// hollow tells that an inner page has no children.
func (n *inner) hollow() bool {
	for i := range n.kid {
		if !n.kid[i].empty() {
			return false
		}
	}
	return true
}

func (m *Map) cutOff(s *slot, parent *inner, level int, index uint64, cut *[]cutOff) {
	*cut = append(*cut, cutOff{*s, level, index})
	if s.page() != nil && parent != nil {
		parent.kids.Add(-1)
	}
	*s = slot{}
}

// detached accounts for a subtree that was cut off. Only wr is held.
func (m *Map) detached(s *slot, level int, index uint64) {
	h := s.page()
	if h == nil {
		if s.ref.real() {
			m.acct.drop(s.ref, level, index)
		}
		return // an unknown one is dropped with, or by, the partial page above
	}
	m.supersede(h)
	if h.partial() {
		if f := m.frozenPartial(level, index); f != nil {
			f.orphan = true
			m.cp.orphans = append(m.cp.orphans, f)
		} else if h.base.real() && h.owed {
			m.acct.drop(h.base, level, index) // and all that is below on disk
		}
	}
	if s.inner == nil {
		return
	}
	for i := range s.inner.kid {
		m.detached(&s.inner.kid[i], level-1, s.inner.kidIndex(i))
	}
}

// frozenPartial returns the partial page at a place in the tree that is being
// checkpointed. A partial page that leaves the live tree meanwhile is that one or its copy.
func (m *Map) frozenPartial(level int, index uint64) *header {
	if m.cp == nil {
		return nil
	}
	s, _ := m.cp.root.find(m.cp.height, level, index)
	if s == nil {
		return nil
	}
	if h := s.page(); h != nil && h.partial() {
		return h
	}
	return nil
}
