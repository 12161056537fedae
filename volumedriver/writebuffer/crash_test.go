package writebuffer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"scoria/internal/vfs"
	"scoria/volumedriver/tlog"
)

// owner is what the volume driver knows, and what survives with it.
type owner struct {
	acked      uint64 // records whose Append returned nil
	synced     uint64 // records covered by a Sync that returned nil
	mapSeq     uint64 // durable map
	disposable uint64
	created    bool
	ahead      uint64 // zeroes that were written ahead of the end
	removed    int    // segments that were removed with nothing but the log's end synced
	reused     uint64 // files of cached segments that were written over
}

// removeUnsynced does what the Pool does when it needs room and nobody has flushed.
func removeUnsynced(ctx context.Context, b *Buffer, n int) (int, error) {
	if err := b.SyncEnd(ctx); err != nil {
		return n, err
	}
	for _, s := range *b.segs.Load() {
		if !s.enlisted {
			break
		}
		if err := b.evictSegment(s); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// openAsOwner opens a log as the volume driver does: without what is only a read cache if
// that is damaged, and anew where the log lacks nothing that was promised.
func openAsOwner(opts Options) (*Buffer, Recovery, *journal, error) {
	b, rec, j, err := tryOpen(opts)
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrGap) {
		files, lerr := listSegments(opts.FS, opts.Dir)
		for _, f := range files {
			if f.number <= opts.Disposable {
				lerr = errors.Join(lerr, opts.FS.Remove(f.path))
			}
		}
		if lerr != nil {
			return nil, rec, j, lerr
		}
		b, rec, j, err = tryOpen(opts)
	}
	if opts.FromSeq == 0 || !errors.Is(err, fs.ErrNotExist) && !(errors.Is(err, ErrCorrupt) && rec.EndsBefore(opts.FromSeq)) {
		return b, rec, j, err
	}
	if err := RemoveAll(context.Background(), opts.FS, opts.Dir); err != nil {
		return nil, rec, j, err
	}
	j = new(journal)
	opts.Applied, opts.MinSCO = j.applied, max(opts.Disposable, rec.LastSCO)+1
	b, err = Create(context.Background(), opts, opts.FromSeq+1)
	return b, Recovery{LastSeq: opts.FromSeq}, j, err
}

// workload appends, syncs, rotates, uploads and evicts as a seed says, until an error comes.
// It is deterministic, so that a run without faults tells what a run with one would have written.
func workload(opts Options, seed uint64, steps int) (o owner, err error) {
	ctx := context.Background()
	b, err := Create(ctx, opts, 1)
	if err != nil {
		return o, err
	}
	o.created = true
	defer func() { err = errors.Join(err, b.Close()) }()
	r := rand.New(rand.NewPCG(seed, 90))
	for range steps {
		switch k := r.IntN(12); {
		case k < 8:
			err = b.Append(ctx, randomOps(r, 4, 9))
			o.acked = b.LastSeq() // those of a failed Append that count are applied as well
		case k < 10:
			if err = b.Sync(ctx); err == nil {
				o.synced = o.acked
				if r.IntN(2) == 0 { // the second call finds the log at rest
					err = errors.Join(b.NoteSynced(), b.NoteSynced())
				}
			}
		case k == 10:
			err = b.Rotate(ctx)
		default:
			synced := r.IntN(2) == 0
			if synced {
				if err = b.Sync(ctx); err != nil {
					break
				}
				o.synced = o.acked
			}
			if list := b.ClosedSCOs(0); len(list) > 1 {
				c := list[len(list)/2]
				b.MarkUploaded(list[0].Number)
				o.mapSeq, o.disposable = c.LastSeq, c.Number
				b.MarkDisposable(c.Number)
				switch { // those that stay are written over
				case synced && r.IntN(4) == 0:
					err = b.Evict(ctx)
				case !synced && r.IntN(2) == 0:
					o.removed, err = removeUnsynced(ctx, b, o.removed)
				case !synced:
					err = b.SyncEnd(ctx)
				}
			}
		}
		if err != nil {
			return o, err
		}
	}
	o.ahead, o.reused = b.Stats().AheadBytes, b.pool.Stats().Reused
	return o, nil
}

// checkRecovery opens the log as a crash left it.
func checkRecovery(t *testing.T, fsys vfs.FS, pool *Pool, o owner, want []Entry, kept bool) {
	t.Helper()
	opts := testOptions(fsys, pool, new(journal))
	opts.Epoch, opts.FromSeq, opts.Disposable = 2, o.mapSeq, o.disposable
	b, rec, j, err := openAsOwner(opts)
	if err != nil {
		if !o.created && errors.Is(err, fs.ErrNotExist) {
			if b, err = Create(t.Context(), opts, 1); err != nil {
				t.Fatalf("create after a crash in create: %v", err)
			}
			closeBuffer(t, b)
			return
		}
		t.Fatalf("open: %v (owner %+v)", err, o)
	}
	defer closeBuffer(t, b)
	least := o.synced
	if kept {
		least = o.acked
	}
	got := j.list()
	checkPrefix(t, got, want, o.mapSeq, least)
	checkData(t, b, got)
	if len(got) > 0 {
		checkClosed(t, b, append(append([]Entry(nil), want[:o.mapSeq]...), got...))
	}
	if rec.LastSeq != o.mapSeq+uint64(len(got)) || rec.LostSynced {
		t.Fatalf("%+v after %d records", rec, len(got))
	}
	// The log goes on, and what it has now survives the next crash with what it had.
	r := rand.New(rand.NewPCG(9, 9))
	for range 3 {
		if err := b.Append(t.Context(), randomOps(r, 3, 9)); err != nil {
			t.Fatal(err)
		}
	}
	all := j.list()
	promised := b.SyncedSeq()
	if kept || o.acked%2 == 0 {
		if err := b.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		promised = b.LastSeq()
	}
	after := fsys.(*vfs.Mem).Crash(r, vfs.CrashTorn)
	opts.FS, opts.Epoch = after, 3
	b2, _, j2, err := tryOpen(opts)
	if err != nil {
		t.Fatalf("second open: %v", err)
	}
	defer closeBuffer(t, b2)
	if got := j2.list(); len(got) > len(all) || o.mapSeq+uint64(len(got)) < promised {
		t.Fatalf("second crash: %d of %d records, promised up to %d", len(got), len(all), promised)
	}
	for i, e := range j2.list() {
		if !equal(e, all[i]) {
			t.Fatalf("second crash: record %+v, was %+v", e, all[i])
		}
	}
	checkData(t, b2, j2.list())
}

// TestCrashEverywhere ends the machine at every k-th operation that changes the disk, in
// every way, and torn writes besides.
func TestCrashEverywhere(t *testing.T) {
	seeds, steps, stride := uint64(3), 40, int64(1)
	if os.Getenv("SCORIA_STRESS") != "" {
		seeds, steps = 12, 120
	} else if testing.Short() {
		stride = 5
	}
	pool := newTestPool(t, PoolOptions{MemoryBytes: -1, reuseAbove: -1})
	removed := 0
	for seed := range seeds {
		before := pool.Stats().Reused
		complete := new(journal)
		whole, err := workload(testOptions(vfs.NewMem(vfs.MemOptions{}), pool, complete), seed, steps)
		if err != nil {
			t.Fatal(err)
		}
		if whole.ahead == 0 {
			t.Fatalf("seed %d: no zeroes ahead of the end, so no crash meets them", seed)
		}
		removed += whole.removed
		if whole.reused -= before; whole.reused == 0 {
			t.Fatalf("seed %d: no file was written over, so no crash meets that", seed)
		}
		want := complete.list()
		points := int64(0)
		stride := stride
		if seed > 0 && os.Getenv("SCORIA_STRESS") == "" {
			stride *= 4 // the first seed tries every point
		}
		for k := int64(1); ; k += stride {
			mem := vfs.NewMem(vfs.MemOptions{Journal: seed%2 == 1})
			r := rand.New(rand.NewPCG(seed, uint64(k)))
			c := vfs.FailAtFunc(k, func(call vfs.Call) error {
				if call.Length > 0 && r.IntN(2) == 0 {
					return &vfs.Torn{Keep: r.IntN(int(call.Length) + 1), Err: vfs.ErrCrashed}
				}
				return vfs.ErrCrashed
			})
			disk := vfs.NewFaulty(mem, c.Hook)
			o, err := workload(testOptions(disk, pool, new(journal)), seed, steps)
			if !c.Fired() {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			disk.Crash()
			points++
			for _, mode := range vfs.Modes() {
				t.Run(fmt.Sprintf("seed%d/op%d/%v", seed, k, mode), func(t *testing.T) {
					checkRecovery(t, mem.Crash(r, mode), pool, o, want, mode == vfs.CrashKept)
				})
			}
		}
		t.Logf("seed %d: %d points of failure, %d records, %d segments removed in front of unsynced ones, %d written over", seed, points, len(want), whole.removed, whole.reused)
	}
	if removed == 0 {
		t.Fatal("no segment was removed in front of unsynced ones, so no crash meets such a log")
	}
}

// TestFaultsEverywhere fails the k-th operation, once, with and without doing it. The
// caller sees an error; what was acknowledged before and is acknowledged after counts.
func TestFaultsEverywhere(t *testing.T) {
	pool := newTestPool(t, PoolOptions{MemoryBytes: -1})
	for k := int64(1); ; k++ {
		mem := vfs.NewMem(vfs.MemOptions{})
		r := rand.New(rand.NewPCG(5, uint64(k)))
		c := vfs.FailAtFunc(k, func(call vfs.Call) error {
			switch r.IntN(3) {
			case 0:
				return &vfs.Torn{Keep: -1, Err: vfs.ErrInjected}
			case 1:
				return &vfs.Torn{Keep: r.IntN(int(call.Length) + 1), Err: vfs.ErrInjected}
			}
			return vfs.ErrInjected
		})
		disk := vfs.NewFaulty(mem, c.Hook)
		j := new(journal)
		opts := testOptions(disk, pool, j)
		synced := faultyRun(t, opts)
		if !c.Fired() {
			if k < 50 {
				t.Fatalf("only %d operations", k)
			}
			break
		}
		opts.FS, opts.Epoch = mem, 2
		all := j.list()
		b, _, j2, err := tryOpen(opts)
		if errors.Is(err, fs.ErrNotExist) && len(all) == 0 {
			continue // Create failed
		}
		if err != nil {
			t.Fatalf("op %d: %v", k, err)
		}
		// The process ended, the machine did not: all that was applied is there, nothing else.
		checkPrefix(t, j2.list(), all, 0, uint64(len(all)))
		checkData(t, b, all)
		closeBuffer(t, b)
		opts.FS = mem.Crash(r, vfs.CrashTorn)
		b, _, j2, err = tryOpen(opts)
		if errors.Is(err, fs.ErrNotExist) && len(all) == 0 {
			continue
		}
		if err != nil {
			t.Fatalf("op %d: after the power loss: %v", k, err)
		}
		checkPrefix(t, j2.list(), all, 0, synced)
		closeBuffer(t, b)
	}
}

// faultyRun appends and syncs, and goes on after errors as a driver would.
func faultyRun(t *testing.T, opts Options) (synced uint64) {
	ctx := t.Context()
	b, err := Create(ctx, opts, 1)
	if err != nil {
		return 0
	}
	defer b.Close() //nolint:errcheck // faults may come here too
	failed := false
	ops := rand.New(rand.NewPCG(11, 11))
	for i := range 40 {
		last := b.LastSeq()
		if err := b.Append(ctx, randomOps(ops, 3, 9)); err != nil && !errors.Is(err, vfs.ErrInjected) {
			t.Fatalf("append: %v", err)
		}
		if b.LastSeq() < last {
			t.Fatalf("the log went back from %d to %d", last, b.LastSeq())
		}
		if i%5 == 4 {
			err := b.Sync(ctx)
			switch {
			case err == nil && failed:
				t.Fatal("a sync succeeded after one had failed")
			case err == nil:
				synced = b.LastSeq()
			case !errors.Is(err, ErrFailed) || !errors.Is(err, vfs.ErrInjected):
				t.Fatalf("sync: %v", err)
			default:
				failed = true
				n := b.LastSeq()
				if err := b.Append(ctx, []Op{clearOp(1, 1)}); !errors.Is(err, ErrFailed) || b.LastSeq() != n || b.Err() == nil {
					t.Fatalf("append after a failed sync: %v", err)
				}
				if segs := *b.segs.Load(); len(segs) > 0 && segs[0].mu.clusters > 0 {
					if ok, err := b.ReadAt(segs[0].number, 0, make([]byte, ClusterSize)); !ok || err != nil {
						t.Fatalf("read after a failed sync: %v %v", ok, err)
					}
				}
			}
		}
	}
	return synced
}

// TestDamage flips bytes of a synced log: that is told apart from a torn tail.
func TestDamage(t *testing.T) {
	ctx := t.Context()
	pool := newTestPool(t, PoolOptions{})
	j := new(journal)
	mem := vfs.NewMem(vfs.MemOptions{})
	opts := testOptions(mem, pool, j)
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 30 {
		if err := b.Append(ctx, []Op{write(r, r.Uint64N(1000), 3)}); err != nil {
			t.Fatal(err)
		}
		if i%4 == 0 {
			if err := b.Sync(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	closeBuffer(t, b)
	all := j.list()
	files, err := listSegments(mem, opts.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		fork := mem.Crash(nil, vfs.CrashKept)
		file := files[r.IntN(len(files))]
		at := r.Int64N(file.size)
		f, err := fork.OpenFile(file.path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		var c [1]byte
		_, rerr := f.ReadAt(c[:], at)
		c[0] ^= 1 << r.IntN(8)
		_, werr := f.WriteAt(c[:], at)
		if err := errors.Join(rerr, werr, f.Close()); err != nil {
			t.Fatal(err)
		}
		opts.FS = fork
		b, rec, j2, err := tryOpen(opts)
		switch {
		case err == nil:
			// A byte that carries nothing, or the unsynced tail.
			checkPrefix(t, j2.list(), all, 0, 29)
			checkData(t, b, j2.list())
			closeBuffer(t, b)
			continue
		case !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrStale):
			t.Fatalf("byte %d of %s flipped: %v", at, file.path, err)
		}
		if files[0].number == file.number && at < headerSize {
			continue // nothing to hold on to
		}
		opts.Salvage = true
		b, rec, j2, err = tryOpen(opts)
		opts.Salvage = false
		if err != nil {
			t.Fatalf("salvage: %v", err)
		}
		checkPrefix(t, j2.list(), all, 0, 0)
		checkData(t, b, j2.list())
		if !rec.LostSynced || rec.Cut == "" || rec.CutBytes == 0 {
			t.Fatalf("salvage says %+v", rec)
		}
		closeBuffer(t, b)
	}
}

// TestForeignSegments puts files from elsewhere behind a log: of another volume, an older
// incarnation, another place. None passes.
func TestForeignSegments(t *testing.T) {
	ctx := t.Context()
	pool := newTestPool(t, PoolOptions{})
	r := rand.New(rand.NewPCG(1, 1))
	make1 := func(volume, epoch uint64, n int) (*vfs.Mem, *journal, Options) {
		mem, j := vfs.NewMem(vfs.MemOptions{}), new(journal)
		opts := testOptions(mem, pool, j)
		opts.Volume, opts.Epoch = volume, epoch
		b := create(t, opts)
		for range n {
			if err := b.Append(ctx, []Op{write(r, r.Uint64N(1000), 16)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Rotate(ctx); err != nil {
			t.Fatal(err)
		}
		closeBuffer(t, b)
		return mem, j, opts
	}
	for name, other := range map[string]struct{ volume, epoch uint64 }{"same volume, same epoch": {7, 5}, "older epoch": {7, 4}, "other volume": {8, 5}, "newer epoch": {7, 6}} {
		mem, j, opts := make1(7, 5, 3)
		from, _, _ := make1(other.volume, other.epoch, 5)
		b, err := vfs.ReadFile(from, segmentPath("/log", 4), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := vfs.WriteFile(mem, segmentPath("/log", 4), b, 0o600); err != nil {
			t.Fatal(err)
		}
		buf, rec, j2, err := tryOpen(opts)
		if other.volume != 7 || other.epoch > 5 {
			if !errors.Is(err, ErrStale) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkPrefix(t, j2.list(), j.list(), 0, 3)
		if rec.CutSCOs != 1 || rec.LastSCO != 4 {
			t.Errorf("%s: %+v", name, rec)
		}
		closeBuffer(t, buf)
	}
}

// TestStaleRemains writes over what a failed write left behind: the records of the failed
// batch must not come back behind the new ones, even if cutting them off fails too.
func TestStaleRemains(t *testing.T) {
	ctx := t.Context()
	pool := newTestPool(t, PoolOptions{})
	mem, j := vfs.NewMem(vfs.MemOptions{}), new(journal)
	disk := vfs.NewFaulty(mem, nil)
	opts := testOptions(disk, pool, j)
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	disk.SetHook(func(c vfs.Call) error {
		switch c.Op {
		case vfs.OpWrite:
			return &vfs.Torn{Keep: -1, Err: vfs.ErrInjected} // it is all there, and yet failed
		case vfs.OpTruncate:
			return vfs.ErrInjected
		}
		return nil
	})
	if err := b.Append(ctx, []Op{write(r, 1, 1), write(r, 2, 1), write(r, 3, 1)}); !errors.Is(err, vfs.ErrInjected) {
		t.Fatal(err)
	}
	// The next write goes over the first record of the remains only, as if the cut had been lost.
	b.tail.tainted = false
	disk.SetHook(nil)
	if err := b.Append(ctx, []Op{write(r, 4, 1)}); err != nil {
		t.Fatal(err)
	}
	size, err := mem.Stat(segmentPath("/log", 1))
	if err != nil || size.Size() < 3*ClusterSize {
		t.Fatalf("the remains are gone: the test tests nothing: %v %v", size.Size(), err)
	}
	opts.FS = mem.Crash(nil, vfs.CrashKept)
	b2, rec, j2, err := tryOpen(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer closeBuffer(t, b2)
	checkPrefix(t, j2.list(), j.list(), 0, 1)
	if len(j2.list()) != 1 || rec.CutBytes == 0 || j2.list()[0].Kind != tlog.Write {
		t.Fatalf("%+v, records %+v", rec, j2.list())
	}
}

// TestCrashUnderLoad ends the machine while many append and sync at once.
func TestCrashUnderLoad(t *testing.T) {
	pool := newTestPool(t, PoolOptions{})
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 5))
		mem := vfs.NewMem(vfs.MemOptions{})
		c := vfs.FailAt(int64(20+r.IntN(150)), vfs.ErrCrashed)
		disk := vfs.NewFaulty(mem, c.Hook)
		j := new(journal)
		opts := testOptions(disk, pool, j)
		b, err := Create(context.Background(), opts, 1) // its Close will meet the crash
		if err != nil {
			t.Fatal(err)
		}
		var (
			wg            sync.WaitGroup
			acked, synced atomic.Uint64
		)
		raise := func(a *atomic.Uint64, n uint64) {
			for {
				if old := a.Load(); n <= old || a.CompareAndSwap(old, n) {
					return
				}
			}
		}
		for g := range uint64(6) {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, g))
				for !disk.Crashed() {
					ops := randomOps(r, 3, 9)
					if err := b.Append(context.Background(), ops); err != nil {
						if !errors.Is(err, vfs.ErrCrashed) {
							t.Errorf("append: %v", err)
						}
						return
					}
					last := ops[len(ops)-1].Seq
					raise(&acked, last)
					if r.IntN(4) == 0 && b.Sync(context.Background()) == nil {
						raise(&synced, last)
					}
				}
			})
		}
		wg.Wait()
		disk.Crash()
		_ = b.Close() // the disk is gone
		applied := j.list()
		for _, mode := range vfs.Modes() {
			opts.FS, opts.Epoch = mem.Crash(r, mode), 2
			b, _, j2, err := tryOpen(opts)
			if err != nil {
				t.Fatalf("seed %d, %v: %v", seed, mode, err)
			}
			got := j2.list()
			for i := range min(len(got), len(applied)) {
				if !equal(got[i], applied[i]) {
					t.Fatalf("seed %d, %v: record %+v was applied as %+v", seed, mode, got[i], applied[i])
				}
			}
			least := synced.Load()
			if mode == vfs.CrashKept {
				least = max(acked.Load(), uint64(len(applied)))
			}
			if uint64(len(got)) < least {
				t.Fatalf("seed %d, %v: %d records came back, %d were promised", seed, mode, len(got), least)
			}
			checkData(t, b, got)
			closeBuffer(t, b)
		}
	}
}
