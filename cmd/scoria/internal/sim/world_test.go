package sim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scoria/cmd/scoria/internal/admin"
	"scoria/cmd/scoria/internal/system"
	"scoria/internal/simnet"
	"scoria/internal/vfs"
	"scoria/metadata"
	"scoria/metadata/abm"
)

type fsMode = fs.FileMode

func isData(name string) bool {
	return strings.Contains(name, "/log/") || strings.Contains(name, "/seg-")
}

// world is a simulated system and all that is known of it.
type world struct {
	t      testing.TB
	plan   plan
	log    *slog.Logger
	ctx    context.Context // ends with the run, or the first failure
	cancel context.CancelFunc
	start  time.Time

	net   *simnet.Network
	meta  *meta
	disks []*disk
	gw    *gateway

	chance  lockedRand
	uuids   atomic.Uint64
	ghosts  sync.WaitGroup // of dead processes
	tasks   sync.WaitGroup // of ours
	pending actions

	mu struct {
		sync.Mutex
		err     error
		volumes []*volume
		deleted []string
		trouble map[string]time.Time // what is, or was until lately, not as it should be
		counts  map[string]int
		nextVol uint64
	}

	// Of the gateway: who holds it may stop and start it. Only the main goroutine takes it.
	held         atomic.Bool
	nextLoss     vfs.CrashMode // of a death that was planned in the disk
	nextDown     time.Duration
	nextRecovery int64
	deleting     atomic.Int32         // volumes
	clientsCut   atomic.Bool          // some have lost their connections, or will at some byte
	hurt         map[string]time.Time // disks with damage that may not be healed
	scars        map[string]bool      // disks that were ever damaged
	wiped        bool                 // the gateway's disk was lost
	phase        phase
	epochs       map[metadata.VolumeID]metadata.Epoch
}

// phase is what the run is at.
type phase int

const (
	active  phase = 0
	healing phase = 1 // what is scheduled is done at once
	healed  phase = 2
)

// lockedRand decides about small things (how long an operation of a slow disk takes) in an
// order that the Go scheduler has a part in.
type lockedRand struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (l *lockedRand) Int64N(n int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Int64N(n)
}

func (w *world) nextUUID() uint64 { return w.uuids.Add(1) }

func newWorld(t testing.TB, p plan, log *slog.Logger) *world {
	w := &world{t: t, plan: p, log: log, net: simnet.New(), meta: newMeta(), start: time.Now(), hurt: map[string]time.Time{}, scars: map[string]bool{}, epochs: map[metadata.VolumeID]metadata.Epoch{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.chance.r = rand.New(rand.NewPCG(p.Seed, 2))
	w.net.SetWindow(1 << 30)
	w.mu.trouble, w.mu.counts = map[string]time.Time{}, map[string]int{}
	for i := range p.Disks {
		w.disks = append(w.disks, newDisk(w, i))
	}
	w.gw = newGateway(w)
	return w
}

// fail ends the run with its first failure.
func (w *world) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.err == nil {
		w.mu.err = fmt.Errorf("at %v: %w", time.Since(w.start).Round(time.Millisecond), err)
		w.log.Error("FAILED", "err", w.mu.err)
		w.cancel()
	}
}

func (w *world) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.err
}

func (w *world) note(what string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.counts[what] += n
}

// grace is how long after a fault its effects may show: time-outs, back-offs, probes.
const grace = 90 * time.Second

// troubleAt notes that something is not as it should be, for a time.
func (w *world) troubleAt(what string, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	until := time.Now().Add(d + grace)
	if until.After(w.mu.trouble[what]) {
		w.mu.trouble[what] = until
	}
}

// excuse tells why a request may fail now; "" if it may not: one disk server less, or as
// many as the policy bears, are no reason.
func (w *world) excuse() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var bad []string
	disks := 0
	for what, until := range w.mu.trouble {
		if time.Now().Before(until) {
			bad = append(bad, what)
			if strings.HasPrefix(what, "osd-") {
				disks++
			}
		}
	}
	if disks == len(bad) && disks <= w.plan.Bears {
		return ""
	}
	slices.Sort(bad)
	return strings.Join(bad, ", ")
}

// actions are what happens at a time, in order.
type actions struct {
	mu   sync.Mutex
	list []action
	wake chan struct{}
}

type action struct {
	at time.Time
	do func()
}

// after lets the main goroutine do something later.
func (w *world) after(d time.Duration, do func()) {
	w.pending.mu.Lock()
	defer w.pending.mu.Unlock()
	a := action{time.Now().Add(d), do}
	i, _ := slices.BinarySearchFunc(w.pending.list, a, func(x, y action) int {
		if x.at.After(y.at) {
			return 1
		}
		return -1
	})
	w.pending.list = slices.Insert(w.pending.list, i, a)
	select {
	case w.pending.wake <- struct{}{}:
	default:
	}
}

// next takes the next action if it is due, else tells how long to wait.
func (a *actions) next() (func(), time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.list) == 0 {
		return nil, time.Hour
	}
	if d := time.Until(a.list[0].at); d > 0 {
		return nil, d
	}
	do := a.list[0].do
	a.list = a.list[1:]
	return do, 0
}

// events runs the plan's events, and what comes of them, until end.
func (w *world) events(end time.Time) {
	for w.ctx.Err() == nil {
		do, wait := w.pending.next()
		if do != nil {
			do()
			continue
		}
		if wait = min(wait, time.Until(end)); wait <= 0 {
			return
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-w.pending.wake:
			t.Stop()
		case <-w.ctx.Done():
			t.Stop()
		}
	}
}

func (w *world) background(f func()) { w.tasks.Go(f) }

// run carries out the plan.
func (w *world) run() error {
	w.pending.wake = make(chan struct{}, 1)
	if err := w.setup(); err != nil {
		return fmt.Errorf("setup: %w", err)
	}
	for _, e := range w.plan.Events {
		w.after(e.At, func() { w.happen(e) })
	}
	w.after(sampleEvery, w.sample)
	w.events(w.start.Add(w.plan.Active))
	w.heal()
	w.quiesce()
	w.finish()
	return w.failure()
}

func (w *world) happen(e event) {
	for _, f := range faults {
		if f.name == e.Kind {
			if w.phase != active {
				return
			}
			w.log.Info("EVENT", "event", e.String())
			w.note(e.Kind, 1)
			f.do(w, e, rand.New(rand.NewPCG(e.Seed, 3)))
			return
		}
	}
	w.fail(fmt.Errorf("no event is called %q", e.Kind))
}

// setup brings everything up and makes the volumes.
func (w *world) setup() error {
	ab := abm.NewService(w.meta.abm)
	if err := ab.AddNSMHost(w.ctx, metadata.NSMHost{ID: "nsm-0", Addrs: []string{"inproc:nsm-0"}}); err != nil {
		return err
	}
	if err := ab.CreatePreset(w.ctx, w.plan.Preset); err != nil {
		return err
	}
	for _, d := range w.disks {
		if err := errors.Join(d.start(), w.register(d)); err != nil {
			return err
		}
	}
	if err := w.gw.start(w.ctx, 0, nil); err != nil {
		return err
	}
	for _, s := range w.plan.Volumes {
		if err := w.create(w.gw.sys, fmt.Sprintf("vol-%d", s.Number), s); err != nil {
			return err
		}
	}
	w.mu.nextVol = uint64(len(w.plan.Volumes)) + 1
	return nil
}

// register makes a new disk server known, as an operator does.
func (w *world) register(d *disk) error {
	ab := abm.NewService(w.meta.abm)
	ctx := w.ctx
	if _, err := ab.SeenOSD(ctx, metadata.OSD{UUID: d.uuid, Node: "node", Addr: d.addr(), Capacity: diskCapacity, LastSeen: time.Now()}); err != nil {
		return err
	}
	rec, err := ab.ClaimOSD(ctx, d.uuid)
	if err != nil {
		return err
	}
	backend, err := ab.BackendID(ctx)
	if err != nil {
		return err
	}
	d.id = uint32(rec.ID)
	return d.store.Claim(ctx, backend, d.id)
}

// create makes a volume and its clients.
func (w *world) create(sys *system.System, name string, spec volumeSpec) error {
	if _, err := sys.CreateVolume(w.ctx, admin.CreateVolume{Name: name, Size: spec.Clusters * cluster}); err != nil {
		return err
	}
	v := newVolume(w, name, spec)
	w.mu.Lock()
	w.mu.volumes = append(w.mu.volumes, v)
	w.mu.Unlock()
	if w.held.Load() { // created while the gateway dies
		v.mu.closed = true
	}
	for _, l := range v.all() {
		w.background(l.run)
	}
	return nil
}

func (w *world) volumes() []*volume {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.mu.volumes)
}

func (w *world) someVolume(r *rand.Rand) *volume {
	vs := w.volumes()
	if len(vs) == 0 {
		return nil
	}
	return vs[r.IntN(len(vs))]
}

func (w *world) gates(closed bool) {
	for _, v := range w.volumes() {
		v.gate(closed)
	}
}

// startDisk starts a disk server that is down, again and again should it fail.
func (w *world) startDisk(d *disk) {
	if d.up || w.ctx.Err() != nil {
		return
	}
	err := d.start()
	if err != nil && w.scars[d.host] {
		w.log.Info("a damaged disk does not open; it is replaced", "host", d.host, "err", err)
		w.replace(d)
	} else if err != nil {
		w.fail(fmt.Errorf("start after a crash: %w", err))
	}
}

// gatewayUp tells whether the gateway serves, and nobody is stopping or starting it.
func (w *world) gatewayUp() bool { return !w.held.Load() && w.gw.up && !w.gw.gone() }

// gone tells that the process has died.
func (m *machine) gone() bool { return m.dead.Load() || m.fs.Crashed() }

// takeGateway keeps others from stopping and starting the gateway; recover ends it.
func (w *world) takeGateway() { w.held.Store(true) }

// loss is what a gateway may have lost when it comes back.
type loss int

const (
	lossKept  loss = 1 // nothing that was acknowledged
	lossPower loss = 2 // nothing that was flushed
	lossDisk  loss = 3 // nothing that was drained
)

// crashGateway ends the gateway and starts it again.
func (w *world) crashGateway(mode vfs.CrashMode, wipe bool, e event, r *rand.Rand) {
	if !w.gatewayUp() {
		w.note("skipped", 1)
		return
	}
	w.takeGateway()
	w.endGateway(mode, wipe, e.For, r)
}

// expectDeath is called by a client whose connection broke.
func (w *world) expectDeath(l *lane, cause error) {
	boot := l.boot
	w.after(0, func() {
		switch {
		case w.held.Load() || w.ctx.Err() != nil || !w.gw.up:
		case w.gw.gone():
			w.takeGateway()
			w.endGateway(w.nextLoss, false, w.nextDown, rand.New(rand.NewPCG(w.plan.Seed, uint64(time.Now().UnixNano()))))
		case boot == w.gw.boots.Load() && !l.v.gone.Load() && !w.clientsCut.Load():
			w.fail(fmt.Errorf("volume %s, client %d: the connection broke, though the gateway lives: %w", l.v.name, l.n, cause))
		}
	})
}

// endGateway ends the gateway's process; w.held is ours.
func (w *world) endGateway(mode vfs.CrashMode, wipe bool, down time.Duration, r *rand.Rand) {
	w.note("crashes of the gateway", 1)
	w.log.Info("gateway ends", "mode", mode, "wipe", wipe)
	w.troubleAt("gateway", down)
	what := lossKept
	w.gw.kill(mode, r)
	switch {
	case wipe:
		w.gw.wipe()
		w.wiped = true
		what = lossDisk
	case mode != vfs.CrashKept:
		what = lossPower
	}
	k := w.nextRecovery
	w.nextRecovery, w.nextLoss, w.nextDown = 0, vfs.CrashKept, 0
	w.background(func() {
		w.gates(true)
		if k > 0 && !wipe {
			w.dieInRecovery(k, &what, r)
		}
		w.recover(down, what, r)
	})
}

// dieInRecovery starts the gateway and lets it die at its k-th disk operation, or when it has come up.
func (w *world) dieInRecovery(k int64, what *loss, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	if err := w.gw.start(ctx, k, r); err == nil {
		for _, v := range w.volumes() { // opens them, as far as it gets
			if c, err := w.dialNBD(ctx, v.name); err == nil {
				_ = c.Close()
			}
		}
		sleep(time.Duration(r.Int64N(int64(3 * time.Second))))
		w.gw.up = true
		w.gw.kill(vfs.CrashKept, r)
	} else {
		w.gw.die()
		w.gw.machine.lose(vfs.CrashKept, r)
	}
	w.note("crashes in recovery", 1)
	if r.IntN(2) == 0 {
		w.gw.mem = w.gw.mem.Crash(r, lossMode(r))
		if *what == lossKept {
			*what = lossPower
		}
	}
}

// recover starts the gateway and holds what comes back against what may; then clients go on.
func (w *world) recover(down time.Duration, what loss, r *rand.Rand) {
	sleep(max(down, time.Millisecond)) // what is dying at this moment is dead then
	begin := time.Now()
	for w.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(w.ctx, 2*time.Minute)
		err := w.gw.start(ctx, 0, r)
		cancel()
		if err == nil {
			break
		}
		w.log.Info("gateway does not start", "err", err)
		if w.excuse() == "" && time.Since(begin) > 2*grace && w.ctx.Err() == nil {
			w.fail(fmt.Errorf("the gateway does not start: %w", err))
		}
		w.gw.die()
		w.gw.machine.lose(vfs.CrashKept, r)
		sleep(2 * time.Second)
	}
	w.log.Info("gateway started")
	for _, v := range w.volumes() {
		if err := w.checkRecovered(v, what); err != nil {
			w.fail(err)
		}
	}
	w.held.Store(false)
	w.gates(false)
}
