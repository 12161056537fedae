package volumetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scoria/internal/vfs"
)

// RunConcurrent is Run with many writers at once, each in its own part of the volume, and
// one who flushes. After the crash each part must be a state of its writer, late enough; and
// together they must be a prefix (C3): a write that began after another one was
// acknowledged is not there without it.
func RunConcurrent(t testing.TB, plan Plan, writers int) {
	t.Helper()
	w := &world{t: t, plan: plan, r: rand.New(rand.NewPCG(plan.Seed, 7)), model: NewModel(plan.Clusters * clusterSize)}
	w.store = NewStore()
	w.reg = NewRegistry(w.store)
	w.disk = vfs.NewMem(vfs.MemOptions{Journal: plan.Journal})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.concurrent(ctx, writers); err != nil {
		t.Fatalf("plan %+v, %d writers: %v", w.describe(), writers, err)
	}
}

// party is a writer with its part of the volume.
type party struct {
	base    uint64
	model   *Model
	began   []int64 // tickets: when operation i began
	ended   []int64 // and when it was acknowledged; 0: never
	acked   atomic.Int64
	flushed atomic.Int64
}

func (w *world) concurrent(ctx context.Context, writers int) error {
	g, err := w.start(ctx, false)
	if err != nil {
		return err
	}
	if _, err := g.d.Create(ctx, volumeName, w.model.Size(), ""); err != nil {
		return err
	}
	if g.h, err = g.d.OpenVolume(ctx, volumeName); err != nil {
		return err
	}
	share := w.plan.Clusters / uint64(writers) * clusterSize
	parties := make([]*party, writers)
	var tickets atomic.Int64
	var work, flush sync.WaitGroup
	g.arm()
	for i := range parties {
		p := &party{base: uint64(i) * share, model: NewModel(share)}
		parties[i] = p
		r := rand.New(rand.NewPCG(w.plan.Seed, uint64(i)))
		work.Go(func() { p.write(g, r, &tickets, w.plan.Steps) })
	}
	stop := make(chan struct{})
	flush.Go(func() { flushAll(g, parties, stop) })
	work.Wait()
	close(stop)
	flush.Wait()
	g.kill(ctx)
	w.disk = w.disk.Crash(w.r, w.plan.Loss)
	if w.plan.Wipe {
		w.disk = vfs.NewMem(vfs.MemOptions{})
	}
	return w.checkParties(ctx, parties)
}

// write does random writes until the gateway dies or all steps are done.
func (p *party) write(g *gateway, r *rand.Rand, tickets *atomic.Int64, steps int) {
	for i := range steps {
		length := uint64(1 + r.IntN(3*clusterSize))
		off := r.Uint64N(p.model.Size() - length)
		if r.IntN(2) == 0 {
			off, length = off&^(clusterSize-1), clusterSize
		}
		data := make([]byte, length)
		Fill(data, p.base+uint64(i)+1, off)
		p.model.Write(off, data)
		p.began, p.ended = append(p.began, tickets.Add(1)), append(p.ended, 0)
		if err := g.h.WriteAt(g.ctx, data, p.base+off, false); err != nil {
			if !g.dead.Load() {
				g.w.t.Errorf("write: %v", err)
			}
			return
		}
		p.ended[i] = tickets.Add(1)
		p.acked.Store(int64(i) + 1)
	}
}

func flushAll(g *gateway, parties []*party, stop chan struct{}) {
	before := make([]int64, len(parties))
	for {
		select {
		case <-stop:
			return
		case <-time.After(200 * time.Microsecond):
		}
		for i, p := range parties {
			before[i] = p.acked.Load()
		}
		if err := g.h.Flush(g.ctx); err != nil {
			return
		}
		for i, p := range parties {
			p.flushed.Store(before[i])
		}
	}
}

// checkParties recovers and finds the state of each part.
func (w *world) checkParties(ctx context.Context, parties []*party) error {
	g, err := w.start(ctx, false)
	if err != nil {
		return err
	}
	defer g.kill(ctx)
	if g.h, err = g.d.OpenVolume(ctx, volumeName); err != nil {
		return err
	}
	present, absent := int64(0), int64(1)<<62
	for i, p := range parties {
		atLeast := p.acked.Load()
		switch {
		case w.plan.Wipe:
			atLeast = 0
		case w.plan.Loss != vfs.CrashKept:
			atLeast = p.flushed.Load()
		}
		content := make([]byte, p.model.Size())
		if err := g.h.ReadAt(ctx, content, p.base); err != nil {
			return err
		}
		k, err := p.model.Prefix(content, int(atLeast))
		if err != nil {
			return fmt.Errorf("%w: writer %d, acknowledged %d, flushed %d: %w", errWrong, i, p.acked.Load(), p.flushed.Load(), err)
		}
		if k > 0 {
			present = max(present, p.began[k-1])
		}
		if k < len(p.ended) && p.ended[k] != 0 {
			absent = min(absent, p.ended[k])
		}
	}
	if present > absent {
		return fmt.Errorf("%w: a write that began at %d is there, one acknowledged at %d is not", errWrong, present, absent)
	}
	return nil
}
