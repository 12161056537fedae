package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"scoria/cmd/scoria/internal/admin"
	"scoria/metadata/abm"
)

// sampleEvery is the time between looks at what must hold at all times.
const sampleEvery = 5 * time.Second

// sample checks what must hold at all times, and comes back.
func (w *world) sample() {
	if w.phase == healing {
		return
	}
	w.checkEpochs()
	w.judgeDamage()
	for _, d := range w.disks {
		w.replaceRefusing(d)
	}
	if !w.held.Load() && w.gw.up && w.gw.gone() { // nobody else may have noticed
		w.takeGateway()
		w.endGateway(w.nextLoss, false, w.nextDown, rand.New(rand.NewPCG(w.plan.Seed, uint64(time.Since(w.start)))))
	}
	if w.gatewayUp() {
		sys, boot := w.gw.sys, w.gw.boots.Load()
		w.background(func() { w.checkStatus(sys.Status, boot) })
	}
	w.after(sampleEvery, w.sample)
}

// checkEpochs: owner epochs never go back (C4).
func (w *world) checkEpochs() {
	vs, err := w.operator().ListVolumes(w.ctx)
	if err != nil {
		return // the run has ended
	}
	for _, v := range vs {
		if was := w.epochs[v.ID]; v.Epoch < was {
			w.fail(fmt.Errorf("volume %s: epoch %d, was %d", v.Name, v.Epoch, was))
		}
		w.epochs[v.ID] = v.Epoch
	}
}

// operator asks the ABM past all faults.
func (w *world) operator() *abm.Service { return abm.NewService(w.meta.abm) }

// checkStatus: what is degraded is said (a disk server that is dead all the while), and the
// write buffer keeps to its bound.
func (w *world) checkStatus(status func(context.Context) (admin.Status, error), boot int64) {
	dead := w.deadDisks()
	st, err := status(w.ctx)
	if err != nil || w.gw.boots.Load() != boot || w.gw.dying() {
		return
	}
	w.note("status asked", 1)
	for _, d := range w.deadDisks() {
		if slices.Contains(dead, d) && st.Health == "ok" {
			w.fail(fmt.Errorf("%s was dead, and status said that all is well", d))
		}
	}
	if st.Health != "ok" {
		w.note("status degraded", 1)
	}
	if st.Buffer.Dirty > bufferBytes || st.Buffer.Dirty+st.Buffer.Cached > bufferBytes+bufferBytes/4 {
		w.fail(fmt.Errorf("write buffer of %d bytes holds %d dirty and %d cached ones", bufferBytes, st.Buffer.Dirty, st.Buffer.Cached))
	}
}

// deadDisks lists the disk servers that are dead now, by their present death.
func (w *world) deadDisks() []string {
	var out []string
	for _, d := range w.disks {
		if d.isDown.Load() {
			out = append(out, fmt.Sprintf("%s (boot %d)", d.host, d.boots.Load()))
		}
	}
	return out
}

// heal ends all faults and lets clients finish.
func (w *world) heal() {
	w.log.Info("HEAL")
	// What is scheduled ends faults; it is done now, in order.
	w.phase = healing
	for w.ctx.Err() == nil {
		w.pending.mu.Lock()
		list := w.pending.list
		w.pending.list = nil
		w.pending.mu.Unlock()
		if len(list) == 0 {
			break
		}
		for _, a := range list {
			if w.ctx.Err() == nil {
				a.do()
				sleep(time.Millisecond)
			}
		}
	}
	w.phase = healed
	w.after(sampleEvery, w.sample)
	w.net.Heal()
	for _, d := range w.disks {
		if d.fs.Crashed() && d.up {
			d.kill(1, nil)
		}
		w.startDisk(d)
		d.fs.SetHook(nil)
	}
	if !w.held.Load() {
		w.gw.fs.SetHook(nil)
		if w.gw.gone() {
			w.takeGateway()
			w.endGateway(w.nextLoss, false, 0, rand.New(rand.NewPCG(w.plan.Seed, 9)))
		}
	}
}

// quiesce waits until the system says that all is well, and everything is drained.
func (w *world) quiesce() {
	begin := time.Now()
	for ; w.ctx.Err() == nil; w.events(time.Now().Add(5 * time.Second)) {
		err := errors.New("the gateway is not up")
		if !w.held.Load() {
			err = w.quiet()
		}
		if err == nil {
			w.note("virtual seconds to heal", int(time.Since(begin).Seconds()))
			return
		}
		if time.Since(begin) > healWithin {
			w.fail(fmt.Errorf("not healed %v after the last fault: %w", healWithin, err))
		}
	}
}

// healWithin is how long the system may take until all is well after the last fault.
const healWithin = 30 * time.Minute

func (w *world) quiet() error {
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	for _, v := range w.volumes() {
		if err := w.gw.sys.Drain(ctx, v.name, true, func(admin.DrainProgress) {}); err != nil {
			return fmt.Errorf("drain of %s: %w", v.name, err)
		}
	}
	if n := w.deleting.Load(); n > 0 {
		return fmt.Errorf("%d volumes are being deleted", n)
	}
	st, err := w.gw.sys.Status(ctx)
	if err != nil {
		return err
	}
	if w.wiped { // that is told as long as the volume is open
		st.Problems = slices.DeleteFunc(st.Problems, func(p string) bool { return strings.Contains(p, "had not drained by then is lost") })
	}
	if len(st.Problems) > 0 {
		return fmt.Errorf("status: %q", st.Problems)
	}
	return nil
}

// finish stops clients and checks everything, then once more from the object store alone.
func (w *world) finish() {
	if w.ctx.Err() != nil {
		w.shutdown()
		return
	}
	for _, v := range w.volumes() {
		v.end()
	}
	w.quiesce() // what they did last
	for _, c := range finalChecks {
		if w.ctx.Err() != nil {
			break
		}
		w.log.Info("CHECK", "check", c.name)
		if err := c.do(w); err != nil {
			w.fail(fmt.Errorf("%s: %w", c.name, err))
		}
	}
	w.shutdown()
}

// shutdown ends everything that runs.
func (w *world) shutdown() {
	w.cancel()
	for _, v := range w.volumes() {
		v.mu.Lock()
		v.mu.stop = true
		v.mu.changed.Broadcast()
		v.mu.Unlock()
		for _, l := range v.all() {
			if c := l.conn; c != nil {
				_ = c.Close()
			}
		}
	}
	if w.failure() != nil {
		return // as it is; what still runs is leaked
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := w.gw.stop(ctx)
	for _, d := range w.disks {
		err = errors.Join(err, d.stop())
	}
	if err != nil {
		w.fail(fmt.Errorf("clean end: %w", err))
	}
	w.ghosts.Wait()
	w.tasks.Wait()
}

// createLater makes one more volume.
func (w *world) createLater(e event, r *rand.Rand) {
	w.mu.Lock()
	n := w.mu.nextVol
	w.mu.nextVol++
	w.mu.Unlock()
	if !w.gatewayUp() || n > 6 {
		w.note("skipped", 1)
		return
	}
	lanes := 1 + r.IntN(3)
	spec := volumeSpec{Number: n, Lanes: lanes, Clusters: uint64(lanes) * uint64(32+r.IntN(200)), Ops: min(20+r.IntN(150), w.plan.Most)}
	sys := w.gw.sys
	w.background(func() {
		if err := w.create(sys, fmt.Sprintf("vol-%d", n), spec); err != nil && w.ctx.Err() == nil {
			w.note("creations failed", 1)
			if w.excuse() == "" && !w.gw.dying() {
				w.fail(fmt.Errorf("create volume %d: %w", n, err))
			}
		}
	})
}

// growLater makes a volume larger under its clients; the new part gets a client of its own.
func (w *world) growLater(r *rand.Rand) {
	v := w.someVolume(r)
	if v == nil || !w.gatewayUp() || len(v.all()) >= 6 || v.growing.Swap(true) {
		w.note("skipped", 1)
		return
	}
	base, ops := v.size.Load(), min(10+r.IntN(100), w.plan.Most)
	size := uint64(16+r.IntN(150)) * cluster
	sys := w.gw.sys
	w.background(func() {
		defer v.growing.Store(false)
		for w.ctx.Err() == nil && !v.gone.Load() {
			_, err := sys.UpdateVolume(w.ctx, v.name, admin.UpdateVolume{Size: base + size})
			if err == nil {
				v.size.Store(base + size)
				w.background(v.addLane(base, size, ops).run)
				return
			}
			w.log.Info("volume not grown", "volume", v.name, "err", err)
			if w.excuse() == "" && !w.gw.dying() && !v.gone.Load() && w.ctx.Err() == nil {
				w.fail(fmt.Errorf("grow volume %s: %w", v.name, err))
			}
			sleep(3 * time.Second)
			if !w.held.Load() {
				sys = w.gw.sys
			}
		}
	})
}

// deleteLater deletes a volume under its clients.
func (w *world) deleteLater(r *rand.Rand) {
	v := w.someVolume(r)
	if v == nil || !w.gatewayUp() || len(w.volumes()) < 2 {
		w.note("skipped", 1)
		return
	}
	w.mu.Lock()
	w.mu.volumes = slices.DeleteFunc(w.mu.volumes, func(o *volume) bool { return o == v })
	w.mu.deleted = append(w.mu.deleted, v.name)
	w.mu.Unlock()
	v.gone.Store(true)
	sys := w.gw.sys
	w.deleting.Add(1)
	w.background(func() {
		defer w.deleting.Add(-1)
		v.end()
		for _, l := range v.all() {
			l.disconnect()
		}
		for w.ctx.Err() == nil {
			err := sys.DeleteVolume(w.ctx, v.name, true)
			var ae *admin.Error
			if err == nil || errors.As(err, &ae) && ae.Code == admin.CodeNotFound {
				return
			}
			w.log.Info("volume not deleted", "volume", v.name, "err", err)
			if w.excuse() == "" && !w.gw.dying() {
				w.fail(fmt.Errorf("delete volume %s: %w", v.name, err))
			}
			sleep(3 * time.Second)
			if !w.held.Load() {
				sys = w.gw.sys
			}
		}
	})
}
