package clustermap

import (
	"context"
)

// Extents calls yield for the runs of mapped and unmapped clusters that the range
// [addr, addr+n) consists of, in order, neighbours of a kind merged, until yield returns
// false. Absent and fully mapped subtrees are passed over without loading them. Updates
// during the call may or may not be seen. yield is called without locks held.
func (m *Map) Extents(ctx context.Context, addr, n uint64, yield func(n uint64, mapped bool) bool) error {
	defer m.cache.trim()
	var run uint64
	var mapped, loaded bool
	for n > 0 {
		step, kind, ok := m.extentAt(addr, n)
		if !ok {
			if err := m.loadOnce(ctx, addr, n); err != nil {
				return err
			}
			loaded = true
			continue
		}
		if loaded { // not before the page has been used: a tiny cache makes progress too
			m.cache.trim()
			loaded = false
		}
		if kind != mapped && run > 0 {
			if !yield(run, mapped) {
				return nil
			}
			run = 0
		}
		mapped = kind
		run += step
		addr += step
		n -= step
	}
	if run > 0 {
		yield(run, mapped)
	}
	return nil
}

// extentAt returns the run at addr as far as one page or subtree tells, at most n.
func (m *Map) extentAt(addr, n uint64) (run uint64, mapped, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if addr>>(fanBits*(m.height+1)) != 0 && !m.closed {
		return n, false, true
	}
	s, level := &m.root, m.height
	for level > 0 && s.inner != nil {
		s = &s.inner.kid[addr>>(fanBits*level)&fanMask]
		level--
	}
	left := min(n, span(level)-addr&(span(level)-1))
	switch l := s.leaf; {
	case l != nil:
		l.touch()
		i := int(addr & fanMask)
		if l.ent[i].unknown() {
			return 0, false, false
		}
		kind := !l.ent[i].hole()
		for run = 1; run < left; run++ {
			p := l.ent[i+int(run)]
			if p.unknown() || p.hole() == kind {
				break
			}
		}
		return run, kind, true
	case s.ref.unknown():
		return 0, false, false
	case s.ref.count == 0: // absent, or an empty page
		return left, false, true
	case s.ref.count == span(level):
		return left, true, true
	}
	return 0, false, false
}

// Walk calls yield for every mapped cluster of [addr, addr+n) in order, until it returns
// false. It loads all pages on the way, evicting as it goes. Updates during the call may or
// may not be seen.
func (m *Map) Walk(ctx context.Context, addr, n uint64, yield func(addr uint64, e Entry) bool) error {
	defer m.cache.trim()
	var ents [fanOut]Entry
	loaded := false
	for n > 0 {
		step, ok := m.absentAt(addr, n)
		out := ents[:0]
		if !ok {
			step = min(n, fanOut-addr&fanMask)
			out = ents[:step]
			if !m.Lookup(addr, out) {
				if err := m.loadOnce(ctx, addr, n); err != nil {
					return err
				}
				loaded = true
				continue
			}
		}
		if loaded {
			m.cache.trim()
			loaded = false
		}
		for i, e := range out {
			if e.Loc.Mapped() && !yield(addr+uint64(i), e) {
				return nil
			}
		}
		addr += step
		n -= step
	}
	return nil
}

// absentAt tells how many clusters from addr on lie in a subtree that is known to be empty.
func (m *Map) absentAt(addr, n uint64) (run uint64, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if addr>>(fanBits*(m.height+1)) != 0 && !m.closed {
		return n, true
	}
	s, level := &m.root, m.height
	for level > 0 && s.inner != nil {
		s = &s.inner.kid[addr>>(fanBits*level)&fanMask]
		level--
	}
	if !s.empty() {
		return 0, false
	}
	return min(n, span(level)-addr&(span(level)-1)), true
}
