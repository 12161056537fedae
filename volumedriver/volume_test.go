package volumedriver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"scoria/internal/vfs"
	"scoria/volumedriver"
	"scoria/volumedriver/volumetest"
)

const cluster = 4096

// rig is a gateway with everything around it in memory.
type rig struct {
	t     *testing.T
	ctx   context.Context
	store *volumetest.Store
	reg   *volumetest.Registry
	fs    vfs.FS
	opts  volumedriver.Options
	d     *volumedriver.Driver
}

// newRig starts a gateway in which nothing happens unless it is asked for.
func newRig(t *testing.T, change ...func(o *volumedriver.Options)) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	r := &rig{t: t, ctx: ctx, store: volumetest.NewStore(), fs: vfs.NewMem(vfs.MemOptions{})}
	r.reg = volumetest.NewRegistry(r.store)
	r.opts = volumedriver.Options{Dir: "/gw", GatewayID: "gw-1", SCOClusters: 16, TLogSCOs: 4, DrainDelay: -1, IdleDelay: -1, Tick: 5 * time.Millisecond}
	for _, f := range change {
		f(&r.opts)
	}
	r.d = r.start(r.opts)
	return r
}

func (r *rig) start(opts volumedriver.Options) *volumedriver.Driver {
	r.t.Helper()
	if opts.FS == nil {
		opts.FS = r.fs
	}
	if opts.Store == nil {
		opts.Store = r.store
	}
	opts.Registry = r.reg
	d, err := volumedriver.Open(r.ctx, opts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = d.Close(context.Background()) })
	return d
}

// restart closes the gateway and starts it again; wipe loses its directory.
func (r *rig) restart(wipe bool) {
	r.t.Helper()
	r.must(r.d.Close(r.ctx))
	if wipe {
		r.fs = vfs.NewMem(vfs.MemOptions{})
	}
	r.d = r.start(r.opts)
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) want(err, want error) {
	r.t.Helper()
	if !errors.Is(err, want) {
		r.t.Fatalf("got error %v, want %v", err, want)
	}
}

func (r *rig) volume(name string, size uint64) *volumedriver.Handle {
	r.t.Helper()
	_, err := r.d.Create(r.ctx, name, size, "")
	r.must(err)
	return r.open(name)
}

func (r *rig) open(name string) *volumedriver.Handle {
	r.t.Helper()
	h, err := r.d.OpenVolume(r.ctx, name)
	r.must(err)
	return h
}

// eventually polls a condition that something in the background brings about.
func (r *rig) eventually(what string, f func() bool) {
	r.t.Helper()
	for !f() {
		select {
		case <-r.ctx.Done():
			r.t.Fatalf("never: %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

func pattern(stamp uint64, off uint64, n int) []byte {
	p := make([]byte, n)
	volumetest.Fill(p, stamp, off)
	return p
}

func (r *rig) check(h *volumedriver.Handle, off uint64, want []byte) {
	r.t.Helper()
	got := make([]byte, len(want))
	r.must(h.ReadAt(r.ctx, got, off))
	if !bytes.Equal(got, want) {
		r.t.Fatalf("%d bytes at %d differ", len(want), off)
	}
}

func (r *rig) status(h *volumedriver.Handle) volumedriver.VolumeStatus {
	s, ok := r.d.Status(h.ID())
	if !ok {
		r.t.Fatal("no status of an open volume")
	}
	return s
}

func TestRanges(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	p := make([]byte, 2*cluster)
	r.want(h.ReadAt(r.ctx, p, 1<<20-cluster), syscall.EINVAL)
	r.want(h.WriteAt(r.ctx, p, 1<<20-cluster, false), syscall.ENOSPC)
	r.want(h.WriteAt(r.ctx, p, ^uint64(0)-10, false), syscall.ENOSPC)
	r.want(h.Trim(r.ctx, 1<<20, 1, false), syscall.ENOSPC)
	r.want(h.WriteZeroes(r.ctx, 10, 1<<20, false, false), syscall.ENOSPC)
	r.want(h.Cache(r.ctx, 0, 1<<21), syscall.EINVAL)
	r.want(h.Extents(r.ctx, 1, 1<<20, nil), syscall.EINVAL)
	r.must(h.WriteAt(r.ctx, nil, 1<<20, false))
	r.must(h.ReadAt(r.ctx, nil, 1<<20))
	if done, _ := h.TryReadAt(p, 1<<20-cluster); done {
		t.Error("TryReadAt behind the end")
	}
	errs := make([]error, 1)
	if h.TryWriteBatch([]uint64{1<<20 - cluster}, [][]byte{p}, errs) {
		t.Error("TryWriteBatch behind the end")
	}
	if h.TryWriteBatch([]uint64{512}, [][]byte{p[:cluster]}, errs) {
		t.Error("TryWriteBatch took an unaligned write")
	}
}

func TestUnalignedTrimAndZeroes(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	model := pattern(1, 0, 1<<20)
	r.must(h.WriteAt(r.ctx, model, 0, false))
	r.must(h.Trim(r.ctx, 5000, 3000, true)) // no whole cluster in it
	r.check(h, 0, model)
	r.must(h.Trim(r.ctx, 5000, 10000, false))
	clear(model[8192:12288])
	r.check(h, 0, model)
	r.must(h.WriteZeroes(r.ctx, 20001, 30003, true, true))
	clear(model[20001:50004])
	r.check(h, 0, model)
	r.must(h.WriteZeroes(r.ctx, 100001, 1, false, false))
	model[100001] = 0
	r.check(h, 0, model)
	type extent struct {
		n    uint64
		hole bool
	}
	var got []extent
	r.must(h.Extents(r.ctx, 8000, 60000, func(n uint64, hole, zero bool) bool {
		if hole != zero {
			t.Error("a hole that is no zero")
		}
		got = append(got, extent{n, hole})
		return true
	}))
	want := []extent{{192, false}, {4096, true}, {8192, false}, {28672, true}}
	if len(got) != 5 || fmt.Sprint(got[:4]) != fmt.Sprint(want) {
		t.Errorf("extents %v, want %v and the rest", got, want)
	}
}

func TestHugeTrim(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", volumedriver.MaxSize)
	for i := range uint64(64) {
		r.must(h.WriteAt(r.ctx, pattern(i, 0, cluster), i<<40, false))
	}
	start := time.Now()
	r.must(h.Trim(r.ctx, 1<<40, 16<<40, true))
	if d := time.Since(start); d > time.Second {
		t.Errorf("trimming 16 TiB took %v", d)
	}
	r.check(h, 16<<40, make([]byte, cluster))
	r.check(h, 17<<40, pattern(17, 0, cluster))
	r.must(h.WriteZeroes(r.ctx, 0, volumedriver.MaxSize, false, false))
	n := 0
	r.must(h.Extents(r.ctx, 0, volumedriver.MaxSize, func(length uint64, hole, _ bool) bool {
		n++
		return hole && length >= volumedriver.MaxSize
	}))
	if n != 1 {
		t.Errorf("%d extents of an empty volume", n)
	}
	r.must(h.Drain(r.ctx, nil))
}

// TestSubClusterWrites has many writers change single bytes of the same clusters, while
// others overwrite whole neighbours: no byte may be lost.
func TestSubClusterWrites(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	const writers, rounds = 8, 200
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range rounds {
				off := uint64(i%4)*cluster + uint64(w*300+i)
				if err := h.WriteAt(r.ctx, []byte{byte(w + 1)}, off, false); err != nil {
					t.Error(err)
					return
				}
				if w == 0 {
					if err := h.WriteAt(r.ctx, pattern(uint64(i), 0, 2*cluster), uint64(4+i%3)*cluster, false); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	got := make([]byte, 4*cluster)
	r.must(h.ReadAt(r.ctx, got, 0))
	for w := range writers {
		for i := range rounds {
			if off := (i%4)*cluster + w*300 + i; got[off] != byte(w+1) {
				t.Fatalf("byte %d of writer %d was lost", off, w)
			}
		}
	}
}

// TestReadOwnWrites: what a write returned for is what a read sees, with background drains
// and evictions all the time.
func TestReadOwnWrites(t *testing.T) {
	r := newRig(t, func(o *volumedriver.Options) {
		*o = smallOptions()
		o.Dir, o.GatewayID, o.WriteBufferBytes = "/gw", "gw-1", 1<<20
	})
	h := r.volume("v", 8<<20)
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(w, 1))
			region := w * (2 << 20)
			model := make([]byte, 2<<20)
			for i := range 300 {
				n := (1 + rnd.IntN(8)) * cluster
				off := rnd.IntN(len(model)-n) / cluster * cluster
				p := model[off : off+n]
				if rnd.IntN(3) == 0 {
					got := make([]byte, n)
					if err := h.ReadAt(r.ctx, got, region+uint64(off)); err != nil || !bytes.Equal(got, p) {
						t.Errorf("writer %d, step %d: stale or wrong read (%v)", w, i, err)
						return
					}
					continue
				}
				volumetest.Fill(p, w<<32|uint64(i), uint64(off))
				if err := h.WriteAt(r.ctx, p, region+uint64(off), rnd.IntN(20) == 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if s := r.status(h); s.Stats.RemoteClusters == 0 {
		t.Logf("nothing was read from the object store: %+v", s.Stats)
	}
}

func TestAdmin(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	_, err := r.d.Create(r.ctx, "v", 1<<20, "")
	r.want(err, fs.ErrExist)
	_, err = r.d.Create(r.ctx, "a/b", 1000, "")
	r.want(err, volumedriver.ErrInvalid)
	_, err = r.d.OpenVolume(r.ctx, "nope")
	r.want(err, fs.ErrNotExist)

	r.must(h.WriteAt(r.ctx, pattern(1, 0, cluster), 1<<20-cluster, false))
	r.must(r.d.Resize(r.ctx, "v", 3<<20))
	if h.Size() != 3<<20 {
		t.Fatalf("size %d after resize", h.Size())
	}
	r.must(h.WriteAt(r.ctx, pattern(2, 0, cluster), 3<<20-cluster, false))
	r.want(r.d.Resize(r.ctx, "v", 2<<20), volumedriver.ErrInvalid)

	r.must(r.d.Rename(r.ctx, "v", "w"))
	if h.Name() != "w" {
		t.Errorf("an open handle has the name %q", h.Name())
	}
	r.want(r.d.Delete(r.ctx, "w", false), volumedriver.ErrInUse)
	r.must(h.Close())
	r.must(h.Close())
	r.restart(false)
	h = r.open("w")
	if h.Size() != 3<<20 {
		t.Fatalf("size %d after restart", h.Size())
	}
	r.check(h, 1<<20-cluster, pattern(1, 0, cluster))
	r.check(h, 3<<20-cluster, pattern(2, 0, cluster))
	r.must(r.d.Delete(r.ctx, "w", true))
	r.want(h.ReadAt(r.ctx, make([]byte, 1), 0), volumedriver.ErrClosed)
	r.must(h.Close())
	if list, err := r.d.List(r.ctx); err != nil || len(list) != 0 {
		t.Errorf("list %v, %v", list, err)
	}
	if list, err := r.fs.ReadDir("/gw/volumes"); err != nil || len(list) != 0 {
		t.Errorf("local data of a deleted volume: %v, %v", list, err)
	}
}

func TestOpenIsShared(t *testing.T) {
	r := newRig(t)
	r.must(r.volume("v", 1<<20).Close())
	var wg sync.WaitGroup
	handles := make([]*volumedriver.Handle, 20)
	for i := range handles {
		wg.Go(func() {
			h, err := r.d.OpenVolume(r.ctx, "v")
			if err != nil {
				t.Error(err)
			}
			handles[i] = h
		})
	}
	wg.Wait()
	for _, h := range handles {
		if h.Volume != handles[0].Volume {
			t.Fatal("opened twice")
		}
	}
	if s := r.status(handles[0]); s.Handles != len(handles) || s.Epoch != 1 || s.Durability != volumedriver.DurabilityLocal {
		t.Errorf("%+v", s)
	}
}

func TestOutage(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	r.store.SetHook(func(context.Context, volumetest.StoreCall) error {
		return fmt.Errorf("too few servers: %w", volumedriver.ErrUnavailable)
	})
	p := pattern(1, 0, 1<<20)
	r.must(h.WriteAt(r.ctx, p, 0, true))
	r.eventually("the trouble shows", func() bool {
		s := r.status(h)
		return !s.Degraded.IsZero() && strings.Contains(s.Reason, "too few servers")
	})
	r.check(h, 0, p)
	ctx, cancel := context.WithTimeout(r.ctx, 20*time.Millisecond)
	err := h.Drain(ctx, nil)
	cancel()
	r.want(err, context.DeadlineExceeded)
	r.want(err, volumedriver.ErrUnavailable)
	r.store.SetHook(nil)
	r.must(h.Drain(r.ctx, nil))
	if s := r.status(h); !s.Degraded.IsZero() || s.CommittedSeq != s.LastSeq || s.Stats.Retries == 0 {
		t.Errorf("after the outage: %+v", s)
	}
	r.restart(true)
	r.check(r.open("v"), 0, p)
}

// TestShortOutage: a read waits for an object store that comes back, and not for ever for
// one that does not.
func TestShortOutage(t *testing.T) {
	r := newRig(t, func(o *volumedriver.Options) { o.ReadPatience = 300 * time.Millisecond })
	h := r.volume("v", 1<<20)
	p := pattern(1, 0, 16*cluster)
	r.must(h.WriteAt(r.ctx, p, 0, false))
	r.must(h.Drain(r.ctx, nil))
	r.restart(true)
	h = r.open("v")
	var calls atomic.Int32
	r.store.SetHook(func(context.Context, volumetest.StoreCall) error {
		if calls.Add(1) <= 3 {
			return volumedriver.ErrUnavailable
		}
		return nil
	})
	r.check(h, 0, p)
	if s := r.status(h); !s.Degraded.IsZero() {
		t.Errorf("still degraded: %s", s.Reason)
	}
	r.store.SetHook(func(context.Context, volumetest.StoreCall) error { return volumedriver.ErrUnavailable })
	r.want(h.ReadAt(r.ctx, p, 0), volumedriver.ErrUnavailable)
	ctx, cancel := context.WithTimeout(r.ctx, 5*time.Millisecond)
	defer cancel()
	r.want(h.ReadAt(ctx, p, 0), context.DeadlineExceeded)
	if s := r.status(h); s.Degraded.IsZero() {
		t.Error("the outage does not show")
	}
	r.store.SetHook(nil)
	r.check(h, 0, p)
	if s := r.status(h); !s.Degraded.IsZero() {
		t.Errorf("still degraded: %s", s.Reason)
	}
}

// TestLostAnswers: every Apply is done and its answer lost, once. Repeating must be harmless.
func TestLostAnswers(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	var mu sync.Mutex
	seen := make(map[string]bool)
	r.store.SetHook(func(_ context.Context, c volumetest.StoreCall) error {
		mu.Lock()
		defer mu.Unlock()
		if key := strings.Join(c.Names, " "); c.Op == volumetest.OpApply && !seen[key] {
			seen[key] = true
			return &volumetest.Done{Err: volumedriver.ErrUnavailable}
		}
		return nil
	})
	p := pattern(1, 0, 1<<20)
	r.must(h.WriteAt(r.ctx, p, 0, false))
	r.must(h.Drain(r.ctx, nil))
	r.store.SetHook(nil)
	r.restart(true)
	r.check(r.open("v"), 0, p)
}

func TestFullDisk(t *testing.T) {
	disk := vfs.NewMem(vfs.MemOptions{Capacity: 1 << 20})
	r := newRig(t, func(o *volumedriver.Options) { o.FS, o.SpaceWait = disk, 20*time.Millisecond })
	h := r.volume("v", 8<<20)
	r.store.SetHook(func(context.Context, volumetest.StoreCall) error { return volumedriver.ErrUnavailable })
	model := make([]byte, 8<<20)
	var off uint64
	for {
		p := pattern(off, off, 8*cluster)
		if err := h.WriteAt(r.ctx, p, off, false); err != nil {
			r.want(err, syscall.ENOSPC)
			break
		}
		copy(model[off:], p)
		if off += uint64(len(p)); off == 4<<20 {
			t.Fatal("4 MiB went to a disk of 1 MiB")
		}
	}
	r.check(h, 0, model[:off])
	r.must(h.Flush(r.ctx))
	r.store.SetHook(nil) // the drain makes room, and writes go on by themselves
	r.eventually("space returns", func() bool { return h.WriteAt(r.ctx, pattern(9, off, cluster), off, false) == nil })
	copy(model[off:], pattern(9, off, cluster))
	r.must(h.Drain(r.ctx, nil))
	r.check(h, 0, model[:off+cluster])
}

// TestOrphans: SCOs that were uploaded but never published are removed at a takeover, and
// their numbers are not used again.
func TestOrphans(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	r.must(h.WriteAt(r.ctx, pattern(1, 0, 16*cluster), 0, false))
	r.must(h.Drain(r.ctx, nil))
	r.must(h.WriteAt(r.ctx, pattern(2, 0, 32*cluster), 0, false)) // two SCOs, no TLog yet
	r.eventually("the SCOs are uploaded", func() bool { return len(r.store.Names(1001, "sco/")) == 3 })
	r.must(h.Close())
	old := r.store.Names(1001, "sco/")
	r.restart(true)
	h = r.open("v")
	r.check(h, 0, pattern(1, 0, 16*cluster))
	if now := r.store.Names(1001, "sco/"); len(now) != 1 {
		t.Errorf("orphans left: %v", now)
	}
	r.must(h.WriteAt(r.ctx, pattern(3, 0, 16*cluster), 0, false))
	r.must(h.Drain(r.ctx, nil))
	if now := r.store.Names(1001, "sco/"); now[len(now)-1] <= old[len(old)-1] {
		t.Errorf("number of an orphan used again: %v after %v", now, old)
	}
}

// TestLeftovers: volumes with undrained data are found and drained when a gateway starts.
func TestLeftovers(t *testing.T) {
	r := newRig(t, func(o *volumedriver.Options) { o.IdleDelay = 10 * time.Millisecond })
	for i := range 5 {
		h := r.volume(fmt.Sprintf("v%d", i), 1<<20)
		r.must(h.WriteAt(r.ctx, pattern(uint64(i), 0, cluster), 0, false))
		r.must(h.Close())
	}
	r.restart(false)
	r.eventually("all are drained and closed", func() bool {
		list, err := r.d.List(r.ctx)
		for _, rec := range list {
			if rec.Owner != "" {
				return false
			}
		}
		return err == nil && r.d.Stats().OpenVolumes == 0
	})
	r.restart(true)
	for i := range 5 {
		r.check(r.open(fmt.Sprintf("v%d", i)), 0, pattern(uint64(i), 0, cluster))
	}
}

func TestDrainDelay(t *testing.T) {
	r := newRig(t, func(o *volumedriver.Options) { o.DrainDelay = 20 * time.Millisecond })
	h := r.volume("v", 1<<20)
	r.must(h.WriteAt(r.ctx, pattern(1, 0, cluster), 0, false))
	r.eventually("old data is drained", func() bool {
		s := r.status(h)
		return s.CommittedSeq == s.LastSeq && s.DirtySince.IsZero()
	})
}

// TestReadAhead: a sequential reader from the object store needs few calls, a random one is
// left alone.
func TestReadAhead(t *testing.T) {
	r := newRig(t, func(o *volumedriver.Options) { o.SCOClusters = 256 })
	const size = 32 << 20
	h := r.volume("v", size)
	p := pattern(1, 0, size)
	r.must(h.WriteAt(r.ctx, p, 0, false))
	r.must(h.Drain(r.ctx, nil))
	r.restart(true)
	h = r.open("v")
	before := r.store.Reads()
	got := make([]byte, 16<<10)
	for off := 0; off < size; off += len(got) {
		if done, err := h.TryReadAt(got, uint64(off)); !done {
			r.must(h.ReadAt(r.ctx, got, uint64(off)))
		} else {
			r.must(err)
		}
		if !bytes.Equal(got, p[off:off+len(got)]) {
			t.Fatalf("wrong bytes at %d", off)
		}
		if off == size/2 { // overwritten behind the reader's back, and in front of it
			q := pattern(2, 0, 4<<20)
			copy(p[off+len(got):], q)
			r.must(h.WriteAt(r.ctx, q, uint64(off+len(got)), false))
		}
	}
	if n := r.store.Reads() - before; n > size/(16<<10)/8 {
		t.Errorf("%d calls for %d reads", n, size/(16<<10))
	}
	r.eventually("memory is given back", func() bool { return r.status(h).Stats.CachedClusters > 0 })
}

// TestThousandVolumes: idle volumes cost no goroutine and little memory.
func TestThousandVolumes(t *testing.T) {
	r := newRig(t)
	const count = 1000
	base := goroutines()
	var handles []*volumedriver.Handle
	for i := range count {
		h := r.volume(fmt.Sprintf("v%d", i), 1<<30)
		r.must(h.WriteAt(r.ctx, pattern(uint64(i), 0, cluster), uint64(i)*cluster, false))
		handles = append(handles, h)
	}
	r.eventually("no goroutine is left", func() bool { return goroutines() <= base+2 })
	t.Logf("%d KiB of heap per open volume with 4 KiB written (fakes and simulated disk included)", heapBytes()/count>>10)
	var failed atomic.Bool
	for i, h := range handles {
		got := make([]byte, cluster)
		if err := h.ReadAt(r.ctx, got, uint64(i)*cluster); err != nil || !bytes.Equal(got, pattern(uint64(i), 0, cluster)) {
			failed.Store(true)
		}
	}
	if failed.Load() {
		t.Error("wrong data")
	}
}
