package volumetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"scoria/internal/vfs"
	"scoria/volumedriver"
	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/sco"
)

// Plan is one run of the crash loop: random operations on a volume until the gateway is
// made to die, then recovery, and the question whether what came back is right.
//
// Fault model. The gateway process dies (Loss is vfs.CrashKept) or its machine loses power
// (any other mode) in the middle of its k-th operation on the disk or on the object store,
// which may have been done or not. With Wipe the local directory is lost as well. The object
// store and the registry live on. What must come back is a state of the volume (C3) that has
// at least everything acknowledged (death), flushed (power loss) or drained (wipe).
type Plan struct {
	Seed       uint64
	Rounds     int // crashes, with recovery in between
	Steps      int // operations in a round, at most
	Clusters   uint64
	CrashFS    int64 // the gateway dies at about this disk operation of a round; 0: not by that
	CrashStore int64 // ... at this object store operation; 0: not by that
	Loss       vfs.CrashMode
	Wipe       bool
	CrashOpen  bool // the moments are counted from the start of the gateway, recovery included
	Journal    bool // the file system orders names as ext4 does
	Options    volumedriver.Options
}

// world is what outlives a gateway.
type world struct {
	t     testing.TB
	plan  Plan
	r     *rand.Rand
	store *Store
	reg   *Registry
	disk  *vfs.Mem

	model   *Model
	stamp   uint64
	acked   int // state that the volume has at least after the death of the process
	flushed int // ... after power loss
	drained int // ... after the loss of the local directory
	died    bool
}

// gateway is a running driver on a disk and connections that can be cut.
type gateway struct {
	w    *world
	fs   *vfs.Faulty
	conn *Conn
	reg  *RegistryConn
	dead atomic.Bool
	ctx  context.Context // ends with the gateway
	end  context.CancelFunc
	d    *volumedriver.Driver
	h    *volumedriver.Handle
}

const volumeName = "vol"

// Run carries out a plan. It fails the test, with the plan, when anything is wrong. It
// tells whether the gateway died at a moment that the plan set: if not, there are no more such.
func Run(t testing.TB, plan Plan) (died bool) {
	t.Helper()
	w := &world{t: t, plan: plan, r: rand.New(rand.NewPCG(plan.Seed, 7)), model: NewModel(plan.Clusters * clusterSize)}
	w.store = NewStore()
	w.store.HoldReleases(2)
	w.reg = NewRegistry(w.store)
	w.disk = vfs.NewMem(vfs.MemOptions{Journal: plan.Journal})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for round := range plan.Rounds {
		last := round == plan.Rounds-1
		if err := w.round(ctx, round, last); err != nil {
			t.Fatalf("plan %+v\nround %d: %v", w.describe(), round, err)
		}
	}
	return w.died
}

// describe is the plan without what cannot be printed.
func (w *world) describe() Plan {
	p := w.plan
	p.Options.FS, p.Options.Logger, p.Options.Store, p.Options.Registry = nil, nil, nil, nil
	return p
}

// start opens a driver on the world's disk. With armed it may die at once.
func (w *world) start(ctx context.Context, armed bool) (*gateway, error) {
	g := &gateway{w: w, fs: vfs.NewFaulty(w.disk, nil), conn: w.store.Connect(), reg: w.reg.Connect()}
	g.ctx, g.end = context.WithCancel(ctx)
	if armed {
		g.arm()
	}
	opts := w.plan.Options
	opts.FS, opts.Dir, opts.Store, opts.Registry, opts.GatewayID = g.fs, "/gateway", g.conn, g.reg, "gw-1"
	d, err := volumedriver.Open(ctx, opts)
	if err != nil {
		return g, fmt.Errorf("open the driver: %w", err)
	}
	g.d = d
	return g, nil
}

// arm sets the moment of death.
func (g *gateway) arm() {
	if k := g.w.plan.CrashFS; k > 0 {
		keep := -1 + g.w.r.IntN(3)*700
		c := vfs.FailAtFunc(k, func(vfs.Call) error {
			g.die()
			if keep > 600 {
				return vfs.ErrCrashed
			}
			return &vfs.Torn{Keep: keep, Err: vfs.ErrCrashed}
		})
		g.fs.SetHook(c.Hook)
	}
	if k := g.w.plan.CrashStore; k > 0 {
		var n atomic.Int64
		done := g.w.r.IntN(2) == 0
		g.w.store.SetHook(func(context.Context, StoreCall) error {
			if n.Add(1) != k {
				return nil
			}
			g.die()
			g.fs.SetHook(func(vfs.Call) error { return vfs.ErrCrashed })
			if err := fmt.Errorf("the gateway dies here: %w", volumedriver.ErrUnavailable); done {
				return &Done{err}
			} else {
				return err
			}
		})
	}
}

// die stops everything that the gateway still does.
func (g *gateway) die() {
	g.dead.Store(true)
	g.conn.cut.Store(true)
	g.end()
}

// kill ends the gateway as a crash does, and returns when nothing of it is left running.
func (g *gateway) kill(ctx context.Context) {
	g.die()
	g.conn.Cut()
	g.reg.Cut()
	g.fs.Crash()
	g.w.store.SetHook(nil)
	if g.h != nil {
		_ = g.h.Close()
	}
	if g.d != nil {
		_ = g.d.Close(ctx) // everything fails: that is the point
	}
}

// round: start, check what is there, work until death.
func (w *world) round(ctx context.Context, round int, last bool) error {
	armed := w.plan.CrashOpen && !last
	g, err := w.start(ctx, armed)
	if _, lerr := w.reg.Lookup(ctx, volumeName); err == nil && errors.Is(lerr, fs.ErrNotExist) {
		_, err = g.d.Create(ctx, volumeName, w.model.Size(), "")
	}
	if err == nil {
		g.h, err = g.d.OpenVolume(g.ctx, volumeName)
	}
	if err == nil {
		err = w.checkRecovered(g.ctx, g)
	}
	if err != nil && !(armed && g.dead.Load() && !errors.Is(err, errWrong)) {
		g.kill(ctx)
		return err
	}
	if last {
		return w.finish(ctx, g)
	}
	if !armed {
		g.arm()
	}
	for step := 0; step < w.plan.Steps && !g.dead.Load(); step++ {
		if err := w.step(g.ctx, g); err != nil {
			if g.dead.Load() && !errors.Is(err, errWrong) {
				break
			}
			g.kill(ctx)
			return fmt.Errorf("step %d: %w", step, err)
		}
	}
	w.died = w.died || g.dead.Load()
	g.kill(ctx)
	w.disk = w.disk.Crash(w.r, w.plan.Loss)
	if w.plan.Wipe {
		w.disk = vfs.NewMem(vfs.MemOptions{Journal: w.plan.Journal})
	}
	return nil
}

// errWrong marks what no crash excuses: wrong data.
var errWrong = errors.New("wrong data")

// checkRecovered reads the whole volume and finds the state it is in, from which the model
// goes on.
func (w *world) checkRecovered(ctx context.Context, g *gateway) error {
	if g.h.Size() < w.model.Size() {
		return fmt.Errorf("the volume has %d bytes, had %d", g.h.Size(), w.model.Size())
	}
	content := make([]byte, g.h.Size())
	if err := g.h.ReadAt(ctx, content, 0); err != nil {
		return fmt.Errorf("read all: %w", err)
	}
	if g.h.Size() > w.model.Size() { // a resize that was under way
		w.model.Grow(g.h.Size())
	}
	atLeast := w.acked
	switch {
	case w.plan.Wipe:
		atLeast = w.drained
	case w.plan.Loss != vfs.CrashKept:
		atLeast = max(w.flushed, w.drained)
	}
	if _, err := w.model.Prefix(content, atLeast); err != nil {
		return fmt.Errorf("%w after the crash (acknowledged %d, flushed %d, drained %d): %w", errWrong, w.acked, w.flushed, w.drained, err)
	}
	// What came back is a new beginning once it is durable wherever it may have to come back
	// from. Until then the next crash may show an older state again, but for the death of
	// the process, which loses nothing.
	if err := g.h.Drain(ctx, nil); err != nil {
		return err
	}
	w.model = NewModel(w.model.Size())
	w.model.Write(0, content)
	w.acked, w.flushed, w.drained = w.model.State(), w.model.State(), w.model.State()
	return nil
}

// finish drains, closes cleanly, and reads everything back: first from the local directory,
// then from the object store alone.
func (w *world) finish(ctx context.Context, g *gateway) error {
	for range 30 {
		if err := w.step(ctx, g); err != nil {
			g.kill(ctx)
			return err
		}
	}
	if err := g.h.Drain(ctx, nil); err != nil {
		return err
	}
	for _, where := range []string{"local directory", "object store"} {
		if g.h != nil {
			_ = g.h.Close()
		}
		if err := g.d.Close(ctx); err != nil {
			return fmt.Errorf("clean close: %w", err)
		}
		if where == "object store" {
			w.disk = vfs.NewMem(vfs.MemOptions{})
		}
		var err error
		if g, err = w.start(ctx, false); err != nil {
			return err
		}
		if g.h, err = g.d.OpenVolume(ctx, volumeName); err != nil {
			return err
		}
		content := make([]byte, g.h.Size())
		if err := g.h.ReadAt(ctx, content, 0); err != nil {
			return fmt.Errorf("read all from the %s: %w", where, err)
		}
		if err := w.model.Check(0, content); err != nil {
			return fmt.Errorf("from the %s: %w", where, err)
		}
	}
	_ = g.h.Close()
	if err := g.d.Close(ctx); err != nil {
		return err
	}
	return w.checkObjects()
}

// checkObjects holds the objects in the store against the drained volume's head (C5):
// nothing that it names is missing, nothing else is there but SCOs.
func (w *world) checkObjects() error {
	const ns = 1001
	data, err := w.store.Get(context.Background(), ns, sco.HeadName, 64<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever drained
	}
	if err != nil {
		return err
	}
	h, err := volumedriver.DecodeHead(data)
	if err != nil {
		return err
	}
	want := map[string]bool{sco.HeadName: true}
	for _, t := range h.TLogs {
		want[sco.TLogName(t.Number)] = true
	}
	if len(h.Map) > 0 {
		info, err := clustermap.DecodeRecord(h.Map)
		if err != nil {
			return err
		}
		for _, p := range info.Packs {
			want[sco.PackName(p.Number)] = true
		}
	}
	for _, name := range w.store.Names(ns, "") {
		typ, number, err := sco.Parse(name)
		if err != nil || typ == sco.SCO && number > h.SCO || typ != sco.SCO && !want[name] {
			return fmt.Errorf("%w: object %s is left over (%v)", errWrong, name, err)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		return fmt.Errorf("%w: objects are missing: %v", errWrong, want)
	}
	return nil
}

// step does one random operation.
func (w *world) step(ctx context.Context, g *gateway) error {
	size := w.model.Size()
	switch n := w.r.IntN(100); {
	case n < 45: // a write, often unaligned
		off, length := w.extent(size, 40)
		p := make([]byte, length)
		w.stamp++
		Fill(p, w.stamp, off)
		fua := w.r.IntN(10) == 0
		w.model.Write(off, p)
		return w.did(g.h.WriteAt(ctx, p, off, fua), fua)
	case n < 55:
		off, length := w.extent(size, 100)
		fua := w.r.IntN(10) == 0
		w.model.Zero(off, length)
		return w.did(g.h.WriteZeroes(ctx, off, length, w.r.IntN(2) == 0, fua), fua)
	case n < 62:
		off, length := w.extent(size, 100)
		first, end := (off+clusterSize-1)/clusterSize, (off+length)/clusterSize
		if first < end {
			w.model.Zero(first*clusterSize, (end-first)*clusterSize)
		}
		return w.did(g.h.Trim(ctx, off, length, false), false)
	case n < 72: // a batch of whole clusters
		return w.batch(ctx, g, size)
	case n < 88:
		off, length := w.extent(size, 60)
		return w.read(ctx, g, off, length)
	case n < 95:
		state := w.acked
		if err := g.h.Flush(ctx); err != nil {
			return err
		}
		w.flushed = state
		return nil
	case n < 97:
		state := w.acked
		if err := g.h.Drain(ctx, nil); err != nil {
			return err
		}
		w.drained = max(w.drained, state)
		return nil
	case n < 98:
		grown := size + uint64(1+w.r.IntN(4))*clusterSize
		if err := g.d.Resize(ctx, volumeName, grown); err != nil {
			return err
		}
		w.model.Grow(grown)
		return nil
	default:
		return w.reopen(ctx, g)
	}
}

// did notes that the newest operation was acknowledged.
func (w *world) did(err error, fua bool) error {
	if err != nil {
		return err
	}
	w.acked = w.model.State()
	if fua {
		w.flushed = w.acked
	}
	return nil
}

// extent returns a random range of at most clusters clusters, aligned half of the time.
func (w *world) extent(size uint64, clusters int) (off, length uint64) {
	length = uint64(1 + w.r.IntN(1+w.r.IntN(clusters*clusterSize)))
	off = w.r.Uint64N(size)
	if w.r.IntN(2) == 0 {
		off, length = off&^(clusterSize-1), max(length&^(clusterSize-1), clusterSize)
	}
	return off, min(length, size-off)
}

func (w *world) batch(ctx context.Context, g *gateway, size uint64) error {
	n := 1 + w.r.IntN(8)
	offs, data, errs := make([]uint64, n), make([][]byte, n), make([]error, n)
	for i := range n {
		offs[i] = w.r.Uint64N(size/clusterSize) * clusterSize
		data[i] = make([]byte, clusterSize)
		w.stamp++
		Fill(data[i], w.stamp, offs[i])
	}
	for i := range n {
		w.model.Write(offs[i], data[i])
	}
	if g.h.TryWriteBatch(offs, data, errs) {
		return w.did(errors.Join(errs...), false)
	}
	for i := range n {
		if err := g.h.WriteAt(ctx, data[i], offs[i], false); err != nil {
			return err
		}
	}
	return w.did(nil, false)
}

func (w *world) read(ctx context.Context, g *gateway, off, length uint64) error {
	p := make([]byte, length)
	done, hole, err := g.h.TryReadHole(p, off)
	if hole {
		clear(p)
	}
	if !done {
		err = g.h.ReadAt(ctx, p, off)
	}
	if err != nil {
		return err
	}
	if err := w.model.Check(off, p); err != nil {
		return fmt.Errorf("%w: %w", errWrong, err)
	}
	return nil
}

// reopen closes the driver cleanly and starts it again on the same disk.
func (w *world) reopen(ctx context.Context, g *gateway) error {
	_ = g.h.Close()
	if err := g.d.Close(ctx); err != nil {
		return fmt.Errorf("clean close: %w", err)
	}
	opts := w.plan.Options
	opts.FS, opts.Dir, opts.Store, opts.Registry, opts.GatewayID = g.fs, "/gateway", g.conn, g.reg, "gw-1"
	d, err := volumedriver.Open(ctx, opts)
	if err != nil {
		return err
	}
	g.d = d
	h, err := d.OpenVolume(ctx, volumeName)
	if err != nil {
		return err
	}
	g.h = h
	w.flushed = w.acked
	return nil
}
