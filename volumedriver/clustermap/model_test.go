package clustermap

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

var seedFlag = flag.Uint64("seed", 0, "replay the model test with this seed only")

// model is a cluster map without pages.
type model map[uint64]Entry

func (o model) set(addr uint64, es []Entry) {
	for i, e := range es {
		if e.Loc.Mapped() {
			o[addr+uint64(i)] = e
		} else {
			delete(o, addr+uint64(i))
		}
	}
}

func (o model) clear(addr, n uint64) {
	if n < 4096 {
		for i := range n {
			delete(o, addr+i)
		}
		return
	}
	maps.DeleteFunc(o, func(a uint64, _ Entry) bool { return a >= addr && a-addr < n })
}

// tester runs random operations on a Map and on a model.
type tester struct {
	t     testing.TB
	r     *rand.Rand
	store *memStore
	cache *Cache
	m     *Map
	now   model
	seq   uint64
	sco   uint64

	cp      *Checkpoint // begun and not yet written
	frozen  model       // state at its begin
	record  []byte      // newest written
	written model       // its state
	faults  bool
	exact   bool // cleaning's self-healing has not interfered
}

func newTester(t testing.TB, seed uint64, cacheBytes int64) *tester {
	x := &tester{t: t, r: rand.New(rand.NewPCG(seed, 1)), store: newMemStore(), cache: NewCache(cacheBytes), now: model{}, written: model{}, sco: 1}
	x.m = New(x.cache, x.store, MaxClusters)
	x.store.onRead = func(number, off, _ uint32) error { // reads run at the same time: no x.r
		if x.faults && rand.New(rand.NewPCG(seed^x.seq, uint64(number)<<32|uint64(off))).IntN(20) == 0 {
			return errInjected
		}
		return nil
	}
	x.store.onWrite = func(uint32) (bool, error) {
		if x.faults && x.r.IntN(3) == 0 {
			return x.r.IntN(2) == 0, errInjected
		}
		return false, nil
	}
	return x
}

// addr picks addresses near the start, in a band of a few leaves, or anywhere.
func (x *tester) addr() uint64 {
	switch x.r.IntN(8) {
	case 0:
		return x.r.Uint64N(MaxClusters)
	case 1, 2:
		return x.r.Uint64N(1 << 26)
	case 3, 4:
		return x.r.Uint64N(1 << 17)
	default:
		return x.r.Uint64N(2048)
	}
}

func (x *tester) rng(maxLen uint64) (addr, n uint64) {
	addr = x.addr()
	return addr, min(1+x.r.Uint64N(maxLen), MaxClusters-addr)
}

func (x *tester) entries(n uint64) []Entry {
	es := make([]Entry, n)
	idx := uint16(x.r.IntN(MaxIndex - 4096))
	for i := range es {
		if i == 0 || x.r.IntN(40) == 0 {
			x.sco += x.r.Uint64N(3)
		}
		es[i] = Entry{NewLocation(x.sco, idx+uint16(i), uint16(x.r.IntN(2)*x.r.IntN(3))), x.r.Uint32()}
		if x.r.IntN(100) == 0 {
			es[i] = Entry{}
		}
	}
	return es
}

func (x *tester) step() {
	switch k := x.r.IntN(100); {
	case k < 25:
		addr, n := x.rng(20)
		x.set(addr, n)
	case k < 33:
		addr, n := x.rng(1500)
		x.set(addr, n)
	case k < 36:
		x.set(x.addr()>>fanBits<<fanBits, fanOut) // whole leaf
	case k < 41:
		addr, n := x.rng(600)
		x.clear(addr, n)
	case k < 43:
		addr, n := x.rng(1 << (8 + x.r.IntN(27)))
		x.clear(addr, n)
	case k < 60:
		addr, n := x.rng(400)
		x.get(addr, n)
	case k < 66:
		addr, n := x.rng(1 << (4 + x.r.IntN(31)))
		x.extents(addr, n)
	case k < 68:
		x.cas()
	case k < 69:
		addr, n := x.rng(70000)
		x.may(x.m.Load(x.t.Context(), addr, n))
	case k < 80:
		x.begin()
	case k < 95:
		x.write()
	case k < 96:
		x.reopen()
	case k < 97:
		x.walk()
	}
}

// may accepts injected faults.
func (x *tester) may(err error) bool {
	x.t.Helper()
	if err != nil && !(x.faults && errors.Is(err, errInjected)) {
		x.t.Fatal(err)
	}
	return err == nil
}

func (x *tester) set(addr, n uint64) {
	n = min(n, MaxClusters-addr)
	es := x.entries(n)
	x.seq++
	x.m.Set(addr, es)
	x.now.set(addr, es)
}

func (x *tester) clear(addr, n uint64) {
	x.seq++
	x.m.Clear(addr, n)
	x.now.clear(addr, n)
}

func (x *tester) cas() {
	addr, e := x.addr(), x.entries(1)[0]
	old := x.now[addr].Loc
	if x.r.IntN(2) == 0 {
		old = NewLocation(MaxSCO, 0, 0)
	}
	swapped, resident := x.m.CompareAndSet(addr, old, e)
	want := resident && old == x.now[addr].Loc
	if swapped != want {
		x.t.Fatalf("CompareAndSet(%d, %v): %v, want %v", addr, old, swapped, want)
	}
	if swapped {
		x.now.set(addr, []Entry{e})
	}
}

func (x *tester) get(addr, n uint64) {
	out := make([]Entry, n)
	for i := range out {
		out[i].Sum = 77 // must be overwritten
	}
	if !x.m.Lookup(addr, out) && !x.may(x.m.Get(x.t.Context(), addr, out)) {
		return
	}
	for i, e := range out {
		if want := x.now[addr+uint64(i)]; e != want {
			x.t.Fatalf("cluster %d: %v, want %v", addr+uint64(i), e, want)
		}
	}
}

type extent struct {
	n      uint64
	mapped bool
}

func (o model) extents(addr, n uint64) (want []extent) {
	var keys []uint64
	for a := range o {
		if a >= addr && a-addr < n {
			keys = append(keys, a)
		}
	}
	slices.Sort(keys)
	add := func(n uint64, mapped bool) {
		if k := len(want); k > 0 && want[k-1].mapped == mapped {
			want[k-1].n += n
		} else if n > 0 {
			want = append(want, extent{n, mapped})
		}
	}
	at := addr
	for _, a := range keys {
		add(a-at, false)
		add(1, true)
		at = a + 1
	}
	add(addr+n-at, false)
	return want
}

func (x *tester) extents(addr, n uint64) {
	var got []extent
	err := x.m.Extents(x.t.Context(), addr, n, func(n uint64, mapped bool) bool {
		got = append(got, extent{n, mapped})
		return true
	})
	if !x.may(err) {
		return
	}
	if want := x.now.extents(addr, n); !slices.Equal(got, want) {
		x.t.Fatalf("extents of %d+%d: %v, want %v", addr, n, got, want)
	}
}

func checkWalk(ctx context.Context, m *Map, want model) error {
	n, last := 0, uint64(0)
	var bad error
	err := m.Walk(ctx, 0, MaxClusters, func(addr uint64, e Entry) bool {
		if want[addr] != e || n > 0 && addr <= last {
			bad = fmt.Errorf("walk: cluster %d (after %d): %v, want %v", addr, last, e, want[addr])
			return false
		}
		n, last = n+1, addr
		return true
	})
	switch {
	case err != nil:
		return err
	case bad != nil:
		return bad
	case n != len(want):
		return fmt.Errorf("walk found %d clusters, want %d", n, len(want))
	}
	return nil
}

func (x *tester) walk() {
	if x.may(checkWalk(x.t.Context(), x.m, x.now)) && !x.faults {
		if got := x.m.MappedClusters(); got != uint64(len(x.now)) {
			x.t.Fatalf("%d clusters are mapped, want %d", got, len(x.now))
		}
	}
}

func (x *tester) begin() {
	c, err := x.m.BeginCheckpoint(x.seq)
	if x.cp != nil {
		if !errors.Is(err, ErrBusy) {
			x.t.Fatalf("second checkpoint: %v", err)
		}
		return
	}
	if err != nil {
		x.t.Fatal(err)
	}
	x.cp, x.frozen = c, maps.Clone(x.now)
}

func (x *tester) write() {
	if x.cp == nil {
		return
	}
	w, err := x.cp.Write(x.t.Context())
	seq := x.cp.Seq()
	x.cp = nil
	if !x.may(err) {
		return
	}
	x.record, x.written = w.Record, x.frozen
	x.store.remove(w.Dead)
	info, err := DecodeRecord(w.Record)
	if err != nil || info.Seq != seq || info.Mapped != uint64(len(x.written)) {
		x.t.Fatalf("record %+v of seq %d with %d clusters: %v", info, seq, len(x.written), err)
	}
	if x.r.IntN(4) > 0 {
		return
	}
	// The record is exactly the frozen state, whatever happened since.
	s := x.store.fork()
	if x.exact {
		checkAccounts(x.t, s, w.Record)
	}
	m, err := Open(NewCache(1<<20), s, w.Record)
	if err != nil {
		x.t.Fatal(err)
	}
	if err := checkWalk(x.t.Context(), m, x.written); err != nil {
		x.t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		x.t.Fatal(err)
	}
}

// reopen loses everything since the last record.
func (x *tester) reopen() {
	if x.cp != nil {
		x.cp.Abort()
		x.cp = nil
	}
	if err := x.m.Close(); err != nil {
		x.t.Fatal(err)
	}
	if s := x.cache.Stats(); s.Used != 0 || s.Dirty != 0 || s.Clean != 0 {
		x.t.Fatalf("cache of a closed map: %+v", s)
	}
	x.now = maps.Clone(x.written)
	if x.record == nil {
		x.m = New(x.cache, x.store, MaxClusters)
		return
	}
	m, err := Open(x.cache, x.store, x.record)
	if err != nil {
		x.t.Fatal(err)
	}
	x.m = m
}

func (x *tester) finish() {
	x.faults = false
	if x.cp != nil {
		x.write()
	}
	x.begin()
	x.write()
	if err := checkWalk(x.t.Context(), x.m, x.now); err != nil {
		x.t.Fatal(err)
	}
	x.walk()
	if x.exact {
		checkAccounts(x.t, x.store, x.record)
	}
	x.reopen()
	if err := checkWalk(x.t.Context(), x.m, x.now); err != nil {
		x.t.Fatal(err)
	}
	x.clear(0, MaxClusters)
	for range 100 { // until all that was dropped has been walked
		x.begin()
		x.write()
	}
	if info, _ := DecodeRecord(x.record); info.Mapped != 0 || info.Dropped != 0 || len(info.Packs) != 0 {
		x.t.Fatalf("cleared map still has %+v", info)
	}
	x.reopen()
}

func TestModel(t *testing.T) {
	steps, seeds := 700, 2
	if testing.Short() {
		steps = 250
	}
	if os.Getenv("SCORIA_STRESS") != "" {
		steps, seeds = 20000, 200
	}
	for _, cache := range []int64{1, 60 << 10, 400 << 10, 64 << 20} {
		for _, faults := range []bool{false, true} {
			t.Run(fmt.Sprintf("cache=%d,faults=%v", cache, faults), func(t *testing.T) {
				for range seeds {
					seed := rand.Uint64()
					if *seedFlag != 0 {
						seed = *seedFlag
					}
					runModel(t, seed, cache, faults, steps)
				}
			})
		}
	}
}

func runModel(t *testing.T, seed uint64, cache int64, faults bool, steps int) {
	x := newTester(t, seed, cache)
	x.exact = true
	done := 0
	defer func() {
		if t.Failed() {
			t.Logf("replay with: -seed=%d (failed at step %d)", seed, done)
		}
	}()
	for ; done < steps; done++ {
		x.faults = faults && done%8 != 0
		x.step()
	}
	x.finish()
}
