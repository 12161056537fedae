package clustermap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"
)

func entry(sco uint64, index int) Entry {
	return Entry{NewLocation(sco, uint16(index), 0), uint32(sco)<<8 ^ uint32(index)}
}

func TestLocation(t *testing.T) {
	l := NewLocation(MaxSCO, 17, MaxAncestor)
	if l.SCO() != MaxSCO || l.Index() != 17 || l.Ancestor() != MaxAncestor || !l.Mapped() {
		t.Errorf("parts of %v", l)
	}
	if l+1 != NewLocation(MaxSCO, 18, MaxAncestor) {
		t.Error("the next location is not the next cluster")
	}
	if Location(0).Mapped() || unknownLocation.Mapped() {
		t.Error("hole or unknown counts as mapped")
	}
	for _, f := range []func(){
		func() { NewLocation(0, 0, 0) },
		func() { NewLocation(MaxSCO+1, 0, 0) },
		func() { NewLocation(1, MaxIndex+1, 0) },
		func() { NewLocation(1, 0, MaxAncestor+1) },
		func() { New(NewCache(0), newMemStore(), 1).Set(MaxClusters, make([]Entry, 1)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("out of bounds is accepted")
				}
			}()
			f()
		}()
	}
}

// coldMap is a map of 2^26 clusters with one entry in every 256 MiB, of which nothing is
// in memory.
func coldMap(t *testing.T) (*Map, *memStore) {
	s := newMemStore()
	m := New(NewCache(0), s, MaxClusters)
	for i := range uint64(1 << 10) {
		m.Set(i<<16, []Entry{entry(1+i, 1)})
	}
	w := checkpoint(t, m, 1)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := Open(NewCache(0), s, w.Record)
	if err != nil {
		t.Fatal(err)
	}
	s.reads.Store(0)
	return m, s
}

// Updates neither fail nor read, whatever the store does (C7: TRIM of any size at once).
func TestUpdatesDoNotRead(t *testing.T) {
	m, s := coldMap(t)
	s.onRead = func(uint32, uint32, uint32) error { return errInjected }
	m.Set(5<<16, []Entry{entry(9999, 5)})
	m.Clear(100<<16, 500<<16+7)
	m.Clear(1<<30, MaxClusters-1<<30)
	if n := s.reads.Load(); n != 0 {
		t.Errorf("updates did %d reads", n)
	}
	var out [1]Entry
	if !m.Lookup(5<<16, out[:]) || out[0] != entry(9999, 5) {
		t.Errorf("blind update is not seen: %v", out)
	}
	if m.Lookup(6<<16, out[:]) {
		t.Error("unknown page is said to be resident")
	}
	if err := m.Get(t.Context(), 6<<16, out[:]); !errors.Is(err, errInjected) || errors.Is(err, ErrCorrupt) {
		t.Errorf("outage: %v", err)
	}
	// A failing checkpoint leaves all as it was.
	c, err := m.BeginCheckpoint(2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(t.Context()); !errors.Is(err, errInjected) {
		t.Errorf("checkpoint in an outage: %v", err)
	}
	s.onRead = nil
	w := checkpoint(t, m, 2)
	checkAccounts(t, s, w.Record)
	if got := m.MappedClusters(); got != 1<<10-501 {
		t.Errorf("%d clusters are mapped", got)
	}
}

func TestExtentsSkipSubtrees(t *testing.T) {
	s := newMemStore()
	m := New(NewCache(0), s, MaxClusters)
	es := make([]Entry, 1<<14)
	for i := range es {
		es[i] = entry(3, i)
	}
	for i := range uint64(8) {
		m.Set(1<<20+i<<14, es)
	}
	w := checkpoint(t, m, 1)
	m, err := Open(NewCache(0), s, w.Record)
	if err != nil {
		t.Fatal(err)
	}
	s.reads.Store(0)
	var got []extent
	if err := m.Extents(t.Context(), 0, MaxClusters, func(n uint64, mapped bool) bool {
		got = append(got, extent{n, mapped})
		return true
	}); err != nil {
		t.Fatal(err)
	}
	want := []extent{{1 << 20, false}, {1 << 17, true}, {MaxClusters - 1<<20 - 1<<17, false}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("extents %v, want %v", got, want)
	}
	if n := s.reads.Load(); n > 4 {
		t.Errorf("extents of full and absent subtrees did %d reads", n)
	}
}

// Every byte of a pack is covered: a change is ErrCorrupt and names the pack, or touches
// what the map does not need. Wrong entries are never returned (C6).
func TestCorruptPages(t *testing.T) {
	s, record, want := goldenStore(t)
	damaged := 0
	for pack := range s.packs {
		for i := 0; i < len(s.packs[pack]); i += 13 {
			fresh := s.fork()
			p := append([]byte(nil), fresh.packs[pack]...)
			p[i] ^= 0x20
			fresh.packs[pack] = p
			m, err := Open(NewCache(0), fresh, record)
			if err != nil {
				t.Fatal(err)
			}
			var ce *CorruptError
			switch err := checkWalk(t.Context(), m, want); {
			case errors.Is(err, ErrCorrupt) && errors.As(err, &ce) && ce.Pack == pack:
				damaged++
			case err != nil:
				t.Fatalf("pack %d byte %d changed: %v", pack, i, err)
			}
		}
	}
	if damaged < 100 {
		t.Errorf("only %d damages were noticed", damaged)
	}
	m, err := Open(NewCache(0), newMemStore(), record)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Load(t.Context(), 0, 1); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		t.Errorf("missing pack: %v", err)
	}
}

func TestClone(t *testing.T) {
	x := newTester(t, 5, 1<<20)
	for range 40 {
		addr, n := x.rng(600)
		x.set(addr, n)
	}
	x.begin()
	x.write()
	cs := x.store.fork()
	m := must(Open(NewCache(0), cs, must(CloneRecord(x.record))))
	inClone := model{}
	for a, e := range x.now {
		e.Loc += 1 << (indexBits + scoBits) // one ancestor further away
		inClone[a] = e
	}
	es := []Entry{entry(1, 1), entry(1, 2)}
	m.Set(100, es)
	inClone.set(100, es)
	w := checkpoint(t, m, 1)
	if w.Pack != 2 || len(w.Dead) != 0 {
		t.Errorf("clone wrote pack %d, dead %v", w.Pack, w.Dead)
	}
	again := must(Open(NewCache(0), cs, w.Record))
	if err := checkWalk(t.Context(), again, inClone); err != nil {
		t.Error(err)
	}
	again.Clear(0, MaxClusters)
	for i := range uint64(3) {
		for _, n := range checkpoint(t, again, 2+i).Dead {
			if n < 2 {
				t.Errorf("clone wants pack %d of its parent deleted", n)
			}
		}
	}
	if err := checkWalk(t.Context(), must(Open(NewCache(0), x.store, x.record)), x.now); err != nil {
		t.Errorf("parent after the clone's writes: %v", err)
	}
	// A clone of the clone, after the parent's pages went through both.
	m2 := must(Open(NewCache(0), cs, must(CloneRecord(w.Record))))
	var out [2]Entry
	if err := m2.Get(t.Context(), 100, out[:]); err != nil || out[1].Loc != NewLocation(1, 2, 1) {
		t.Errorf("entry of the clone in its clone: %v, %v", out, err)
	}
	if info := must(DecodeRecord(must(CloneRecord(w.Record)))); len(info.Lineage) != 2 || info.Lineage[0] != 3 || info.Lineage[1] != 2 {
		t.Errorf("lineage %v", info.Lineage)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Packs of a volume that is overwritten for ever stay within a small multiple of its map.
func TestCleaningBoundsGarbage(t *testing.T) {
	s := newMemStore()
	m := New(NewCache(0), s, 1<<20)
	r := rand.New(rand.NewPCG(1, 1))
	rounds := 150
	if testing.Short() {
		rounds = 60
	}
	want := model{}
	var w Written
	for seq := range uint64(rounds) {
		for range 600 {
			addr, e := r.Uint64N(1<<20), []Entry{entry(1+r.Uint64N(9000), r.IntN(1000))}
			m.Set(addr, e)
			want.set(addr, e)
		}
		w = checkpoint(t, m, seq)
		s.remove(w.Dead)
	}
	if err := checkWalk(t.Context(), m, want); err != nil {
		t.Fatal(err)
	}
	info := must(DecodeRecord(w.Record))
	var size, live int64
	for _, p := range info.Packs {
		size += p.Size
		live += p.Live
	}
	if len(s.packs) != len(info.Packs) {
		t.Errorf("%d packs are stored, %d in use", len(s.packs), len(info.Packs))
	}
	if size > 3*live || m.Stats().Cleaned == 0 {
		t.Errorf("%d packs: %d of %d bytes are live, %d pages cleaned", len(info.Packs), live, size, m.Stats().Cleaned)
	}
	checkAccounts(t, s, w.Record)
}

func TestIdleMapIsSmall(t *testing.T) {
	m, s := coldMap(t)
	if err := m.Load(t.Context(), 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if s.reads.Load() == 0 || m.cache.Stats().Used == 0 {
		t.Fatal("nothing was loaded")
	}
	m.cache.max = 0
	m.cache.trim()
	if st := m.cache.Stats(); st.Used != 0 || st.Clean != 0 {
		t.Errorf("idle map holds %+v", st)
	}
	if n := unsafe.Sizeof(*m); n > 768 {
		t.Errorf("a Map takes %d bytes", n)
	}
}

func TestLoadIsShared(t *testing.T) {
	m, s := coldMap(t)
	release := make(chan struct{})
	var waiting atomic.Int64
	s.onRead = func(uint32, uint32, uint32) error {
		waiting.Add(1)
		<-release
		return nil
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var out [1]Entry
			if err := m.Get(context.Background(), 0, out[:]); err != nil || out[0] != entry(1, 1) {
				t.Errorf("%v, %v", out, err)
			}
		})
	}
	close(release)
	wg.Wait()
	if n := waiting.Load(); n > 4 {
		t.Errorf("8 readers of one leaf did %d reads", n)
	}
	// A reader that gives up leaves the others alone, and one that comes while a page is
	// being read can give up too.
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("client has gone")
	s.onRead = func(uint32, uint32, uint32) error { cancel(cause); return ctx.Err() }
	if err := m.Load(ctx, 900<<16, 1); err == nil {
		t.Error("cancelled load succeeded")
	}
}

// Readers, writers, trims, checkpoints and evictions at once; run with -race. Each cluster
// holds values that only grow, written by one writer: readers must never see one shrink.
func TestConcurrent(t *testing.T) {
	s := newMemStore()
	cache := NewCache(150 << 10)
	m := New(cache, s, 1<<18)
	rounds := 2000
	if testing.Short() {
		rounds = 500
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(rand.Uint64(), 1))
			seen := make(map[uint64]uint64)
			out := make([]Entry, 20)
			for !stop.Load() {
				addr := r.Uint64N(1<<18 - 20)
				if err := m.Get(context.Background(), addr, out); err != nil {
					t.Error(err)
					return
				}
				for i, e := range out {
					a := addr + uint64(i)
					if n := e.Loc.SCO(); n < seen[a] {
						t.Errorf("cluster %d went from %d back to %d", a, seen[a], n)
						return
					} else if n > 0 && e.Sum != uint32(n) {
						t.Errorf("cluster %d: torn entry %v", a, e)
						return
					}
					seen[a] = e.Loc.SCO()
				}
				if r.IntN(50) == 0 {
					if err := m.Extents(context.Background(), addr, 1000, func(uint64, bool) bool { return true }); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Go(func() { // checkpoints, with failures
		var n atomic.Int64
		s.onWrite = func(uint32) (bool, error) {
			if n.Add(1)%3 == 0 {
				return true, errInjected
			}
			return false, nil
		}
		var last []byte
		for seq := uint64(1); !stop.Load(); seq++ {
			c, err := m.BeginCheckpoint(seq)
			if err != nil {
				t.Error(err)
				return
			}
			w, err := c.Write(context.Background())
			if err != nil && !errors.Is(err, errInjected) {
				t.Error(err)
				return
			}
			if err == nil {
				s.remove(w.Dead)
				last = w.Record
			}
		}
		if last != nil {
			checkAccounts(t, s, last)
		}
	})
	r := rand.New(rand.NewPCG(77, 1))
	want := model{}
	for n := range uint64(rounds) {
		addr := r.Uint64N(1<<18 - 300)
		es := make([]Entry, 1+r.IntN(280))
		for i := range es {
			es[i] = Entry{NewLocation(n+1, 5, 0), uint32(n + 1)}
		}
		m.Set(addr, es)
		want.set(addr, es)
	}
	stop.Store(true)
	wg.Wait()
	if err := checkWalk(t.Context(), m, want); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if st := cache.Stats(); st.Used != 0 || st.Dirty != 0 {
		t.Errorf("cache of a closed map: %+v", st)
	}
}
