package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"scoria/nbd"
	"scoria/nbd/nbdtest"
	"scoria/volumedriver/volumetest"
)

const cluster = 4096

// volume is a volume with its clients. Each client (lane) has a part of the volume to itself,
// does one thing at a time there, and knows every state of it; together they say what
// the volume may look like (check.go).
type volume struct {
	w      *world
	name   string
	number uint64
	size   atomic.Uint64
	lanes  atomic.Pointer[[]*lane] // all(); they become more when the volume grows

	growing atomic.Bool
	tickets atomic.Int64 // order of operations over all lanes
	gone    atomic.Bool  // deleted, or being

	mu struct {
		sync.Mutex
		parked  int  // lanes that wait at the gate
		closed  bool // the gate: lanes stop before their next operation
		stop    bool // lanes end
		changed *sync.Cond
	}
	flushMu chan struct{} // one flush of the volume at a time
}

// lane is a client with its part of the volume.
type lane struct {
	v     *volume
	n     int
	base  uint64
	model *volumetest.Model
	r     *rand.Rand
	stamp uint64
	ops   int // left to do
	dev   *nbdtest.Remote
	conn  *nbdtest.Client
	boot  int64 // of the gateway that it is, or was, connected to

	began, ended []int64 // tickets of operations: begun, acknowledged (0: not)
	acked        atomic.Int64
	flushed      atomic.Int64
	drained      atomic.Int64
}

func newVolume(w *world, name string, spec volumeSpec) *volume {
	v := &volume{w: w, name: name, number: spec.Number, flushMu: make(chan struct{}, 1)}
	v.size.Store(spec.Clusters * cluster)
	v.mu.changed = sync.NewCond(&v.mu.Mutex)
	v.lanes.Store(new([]*lane))
	share := spec.Clusters / uint64(spec.Lanes)
	for i := range spec.Lanes {
		v.addLane(uint64(i)*share*cluster, share*cluster, spec.Ops)
	}
	return v
}

// all lists the lanes.
func (v *volume) all() []*lane { return *v.lanes.Load() }

// addLane makes a client for a part of the volume that no other has, and that is zero.
func (v *volume) addLane(base, size uint64, ops int) *lane {
	v.mu.Lock()
	defer v.mu.Unlock()
	i := len(v.all())
	l := &lane{
		v: v, n: i, base: base, model: volumetest.NewModel(size),
		r: rand.New(rand.NewPCG(v.w.plan.Seed, v.number<<16|uint64(i)+100)), stamp: v.number<<48 | uint64(i)<<40, ops: ops,
	}
	list := append(slices.Clone(v.all()), l)
	v.lanes.Store(&list)
	return l
}

// gate closes or opens the gate. Closing waits until all lanes stand there (or have ended).
func (v *volume) gate(closed bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.closed = closed
	v.mu.changed.Broadcast()
	for closed && v.mu.parked < len(v.all()) {
		v.mu.changed.Wait()
	}
}

// end lets the lanes end and waits for them.
func (v *volume) end() {
	v.mu.Lock()
	v.mu.stop = true
	v.mu.changed.Broadcast()
	v.mu.Unlock()
	v.gate(true)
}

// pass waits at the gate; false: the lane ends.
func (l *lane) pass() bool {
	v := l.v
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.mu.closed && !v.mu.stop && l.v.w.ctx.Err() == nil {
		return true
	}
	v.mu.parked++
	v.mu.changed.Broadcast()
	for v.mu.closed && !v.mu.stop && v.w.ctx.Err() == nil {
		v.mu.changed.Wait()
	}
	if v.mu.stop || v.w.ctx.Err() != nil {
		return false // stays parked
	}
	v.mu.parked--
	return true
}

// run does the lane's operations.
func (l *lane) run() {
	for l.pass() {
		if l.ops <= 0 {
			l.v.mu.Lock()
			l.v.mu.parked++
			l.v.mu.changed.Broadcast()
			l.v.mu.Unlock()
			return
		}
		sleep(time.Duration(l.r.Int64N(int64(l.v.w.plan.Think)) + 1))
		if !l.pass() {
			return
		}
		if err := l.connect(); err != nil {
			l.v.w.note("connects refused", 1)
			sleep(time.Second)
			continue
		}
		l.ops--
		l.v.w.note("operations", 1)
		if err := l.step(l.v.w.ctx); err != nil {
			l.broken(err)
		}
	}
}

// connect connects to the volume if need be.
func (l *lane) connect() error {
	if l.dev != nil {
		return nil
	}
	boot := l.v.w.gw.boots.Load()
	c, err := l.v.w.dialNBD(l.v.w.ctx, l.v.name)
	if err != nil {
		return err
	}
	if end := l.base + l.model.Size(); c.Size < end {
		l.v.w.fail(fmt.Errorf("%w: volume %s has %d bytes, and had %d", errWrong, l.v.name, c.Size, end))
	}
	l.conn, l.boot = c, boot
	l.dev, err = nbdtest.NewRemote(func() (*nbdtest.Client, error) { return c, nil })
	return err
}

func (l *lane) disconnect() {
	if l.conn != nil {
		_ = l.conn.Close() // the server may be dead
	}
	l.conn, l.dev = nil, nil
}

// broken handles the failure of an operation. When the gateway is alive, an operation that
// failed is a fault of the gateway unless the plan has a cause for it.
func (l *lane) broken(err error) {
	w := l.v.w
	if errors.Is(err, errWrong) {
		w.fail(err)
		return
	}
	var refused *nbdtest.RequestError
	if !errors.As(err, &refused) && l.cut() { // a read, a flush: nothing to settle
		l.disconnect()
		return
	}
	if !errors.As(err, &refused) || w.gw.dying() { // the gateway died, or will be found dead
		l.disconnect()
		w.note("connections lost", 1)
		w.expectDeath(l, err)
		return
	}
	w.note("requests failed", 1)
	if why := w.excuse(); why == "" {
		w.fail(fmt.Errorf("volume %s, client %d: a request failed though nothing is wrong: %w", l.v.name, l.n, err))
	}
	if err := l.settle(); err != nil {
		w.fail(err)
	}
}

// settle finds out what a failed operation has done: reads until the volume answers.
func (l *lane) settle() error {
	if l.acked.Load() == int64(l.model.State()) {
		return nil // it was not one that changes anything
	}
	for {
		content := make([]byte, l.model.Size())
		err := l.dev.ReadAt(l.v.w.ctx, content, l.base)
		if err == nil {
			return l.resume(content, int(l.acked.Load()))
		}
		var refused *nbdtest.RequestError
		if !errors.As(err, &refused) || l.v.w.gw.dying() {
			l.disconnect()
			l.v.w.expectDeath(l, err)
			return nil // the check after the restart settles it
		}
		if l.v.w.excuse() == "" {
			return fmt.Errorf("volume %s, client %d: a read failed though nothing is wrong: %w", l.v.name, l.n, err)
		}
		sleep(time.Second)
	}
}

// resume makes what was read the newest state, which must be one from atLeast on.
func (l *lane) resume(content []byte, atLeast int) error {
	k, err := l.model.Last(content, atLeast)
	if err != nil {
		return fmt.Errorf("%w: volume %s, client %d at %d (acknowledged %d, flushed %d, drained %d): %w", errWrong, l.v.name, l.n, l.base,
			l.acked.Load(), l.flushed.Load(), l.drained.Load(), err)
	}
	l.model.Rewind(k, content)
	n := l.model.State()
	l.began, l.ended = l.began[:n], l.ended[:n]
	for _, p := range []*atomic.Int64{&l.flushed, &l.drained} {
		p.Store(min(p.Load(), int64(n)))
	}
	l.acked.Store(int64(n))
	return nil
}

// errWrong marks what nothing excuses: wrong bytes, or bytes lost that were promised.
var errWrong = errors.New("wrong data")

// op is an operation that a client may do, with its weight.
type op struct {
	name   string
	weight int
	do     func(l *lane, ctx context.Context) error
}

// ops are what clients do. Snapshots and their like come in here.
var ops = []op{
	{"write", 40, (*lane).write},
	{"write zeroes", 6, (*lane).zero},
	{"trim", 6, (*lane).trim},
	{"read", 25, (*lane).read},
	{"read all", 2, (*lane).readAll},
	{"flush", 8, (*lane).flush},
	{"extents", 4, (*lane).extents},
	{"cache", 1, (*lane).cache},
	{"reconnect", 1, (*lane).reconnect},
}

func (l *lane) step(ctx context.Context) error {
	total := 0
	for i := range ops {
		total += ops[i].weight
	}
	n := l.r.IntN(total)
	for i := range ops {
		if n -= ops[i].weight; n < 0 {
			return ops[i].do(l, ctx)
		}
	}
	return nil
}

// extent returns a random range of at most clusters clusters, aligned half of the time.
func (l *lane) extent(clusters int) (off, length uint64) {
	size := l.model.Size()
	length = uint64(1 + l.r.IntN(1+l.r.IntN(clusters*cluster)))
	off = l.r.Uint64N(size)
	if l.r.IntN(2) == 0 {
		off, length = off&^(cluster-1), max(length&^(cluster-1), cluster)
	}
	return off, min(length, size-off)
}

// begin notes an operation that changes something, before it is asked for.
func (l *lane) begin() {
	l.began, l.ended = append(l.began, l.v.tickets.Add(1)), append(l.ended, 0)
}

// done notes that it was acknowledged.
func (l *lane) done(err error, fua bool) error {
	if err != nil {
		return err
	}
	l.ended[len(l.ended)-1] = l.v.tickets.Add(1)
	n := int64(l.model.State())
	l.acked.Store(n)
	if fua {
		l.flushed.Store(n)
	}
	return nil
}

// sure asks again, over a new connection, for what was under way when the network cut the old
// one, as the kernel's client does. The first request may have been done, or may be done late.
func (l *lane) sure(do func() error) error {
	for {
		err := do()
		var refused *nbdtest.RequestError
		if err == nil || errors.As(err, &refused) || !l.cut() {
			return err
		}
		for l.disconnect(); l.dev == nil; {
			if !l.cut() || l.v.w.ctx.Err() != nil {
				return err
			}
			if l.connect() != nil {
				sleep(100 * time.Millisecond)
			}
		}
		l.v.w.note("requests sent again", 1)
	}
}

// cut tells that a broken connection is the network's doing: the gateway that it led to lives.
func (l *lane) cut() bool {
	w := l.v.w
	return w.clientsCut.Load() && l.boot == w.gw.boots.Load() && !w.gw.dying()
}

func (l *lane) write(ctx context.Context) error {
	clusters := 12
	if l.r.IntN(8) == 0 {
		clusters = 90
	}
	off, length := l.extent(clusters)
	p := make([]byte, length)
	l.stamp++
	volumetest.Fill(p, l.stamp, off)
	fua := l.r.IntN(8) == 0
	l.model.Write(off, p)
	l.begin()
	return l.done(l.sure(func() error { return l.dev.WriteAt(ctx, p, l.base+off, fua) }), fua)
}

func (l *lane) zero(ctx context.Context) error {
	off, length := l.extent(80)
	fua, noHole := l.r.IntN(8) == 0, l.r.IntN(2) == 0
	l.model.Zero(off, length)
	l.begin()
	return l.done(l.sure(func() error { return l.dev.WriteZeroes(ctx, l.base+off, length, noHole, fua) }), fua)
}

func (l *lane) trim(ctx context.Context) error {
	off, length := l.extent(80)
	first, end := (off+cluster-1)/cluster, (off+length)/cluster
	if first >= end {
		return l.dev.Trim(ctx, l.base+off, length, false) // no whole cluster: nothing changes
	}
	l.model.Zero(first*cluster, (end-first)*cluster)
	l.begin()
	return l.done(l.sure(func() error { return l.dev.Trim(ctx, l.base+off, length, false) }), false)
}

func (l *lane) read(ctx context.Context) error {
	off, length := l.extent(40)
	return l.compare(ctx, off, length)
}

func (l *lane) readAll(ctx context.Context) error { return l.compare(ctx, 0, l.model.Size()) }

func (l *lane) compare(ctx context.Context, off, length uint64) error {
	p := make([]byte, length)
	if err := l.dev.ReadAt(ctx, p, l.base+off); err != nil {
		return err
	}
	if err := l.model.Check(off, p); err != nil {
		return fmt.Errorf("%w: volume %s, client %d at %d: %w", errWrong, l.v.name, l.n, l.base, err)
	}
	return nil
}

// flush makes everything durable that any client of the volume has had acknowledged.
func (l *lane) flush(ctx context.Context) error {
	lanes := l.v.all()
	before := make([]int64, len(lanes))
	for i, o := range lanes {
		before[i] = o.acked.Load()
	}
	if err := l.dev.Flush(ctx); err != nil {
		return err
	}
	for i, o := range lanes {
		raise(&o.flushed, before[i])
	}
	return nil
}

func raise(p *atomic.Int64, v int64) {
	for {
		now := p.Load()
		if v <= now || p.CompareAndSwap(now, v) {
			return
		}
	}
}

// extents holds BLOCK_STATUS against the content: what it calls zero must be zero.
func (l *lane) extents(ctx context.Context) error {
	off, length := l.extent(60)
	at := off
	var bad error
	err := l.dev.Extents(ctx, l.base+off, length, func(n uint64, hole, zero bool) bool {
		n = min(n, off+length-at)
		if zero {
			if err := l.model.Check(at, make([]byte, n)); err != nil {
				bad = fmt.Errorf("%w: volume %s, client %d at %d: an extent of %d bytes at %d is called zero: %w", errWrong, l.v.name, l.n, l.base, n, at, err)
			}
		}
		at += n
		return bad == nil && at < off+length
	})
	return errors.Join(bad, err)
}

func (l *lane) cache(ctx context.Context) error {
	off, length := l.extent(60)
	return l.dev.Cache(ctx, l.base+off, length)
}

func (l *lane) reconnect(context.Context) error {
	err := l.dev.Close()
	l.conn, l.dev = nil, nil
	return err
}

var _ nbd.Device = (*nbdtest.Remote)(nil)
