package clustermap

import (
	"cmp"
	"context"
	"slices"
)

// Limits of pack cleaning.
const (
	cleanMinBytes   = 1 << 20 // less in all is not worth it
	cleanBudget     = 4 << 20 // live bytes made dirty after one checkpoint
	smallPack       = 1 << 20 // live bytes of a pack that counts as small
	cleanSmallPacks = 128     // so many small packs are too many
)

// clean makes the live pages of the emptiest packs dirty when too much is garbage, so that
// the next checkpoint writes them anew and the packs die. A failure (a page that cannot
// be read) is counted; the pack's turn comes again.
func (m *Map) clean(ctx context.Context) {
	for _, p := range m.cleanable() {
		if err := m.cleanPack(ctx, p); err != nil {
			m.stats.cleanErrors.Add(1)
			return
		}
	}
}

// cleanable chooses packs to clean: by the rate of garbage when more than half of all
// bytes are garbage, else the smallest when there are too many small ones. Packs of
// ancestors are theirs.
func (m *Map) cleanable() []PackInfo {
	m.wr.Lock()
	packs := slices.Clone(m.packs)
	if len(m.lineage) > 0 {
		packs = slices.DeleteFunc(packs, func(p PackInfo) bool { return p.Number < m.lineage[0] })
	}
	packs = slices.DeleteFunc(packs, func(p PackInfo) bool { return m.condemned[p.Number] })
	m.wr.Unlock()
	var size, live int64
	small := 0
	for _, p := range packs {
		size += p.Size
		live += p.Live
		if p.Live < smallPack {
			small++
		}
	}
	switch {
	case size > cleanMinBytes && live < size/2:
		slices.SortFunc(packs, func(a, b PackInfo) int {
			return cmp.Compare(float64(a.Live)/float64(a.Size), float64(b.Live)/float64(b.Size))
		})
	case small > cleanSmallPacks:
		slices.SortFunc(packs, func(a, b PackInfo) int { return cmp.Compare(a.Live, b.Live) })
		packs = packs[:small/2]
	default:
		return nil
	}
	var sum int64
	n := 0
	for n < len(packs) && (n == 0 || sum+packs[n].Live <= cleanBudget) {
		sum += packs[n].Live
		n++
	}
	return packs[:n]
}

// cleanPack makes all pages of a pack dirty that the live tree refers to.
func (m *Map) cleanPack(ctx context.Context, p PackInfo) error {
	places, err := readIndex(ctx, m.store, p)
	if err != nil {
		return err
	}
	for _, place := range places {
		if err := m.rewrite(ctx, p.Number, place); err != nil {
			return err
		}
	}
	m.wr.Lock()
	defer m.wr.Unlock()
	if len(m.dropped)+len(m.acct.dropped) > 0 {
		return nil // these may need the pack to be walked; its own count tells when it is dead
	}
	if m.condemned == nil {
		m.condemned = make(map[uint32]bool)
	}
	m.condemned[p.Number] = true
	return nil
}

// rewrite makes the page at a place dirty if the live tree refers to it.
func (m *Map) rewrite(ctx context.Context, pack uint32, p pagePlace) error {
	addr := p.index << (fanBits * (p.level + 1))
	for {
		m.wr.Lock()
		m.mu.Lock()
		w, ok := m.rewriteLocked(pack, p, addr)
		m.mu.Unlock()
		m.wr.Unlock()
		if ok {
			return nil
		}
		if err := m.fetch(ctx, []want{w}); err != nil {
			return err
		}
	}
}

// rewriteLocked returns ok == false and the page to load first when the way to the place
// is not in memory.
func (m *Map) rewriteLocked(pack uint32, p pagePlace, addr uint64) (w want, ok bool) {
	if m.closed || p.level > m.height || addr>>(fanBits*(m.height+1)) != 0 {
		return want{}, true
	}
	s := &m.root
	var top want // the uppermost partial page, as in missingAt
	for l := m.height; l > p.level; l-- {
		n := s.inner
		if n == nil {
			switch {
			case s.ref.absent():
				return want{}, true
			case s.ref.unknown():
				return top, false
			}
			return want{s.ref, l, addr / span(l)}, false
		}
		if n.base.real() && top.ref.absent() {
			top = want{n.base, l, n.index}
		}
		s = &n.kid[addr>>(fanBits*l)&fanMask]
	}
	r := s.ref
	if h := s.page(); h != nil {
		r = h.ref // absent if it is dirty, which is as good
	}
	switch {
	case r.unknown():
		return top, false
	case r.pack != pack || r.off != p.off:
		return want{}, true
	}
	s, path := m.dirtyPath(addr, p.level)
	if p.level == 0 {
		m.dirtyLeaf(s, path.last(), p.index)
	} else {
		m.dirtyInner(s, path.last(), p.level, p.index)
	}
	m.stats.cleaned.Add(1)
	return want{}, true
}
