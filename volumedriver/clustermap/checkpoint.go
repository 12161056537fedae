package clustermap

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
)

// dropsPerCheckpoint is how many pages of dropped subtrees a checkpoint walks at least.
const dropsPerCheckpoint = 1024

// Checkpoint is the state of a map at one moment, on its way to the PackStore.
type Checkpoint struct {
	m        *Map
	seq      uint64
	gen      uint64
	clusters uint64

	// root and height of the frozen tree. Which of its pages are in memory changes as in
	// the live tree, which shares most of them: guarded by m.mu.
	root   slot
	height int

	// Guarded by m.wr.
	acct        account
	frozenBytes int64 // dirty bytes at the beginning
	superBytes  int64 // of these, pages that have left the live tree since
	copies      []copied
	orphans     []*header
	done        bool

	// Of the goroutine in Write alone.
	condemned map[uint32]bool
	written   []*header // children before parents
	dropped   []drop    // subtrees still to be walked
	walked    account   // garbage found in those that were
}

// copied is a partial page of the frozen tree that the live tree has copied to change it.
type copied struct{ from, to *header }

// Written is what a checkpoint has brought about.
type Written struct {
	// Record is the encoded checkpoint record for Open.
	Record []byte
	// Pack is the number of the pack that was written, 0 if no page had changed.
	Pack uint32
	// PackBytes is its size.
	PackBytes int64
	// Dead lists packs of this volume that the record does not refer to any more. They may
	// be deleted once this record (or a later one) is published wherever an older one
	// was, unless the record of a snapshot, or a clone, lists them (DecodeRecord).
	Dead []uint32
}

// BeginCheckpoint freezes the map as it is now: exactly the state after all records up to
// seq, if these and no others have been applied. It takes no time; updates go on. One
// checkpoint runs at a time (ErrBusy). The caller must call Write or Abort.
func (m *Map) BeginCheckpoint(seq uint64) (*Checkpoint, error) {
	m.wr.Lock()
	defer m.wr.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, fmt.Errorf("begin checkpoint %d: %w", seq, ErrClosed)
	case m.cp != nil:
		return nil, fmt.Errorf("begin checkpoint %d: %w", seq, ErrBusy)
	case seq < m.seq:
		return nil, fmt.Errorf("begin checkpoint %d: the last one was %d", seq, m.seq)
	}
	c := &Checkpoint{
		m: m, seq: seq, gen: m.gen, clusters: m.clusters, root: m.root, height: m.height,
		acct: m.acct, frozenBytes: m.dirty.Load(), condemned: m.condemned,
	}
	if h := m.root.page(); h != nil && !h.dirty() {
		c.root = slot{ref: h.ref}
	}
	m.cp, m.acct, m.condemned = c, account{}, nil
	m.gen++
	return c, nil
}

// Seq returns the sequence number the checkpoint names.
func (c *Checkpoint) Seq() uint64 { return c.seq }

// Abort ends a checkpoint that will not be written. It does nothing after Write and must
// not be called during it.
func (c *Checkpoint) Abort() {
	m := c.m
	m.wr.Lock()
	defer m.wr.Unlock()
	if c.done {
		return
	}
	c.done = true
	for _, h := range c.orphans { // both trees have lost it
		if h.base.real() && h.owed {
			c.acct.drop(h.base, int(h.level), h.index)
		}
	}
	for _, p := range c.copies { // the copy is now the one that accounts for the old page
		switch {
		case !p.from.partial() || !p.from.owed || p.from.orphan:
		case p.to.partial():
			p.to.owed = true
		case p.from.base.real(): // the copy was overwritten as a whole
			c.acct.charge(p.from.base)
		}
	}
	c.acct.merge(m.acct)
	m.acct, m.condemned = c.acct, nil
	m.endCheckpoint()
	m.addDirty(-c.superBytes)
	m.cache.used.Add(-c.superBytes)
	c.copies, c.orphans, c.written = nil, nil, nil
}

// Write completes the frozen partial pages, writes all changed pages as one pack and
// returns the record. Reading and writing happen outside of all locks. On an error
// everything is dirty again as if the checkpoint had not been begun, and the number of the
// pack is not used again. Afterwards pack cleaning may make some old pages dirty, to be
// written with the next checkpoint.
func (c *Checkpoint) Write(ctx context.Context) (Written, error) {
	defer c.m.cache.trim()
	c.m.wr.Lock()
	done := c.done
	c.m.wr.Unlock()
	if done {
		return Written{}, fmt.Errorf("checkpoint %d was ended before", c.seq)
	}
	w, rec, err := c.write(ctx)
	if err != nil {
		c.Abort()
		return Written{}, fmt.Errorf("checkpoint %d: %w", c.seq, err)
	}
	c.finish(rec)
	c.m.clean(ctx)
	return w, nil
}

func (c *Checkpoint) write(ctx context.Context) (w Written, rec *record, err error) {
	m := c.m
	if err := c.complete(ctx, c.height, 0); err != nil {
		return w, nil, err
	}
	m.wr.Lock()
	w.Pack = m.nextPack
	c.dropped = append(slices.Clone(m.dropped), c.acct.dropped...)
	m.wr.Unlock()
	if err := c.walkDropped(ctx); err != nil {
		return w, nil, err
	}

	rec = &record{seq: c.seq, clusters: c.clusters, height: c.height, lineage: m.lineage, dropped: c.dropped}
	var live int64
	m.mu.RLock()
	root := c.root.page()
	rec.root = c.root.ref
	m.mu.RUnlock()
	if root == nil {
		w.Pack = 0
	} else {
		if w.Pack == 0 || w.Pack+1 == 0 {
			return w, nil, errors.New("cluster map: pack numbers are used up")
		}
		m.ReservePacks(w.Pack + 1)
		if live, w.PackBytes, err = c.writePack(ctx, w.Pack, root); err != nil {
			return w, nil, err
		}
		rec.root = root.wref
	}
	m.wr.Lock()
	rec.nextPack = m.nextPack
	rec.packs, w.Dead = c.packTable(PackInfo{w.Pack, w.PackBytes, live})
	m.wr.Unlock()
	w.Record, err = rec.encode()
	return w, rec, err
}

// complete loads what the frozen partial pages below (level, index) are based on.
func (c *Checkpoint) complete(ctx context.Context, level int, index uint64) error {
	var wants []want
	var below []uint64
	for {
		wants, below = c.partials(level, index, wants[:0], below[:0])
		if len(wants) == 0 {
			break
		}
		if err := c.m.fetch(ctx, wants); err != nil {
			return err
		}
		c.m.cache.trim()
	}
	for _, i := range below {
		if err := c.complete(ctx, level-1, i); err != nil {
			return err
		}
	}
	return nil
}

// partials lists the pages wanted by the frozen page at (level, index) and by its leaves,
// and the dirty inner pages below it.
func (c *Checkpoint) partials(level int, index uint64, wants []want, below []uint64) ([]want, []uint64) {
	c.m.mu.RLock()
	defer c.m.mu.RUnlock()
	s, _ := c.root.find(c.height, level, index)
	if s == nil {
		return wants, below
	}
	h := s.page()
	if h == nil || !h.dirty() {
		return wants, below
	}
	if h.base.real() {
		return append(wants, want{h.base, level, index}), below
	}
	if s.inner == nil {
		return wants, below
	}
	for i := range s.inner.kid {
		k := &s.inner.kid[i]
		switch h := k.page(); {
		case h == nil || !h.dirty():
		case k.leaf == nil:
			below = append(below, h.index)
		case h.base.real():
			wants = append(wants, want{h.base, 0, h.index})
		}
	}
	return wants, below
}

// walkDropped counts the pages of dropped subtrees as garbage, a bounded number of them.
// What cannot be read now stays for the next checkpoint.
func (c *Checkpoint) walkDropped(ctx context.Context) error {
	m := c.m
	for budget := max(dropsPerCheckpoint, len(c.dropped)/4); budget > 0 && len(c.dropped) > 0; budget-- {
		last := len(c.dropped) - 1
		d := c.dropped[last]
		b, err := readExact(ctx, m.store, d.ref.pack, d.ref.off, d.ref.length)
		if ctx.Err() != nil {
			return fmt.Errorf("walk dropped pages: %w", context.Cause(ctx))
		}
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) {
			break // an outage: it holds up only the counting
		}
		c.dropped = c.dropped[:last]
		c.walked.charge(d.ref)
		var n *inner
		if err == nil {
			_, n, err = m.decode(want(d), b)
		}
		if err != nil {
			continue // lost: what is below counts as live until cleaning looks at it
		}
		for i := range n.kid {
			switch r := n.kid[i].ref; {
			case r.absent():
			case d.level == 1:
				c.walked.charge(r)
			default:
				c.dropped = append(c.dropped, drop{r, d.level - 1, n.kidIndex(i)})
			}
		}
	}
	return nil
}

func (c *Checkpoint) writePack(ctx context.Context, number uint32, root *header) (live, size int64, err error) {
	err = c.m.store.WritePack(ctx, number, func(w io.Writer) error {
		c.written = c.written[:0]
		bw := bufio.NewWriterSize(w, 1<<18)
		p := &packWriter{w: bw, pack: number}
		if err := p.begin(c.seq); err != nil {
			return err
		}
		if err := c.writePage(ctx, p, root); err != nil {
			return err
		}
		if err := p.end(); err != nil {
			return err
		}
		live, size = p.live, int64(p.off)
		return bw.Flush()
	})
	if err != nil {
		return 0, 0, fmt.Errorf("write pack %d: %w", number, err)
	}
	return live, size, nil
}

// writePage writes the dirty pages below h, then h. The content of frozen pages does not
// change any more; which children are in memory does, so that is looked at under the lock.
func (c *Checkpoint) writePage(ctx context.Context, p *packWriter, h *header) error {
	if h.partial() {
		return fmt.Errorf("cluster map: page of level %d, index %d is not complete: %w", h.level, h.index, ErrCorrupt)
	}
	var count uint64
	if l := h.leaf; l != nil {
		p.buf = appendLeaf(p.buf[:0], l.index, &l.ent)
		for i := range l.ent {
			count += uint64(l.ent[i].mapped())
		}
	} else {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		var kids [fanOut]ref
		for _, k := range c.children(h.inner, &kids) {
			if err := c.writePage(ctx, p, k); err != nil {
				return err
			}
			kids[k.index&fanMask] = k.wref
		}
		for i := range kids {
			count += kids[i].count
		}
		p.buf = appendInner(p.buf[:0], int(h.level), h.index, &kids)
	}
	var err error
	if h.wref, err = p.page(int(h.level), h.index, p.buf, count); err != nil {
		return err
	}
	c.written = append(c.written, h)
	return nil
}

// children fills refs for the clean children of n and returns the dirty ones.
func (c *Checkpoint) children(n *inner, refs *[fanOut]ref) (dirty []*header) {
	c.m.mu.RLock()
	defer c.m.mu.RUnlock()
	for i := range n.kid {
		s := &n.kid[i]
		switch h := s.page(); {
		case h == nil:
			refs[i] = s.ref
		case h.dirty():
			dirty = append(dirty, h)
		default:
			refs[i] = h.ref
		}
	}
	return dirty
}

// packTable brings the packs up to date: what died, what was written. m.wr is held.
func (c *Checkpoint) packTable(written PackInfo) (packs []PackInfo, dead []uint32) {
	own := uint32(0)
	if len(c.m.lineage) > 0 {
		own = c.m.lineage[0]
	}
	packs = make([]PackInfo, 0, len(c.m.packs)+1)
	for _, p := range c.m.packs {
		p.Live -= c.acct.dead[p.Number] + c.walked.dead[p.Number]
		switch {
		case p.Live > 0 && !c.condemned[p.Number]:
			packs = append(packs, p)
		case p.Number >= own:
			dead = append(dead, p.Number)
		}
	}
	if written.Number != 0 {
		packs = append(packs, written)
		slices.SortFunc(packs, func(a, b PackInfo) int { return cmp.Compare(a.Number, b.Number) })
	}
	return packs, dead
}

// finish makes the written pages clean, in steps, so that readers never wait long.
func (c *Checkpoint) finish(rec *record) {
	const step = 256
	m := c.m
	for part := range slices.Chunk(c.written, step) {
		m.wr.Lock()
		m.mu.Lock()
		for _, h := range part {
			h.ref = h.wref
			if h.superseded {
				m.acct.charge(h.ref)
			} else {
				m.cache.add(h)
			}
		}
		m.mu.Unlock()
		m.wr.Unlock()
	}
	m.wr.Lock()
	defer m.wr.Unlock()
	c.done = true
	c.copies, c.orphans, c.written = nil, nil, nil
	m.endCheckpoint()
	m.seq, m.packs, m.dropped = rec.seq, rec.packs, rec.dropped
	m.addDirty(-c.frozenBytes)
	m.cache.used.Add(-c.superBytes)
}

func (m *Map) endCheckpoint() {
	m.mu.Lock()
	m.cp = nil
	m.mu.Unlock()
}
