package writebuffer

import (
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"scoria/internal/vfs"
)

func fileSize(t *testing.T, fsys vfs.FS, path string) int64 {
	t.Helper()
	info, err := fsys.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestAhead syncs after each write, so the log gets space ahead of its end: never more than
// the segment has or can take, given back when it closes, and no hindrance to recovery.
func TestAhead(t *testing.T) {
	ctx := t.Context()
	pool := newTestPool(t, PoolOptions{MemoryBytes: -1})
	mem, j := vfs.NewMem(vfs.MemOptions{}), new(journal)
	var hastened atomic.Int64
	disk := vfs.NewFaulty(mem, func(c vfs.Call) error {
		if c.Op == vfs.OpStartWrite {
			hastened.Add(1)
		}
		return nil
	})
	opts := testOptions(disk, pool, j)
	opts.SCOClusters, opts.oftenSyncs, opts.aheadAfter = 64, 0, 0
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	step := func() {
		t.Helper()
		if err := b.Append(ctx, []Op{write(r, r.Uint64N(1000), 1)}); err != nil {
			t.Fatal(err)
		}
		if err := b.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	first := segmentPath(opts.Dir, 2) // Create has planted SCO 1
	if b.tail.seg != nil {
		first = b.tail.seg.path
	}
	for range oftenSyncs - 1 { // Create has synced once
		step()
	}
	if n := b.Stats().AheadBytes; n != 0 {
		t.Fatalf("%d bytes ahead before the log was synced often", n)
	}
	for range 20 {
		step()
	}
	size, counts := fileSize(t, mem, first), b.tail.size
	if n := b.Stats().AheadBytes; n == 0 || size <= counts || size > 3*counts {
		t.Fatalf("a file of %d bytes for %d that count; %d ahead", size, counts, n)
	}
	if hastened.Load() == 0 {
		t.Error("no sync was hastened")
	}
	fork := mem.Crash(nil, vfs.CrashLost)
	for b.tail.seg != nil && b.tail.seg.path == first {
		step()
	}
	if got := fileSize(t, mem, first); got != b.segment(1).size {
		t.Errorf("the closed segment has a file of %d bytes, %d count", got, b.segment(1).size)
	}
	// Everything was synced, so that nothing is cut from a log with space ahead.
	all := j.list()
	opts.FS = fork
	b2, rec, j2 := reopen(t, opts)
	checkPrefix(t, j2.list(), all, 0, oftenSyncs+19)
	checkData(t, b2, j2.list())
	if rec.Cut != "" || rec.CutBytes != 0 || fileSize(t, fork, first) != size {
		t.Errorf("%+v", rec)
	}
	checkClosed(t, b2, j2.list())
}

// TestAheadBehindSmallRecords: several records without data end in the same page, and space
// ahead begins behind it, whichever of them has it made.
func TestAheadBehindSmallRecords(t *testing.T) {
	ctx := t.Context()
	mem, j := vfs.NewMem(vfs.MemOptions{}), new(journal)
	opts := testOptions(mem, newTestPool(t, PoolOptions{MemoryBytes: -1}), j)
	opts.SCOClusters, opts.oftenSyncs, opts.aheadAfter = 1024, 0, 0
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 3000 { // of 64 bytes each: three times the least space ahead
		op := clearOp(r.Uint64N(1000), 1)
		if i%500 == 0 {
			op = write(r, r.Uint64N(1000), 1)
		}
		if err := b.Append(ctx, []Op{op}); err != nil {
			t.Fatal(err)
		}
		if i < 800 {
			continue // it becomes a log that is synced often in the middle of a page
		}
		if err := b.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if b.Stats().AheadBytes == 0 {
		t.Fatal("no space ahead was made")
	}
	opts.FS = mem.Crash(nil, vfs.CrashLost)
	b2, rec, j2 := reopen(t, opts)
	checkPrefix(t, j2.list(), j.list(), 0, uint64(len(j.list())))
	checkData(t, b2, j2.list())
	if rec.CutBytes != 0 {
		t.Errorf("%+v", rec)
	}
}

// TestAheadStops writes much between two syncs: no zeroes are written for that.
func TestAheadStops(t *testing.T) {
	ctx := t.Context()
	j := new(journal)
	opts := testOptions(vfs.NewMem(vfs.MemOptions{}), newTestPool(t, PoolOptions{MemoryBytes: -1}), j)
	opts.SCOClusters, opts.Direct = 1024, -1
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	append1 := func(n uint64) {
		t.Helper()
		if err := b.Append(ctx, []Op{write(r, 0, n)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		append1(1)
		if err := b.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		append1(64)
	}
	before := b.Stats().AheadBytes
	if before == 0 {
		t.Fatal("no space ahead: the test tests nothing")
	}
	for range 40 {
		append1(64)
	}
	if n := b.Stats().AheadBytes; n != before {
		t.Errorf("%d bytes ahead, %d when the syncs ended", n, before)
	}
}

// TestAheadFails lets the zeroes fail, in part or wholly: nobody notices.
func TestAheadFails(t *testing.T) {
	ctx := t.Context()
	for _, keep := range []int{0, 5000, -1} {
		mem, j := vfs.NewMem(vfs.MemOptions{}), new(journal)
		var failed atomic.Int64
		disk := vfs.NewFaulty(mem, func(c vfs.Call) error {
			if c.Op == vfs.OpWrite && c.Length >= 3*ClusterSize { // zeroes: all other writes are shorter
				failed.Add(1)
				return &vfs.Torn{Keep: keep, Err: vfs.ErrInjected}
			}
			return nil
		})
		opts := testOptions(disk, newTestPool(t, PoolOptions{}), j)
		b := create(t, opts)
		r := rand.New(rand.NewPCG(1, 1))
		for range 40 {
			if err := b.Append(ctx, []Op{write(r, r.Uint64N(1000), 1)}); err != nil {
				t.Fatal(err)
			}
			if err := b.Sync(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if n := failed.Load(); n == 0 || n > 3 { // once for each of the segments
			t.Errorf("%d failures", n)
		}
		closeBuffer(t, b)
		opts.FS = mem.Crash(nil, vfs.CrashLost)
		b2, _, j2, err := tryOpen(opts)
		if err != nil {
			t.Fatal(err)
		}
		checkPrefix(t, j2.list(), j.list(), 0, 40)
		checkData(t, b2, j2.list())
		closeBuffer(t, b2)
	}
}

// TestAheadHidesNoLoss zeroes the last records of a segment, as if their blocks had been lost.
// In front of a segment that says they were synced, that is damage and not the end of the log.
func TestAheadHidesNoLoss(t *testing.T) {
	ctx := t.Context()
	mem, j := vfs.NewMem(vfs.MemOptions{}), new(journal)
	opts := testOptions(mem, newTestPool(t, PoolOptions{MemoryBytes: -1}), j)
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		if err := b.Append(ctx, []Op{write(r, r.Uint64N(1000), 1)}); err != nil {
			t.Fatal(err)
		}
		if err := b.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	seg := b.segment(1)
	last := seg.mu.runs[len(seg.mu.runs)-1]
	at := last.off + int64(last.records-1)*int64(last.stride) - headerSize - 4
	closeBuffer(t, b)
	f, err := mem.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, seg.size-at), at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := tryOpen(opts); err == nil || !strings.Contains(err.Error(), "had been synced") {
		t.Fatalf("open: %v", err)
	}
}

// TestWriteOut never syncs: segments that have been closed for long are written out, each once, and
// the newest ones are left alone.
func TestWriteOut(t *testing.T) {
	ctx := t.Context()
	var mu sync.Mutex
	begun := map[string]int64{}
	news := make(chan struct{}, 1)
	disk := vfs.NewFaulty(vfs.NewMem(vfs.MemOptions{}), func(c vfs.Call) error {
		if c.Op == vfs.OpStartWrite {
			mu.Lock()
			begun[c.Path] += c.Length
			mu.Unlock()
			select {
			case news <- struct{}{}:
			default:
			}
		}
		return nil
	})
	opts := testOptions(disk, newTestPool(t, PoolOptions{MemoryBytes: -1}), new(journal))
	opts.Direct, opts.maxUnsynced = -1, 5*16*ClusterSize
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	const segments = 20
	for range segments {
		if err := b.Append(ctx, []Op{write(r, 0, 16)}); err != nil {
			t.Fatal(err)
		}
	}
	for { // the Pool writes behind us
		mu.Lock()
		n := len(begun)
		mu.Unlock()
		if n >= segments-4 {
			break
		}
		<-news
	}
	mu.Lock()
	defer mu.Unlock()
	for n := uint64(1); n <= segments; n++ {
		seg := b.segment(n)
		want := seg.size
		if n > segments-4 {
			want = 0
		}
		if got := begun[seg.path]; got != want {
			t.Errorf("SCO %d: writing of %d bytes was begun, want %d of %d", n, got, want, seg.size)
		}
	}
	if b.SyncedSeq() != 0 {
		t.Error("writing out made something count as synced")
	}
}

// TestNoWriteOutAtFullDrain: while the Pool drains as fast as it can, old segments are about to be
// uploaded and removed, and are not written out.
func TestNoWriteOutAtFullDrain(t *testing.T) {
	pool := newTestPool(t, PoolOptions{MemoryBytes: -1, HardBytes: 1 << 20, SoftFraction: 0.5})
	opts := testOptions(vfs.NewMem(vfs.MemOptions{}), pool, new(journal))
	opts.Direct, opts.maxUnsynced = -1, 1
	b := create(t, opts)
	r := rand.New(rand.NewPCG(1, 1))
	marked := func() (n int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, s := range *b.segs.Load() {
			if s.writeOut {
				n++
			}
		}
		return n
	}
	early, segments := 0, 0
	for pool.Fill() != FillHigh {
		early = marked()
		if err := b.Append(t.Context(), []Op{write(r, 0, 16)}); err != nil {
			t.Fatal(err)
		}
		segments++
	}
	if err := b.Append(t.Context(), []Op{write(r, 0, 16)}); err != nil {
		t.Fatal(err)
	}
	if n := marked(); early == 0 || n != early {
		t.Errorf("%d segments to be written out before the drain was at its full speed, %d after, of %d", early, n, segments)
	}
}
