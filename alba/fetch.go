package alba

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"scoria/alba/codec"
	"scoria/alba/osd"
)

// Bounds of one request to an OSD.
const (
	requestOps   = 1024
	requestBytes = 16 << 20
	mergeBytes   = 64 << 10 // larger fetches are not merged with equal ones
)

// errOutOfUse: the disk has failed lately and is being probed.
var errOutOfUse = fmt.Errorf("out of use: %w", osd.ErrUnavailable)

// errLost: the fragment is nowhere, or its disk is.
var errLost = errors.New("fragment is lost")

// fetch fills the pieces; each gets its own err.
func (c *Client) fetch(ctx context.Context, pieces []piece) {
	if len(pieces) == 1 {
		c.fetchOne(ctx, &pieces[0])
		return
	}
	order := make([]*piece, len(pieces))
	for i := range pieces {
		order[i] = &pieces[i]
	}
	place := func(p *piece) (id uint32) { return uint32(p.o.Chunks[p.chunk].Fragments[p.frag].OSD) }
	slices.SortStableFunc(order, func(a, b *piece) int { return cmp.Compare(place(a), place(b)) })
	var wg sync.WaitGroup
	defer wg.Wait()
	for len(order) > 0 {
		n, bytes := 1, len(order[0].buf)
		for n < len(order) && n < requestOps && place(order[n]) == place(order[0]) && bytes+len(order[n].buf) <= requestBytes {
			bytes += len(order[n].buf)
			n++
		}
		group := order[:n]
		if order = order[n:]; len(order) == 0 {
			c.fetchGroup(ctx, group)
			return
		}
		wg.Go(func() { c.fetchGroup(ctx, group) })
	}
}

// flights merges equal fetches that run at the same time.
type flights struct {
	shards [16]struct {
		mu sync.Mutex
		m  map[flightKey]*flight
	}
}

type flightKey struct {
	id          [16]byte
	chunk, frag int
	off, n      uint32
}

type flight struct {
	done    chan struct{}
	waiters int // guarded by the shard's lock
	data    []byte
	sums    []uint32
	err     error
}

func (f *flights) init() {
	for i := range f.shards {
		f.shards[i].m = map[flightKey]*flight{}
	}
}

func (c *Client) fetchOne(ctx context.Context, p *piece) {
	if len(p.buf) > mergeBytes {
		c.fetchGroup(ctx, []*piece{p})
		return
	}
	key := flightKey{p.o.ObjectID, p.chunk, p.frag, p.off, uint32(len(p.buf))}
	s := &c.flights.shards[(uint32(key.id[0])+p.off/codec.BlockSize)%16]
	s.mu.Lock()
	if f := s.m[key]; f != nil {
		f.waiters++
		s.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			p.err = ctx.Err()
			return
		}
		if f.err == nil && (p.want == nil || slices.Equal(p.want, f.sums)) {
			copy(p.buf, f.data)
			p.sums = f.sums
			c.stats.merged.Add(1)
			return
		}
		c.fetchGroup(ctx, []*piece{p}) // the other one's failure (its context, say) is not ours
		return
	}
	f := &flight{done: make(chan struct{})}
	s.m[key] = f
	s.mu.Unlock()
	c.fetchGroup(ctx, []*piece{p})
	s.mu.Lock()
	delete(s.m, key)
	waiters := f.waiters
	s.mu.Unlock()
	if f.err = p.err; waiters > 0 && p.err == nil {
		f.data, f.sums = slices.Clone(p.buf), slices.Clone(p.sums)
	}
	close(f.done)
}

// fetchGroup fills pieces that lie on one OSD, and rebuilds from others what that fails to give.
func (c *Client) fetchGroup(ctx context.Context, ps []*piece) {
	h := c.readPrimary(ctx, ps, false)
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, p := range ps {
		if p.err == nil {
			continue
		}
		if ctx.Err() != nil {
			p.err = ctx.Err()
			continue
		}
		lied := errors.Is(p.err, ErrUnreadable)
		broken := lied || errors.Is(p.err, osd.ErrNotFound) || errors.Is(p.err, osd.ErrCorrupt)
		c.countBroken(p.err)
		made := func() { // from others
			if lied {
				c.noteWrong(p)
			}
			if broken {
				c.queueRepair(p)
			}
		}
		if h.take(ctx, i, p) {
			c.stats.hedgesWon.Add(1)
			made()
			continue
		}
		skipped := errors.Is(p.err, errOutOfUse)
		rebuild := func() {
			p.bad = broken
			if p.err = c.rebuildPiece(ctx, p, p.buf); p.err == nil {
				made()
			}
			if p.err != nil && skipped && ctx.Err() == nil { // it may be well again, and is all there is
				was := p.err
				if c.readPrimary(ctx, []*piece{p}, true); p.err != nil {
					p.err = fmt.Errorf("%w (%w)", was, p.err)
				}
			}
		}
		if len(ps) == 1 {
			rebuild()
		} else {
			wg.Go(rebuild) // rebuilds bound their memory themselves
		}
	}
}

func (c *Client) countBroken(err error) {
	switch {
	case errors.Is(err, osd.ErrNotFound):
		c.stats.missing.Add(1)
	case errors.Is(err, osd.ErrCorrupt), errors.Is(err, ErrUnreadable):
		c.stats.corrupt.Add(1)
	}
}

// call is the memory of one request to an OSD; it is used again, since an OSD does not
// touch it after Read has returned.
type call struct {
	reads []osd.Read
	keys  []byte
	sums  []uint32
}

var calls = sync.Pool{New: func() any { return new(call) }}

func (cl *call) fill(ps []*piece) {
	cl.reads, cl.keys = cl.reads[:0], cl.keys[:0]
	blocks := 0
	for _, p := range ps {
		blocks += len(p.buf) / codec.BlockSize
	}
	cl.keys = slices.Grow(cl.keys, len(ps)*fragmentKeyLen)
	cl.sums = slices.Grow(cl.sums[:0], blocks)
	for _, p := range ps {
		at := len(cl.keys)
		cl.keys = p.key().Append(cl.keys, KeyData)
		n := len(cl.sums)
		cl.sums = cl.sums[:n+len(p.buf)/codec.BlockSize]
		cl.reads = append(cl.reads, osd.Read{Key: cl.keys[at:len(cl.keys):len(cl.keys)], Off: uint64(p.off), Buf: p.buf, Sums: cl.sums[n:n:len(cl.sums)]})
	}
}

func (cl *call) free() {
	clear(cl.reads)
	calls.Put(cl)
}

func (p *piece) key() FragmentKey {
	return FragmentKey{p.sp.id, p.o.ObjectID, uint16(p.chunk), uint8(p.frag), p.o.Chunks[p.chunk].Fragments[p.frag].Version}
}

// readPrimary reads from the OSD that the manifest names. When that is slow, a hedge is made
// in parallel; it is returned if it was started and something is left to it.
// A disk that is out of use is read only with force.
func (c *Client) readPrimary(ctx context.Context, ps []*piece, force bool) *hedge {
	id := ps[0].o.Chunks[ps[0].chunk].Fragments[ps[0].frag].OSD
	fail := func(err error) *hedge {
		for _, p := range ps {
			p.err = err
		}
		return nil
	}
	if id == 0 {
		return fail(errLost)
	}
	k, err := c.disk(ctx, id)
	switch {
	case err != nil:
		return fail(err)
	case k.gone():
		return fail(errLost)
	case !k.readable():
		return fail(fmt.Errorf("OSD %d is not ours to read: %w", id, osd.ErrUnavailable))
	case !force && k.bad.Load() && ps[0].o.Policy.M > 0:
		return fail(fmt.Errorf("OSD %d: %w", id, errOutOfUse))
	}
	api, err := c.handle(k)
	if err != nil {
		c.failed(k, err)
		return fail(fmt.Errorf("%w: %w", osd.ErrUnavailable, err))
	}
	rctx, cancel := context.WithTimeout(ctx, c.opts.ReadTimeout)
	defer cancel()
	cl := calls.Get().(*call)
	defer cl.free()
	cl.fill(ps)
	bytes := 0
	for _, p := range ps {
		bytes += len(p.buf)
	}
	h := &hedge{c: c, won: cancel}
	c.hedges.earn()
	started := time.Now()
	timer := time.AfterFunc(k.hedgeAfter(&c.opts, bytes), func() {
		if !force {
			c.spawn(func(context.Context) {
				h.start(ctx, ps, &c.hedges)
				if c.silent(rctx, k, started) {
					h.start(ctx, ps, nil)
				}
			})
		}
	})
	err = api.Read(rctx, cl.reads)
	timer.Stop()
	took := time.Since(started)
	c.stats.osdReads.Add(1)
	if err == nil {
		k.succeeded(took)
		c.stats.osdReadBytes.Add(uint64(bytes))
	} else {
		if ctx.Err() == nil && errors.Is(rctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("no answer in %v: %w: %w", took.Round(time.Millisecond), osd.ErrUnavailable, err)
		}
		switch {
		case !h.hasWon():
			c.failed(k, err)
		case k.answered.Load() >= started.UnixNano():
			k.measure(took) // slow, not dead
		default: // the time of the hedge says nothing about the disk
			c.ask(k, api, ps[0].key().Bytes(KeyData), ps[0].off)
		}
		return h.stop(fail2(ps, fmt.Errorf("OSD %d: %w", id, err)))
	}
	left := false
	for i, p := range ps {
		p.err = c.accept(k, p, &cl.reads[i])
		left = left || p.err != nil
	}
	return h.stop(left)
}

func fail2(ps []*piece, err error) bool {
	for _, p := range ps {
		p.err = err
	}
	return true
}

// accept checks one answer of an OSD.
func (c *Client) accept(k *disk, p *piece, r *osd.Read) error {
	if r.Err != nil {
		c.failed(k, r.Err)
		return fmt.Errorf("OSD %d: %w", k.id, r.Err)
	}
	if len(r.Sums) != len(p.buf)/codec.BlockSize {
		return fmt.Errorf("OSD %d gave %d sums for %d bytes: %w", k.id, len(r.Sums), len(p.buf), osd.ErrCorrupt)
	}
	if p.want != nil && !slices.Equal(p.want, r.Sums) {
		return fmt.Errorf("OSD %d: not what was ingested: %w", k.id, ErrUnreadable)
	}
	p.sums = slices.Clone(r.Sums)
	return nil
}

// disk finds a disk, refreshing the list when it is not known.
func (c *Client) disk(ctx context.Context, id osdID) (*disk, error) {
	if k := c.disks.get(id); k != nil {
		if !c.disks.young(c.opts.OSDRefresh) {
			c.disks.freshLater()
		}
		return k, nil
	}
	if err := c.disks.fresh(ctx, time.Second); err != nil {
		return nil, fmt.Errorf("%w: %w", osd.ErrUnavailable, err)
	}
	if k := c.disks.get(id); k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("OSD %d is not known: %w", id, osd.ErrUnavailable)
}

// budget bounds hedges to a twentieth of the reads, with some at hand: when all disks are
// slow since they are busy, asking k of them for each block would make it worse.
type budget struct{ tokens atomic.Int64 }

const (
	hedgeCost   = 20
	hedgeCredit = 32 * hedgeCost
)

func (b *budget) earn() {
	if b.tokens.Load() < hedgeCredit {
		b.tokens.Add(1)
	}
}

func (b *budget) spend() bool {
	if b.tokens.Add(-hedgeCost) >= 0 {
		return true
	}
	b.tokens.Add(hedgeCost)
	return false
}

// hedge reads the pieces of a slow request from other fragments, into memory of its own.
type hedge struct {
	c   *Client
	won context.CancelFunc // ends the slow request
	mu  struct {
		sync.Mutex
		started, stopped, won bool
	}
	cancel context.CancelFunc
	done   chan struct{}
	bufs   [][]byte
	copies []piece
}

// start runs when the timer has fired, in a goroutine of its own. It is paid from the budget, if
// there is one.
func (h *hedge) start(ctx context.Context, ps []*piece, b *budget) {
	h.mu.Lock()
	if h.mu.stopped || h.mu.started || ps[0].o.Policy.M == 0 || b != nil && !b.spend() {
		h.mu.Unlock()
		return
	}
	h.mu.started = true
	h.done = make(chan struct{})
	h.bufs, h.copies = make([][]byte, len(ps)), make([]piece, len(ps))
	for i, p := range ps {
		h.bufs[i] = make([]byte, len(p.buf))
		h.copies[i] = piece{sp: p.sp, o: p.o, chunk: p.chunk, frag: p.frag, off: p.off, buf: h.bufs[i], want: p.want, liars: p.liars}
	}
	ctx, h.cancel = context.WithCancel(ctx)
	h.mu.Unlock()
	defer h.cancel()
	defer close(h.done)
	h.c.stats.hedges.Add(1)
	all := true
	for i := range h.copies {
		h.copies[i].err = h.c.rebuildPiece(ctx, &h.copies[i], h.bufs[i])
		all = all && h.copies[i].err == nil
	}
	if all {
		h.mu.Lock()
		h.mu.won = true
		h.mu.Unlock()
		h.won()
	}
}

func (h *hedge) hasWon() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.won
}

// stop prevents a start, or ends what was started when nothing is left to it.
func (h *hedge) stop(left bool) *hedge {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.stopped = true
	if !h.mu.started {
		return nil
	}
	if !left {
		h.cancel()
		return nil
	}
	return h
}

// take waits for the hedge and takes its result for piece i.
func (h *hedge) take(ctx context.Context, i int, p *piece) bool {
	if h == nil {
		return false
	}
	select {
	case <-h.done:
	case <-ctx.Done():
		return false
	}
	if h.copies[i].err != nil {
		return false
	}
	copy(p.buf, h.bufs[i])
	p.sums, p.err = h.copies[i].sums, nil
	return true
}
