package writebuffer

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"scoria/internal/vfs"
	"scoria/volumedriver/tlog"
)

func TestAppendReadLoadReopen(t *testing.T) {
	for name, direct := range map[string]int{"buffered": -1, "direct": 2 * ClusterSize} {
		for _, memory := range []int64{-1, 1 << 20} {
			t.Run(name, func(t *testing.T) {
				ctx := t.Context()
				fsys := vfs.NewMem(vfs.MemOptions{})
				pool := newTestPool(t, PoolOptions{MemoryBytes: memory, MaxFiles: 3})
				j := new(journal)
				opts := testOptions(fsys, pool, j)
				opts.Direct = direct
				b := create(t, opts)
				r := rand.New(rand.NewPCG(1, 2))
				for range 200 {
					ops := randomOps(r, 4, 16)
					if err := b.Append(ctx, ops); err != nil {
						t.Fatal(err)
					}
					if ops[len(ops)-1].Seq != b.LastSeq() {
						t.Fatalf("last op has record %d, the log %d", ops[len(ops)-1].Seq, b.LastSeq())
					}
				}
				all := j.list()
				checkData(t, b, all)
				checkClosed(t, b, all)
				if err := b.Rotate(ctx); err != nil {
					t.Fatal(err)
				}
				checkClosed(t, b, all)
				closeBuffer(t, b)

				opts.Epoch++
				b, rec, j2 := reopen(t, opts)
				if rec.Cut != "" || rec.LastSeq != uint64(len(all)) || rec.FirstSeq != 1 {
					t.Fatalf("recovery %+v", rec)
				}
				checkPrefix(t, j2.list(), all, 0, uint64(len(all)))
				checkData(t, b, all)
				checkClosed(t, b, all)
				// And on it goes.
				if err := b.Append(ctx, []Op{write(r, 5, 3)}); err != nil {
					t.Fatal(err)
				}
				checkData(t, b, j2.list())
			})
		}
	}
}

// Many goroutines append: the records are in one order, the same that is replayed, and
// each op got its own number.
func TestConcurrentAppend(t *testing.T) {
	ctx := t.Context()
	fsys := vfs.NewMem(vfs.MemOptions{})
	pool := newTestPool(t, PoolOptions{})
	j := new(journal)
	opts := testOptions(fsys, pool, j)
	b := create(t, opts)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		seqs = make(map[uint64]Op)
	)
	for g := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(g, 3))
			for i := range 60 {
				ops := randomOps(r, 3, 6)
				var err error
				done := false
				if i%2 == 0 {
					done, err = b.TryAppend(ops)
				}
				if !done && err == nil {
					err = b.Append(ctx, ops)
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, op := range ops {
					if _, ok := seqs[op.Seq]; ok {
						t.Errorf("record %d twice", op.Seq)
					}
					seqs[op.Seq] = op
				}
				mu.Unlock()
				switch i % 7 {
				case 0:
					err = b.Sync(ctx)
				case 1:
					err = b.Rotate(ctx)
				case 2:
					checkData(t, b, j.list()[:1])
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	all := j.list()
	for seq, op := range seqs {
		e := all[seq-1]
		if e.Kind != op.Kind || e.Addr+e.Count != op.Addr+op.Count {
			t.Fatalf("record %d is %v %d+%d, its op %v %d+%d", seq, e.Kind, e.Addr, e.Count, op.Kind, op.Addr, op.Count)
		}
	}
	checkData(t, b, all)
	closeBuffer(t, b)
	_, _, j2 := reopen(t, opts)
	checkPrefix(t, j2.list(), all, 0, uint64(len(all)))
}

// A write beyond the end of the SCO becomes two records, back to back in two SCOs.
func TestSplit(t *testing.T) {
	fsys := vfs.NewMem(vfs.MemOptions{})
	j := new(journal)
	b := create(t, testOptions(fsys, newTestPool(t, PoolOptions{}), j))
	r := rand.New(rand.NewPCG(1, 1))
	ops := []Op{write(r, 100, 10), write(r, 200, 16)}
	if err := b.Append(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	all := j.list()
	if len(all) != 3 || ops[0].Seq != 1 || ops[1].Seq != 3 {
		t.Fatalf("records %+v, ops %d %d", all, ops[0].Seq, ops[1].Seq)
	}
	a, c := all[1], all[2]
	if a.Addr != 200 || a.Count != 6 || a.Index != 10 || c.Addr != 206 || c.Count != 10 || c.Index != 0 || c.SCO != a.SCO+1 {
		t.Fatalf("split into %+v and %+v", a, c)
	}
	checkData(t, b, all)
}

func TestRefuses(t *testing.T) {
	ctx := t.Context()
	fsys := vfs.NewMem(vfs.MemOptions{})
	pool := newTestPool(t, PoolOptions{})
	opts := testOptions(fsys, pool, new(journal))
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	good := write(r, 1, 2)
	for name, op := range map[string]Op{
		"no kind":     {Addr: 1, Count: 1},
		"no clusters": {Kind: tlog.Clear, Addr: 1},
		"short data":  {Kind: tlog.Write, Addr: 1, Count: 2, Data: good.Data[:ClusterSize], Sums: good.Sums},
		"short sums":  {Kind: tlog.Write, Addr: 1, Count: 2, Data: good.Data, Sums: good.Sums[:1]},
		"too large":   write(r, 1, 17),
		"outside":     {Kind: tlog.Clear, Addr: tlog.MaxAddr, Count: 1},
		"beyond":      {Kind: tlog.Clear, Addr: tlog.MaxAddr - 1, Count: 2},
	} {
		if err := b.Append(ctx, []Op{write(r, 9, 1), op}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b.LastSeq() != 0 {
		t.Errorf("%d records after refused calls", b.LastSeq())
	}
	if _, err := Create(ctx, opts, 1); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create over a log: %v", err)
	}
	closeBuffer(t, b)
	closeBuffer(t, b)
	if err := b.Append(ctx, []Op{good}); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	if err := b.Sync(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("sync after close: %v", err)
	}
	if ok, err := b.ReadAt(1, 0, make([]byte, ClusterSize)); ok || err != nil {
		t.Errorf("read after close: %v %v", ok, err)
	}
	for name, change := range map[string]func(*Options){
		"volume": func(o *Options) { o.Volume = 8 },
		"epoch":  func(o *Options) { o.Epoch = 0 },
		"size":   func(o *Options) { o.SCOClusters = 1 << 15 },
	} {
		bad := opts
		change(&bad)
		if _, _, _, err := tryOpen(bad); !errors.Is(err, ErrStale) && !errors.Is(err, ErrInvalid) {
			t.Errorf("open with another %s: %v", name, err)
		}
	}
	missing := opts
	missing.Dir = "/none"
	if _, _, _, err := tryOpen(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open nothing: %v", err)
	}
	if err := RemoveAll(ctx, fsys, opts.Dir); err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(ctx, fsys, opts.Dir); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := tryOpen(opts); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open after removal: %v", err)
	}
}

// Uploaded, disposable, evicted: the counts follow, reads end with ok = false, and a
// reopened log still knows where it was.
func TestLifeOfAnSCO(t *testing.T) {
	ctx := t.Context()
	fsys := vfs.NewMem(vfs.MemOptions{})
	pool := newTestPool(t, PoolOptions{})
	j := new(journal)
	opts := testOptions(fsys, pool, j)
	var closed []uint64
	opts.Closed = func(n uint64) { closed = append(closed, n) }
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	for range 40 {
		if err := b.Append(ctx, []Op{write(r, r.Uint64N(100), 1)}); err != nil {
			t.Fatal(err)
		}
	}
	list := b.ClosedSCOs(0)
	if len(list) != 2 || len(closed) != 2 || list[0].Number != closed[0] || list[1].Clusters != 16 || list[1].LastSeq != 32 {
		t.Fatalf("closed %v, listed %+v", closed, list)
	}
	if err := b.Sync(ctx); err != nil || b.SyncedSeq() != 40 {
		t.Fatalf("sync: %v, up to %d", err, b.SyncedSeq())
	}
	b.MarkUploaded(list[0].Number)
	b.MarkUploaded(list[0].Number)
	if s := pool.Stats(); s.UploadedBytes != list[0].Bytes || s.DirtyBytes != b.DirtyBytes() {
		t.Fatalf("after the upload: %+v, buffer %d", s, b.DirtyBytes())
	}
	b.MarkDisposable(list[1].Number)
	if s := pool.Stats(); s.UploadedBytes != 0 || s.TotalBytes-s.DirtyBytes != list[0].Bytes+list[1].Bytes {
		t.Fatalf("disposable: %+v", s)
	}
	if b.OldestDirtySeq() != 33 || len(b.ClosedSCOs(0)) != 0 {
		t.Fatalf("oldest dirty %d, closed %v", b.OldestDirtySeq(), b.ClosedSCOs(0))
	}
	checkData(t, b, j.list()) // still a cache
	if err := b.Evict(ctx); err != nil {
		t.Fatal(err)
	}
	if ok, err := b.ReadAt(list[0].Number, 0, make([]byte, ClusterSize)); ok || err != nil {
		t.Fatalf("read of an evicted SCO: %v %v", ok, err)
	}
	checkData(t, b, j.list()[32:])
	if s, p := b.Stats(), pool.Stats(); s.CachedBytes != 0 || p.TotalBytes != s.DirtyBytes {
		t.Fatalf("evicted: %+v %+v", s, p)
	}
	// The rest too: a log without data remembers its end.
	if err := b.Rotate(ctx); err != nil {
		t.Fatal(err)
	}
	last := b.ClosedSCOs(0)[0].Number
	b.MarkDisposable(last)
	if err := b.Evict(ctx); err != nil {
		t.Fatal(err)
	}
	if s := b.Stats(); s.CachedBytes != 0 || s.DirtyBytes != headerSize || s.Segments != 1 {
		t.Fatalf("all evicted: %+v", s)
	}
	closeBuffer(t, b)
	if s := pool.Stats(); s.TotalBytes != 0 || s.DirtyBytes != 0 || s.Buffers != 0 {
		t.Fatalf("closed: %+v", s)
	}
	opts.FromSeq, opts.Disposable = 40, last
	b, rec, j2 := reopen(t, opts)
	if rec.LastSeq != 40 || rec.Replayed != 0 || rec.LastSCO <= last {
		t.Fatalf("recovery %+v", rec)
	}
	if err := b.Append(ctx, []Op{write(r, 1, 1)}); err != nil {
		t.Fatal(err)
	}
	if got := j2.list()[0]; got.Seq != 41 || got.SCO <= rec.LastSCO {
		t.Fatalf("next record %+v after %+v", got, rec)
	}
}

// Cached segments of an earlier run are found again, without being read at Open.
func TestCacheSurvivesReopen(t *testing.T) {
	ctx := t.Context()
	fsys := vfs.NewMem(vfs.MemOptions{})
	pool := newTestPool(t, PoolOptions{MaxFiles: 2})
	j := new(journal)
	opts := testOptions(fsys, pool, j)
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		if err := b.Append(ctx, []Op{write(r, r.Uint64N(100), 7)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	list := b.ClosedSCOs(0)
	half := list[len(list)/2]
	closeBuffer(t, b)
	opts.FromSeq, opts.Disposable = half.LastSeq, half.Number
	b, rec, j2 := reopen(t, opts)
	if rec.FirstSeq != 1 || b.OldestDirtySeq() != half.LastSeq+1 {
		t.Fatalf("recovery %+v, oldest dirty %d", rec, b.OldestDirtySeq())
	}
	checkPrefix(t, j2.list(), j.list(), half.LastSeq, rec.LastSeq)
	checkData(t, b, j.list())
	closeBuffer(t, b)

	opts.FromSeq = 3 // the map is older than what is disposable: the records are replayed all the same
	_, _, j3 := reopen(t, opts)
	checkPrefix(t, j3.list(), j.list(), 3, rec.LastSeq)
}

func TestGap(t *testing.T) {
	ctx := context.Background()
	fsys := vfs.NewMem(vfs.MemOptions{})
	opts := testOptions(fsys, newTestPool(t, PoolOptions{}), new(journal))
	b, err := Create(ctx, opts, 1000)
	if err != nil {
		t.Fatal(err)
	}
	closeBuffer(t, b)
	opts.FromSeq = 998
	if _, _, _, err := tryOpen(opts); !errors.Is(err, ErrGap) {
		t.Errorf("begins at 1000, wanted from 999: %v", err)
	}
	opts.FromSeq = 1000
	if _, _, _, err := tryOpen(opts); !errors.Is(err, ErrCorrupt) {
		t.Errorf("ends at 999, the map is at 1000: %v", err)
	}
	opts.FromSeq = 999
	if _, rec, _ := reopen(t, opts); rec.LastSeq != 999 || rec.FirstSeq != 1000 {
		t.Errorf("recovery %+v", rec)
	}
}

// opens counts the files that are open.
type opens struct{ now, most int }

func (o *opens) hook(mu *sync.Mutex) vfs.Hook {
	return func(c vfs.Call) error {
		mu.Lock()
		defer mu.Unlock()
		switch c.Op {
		case vfs.OpOpen, vfs.OpCreate:
			o.now++
			o.most = max(o.most, o.now)
		case vfs.OpClose:
			o.now--
		}
		return nil
	}
}

// Few files are open at once however many segments are read, and none after Close.
func TestFilesAreBounded(t *testing.T) {
	ctx := t.Context()
	var (
		mu    sync.Mutex
		count opens
	)
	disk := vfs.NewFaulty(vfs.NewMem(vfs.MemOptions{}), count.hook(&mu))
	pool := newTestPool(t, PoolOptions{MaxFiles: 4, MemoryBytes: -1})
	j := new(journal)
	opts := testOptions(disk, pool, j)
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	for range 40 {
		if err := b.Append(ctx, []Op{write(r, r.Uint64N(100), 16)}); err != nil {
			t.Fatal(err)
		}
		if err := b.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(g, 1))
			all := j.list()
			for range 300 {
				i := r.IntN(len(all))
				checkData(t, b, all[i:i+1])
			}
		})
	}
	wg.Wait()
	if err := b.Append(ctx, []Op{write(r, 1, 2), clearOp(1, 1)}); err != nil { // unsynced, open
		t.Fatal(err)
	}
	closeBuffer(t, b)
	if count.now != 0 {
		t.Errorf("%d files are open after Close", count.now)
	}
	if limit := 4 + 4*2 + 2; count.most > limit {
		t.Errorf("%d files were open at once, want ≤ %d", count.most, limit)
	}
	b, _, _ = reopen(t, opts)
	checkData(t, b, j.list())
	closeBuffer(t, b)
	if count.now != 0 {
		t.Errorf("%d files are open after the second Close", count.now)
	}
}

// A file system that refuses O_DIRECT writes gets plain ones.
func TestDirectRefused(t *testing.T) {
	disk := vfs.NewFaulty(vfs.NewMem(vfs.MemOptions{}), nil)
	j := new(journal)
	opts := testOptions(disk, newTestPool(t, PoolOptions{}), j)
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	refused := 0
	disk.SetHook(func(c vfs.Call) error {
		if c.Op == vfs.OpWrite && refused == 0 {
			refused++
			return syscall.EINVAL
		}
		return nil
	})
	if err := b.Append(t.Context(), []Op{write(r, 1, 5), write(r, 9, 5)}); err != nil || refused != 1 {
		t.Fatalf("%v, %d refused", err, refused)
	}
	checkData(t, b, j.list())
}

// What the owner has been told of is covered by a Sync from then on, also one that begins
// before Append has returned: a checkpoint of the owner's state relies on it.
func TestAppliedIsCoveredBySync(t *testing.T) {
	ctx := t.Context()
	opts := testOptions(vfs.NewMem(vfs.MemOptions{}), newTestPool(t, PoolOptions{}), new(journal))
	var b *Buffer
	opts.Applied = func(entries []Entry) {
		last := entries[len(entries)-1].Seq
		if err := b.Sync(ctx); err != nil {
			t.Error(err)
		}
		if got := b.SyncedSeq(); got < last {
			t.Errorf("record %d was applied, a Sync then covered up to %d", last, got)
		}
	}
	b = create(t, opts)
	r := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		if err := b.Append(ctx, randomOps(r, 4, 16)); err != nil {
			t.Fatal(err)
		}
	}
	closeBuffer(t, b)
}
