package writebuffer

import (
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"scoria/internal/vfs"
)

// fillSCOs appends n SCOs of whole records.
func fillSCOs(t *testing.T, b *Buffer, r *rand.Rand, n int) {
	t.Helper()
	for range n * 2 {
		if err := b.Append(t.Context(), []Op{write(r, r.Uint64N(1000), 8)}); err != nil {
			t.Fatal(err)
		}
	}
}

// dispose syncs, and makes the closed SCOs up to the last but keep read cache. It returns their records.
func dispose(t *testing.T, b *Buffer, keep int) (fromSeq, number uint64) {
	t.Helper()
	if err := b.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	list := b.ClosedSCOs(0)
	last := list[len(list)-1-keep]
	b.MarkDisposable(last.Number)
	return last.LastSeq, last.Number
}

// A cached segment's file becomes the next one's, without a file more or a byte that is not
// counted, and without old records coming back.
func TestReuse(t *testing.T) {
	pool := newTestPool(t, PoolOptions{MemoryBytes: -1, reuseAbove: -1})
	mem, j := vfs.NewMem(vfs.MemOptions{}), new(journal)
	opts := testOptions(mem, pool, j)
	opts.Direct = -1
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	fillSCOs(t, b, r, 6)
	opts.FromSeq, opts.Disposable = dispose(t, b, 1)
	before := pool.Stats().TotalBytes
	fillSCOs(t, b, r, 4)
	if s := pool.Stats(); s.Reused != 4 || s.TotalBytes != before || pool.mu.lent != 0 {
		t.Fatalf("%d files written over, %d bytes, before %d, lent %d", s.Reused, s.TotalBytes, before, pool.mu.lent)
	}
	// One that is not full yet is counted twice, rather than not.
	if err := b.Append(t.Context(), []Op{write(r, 1, 3)}); err != nil {
		t.Fatal(err)
	}
	grown := int64(headerSize + headerSize + 3*(ClusterSize+4))
	if s := pool.Stats(); s.Reused != 5 || s.TotalBytes != before+grown || pool.mu.lent == 0 {
		t.Fatalf("%d files written over, %d bytes, before %d and %d more, lent %d", s.Reused, s.TotalBytes, before, grown, pool.mu.lent)
	}
	checkData(t, b, j.list()[opts.FromSeq:])
	for _, n := range []uint64{1, 2, 3, 4, 5} {
		if ok, err := b.ReadAt(n, 0, make([]byte, ClusterSize)); ok || err != nil {
			t.Errorf("SCO %d was written over, and is read: %v", n, err)
		}
	}
	all := j.list()
	opts.FS, opts.Epoch = mem.Crash(nil, vfs.CrashKept), 2
	b2, rec, j2 := reopen(t, opts)
	checkPrefix(t, j2.list(), all, opts.FromSeq, uint64(len(all)))
	checkData(t, b2, j2.list())
	if rec.CutSCOs != 0 || rec.CutBytes == 0 {
		t.Errorf("old records should be behind the end, and cut off: %+v", rec)
	}
	// The rest of the old file goes when the segment closes.
	if err := b.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	segs := *b.segs.Load()
	last := segs[len(segs)-1]
	if info, err := mem.Stat(last.path); err != nil || info.Size() != last.size || pool.mu.lent != 0 {
		t.Errorf("the file has %d bytes, %d count; %d lent; %v", info.Size(), last.size, pool.mu.lent, err)
	}
}

// A read that is under way when its segment is written over gets the segment's bytes, or
// hears that it is gone. It never gets those of the new one.
func TestReadDuringReuse(t *testing.T) {
	pool := newTestPool(t, PoolOptions{MemoryBytes: -1, reuseAbove: -1})
	j := new(journal)
	var (
		mu     sync.Mutex
		inRead func()
	)
	disk := vfs.NewFaulty(vfs.NewMem(vfs.MemOptions{}), func(c vfs.Call) error {
		mu.Lock()
		f := inRead
		if c.Op == vfs.OpRead {
			inRead = nil
		}
		mu.Unlock()
		if c.Op == vfs.OpRead && f != nil {
			f()
		}
		return nil
	})
	b := create(t, testOptions(disk, pool, j))
	r := rand.New(rand.NewPCG(1, 1))
	fillSCOs(t, b, r, 4)
	dispose(t, b, 1)
	first := j.list()[0]
	mu.Lock()
	inRead = func() { fillSCOs(t, b, r, 1) } // between the reader's open and its read
	mu.Unlock()
	p := make([]byte, ClusterSize)
	ok, err := b.ReadAt(first.SCO, first.Index, p)
	if ok || err != nil {
		t.Errorf("a read of what was written over meanwhile: ok %v, %v", ok, err)
	}
	if n := pool.Stats().Reused; n != 1 {
		t.Errorf("%d files were written over: the test tests nothing", n)
	}
}

// Where the old file cannot be taken, a new one is made, and the old one is deleted later.
func TestReuseFails(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpRename, vfs.OpOpen, vfs.OpSize} {
		t.Run(op.String(), func(t *testing.T) {
			pool := newTestPool(t, PoolOptions{MemoryBytes: -1, reuseAbove: -1})
			mem, j := vfs.NewMem(vfs.MemOptions{}), new(journal)
			disk := vfs.NewFaulty(mem, nil)
			opts := testOptions(disk, pool, j)
			opts.Direct = -1
			b := create(t, opts)
			r := rand.New(rand.NewPCG(1, 1))
			fillSCOs(t, b, r, 4)
			from, _ := dispose(t, b, 1)
			disk.SetHook(func(c vfs.Call) error {
				if c.Op == op {
					return vfs.ErrInjected
				}
				return nil
			})
			fillSCOs(t, b, r, 1)
			disk.SetHook(nil)
			if err := b.Evict(t.Context()); err != nil {
				t.Fatal(err)
			}
			checkData(t, b, j.list()[from:])
			onDisk := int64(0)
			for _, s := range *b.segs.Load() {
				info, err := mem.Stat(s.path)
				if err != nil {
					t.Fatal(err)
				}
				onDisk += info.Size()
			}
			if s := pool.Stats(); s.TotalBytes != onDisk || pool.mu.lent != 0 {
				t.Errorf("%d bytes on the disk, %d counted, %d lent", onDisk, s.TotalBytes, pool.mu.lent)
			}
			if _, err := mem.Stat(segmentPath(opts.Dir, 2)); !os.IsNotExist(err) {
				t.Errorf("a cached segment stayed: %v", err)
			}
		})
	}
}

// A claim of an old record that is left behind a segment's end is no reason to call the log damaged,
// and what is lost inside of a segment that was written over is still found.
func TestDamageInReused(t *testing.T) {
	pool := newTestPool(t, PoolOptions{MemoryBytes: -1, reuseAbove: -1})
	mem, j := vfs.NewMem(vfs.MemOptions{}), new(journal)
	opts := testOptions(mem, pool, j)
	opts.Direct = -1
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	fillSCOs(t, b, r, 6)
	opts.FromSeq, opts.Disposable = dispose(t, b, 1)
	fillSCOs(t, b, r, 2)
	if err := b.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	fillSCOs(t, b, r, 1)
	closeBuffer(t, b)
	all := j.list()
	damaged := all[len(all)-5] // in the last but two, of which all was synced
	f, err := mem.OpenFile(segmentPath(opts.Dir, damaged.SCO), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 3*ClusterSize); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	opts.Epoch = 2
	if _, _, _, err := tryOpen(opts); err == nil {
		t.Fatal("synced records are gone from the middle of the log, and it opens")
	}
	opts.Salvage = true
	b2, rec, j2 := reopen(t, opts)
	checkPrefix(t, j2.list(), all, opts.FromSeq, opts.FromSeq)
	checkData(t, b2, j2.list())
	if !rec.LostSynced || rec.CutSCOs == 0 {
		t.Errorf("%+v", rec)
	}
}
