package writebuffer

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"scoria/internal/vfs"
)

// A Pool without room removes nothing that is not disposable, however much it needs.
func TestOnlyDisposableIsEvicted(t *testing.T) {
	ctx := t.Context()
	pool := newTestPool(t, PoolOptions{HardBytes: 1 << 20, MemoryBytes: -1})
	j := new(journal)
	opts := testOptions(vfs.NewMem(vfs.MemOptions{}), pool, j)
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	for {
		if done, err := b.TryAppend([]Op{write(r, r.Uint64N(100), 3)}); err != nil {
			t.Fatal(err)
		} else if !done {
			break
		}
	}
	if err := b.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	list := b.ClosedSCOs(0)
	for _, c := range list {
		b.MarkUploaded(c.Number) // that is not enough: no TLog has them
	}
	if s := pool.Stats(); len(list) < 4 || s.TotalBytes <= pool.evictAbove() {
		t.Fatalf("%d closed SCOs, %+v: the test tests nothing", len(list), s)
	}
	pool.evict()
	if err := b.Evict(ctx); err != nil {
		t.Fatal(err)
	}
	checkData(t, b, j.list())
	b.MarkDisposable(list[1].Number)
	if err := b.Evict(ctx); err != nil {
		t.Fatal(err)
	}
	for i, c := range list {
		if ok, err := b.ReadAt(c.Number, 0, make([]byte, ClusterSize)); ok != (i > 1) || err != nil {
			t.Errorf("SCO %d of %d: there: %v, %v", i, len(list), ok, err)
		}
	}
}

// The last durable segment stays although it is disposable: without it a power loss would
// leave a log that does not know where it ended.
func TestLastDurableSegmentStays(t *testing.T) {
	ctx := t.Context()
	mem := vfs.NewMem(vfs.MemOptions{})
	pool := newTestPool(t, PoolOptions{})
	opts := testOptions(mem, pool, new(journal))
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	if err := b.Append(ctx, []Op{write(r, 1, 16)}); err != nil { // fills an SCO
		t.Fatal(err)
	}
	if err := b.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Append(ctx, []Op{write(r, 2, 1)}); err != nil { // in the next one, not synced
		t.Fatal(err)
	}
	full := b.ClosedSCOs(0)[0]
	b.MarkDisposable(full.Number)
	if err := b.Evict(ctx); err != nil {
		t.Fatal(err)
	}
	opts.Epoch, opts.FromSeq, opts.Disposable = 2, full.LastSeq, full.Number
	for range 50 { // what survives of names and contents is a matter of luck
		opts.FS = mem.Crash(r, vfs.CrashTorn)
		b, rec, _, err := tryOpen(opts)
		if err != nil {
			t.Fatal(err)
		}
		if rec.LastSeq < full.LastSeq {
			t.Fatalf("%+v, the log ended at record %d", rec, full.LastSeq)
		}
		closeBuffer(t, b)
	}
}

// A Sync that runs while a record is appended does not cover it: the next one syncs again.
func TestSyncCoversOnlyWhatCameBefore(t *testing.T) {
	ctx := t.Context()
	mem := vfs.NewMem(vfs.MemOptions{})
	disk := vfs.NewFaulty(mem, nil)
	j := new(journal)
	opts := testOptions(disk, newTestPool(t, PoolOptions{}), j)
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	if err := b.Append(ctx, []Op{write(r, 1, 1)}); err != nil {
		t.Fatal(err)
	}
	var syncs atomic.Int64
	running, appended := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	disk.SetHook(func(c vfs.Call) error {
		if c.Op != vfs.OpSync {
			return nil
		}
		syncs.Add(1)
		if !once.Swap(true) {
			close(running)
			<-appended
		}
		return nil
	})
	first := make(chan error, 1)
	go func() { first <- b.Sync(ctx) }()
	<-running
	before := mem.Crash(nil, vfs.CrashKept)
	err := b.Append(ctx, []Op{write(r, 2, 1)})
	close(appended)
	if serr := <-first; err != nil || serr != nil {
		t.Fatal(err, serr)
	}
	if n := b.SyncedSeq(); n != 1 {
		t.Errorf("synced up to record %d; the second one came during the sync", n)
	}
	if err := b.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if n := syncs.Load(); n != 2 {
		t.Errorf("%d syncs of the file, want one for each of the records", n)
	}
	// What the first sync began with is all that may be taken for granted after it.
	opts.FS, opts.Epoch = before, 2
	_, rec, _ := reopen(t, opts)
	if rec.LastSeq != 1 {
		t.Errorf("%+v at the time of the first sync", rec)
	}
}
