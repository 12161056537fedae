package clustermap

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"scoria/internal/blocksum"
	"scoria/internal/frame"
)

const (
	maxWants    = 256       // pages that one step of loading asks for
	maxRead     = 512 << 10 // bytes of one read
	maxReadGap  = 16 << 10  // bytes read for nothing rather than reading twice
	readers     = 4         // reads at a time of one step
	maxInFlight = 1 << 20   // sanity bound of the flight table; callers bound it far lower
)

type pageKey struct{ pack, off uint32 }

// want is a page to be read.
type want struct {
	ref   ref
	level int
	index uint64
}

// loadOnce does one step towards having the leaf of addr in memory: it reads one page, or,
// if that is a leaf, also those behind it in the range.
func (m *Map) loadOnce(ctx context.Context, addr, n uint64) error {
	_, err := m.loadPart(ctx, addr, min(n, maxWants*fanOut))
	return err
}

// loadPart reads what is missing one level further down. done tells that nothing was.
func (m *Map) loadPart(ctx context.Context, addr, n uint64) (done bool, err error) {
	var wants []want
	m.mu.RLock()
	closed := m.closed
	if !closed {
		wants = m.missing(addr, n)
	}
	m.mu.RUnlock()
	if closed {
		return false, fmt.Errorf("load cluster map: %w", ErrClosed)
	}
	if len(wants) == 0 {
		return true, nil
	}
	return false, m.fetch(ctx, wants)
}

// missing lists the pages that Lookup of the range is missing and that can be read now.
func (m *Map) missing(addr, n uint64) (wants []want) {
	for n > 0 && addr>>(fanBits*(m.height+1)) == 0 && len(wants) < maxWants {
		w, skip := m.missingAt(addr, n)
		if w.ref.real() && (len(wants) == 0 || wants[len(wants)-1] != w) {
			wants = append(wants, w)
		}
		skip = min(skip, n)
		addr += skip
		n -= skip
	}
	return wants
}

// missingAt returns the page that is missing at addr, if any, and how many clusters from
// addr on that tells about.
func (m *Map) missingAt(addr, n uint64) (w want, skip uint64) {
	s := &m.root
	var top want // the uppermost partial page: those below learn their base from it
	level := m.height
	for level > 0 && s.inner != nil {
		if n := s.inner; n.base.real() && top.ref.absent() {
			top = want{n.base, level, n.index}
		}
		s = &s.inner.kid[addr>>(fanBits*level)&fanMask]
		level--
	}
	skip = span(level) - addr&(span(level)-1)
	switch {
	case s.leaf != nil:
		l := s.leaf
		i := int(addr & fanMask)
		if l.unknowns == 0 || !slices.ContainsFunc(l.ent[i:min(fanOut, uint64(i)+n)], packed.unknown) {
			return want{}, skip
		}
		if l.base.real() {
			return want{l.base, 0, l.index}, skip
		}
		return top, skip
	case s.ref.unknown():
		return top, skip
	}
	return want{s.ref, level, addr / span(level)}, skip
}

// fetch reads pages and puts them where they belong, if they still do. Pages that somebody
// else is reading it waits for. At least one wanted page has been dealt with when it
// returns nil; the caller looks again.
func (m *Map) fetch(ctx context.Context, wants []want) error {
	mine, theirs, err := m.claim(wants)
	if err != nil {
		return err
	}
	if mine = m.stillWanted(mine); len(mine) > 0 {
		if err := m.read(ctx, mine); err != nil {
			return err
		}
	}
	for _, done := range theirs {
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("load cluster map: %w", context.Cause(ctx))
		}
	}
	return nil
}

// claim splits pages into those that nobody is reading, which are the caller's now, and
// signals of the others' end.
func (m *Map) claim(wants []want) (mine []want, theirs []chan struct{}, err error) {
	m.flight.Lock()
	defer m.flight.Unlock()
	if m.flight.pages == nil {
		m.flight.pages = make(map[pageKey]chan struct{})
	}
	if len(m.flight.pages) > maxInFlight {
		return nil, nil, fmt.Errorf("load cluster map: %d loads in flight: %w", len(m.flight.pages), ErrBusy)
	}
	for _, w := range wants {
		key := pageKey{w.ref.pack, w.ref.off}
		if done, busy := m.flight.pages[key]; busy {
			theirs = append(theirs, done)
			continue
		}
		m.flight.pages[key] = make(chan struct{})
		mine = append(mine, w)
	}
	return mine, theirs, nil
}

// stillWanted gives up those claimed pages that somebody has installed since they were
// found missing.
func (m *Map) stillWanted(mine []want) []want {
	var gone []want
	m.mu.RLock()
	mine = slices.DeleteFunc(mine, func(w want) bool {
		wanted := m.wants(&m.root, m.height, w) || m.cp != nil && m.wants(&m.cp.root, m.cp.height, w)
		if !wanted {
			gone = append(gone, w)
		}
		return !wanted
	})
	m.mu.RUnlock()
	m.unclaim(gone)
	return mine
}

// wants tells whether install would do something with a page in this tree.
func (m *Map) wants(root *slot, height int, w want) bool {
	s, _ := root.find(height, w.level, w.index)
	return s != nil && (s.page() == nil && s.ref == w.ref || completable(s, w) != nil)
}

func (m *Map) unclaim(wants []want) {
	m.flight.Lock()
	defer m.flight.Unlock()
	for _, w := range wants {
		key := pageKey{w.ref.pack, w.ref.off}
		close(m.flight.pages[key])
		delete(m.flight.pages, key)
	}
	if len(m.flight.pages) == 0 {
		m.flight.pages = nil // an idle map keeps nothing
	}
}

// read reads claimed pages, neighbours in one go, and installs them.
func (m *Map) read(ctx context.Context, wants []want) error {
	if len(wants) == 1 {
		return m.readGroup(ctx, wants)
	}
	slices.SortFunc(wants, func(a, b want) int {
		return cmp.Or(cmp.Compare(a.ref.pack, b.ref.pack), cmp.Compare(a.ref.off, b.ref.off))
	})
	var groups [][]want
	for len(wants) > 0 {
		n := 1
		for n < len(wants) && near(wants[0].ref, wants[n-1].ref, wants[n].ref) {
			n++
		}
		groups = append(groups, wants[:n:n])
		wants = wants[n:]
	}
	if len(groups) == 1 {
		return m.readGroup(ctx, groups[0])
	}
	var wg sync.WaitGroup
	errs := make([]error, len(groups))
	tokens := make(chan struct{}, readers)
	for i, g := range groups {
		tokens <- struct{}{}
		wg.Go(func() {
			errs[i] = m.readGroup(ctx, g)
			<-tokens
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// near tells whether page r, behind page last, is read together with those from first on.
func near(first, last, r ref) bool {
	return r.pack == first.pack && r.off-(last.off+last.length) <= maxReadGap && r.off+r.length-first.off <= maxRead
}

func (m *Map) readGroup(ctx context.Context, wants []want) error {
	defer m.unclaim(wants)
	first, last := wants[0].ref, wants[len(wants)-1].ref
	b, err := readExact(ctx, m.store, first.pack, first.off, last.off+last.length-first.off)
	if err != nil {
		return err
	}
	m.stats.loads.Add(uint64(len(wants)))
	m.stats.loadBytes.Add(uint64(len(b)))
	var failed error
	for _, w := range wants { // a corrupt page does not hide its neighbours
		at := w.ref.off - first.off
		l, n, err := m.decode(w, b[at:at+w.ref.length])
		if err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		m.install(w, l, n)
	}
	return failed
}

// decode checks and decodes a page: a leaf or an inner page, clean.
func (m *Map) decode(w want, b []byte) (*leaf, *inner, error) {
	if got := blocksum.Of(b); got != w.ref.crc {
		return nil, nil, &CorruptError{w.ref.pack, w.ref.off, fmt.Errorf("page crc %08x, reference says %08x: %w", got, w.ref.crc, frame.ErrChecksum)}
	}
	if w.level == 0 {
		l := newLeaf(m, w.index, 0)
		if err := decodeLeaf(b, w.index, ancestorOf(m.lineage, w.ref.pack), &l.ent); err != nil {
			return nil, nil, &CorruptError{w.ref.pack, w.ref.off, err}
		}
		l.ref = w.ref
		l.recount()
		if uint64(l.count) != w.ref.count {
			return nil, nil, &CorruptError{w.ref.pack, w.ref.off, fmt.Errorf("%d clusters, reference says %d: %w", l.count, w.ref.count, frame.ErrInvalid)}
		}
		return l, nil, nil
	}
	var kids [fanOut]ref
	if err := decodeInner(b, w.level, w.index, &kids); err != nil {
		return nil, nil, &CorruptError{w.ref.pack, w.ref.off, err}
	}
	n := newInner(m, w.level, w.index, 0)
	for i := range kids {
		n.kid[i].ref = kids[i]
	}
	n.ref = w.ref
	n.recount()
	if uint64(n.count) != w.ref.count {
		return nil, nil, &CorruptError{w.ref.pack, w.ref.off, fmt.Errorf("%d clusters, reference says %d: %w", n.count, w.ref.count, frame.ErrInvalid)}
	}
	return nil, n, nil
}

// install puts a page that was read into the tree, or completes the partial pages that
// were begun over it: in the live tree, and in the one that is being checkpointed.
func (m *Map) install(w want, l *leaf, n *inner) {
	m.wr.Lock()
	defer m.wr.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	live, parent := m.root.find(m.height, w.level, w.index)
	var now, old *header
	if live != nil {
		now = completable(live, w)
	}
	if m.cp != nil {
		if s, _ := m.cp.root.find(m.cp.height, w.level, w.index); s != nil {
			old = completable(s, w)
		}
	}
	if old == now {
		old = nil
	}
	switch {
	case w.level == 0:
		if old != nil {
			m.completeLeaf(old.leaf, l)
		}
		if now != nil {
			m.propagate(now, m.completeLeaf(now.leaf, l))
		}
	default:
		var fresh *[fanOut]bool // children of now that the frozen page does not account for
		if old != nil && now != nil {
			fresh = new([fanOut]bool)
			for i := range fresh {
				s := &old.inner.kid[i]
				fresh[i] = s.page() == nil && s.ref.unknown()
			}
		}
		if old != nil {
			m.completeInner(old.inner, n, nil)
		}
		if now != nil {
			m.propagate(now, m.completeInner(now.inner, n, fresh))
		}
	}
	if live == nil || live.page() != nil || live.ref != w.ref {
		return
	}
	h := headerOf(l, n)
	live.setPage(h)
	if parent != nil {
		parent.kids.Add(1)
	}
	m.cache.used.Add(h.bytes())
	h.hot.Store(true)
	m.cache.add(h)
}

func headerOf(l *leaf, n *inner) *header {
	if l != nil {
		return &l.header
	}
	return &n.header
}

// completable returns the page in s if it is a partial one over the page wanted.
func completable(s *slot, w want) *header {
	if h := s.page(); h != nil && h.base.real() && h.base == w.ref {
		return h
	}
	return nil
}

// propagate adds a change of count of a live page to those above it.
func (m *Map) propagate(h *header, delta int64) {
	s := &m.root
	for level := m.height; level > int(h.level); level-- {
		s.inner.count += delta
		s = &s.inner.kid[h.index>>(fanBits*(level-1-int(h.level)))&fanMask]
	}
}

// completeLeaf fills what is unknown in l from the page on disk; from nil: with holes.
func (m *Map) completeLeaf(l, disk *leaf) (delta int64) {
	for i := range l.ent {
		if l.ent[i].unknown() {
			l.ent[i] = packed{}
			if disk != nil {
				l.ent[i] = disk.ent[i]
			}
		}
	}
	l.unknowns = 0
	m.paid(&l.header)
	return l.recount()
}

// paid ends a page's being partial.
func (m *Map) paid(h *header) {
	if h.owed && h.base.real() {
		m.accountOf(h).charge(h.base)
	}
	h.base, h.owed = ref{}, false
}

// completeInner is completeLeaf for inner pages. Children learn their own base. fresh, if
// not nil, tells for which children n accounts for the old page although n itself does not.
func (m *Map) completeInner(n, disk *inner, fresh *[fanOut]bool) (delta int64) {
	acct, owed := m.accountOf(&n.header), n.owed
	m.paid(&n.header)
	for i := range n.kid {
		s := &n.kid[i]
		var r ref
		if disk != nil {
			r = disk.kid[i].ref
		}
		owes := owed || fresh != nil && fresh[i]
		h := s.page()
		switch {
		case h == nil && s.ref.unknown():
			s.ref = r
			if r.real() && n.orphan {
				m.acct.drop(r, int(n.level)-1, n.kidIndex(i))
			}
		case h == nil || !h.base.unknown():
			// Emptied or replaced as a whole, or (in a frozen page's copy) a child
			// that has learnt its base from the frozen page a moment ago.
			if r.real() && owes && (h == nil || !h.partial()) {
				acct.drop(r, int(n.level)-1, n.kidIndex(i))
			}
		case r.real():
			h.base, h.owed = r, owes
			h.count += int64(r.count)
		case h.leaf != nil:
			m.completeLeaf(h.leaf, nil)
		default:
			m.completeInner(h.inner, nil, nil)
		}
	}
	return n.recount()
}
