package alba

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"scoria/alba/codec"
	"scoria/alba/osd"
	"scoria/internal/blocksum"
	"scoria/metadata"
)

type osdID = metadata.OSDID

// rebuildStep is how much of a fragment is reconstructed at a time: it bounds memory.
const rebuildStep = 1 << 20

// rebuildPiece fills dst with the piece's range of its fragment, computed from the same
// range of k other fragments.
func (c *Client) rebuildPiece(ctx context.Context, p *piece, dst []byte) error {
	g := &gather{c: c, p: *p, base: uint64(p.off), want: p.want, dst: make([][]byte, p.o.total), skip: make([]bool, p.o.total)}
	g.dst[p.frag], g.skip[p.frag] = dst, true
	for _, i := range p.liars {
		g.skip[i] = true
	}
	if err := g.rebuild(ctx, len(dst)); err != nil {
		return err
	}
	p.sums = blocksum.Sums(make([]uint32, 0, len(dst)/codec.BlockSize), dst)
	c.stats.rebuilt.Add(1)
	return nil
}

// gather collects equal ranges of fragments of one chunk and computes those that are missing.
type gather struct {
	c    *Client
	p    piece  // names object and chunk; a copy, since stragglers outlive the read
	base uint64 // where the range begins in the fragments
	want []uint32
	dst  [][]byte // by fragment: where to put what is wanted, nil if it is not
	skip []bool   // by fragment: not to be read

	// of the current step
	off    uint64
	n      int
	shards [][]byte
	bufs   []*codec.Buf // memory of the shards; a straggler's is left to the collector
	lost   int          // fragments that will never come
	errs   []error
}

// rebuild fills dst, n bytes each, step by step.
func (g *gather) rebuild(ctx context.Context, n int) error {
	for at := 0; at < n; at += rebuildStep {
		g.off, g.n = g.base+uint64(at), min(rebuildStep, n-at)
		need := min(int64(g.p.o.total)*int64(g.n), g.c.opts.ReadBytes)
		if err := g.c.rebuilds.Acquire(ctx, need); err != nil {
			return err
		}
		err := g.step(ctx, at)
		g.c.rebuilds.Release(need)
		if err != nil {
			return err
		}
	}
	return nil
}

type gathered struct {
	frag int
	buf  *codec.Buf
	err  error
}

// step reads until k fragments are there, and computes the missing ones. When the result
// is not what was ingested, one of the others lies: each is left out in turn.
func (g *gather) step(ctx context.Context, at int) error {
	k := g.p.o.Policy.K
	g.shards, g.lost, g.errs = make([][]byte, g.p.o.total), 0, nil
	defer func() {
		for _, b := range g.bufs {
			b.Free()
		}
		g.bufs = nil
	}()
	dst := make([][]byte, len(g.dst))
	for i, d := range g.dst {
		if d != nil {
			dst[i] = d[at : at+g.n]
		}
	}
	var want []uint32
	if g.want != nil {
		want = g.want[at/codec.BlockSize : (at+g.n)/codec.BlockSize]
	}
	order := g.sources()
	if err := g.read(ctx, order, k, false); err != nil {
		return err
	}
	if err := g.compute(dst, -1, k); err != nil {
		return err
	}
	if want == nil || sumsMatch(dst[g.p.frag], want) {
		return nil
	}
	if err := g.read(ctx, order, k, true); err != nil {
		return err
	}
	for out := range g.shards {
		if len(g.shards[out]) > 0 && g.compute(dst, out, k) == nil && sumsMatch(dst[g.p.frag], want) {
			other := g.p
			other.frag = out
			g.c.noteWrong(&other)
			g.c.queueRepair(&other)
			return nil
		}
	}
	return fmt.Errorf("no %d fragments give what was ingested: %w", k, ErrUnreadable)
}

func sumsMatch(data []byte, want []uint32) bool { return checkSums(data, want) == nil }

// sources returns the other fragments that may be read, best first.
func (g *gather) sources() []int {
	var order []int
	frags := g.p.o.Chunks[g.p.chunk].Fragments
	cost := make([]int64, len(frags))
	for i, f := range frags {
		d := g.c.disks.get(f.OSD)
		if f.OSD == 0 || (d != nil && d.gone()) {
			g.lost++
			continue
		}
		if g.skip[i] {
			continue
		}
		if d != nil {
			cost[i] = d.mean.Load()
			if d.bad.Load() {
				cost[i] += int64(time.Hour)
			}
		}
		order = append(order, i)
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(cost[a], cost[b]) })
	return order
}

// read asks the sources until k have answered, or with all set until each has. Slow ones
// are joined by the next after a while.
func (g *gather) read(ctx context.Context, order []int, k int, all bool) error {
	ctx, cancel := context.WithTimeout(ctx, g.c.opts.ReadTimeout)
	defer cancel()
	results := make(chan gathered, len(order))
	have, running := 0, 0
	for _, s := range g.shards {
		if len(s) > 0 {
			have++
		}
	}
	next := 0
	launch := func() {
		for next < len(order) {
			i := order[next]
			next++
			if len(g.shards[i]) == 0 {
				running++
				off, n := g.off, g.n // g goes on to the next step without stragglers
				if !g.c.spawn(func(context.Context) { results <- g.one(ctx, i, off, n) }) {
					results <- gathered{frag: i, err: ErrClosed}
				}
				return
			}
		}
	}
	for range order {
		if have+running < k || all {
			launch()
		}
	}
	tick := time.NewTimer(g.patience())
	defer tick.Stop()
	for running > 0 && (have < k || all) {
		select {
		case r := <-results:
			running--
			if r.err != nil {
				g.note(r)
				launch()
				continue
			}
			g.shards[r.frag] = r.buf.B
			g.bufs = append(g.bufs, r.buf)
			have++
		case <-tick.C:
			launch()
			tick.Reset(g.c.opts.HedgeMin)
		}
	}
	if have >= k {
		return nil
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	kind := ErrUnavailable
	if g.broken() > g.p.o.total-k {
		kind = ErrUnreadable
	}
	err := fmt.Errorf("%d of %d fragments, %d needed, %d lost: %w", have, g.p.o.total, k, g.broken(), kind)
	for _, e := range g.errs {
		err = fmt.Errorf("%w; %w", err, e)
	}
	return err
}

// broken counts the fragments that will never come, with the wanted ones that are known to be bad.
func (g *gather) broken() int {
	n := g.lost
	for i, skip := range g.skip {
		f := g.p.o.Chunks[g.p.chunk].Fragments[i]
		d := g.c.disks.get(f.OSD)
		if skip && f.OSD != 0 && (d == nil || !d.gone()) && (g.p.frag < 0 || g.p.bad) {
			n++
		}
	}
	return n
}

func (g *gather) patience() time.Duration {
	return g.c.opts.HedgeMin*4 + time.Duration(g.n)*20
}

func (g *gather) note(r gathered) {
	g.errs = append(g.errs, fmt.Errorf("fragment %d: %w", r.frag, r.err))
	if errors.Is(r.err, osd.ErrNotFound) || errors.Is(r.err, osd.ErrCorrupt) {
		g.lost++
		g.c.countBroken(r.err)
		if g.p.frag >= 0 { // a repair that comes across it leaves it to scrub: two repairs of one object collide
			other := g.p
			other.frag = r.frag
			g.c.queueRepair(&other)
		}
	}
}

// one reads n bytes at off from fragment i. It uses nothing of g that changes.
func (g *gather) one(ctx context.Context, i int, off uint64, n int) gathered {
	f := g.p.o.Chunks[g.p.chunk].Fragments[i]
	out := gathered{frag: i}
	k, err := g.c.disk(ctx, f.OSD)
	if err != nil {
		out.err = err
		return out
	}
	api, err := g.c.handle(k)
	if err != nil {
		out.err = fmt.Errorf("%w: %w", osd.ErrUnavailable, err)
		return out
	}
	key := FragmentKey{g.p.sp.id, g.p.o.ObjectID, uint16(g.p.chunk), uint8(i), f.Version}
	buf := g.c.codec.Buffers().Get(n)
	reads := []osd.Read{{Key: key.Bytes(KeyData), Off: off, Buf: buf.B}}
	started := time.Now()
	err = api.Read(ctx, reads)
	g.c.stats.osdReads.Add(1)
	switch {
	case err != nil:
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("%w: %w", osd.ErrUnavailable, err)
		}
		g.c.failed(k, err)
		out.err = fmt.Errorf("OSD %d: %w", f.OSD, err)
	case reads[0].Err != nil:
		g.c.failed(k, reads[0].Err)
		out.err = fmt.Errorf("OSD %d: %w", f.OSD, reads[0].Err)
	default:
		k.succeeded(time.Since(started))
		g.c.stats.osdReadBytes.Add(uint64(n))
		out.buf = buf
	}
	return out
}

// compute reconstructs what is wanted from k shards, without shard out (-1: none).
func (g *gather) compute(dst [][]byte, out, k int) error {
	shards, want := make([][]byte, len(g.shards)), make([]bool, len(g.shards))
	used := 0
	for i, s := range g.shards {
		if i != out && len(s) > 0 && used < k {
			shards[i] = s
			used++
		}
	}
	for i, d := range dst {
		if d != nil {
			want[i], shards[i] = true, d[:0:len(d)]
		}
	}
	if err := g.c.codec.Reconstruct(k, g.p.o.total-k, shards, want); err != nil {
		return err
	}
	for i, d := range dst {
		if d != nil && &shards[i][0] != &d[0] {
			copy(d, shards[i])
		}
	}
	return nil
}
