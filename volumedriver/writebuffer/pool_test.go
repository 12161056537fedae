package writebuffer

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"scoria/internal/vfs"
)

// drainer uploads closed SCOs at a fixed rate and publishes a TLog for every batch of them.
func drainer(ctx context.Context, b *Buffer, rate float64, batch int) {
	done := uint64(0)
	for n := 0; ; {
		list := b.ClosedSCOs(done)
		if len(list) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Millisecond):
			}
			continue
		}
		c := list[0]
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(float64(c.Bytes) / rate * 1e9)):
		}
		b.MarkUploaded(c.Number)
		done = c.Number
		if n++; n%batch == 0 {
			_ = b.Sync(ctx) // so that what is in front may be evicted
			b.MarkDisposable(c.Number)
		}
	}
}

// A writer that is faster than the drain fills the buffer, and then gets the drain's rate:
// within ±15 % over every second, and without a stall of more than 250 ms.
func TestPacing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			hard  = 64 << 20
			drain = 16e6
		)
		ctx, cancel := context.WithCancel(t.Context())
		pool := newTestPool(t, PoolOptions{HardBytes: hard, MemoryBytes: -1})
		opts := testOptions(vfs.NewMem(vfs.MemOptions{}), pool, new(journal))
		opts.Applied, opts.SCOClusters, opts.Direct = nil, 64, -1 // 256 KiB: as 16 MiB to a buffer of 4 GiB
		b := create(t, opts)
		var wg sync.WaitGroup
		wg.Go(func() { drainer(ctx, b, drain, 16) })
		ops := []Op{write(rand.New(rand.NewPCG(1, 1)), 0, 1)}
		var (
			start     = time.Now()
			longest   time.Duration
			perSecond []float64
			bytes     int64
			second    = 1
		)
		for time.Since(start) < 25*time.Second {
			at := time.Now()
			if err := b.Append(ctx, ops); err != nil {
				t.Fatal(err)
			}
			took := time.Since(at)
			longest = max(longest, took)
			if took == 0 {
				time.Sleep(20 * time.Microsecond) // a client at 200 MB/s; the clock is synctest's
			}
			bytes += int64(len(ops[0].Data))
			if time.Since(start) > time.Duration(second)*time.Second {
				perSecond = append(perSecond, float64(bytes))
				second, bytes = second+1, 0
			}
			if s := pool.Stats(); s.TotalBytes > hard {
				t.Fatalf("%d bytes, the limit is %d", s.TotalBytes, hard)
			}
		}
		t.Logf("MB in each second: %.1f; longest append %v; %+v", scaled(perSecond), longest, pool.Stats())
		if perSecond[0] < 30e6 {
			t.Errorf("the empty buffer took only %.0f bytes in the first second", perSecond[0])
		}
		if longest > 250*time.Millisecond {
			t.Errorf("stalled for %v", longest)
		}
		for i, got := range perSecond[8:] {
			if math.Abs(got-drain) > 0.15*drain {
				t.Errorf("second %d: %.1f MB, the drain does %.1f", i+9, got/1e6, drain/1e6)
			}
		}
		cancel()
		wg.Wait()
	})
}

func scaled(list []float64) (out []float64) {
	for _, x := range list {
		out = append(out, x/1e6)
	}
	return out
}

// At the hard limit writers wait; room goes round between volumes, and ctx ends a wait.
func TestHardLimitIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		pool := newTestPool(t, PoolOptions{HardBytes: 1 << 20, MemoryBytes: -1})
		r := rand.New(rand.NewPCG(1, 1))
		var buffers []*Buffer
		for _, dir := range []string{"/a", "/b"} {
			opts := testOptions(vfs.NewMem(vfs.MemOptions{}), pool, new(journal))
			opts.Dir, opts.Direct = dir, -1
			b := create(t, opts)
			buffers = append(buffers, b)
		}
		a, b := buffers[0], buffers[1]
		ops := []Op{write(r, 1, 4)}
		for {
			done, err := a.TryAppend(ops)
			if err != nil {
				t.Fatal(err)
			}
			if !done {
				break
			}
		}
		full := a.LastSeq()
		if s := pool.Stats(); s.DirtyBytes > 1<<20 || s.DirtyBytes < 1<<20-1<<16 {
			t.Fatalf("full at %+v", s)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := b.Append(short, ops); !errors.Is(err, context.DeadlineExceeded) || b.LastSeq() != 0 {
			t.Fatalf("append to a full pool: %v", err)
		}
		var (
			wg    sync.WaitGroup
			mu    sync.Mutex
			order []string
		)
		queue := func(name string, buf *Buffer) {
			wg.Go(func() {
				if err := buf.Append(ctx, []Op{write(rand.New(rand.NewPCG(1, 1)), 1, 4)}); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
			})
			synctest.Wait()
		}
		for range 6 {
			queue("a", a)
		}
		queue("b", b)
		if s := pool.Stats(); s.Waiting != 7 || len(order) != 0 {
			t.Fatalf("%d wait, %v went on", s.Waiting, order)
		}
		// One SCO's worth of room serves a few of them; b must be among them.
		if err := a.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		first := a.ClosedSCOs(0)[0]
		a.MarkUploaded(first.Number)
		a.MarkDisposable(first.Number)
		synctest.Wait()
		mu.Lock()
		served := append([]string(nil), order...)
		mu.Unlock()
		if len(served) == 0 || len(served) >= 7 {
			t.Fatalf("one SCO of room served %v", served)
		}
		found := false
		for _, s := range served {
			found = found || s == "b"
		}
		if !found {
			t.Fatalf("served %v: the volume that waited last and alone got nothing", served)
		}
		for _, c := range a.ClosedSCOs(0) {
			a.MarkDisposable(c.Number)
		}
		wg.Wait()
		if a.LastSeq() != full+6 {
			t.Fatalf("%d records, want %d", a.LastSeq(), full+6)
		}
		closeBuffer(t, a)
		if err := a.Append(ctx, ops); !errors.Is(err, ErrClosed) {
			t.Errorf("append after close: %v", err)
		}
	})
}

// A full file system: TryAppend does nothing, Append fails with ENOSPC after its patience
// or goes on as soon as there is space; nothing is lost, and cached segments make way.
func TestFullFileSystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		mem := vfs.NewMem(vfs.MemOptions{Capacity: 1 << 20})
		pool := newTestPool(t, PoolOptions{MemoryBytes: -1})
		j := new(journal)
		opts := testOptions(mem, pool, j)
		opts.SpaceWait = 10 * time.Second
		b := create(t, opts)
		r := rand.New(rand.NewPCG(1, 1))
		for {
			done, err := b.TryAppend([]Op{write(r, 1, 3)})
			if err != nil {
				t.Fatal(err)
			}
			if !done {
				break
			}
		}
		last := b.LastSeq()
		start := time.Now()
		if err := b.Append(ctx, []Op{write(r, 1, 9)}); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("append to a full disk: %v", err)
		}
		if took := time.Since(start); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("gave up after %v", took)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := b.Append(short, []Op{write(r, 1, 9)}); !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("append with a deadline: %v", err)
		}
		if err := b.Sync(ctx); err != nil {
			t.Fatalf("sync on a full disk: %v", err)
		}
		checkData(t, b, j.list())
		before := len(j.list())
		// A waiting write goes on once cached segments can make way.
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := b.Append(ctx, []Op{write(r, 1, 9)}); err != nil {
				t.Errorf("append that waited: %v", err)
			}
		})
		time.Sleep(3 * time.Second)
		if uint64(before) > b.LastSeq() {
			t.Fatal("the log went back")
		}
		list := b.ClosedSCOs(0)
		b.MarkDisposable(list[len(list)/2].Number)
		wg.Wait()
		if b.LastSeq() <= last {
			t.Fatalf("nothing was appended: %d", b.LastSeq())
		}
		if s := pool.Stats(); s.Evicted == 0 {
			t.Fatalf("nothing was evicted: %+v", s)
		}
		all := j.list()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		opts.FromSeq, opts.Disposable = list[len(list)/2].LastSeq, list[len(list)/2].Number
		b2, rec, j2, err := tryOpen(opts)
		if err != nil {
			t.Fatal(err)
		}
		checkPrefix(t, j2.list(), all, opts.FromSeq, uint64(len(all)))
		checkData(t, b2, j2.list())
		if rec.LostSynced {
			t.Errorf("%+v", rec)
		}
		closeBuffer(t, b2)
	})
}

// Close refuses those that wait for room.
func TestCloseWakesWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := newTestPool(t, PoolOptions{HardBytes: 1 << 18, MemoryBytes: -1})
		b := create(t, testOptions(vfs.NewMem(vfs.MemOptions{}), pool, new(journal)))
		ops := []Op{write(rand.New(rand.NewPCG(1, 1)), 1, 8)}
		for {
			if done, err := b.TryAppend(ops); err != nil {
				t.Fatal(err)
			} else if !done {
				break
			}
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := b.Append(t.Context(), []Op{clearOp(1, 1), write(rand.New(rand.NewPCG(1, 1)), 1, 8)}); !errors.Is(err, ErrClosed) {
					t.Errorf("append: %v", err)
				}
			})
		}
		synctest.Wait()
		if s := pool.Stats(); s.Waiting != 3 {
			t.Fatalf("%d wait", s.Waiting)
		}
		closeBuffer(t, b)
		wg.Wait()
		if s := pool.Stats(); s.Waiting != 0 || s.TotalBytes != 0 || s.DirtyBytes != 0 {
			t.Fatalf("after close: %+v", s)
		}
	})
}

// Many volumes with little in their open SCOs fill the pool: they are asked to drain.
func TestPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		pool := newTestPool(t, PoolOptions{HardBytes: 1 << 20, MemoryBytes: -1})
		mem := vfs.NewMem(vfs.MemOptions{})
		var (
			mu      sync.Mutex
			pressed = make(map[int]int)
			buffers []*Buffer
		)
		r := rand.New(rand.NewPCG(1, 1))
		for i := range 30 {
			opts := testOptions(mem, pool, new(journal))
			opts.Dir, opts.Direct = segmentPath("/", uint64(i+1)), -1 // any name
			opts.Pressure = func() { mu.Lock(); pressed[i]++; mu.Unlock() }
			b := create(t, opts)
			buffers = append(buffers, b)
		}
		for i, b := range buffers {
			for range 1 + i%6 {
				if err := b.Append(ctx, []Op{write(r, 1, 2)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		if len(pressed) == 0 || len(pressed) == 30 {
			t.Errorf("%d of 30 volumes asked to drain", len(pressed))
		}
		for i, n := range pressed {
			if n != 1 {
				t.Errorf("volume %d asked %d times", i, n)
			}
			if i%6 < 2 {
				t.Errorf("volume %d, which holds little, was asked", i)
			}
		}
	})
}
