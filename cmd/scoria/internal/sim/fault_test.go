package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"scoria/cmd/scoria/internal/admin"
	"scoria/internal/vfs"
)

// fault is a kind of event.
type fault struct {
	name   string
	weight int
	lasts  time.Duration // mean
	do     func(w *world, e event, r *rand.Rand)
}

// faults is all that may happen. Takeovers and their like come in here.
var faults = []fault{
	{"gateway killed", 6, 5 * time.Second, func(w *world, e event, r *rand.Rand) { w.crashGateway(vfs.CrashKept, false, e, r) }},
	{"gateway loses power", 8, 20 * time.Second, func(w *world, e event, r *rand.Rand) { w.crashGateway(lossMode(r), false, e, r) }},
	{"gateway dies at an operation", 10, 5 * time.Second, gatewayDiesAt},
	{"gateway restarted", 3, time.Second, restartGateway},
	{"gateway wiped", 2, 20 * time.Second, func(w *world, e event, r *rand.Rand) { w.crashGateway(vfs.CrashLost, true, e, r) }},
	{"gateway slow", 2, 20 * time.Second, func(w *world, e event, r *rand.Rand) { w.slow(&w.gw.machine, e, r) }},
	{"gateway full", 2, 20 * time.Second, gatewayFull},
	{"gateway's disk refuses writes", 4, 30 * time.Second, gatewayRefusesWrites},
	{"gateway's disk fails to sync", 5, 30 * time.Second, gatewayFailsSync},
	{"disk server killed", 6, 20 * time.Second, func(w *world, e event, r *rand.Rand) { w.crashDisk(w.disks[e.Host], vfs.CrashKept, e, r) }},
	{"disk server loses power", 6, 60 * time.Second, func(w *world, e event, r *rand.Rand) { w.crashDisk(w.disks[e.Host], lossMode(r), e, r) }},
	{"disk server dies at an operation", 6, 10 * time.Second, diskDiesAt},
	{"disk servers lose power together", 3, 60 * time.Second, rackLosesPower},
	{"disk server slow", 4, 30 * time.Second, func(w *world, e event, r *rand.Rand) { w.slow(&w.disks[e.Host].machine, e, r) }},
	{"disk server full", 3, 60 * time.Second, diskFull},
	{"bits flipped", 4, 0, flipBits},
	{"blocks unreadable", 3, 0, unreadable},
	{"writes lost", 3, 0, loseWrites},
	{"writes misplaced", 3, 0, misplaceWrites},
	{"disk replaced by an empty one", 2, 0, replaceDisk},
	{"link cut", 3, 0, func(w *world, e event, _ *rand.Rand) { w.net.Cut(gatewayHost, w.disks[e.Host].host) }},
	{"link cut in a message", 3, 0, func(w *world, e event, r *rand.Rand) {
		from, to := gatewayHost, w.disks[e.Host].host
		if r.IntN(2) == 0 {
			from, to = to, from
		}
		w.net.CutAfter(from, to, r.IntN(40_000))
	}},
	{"clients cut off", 4, 0, cutClients},
	{"disk servers away for long", 2, 0, awayForLong},
	{"link slow", 3, 30 * time.Second, slowLink},
	{"partition", 5, 30 * time.Second, partition},
	{"metadata down", 4, 20 * time.Second, metaDown},
	{"metadata answers lost", 5, 0, func(w *world, _ event, r *rand.Rand) { w.gw.lose.Store(int32(1 + r.IntN(4))) }},
	{"drain", 4, 0, drainVolume},
	{"volume created", 3, 0, func(w *world, e event, r *rand.Rand) { w.createLater(e, r) }},
	{"volume grown", 4, 0, func(w *world, _ event, r *rand.Rand) { w.growLater(r) }},
	{"volume deleted", 2, 0, func(w *world, _ event, r *rand.Rand) { w.deleteLater(r) }},
}

// lossMode is what a power loss leaves.
func lossMode(r *rand.Rand) vfs.CrashMode {
	return []vfs.CrashMode{vfs.CrashLost, vfs.CrashTorn, vfs.CrashTornPages}[r.IntN(3)]
}

func gatewayDiesAt(w *world, e event, r *rand.Rand) {
	if !w.gatewayUp() {
		w.note("skipped", 1)
		return
	}
	w.nextLoss, w.nextDown = vfs.CrashKept, e.For
	if r.IntN(3) > 0 {
		w.nextLoss = lossMode(r)
	}
	if r.IntN(3) == 0 {
		w.nextRecovery = 1 + r.Int64N(60) // and again in its recovery
	}
	w.gw.dieAt(1+r.Int64N(150), r)
}

func restartGateway(w *world, e event, r *rand.Rand) {
	if !w.gatewayUp() {
		w.note("skipped", 1)
		return
	}
	w.takeGateway()
	w.background(func() {
		w.gates(true)
		ctx, cancel := context.WithTimeout(w.ctx, 5*time.Minute)
		defer cancel()
		err := w.gw.stop(ctx)
		if err != nil && w.excuse() == "" {
			w.fail(fmt.Errorf("clean stop of the gateway: %w", err))
		}
		w.log.Info("gateway stopped", "err", err)
		w.gw.machine.lose(vfs.CrashKept, r)
		w.recover(e.For, lossKept, r)
	})
}

func gatewayFull(w *world, e event, r *rand.Rand) {
	free, err := w.gw.fill(uint64(r.IntN(4 << 20)))
	if err != nil {
		w.fail(fmt.Errorf("fill the gateway's disk: %w", err))
		return
	}
	w.troubleAt("gateway", e.For)
	w.after(e.For, free)
}

// gatewayRefusesWrites lets some writes to the gateway's logs fail, done in part: such a write
// must not be acknowledged, and what it leaves must not come up again.
func gatewayRefusesWrites(w *world, e event, r *rand.Rand) {
	d := &w.gw.damage
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse += 1 + r.IntN(4)
	d.refusal = []error{syscall.EIO, syscall.ENOSPC}[r.IntN(2)]
	w.troubleAt("gateway", e.For)
	w.after(e.For, d.accept)
}

// gatewayFailsSync lets syncs of the gateway's logs fail, after which the kernel takes what it
// did not write for clean. The operator restarts the gateway, or the whole machine, after a while.
func gatewayFailsSync(w *world, e event, r *rand.Rand) {
	d := &w.gw.damage
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsynced += 1 + r.IntN(3)
	w.troubleAt("gateway", e.For+time.Minute)
	mode := vfs.CrashKept
	if r.IntN(3) == 0 {
		mode = lossMode(r)
	}
	w.after(e.For, func() {
		d.accept()
		w.crashGateway(mode, false, event{For: time.Duration(r.Int64N(int64(20 * time.Second)))}, r)
	})
}

func diskFull(w *world, e event, r *rand.Rand) {
	d := w.disks[e.Host]
	free, err := d.fill(uint64(r.IntN(2 << 20)))
	if err != nil {
		w.fail(fmt.Errorf("fill a disk: %w", err))
		return
	}
	w.troubleAt(d.host, e.For)
	w.after(e.For, free)
}

func diskDiesAt(w *world, e event, r *rand.Rand) {
	d := w.disks[e.Host]
	if !d.up {
		w.note("skipped", 1)
		return
	}
	d.dieAt(1+r.Int64N(100), r)
	mode := vfs.CrashKept
	if r.IntN(3) > 0 {
		mode = lossMode(r)
	}
	w.troubleAt(d.host, e.For+time.Minute)
	w.after(time.Duration(r.Int64N(int64(time.Minute))), func() { w.crashDisk(d, mode, e, r) }) // dead by then, or now
}

func rackLosesPower(w *world, e event, r *rand.Rand) {
	first := r.IntN(len(w.disks))
	for i := range 2 + r.IntN(len(w.disks)-1) {
		e.For = time.Duration(r.ExpFloat64() * float64(90*time.Second))
		w.crashDisk(w.disks[(first+i)%len(w.disks)], lossMode(r), e, r)
	}
}

// awayForLong takes disk servers away for longer than repair waits for them: more of them than the policy bears, at times.
func awayForLong(w *world, e event, r *rand.Rand) {
	for i := range 1 + r.IntN(len(w.disks)-1) {
		e.For = 2*time.Minute + time.Duration(r.Int64N(int64(6*time.Minute)))
		w.crashDisk(w.disks[(e.Host+i)%len(w.disks)], vfs.CrashKept, e, r)
	}
}

// cutClients resets the connections of all clients, at once or at some byte of the next message.
func cutClients(w *world, _ event, r *rand.Rand) {
	w.clientsCut.Store(true)
	if r.IntN(2) == 0 {
		w.net.Cut(clientHost, gatewayHost)
		return
	}
	w.net.CutAfter(clientHost, gatewayHost, r.IntN(100_000))
}

func (w *world) crashDisk(d *disk, mode vfs.CrashMode, e event, r *rand.Rand) {
	if !d.up {
		w.note("skipped", 1)
		return
	}
	d.kill(mode, r)
	w.note("crashes of disk servers", 1)
	w.troubleAt(d.host, e.For)
	w.after(max(e.For, time.Millisecond), func() { w.startDisk(d) })
}

func (w *world) slow(m *machine, e event, r *rand.Rand) {
	m.slow.Store(int64(time.Duration(1+r.IntN(40)) * 10 * time.Millisecond))
	w.troubleAt(m.host, e.For)
	w.after(e.For, func() { m.slow.Store(0) })
}

func slowLink(w *world, e event, r *rand.Rand) {
	host := w.disks[e.Host].host
	w.net.Delay(gatewayHost, host, time.Duration(1+r.IntN(1000))*time.Millisecond)
	w.troubleAt(host, e.For)
	w.after(e.For, func() { w.net.Delay(gatewayHost, host, 0) })
}

// partition cuts the gateway off from some disk servers, in one direction or both.
func partition(w *world, e event, r *rand.Rand) {
	n := 1 + r.IntN(2)*r.IntN(len(w.disks))
	both := r.IntN(2) == 0
	for i := range n {
		host := w.disks[(e.Host+i)%len(w.disks)].host
		w.net.Block(gatewayHost, host)
		if both {
			w.net.Block(host, gatewayHost)
		}
		w.troubleAt(host, e.For)
	}
	w.after(e.For, w.net.Heal)
}

func metaDown(w *world, e event, _ *rand.Rand) {
	w.meta.down.Store(true)
	w.troubleAt("metadata", e.For)
	w.after(e.For, func() { w.meta.down.Store(false) })
}

func drainVolume(w *world, _ event, r *rand.Rand) {
	v := w.someVolume(r)
	if v == nil || !w.gatewayUp() {
		w.note("skipped", 1)
		return
	}
	sys := w.gw.sys
	lanes := v.all()
	before := make([]int64, len(lanes))
	for i, l := range lanes {
		before[i] = l.acked.Load()
	}
	w.background(func() {
		ctx, cancel := context.WithTimeout(w.ctx, 3*time.Minute)
		defer cancel()
		if err := sys.Drain(ctx, v.name, true, func(admin.DrainProgress) {}); err != nil {
			w.note("drains failed", 1)
			return
		}
		for i, l := range lanes {
			raise(&l.drained, before[i])
		}
	})
}
