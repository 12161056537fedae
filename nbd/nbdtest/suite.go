package nbdtest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"scoria/nbd"
)

// TestDevice checks that a device keeps the contract of nbd.Device. open returns a fresh
// device of at least 1 MiB that reads as zeroes, and cleans up through t.
func TestDevice(t *testing.T, open func(t *testing.T) nbd.Device) {
	t.Run("fresh device reads as zeroes", func(t *testing.T) {
		d := open(t)
		expect(t, d, 0, make([]byte, 1<<20))
	})
	t.Run("model", func(t *testing.T) { testModel(t, open(t)) })
	t.Run("fast paths", func(t *testing.T) { testFastPaths(t, open(t)) })
	t.Run("edges", func(t *testing.T) { testEdges(t, open(t)) })
	t.Run("extents", func(t *testing.T) { testExtents(t, open(t)) })
	t.Run("concurrent", func(t *testing.T) { testConcurrent(t, open(t)) })
	t.Run("cancelled context", func(t *testing.T) {
		d := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		// Any result is right, but the call returns and later calls work.
		_ = d.ReadAt(ctx, make([]byte, 4096), 0)
		_ = d.WriteAt(ctx, make([]byte, 4096), 0, true)
		_ = d.Flush(ctx)
		expect(t, d, 0, make([]byte, 8192))
	})
}

func expect(t *testing.T, d nbd.Device, off uint64, want []byte) {
	t.Helper()
	got := bytes.Repeat([]byte{0xee}, len(want))
	if err := d.ReadAt(t.Context(), got, off); err != nil {
		t.Fatalf("read %d+%d: %v", off, len(want), err)
	}
	if i := firstDifference(got, want); i >= 0 {
		t.Fatalf("read %d+%d: byte %d is %#x, want %#x", off, len(want), off+uint64(i), got[i], want[i])
	}
	hr, ok := d.(nbd.HoleReader)
	if !ok || len(want) == 0 {
		return
	}
	done, hole, err := hr.TryReadHole(got, off)
	if err != nil || hole && !done {
		t.Fatalf("TryReadHole %d+%d: %v, %v, %v", off, len(want), done, hole, err)
	}
	if hole {
		clear(got)
	}
	if i := firstDifference(got, want); done && i >= 0 {
		t.Fatalf("TryReadHole %d+%d, hole %v: byte %d is %#x, want %#x", off, len(want), hole, off+uint64(i), got[i], want[i])
	}
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testModel compares random calls, aligned and not, with a byte array.
func testModel(t *testing.T, d nbd.Device) {
	const size = 1 << 20
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	ctx := t.Context()
	model := make([]byte, size)
	for i := range 400 {
		off := rnd.Uint64N(size)
		n := min(1+rnd.Uint64N(1<<rnd.Uint64N(18)), size-off)
		if rnd.IntN(2) == 0 {
			off, n = off&^4095, min((n+4095)&^4095, size-off&^4095)
		}
		fua := rnd.IntN(8) == 0
		what := ""
		var err error
		switch rnd.IntN(8) {
		case 0, 1, 2:
			p := make([]byte, n)
			for j := range p {
				p[j] = byte(rnd.Uint32())
			}
			what, err = "write", d.WriteAt(ctx, p, off, fua)
			copy(model[off:], p)
		case 3:
			what, err = "zeroes", d.WriteZeroes(ctx, off, n, rnd.IntN(2) == 0, fua)
			clear(model[off : off+n])
		case 4:
			what, err = "trim", d.Trim(ctx, off, n, fua)
			if err == nil { // whatever the range reads as now, it stays so; outside nothing changed
				err = d.ReadAt(ctx, model[off:off+n], off)
			}
		case 5:
			what, err = "flush", d.Flush(ctx)
		case 6:
			what, err = "cache", d.Cache(ctx, off, n)
		case 7:
			what = "read"
			expect(t, d, off, model[off:off+n])
		}
		if err != nil {
			t.Fatalf("step %d: %s %d+%d: %v", i, what, off, n, err)
		}
		lo, hi := off-min(off, 8192), min(off+n+8192, size)
		expect(t, d, lo, model[lo:hi])
	}
	expect(t, d, 0, model)
}

func testFastPaths(t *testing.T, d nbd.Device) {
	if tw, ok := d.(nbd.TryWriter); ok {
		data := [][]byte{bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096), bytes.Repeat([]byte{3}, 512)}
		offs := []uint64{8192, 65536, 100}
		errs := make([]error, 3)
		if tw.TryWriteBatch(offs, data, errs) {
			for i := range errs {
				must(t, errs[i])
				expect(t, d, offs[i], data[i])
				want := append([]byte(nil), data[i]...)
				clear(data[i]) // the device may not have kept it
				expect(t, d, offs[i], want)
			}
		} else {
			expect(t, d, 0, make([]byte, 128<<10)) // nothing at all was done
		}
	}
	tr, ok := d.(nbd.TryReader)
	if !ok {
		return
	}
	want := bytes.Repeat([]byte{7}, 8192)
	must(t, d.WriteAt(t.Context(), want, 16384, false))
	got := make([]byte, 8192)
	if done, err := tr.TryReadAt(got, 16384); done && (err != nil || !bytes.Equal(got, want)) {
		t.Fatalf("TryReadAt: %v, equal %v", err, bytes.Equal(got, want))
	}
}

func testEdges(t *testing.T, d nbd.Device) {
	ctx := t.Context()
	size := d.Size()
	must(t, d.WriteAt(ctx, []byte{9}, size-1, true))
	expect(t, d, size-2, []byte{0, 9})
	must(t, d.WriteAt(ctx, bytes.Repeat([]byte{5}, 3*4096), 4096, false))
	must(t, d.WriteZeroes(ctx, 4097, 3*4096-2, false, false))
	expect(t, d, 4095, append(append([]byte{0, 5}, make([]byte, 3*4096-2)...), 5, 0))
	must(t, d.Trim(ctx, 0, size, true))
	must(t, d.WriteZeroes(ctx, 0, size, false, true))
	expect(t, d, 0, make([]byte, 1<<20))
	for name, err := range map[string]error{
		"read past the end":     d.ReadAt(ctx, make([]byte, 2), size-1),
		"write past the end":    d.WriteAt(ctx, make([]byte, 2), size-1, false),
		"read far past the end": d.ReadAt(ctx, make([]byte, 2), ^uint64(0)-1),
	} {
		if err == nil {
			t.Errorf("%s succeeds", name)
		}
	}
	if d.Size() != size {
		t.Errorf("size became %d, was %d", d.Size(), size)
	}
}

// testExtents checks that extents cover a range exactly and say zero only of zeroes.
func testExtents(t *testing.T, d nbd.Device) {
	ctx := t.Context()
	must(t, d.WriteAt(ctx, bytes.Repeat([]byte{1}, 8192), 64<<10, false))
	must(t, d.WriteAt(ctx, bytes.Repeat([]byte{1}, 100), 300<<10+17, false))
	must(t, d.WriteZeroes(ctx, 128<<10, 64<<10, true, false))
	for _, r := range [][2]uint64{{0, 1 << 20}, {64<<10 + 1, 5000}, {0, 1}, {300 << 10, 4096}} {
		at, end := r[0], r[0]+r[1]
		more := true
		err := d.Extents(ctx, r[0], r[1], func(n uint64, hole, zero bool) bool {
			if !more || n == 0 || at >= end {
				t.Errorf("extent of %d at %d in %v, asked for more: %v", n, at, r, more)
			}
			if zero {
				expect(t, d, at, make([]byte, min(n, end-at)))
			}
			at += n
			more = at < end
			return more
		})
		must(t, err)
		if at < end {
			t.Errorf("extents of %v end at %d", r, at)
		}
	}
	calls := 0
	must(t, d.Extents(ctx, 0, 1<<20, func(uint64, bool, bool) bool { calls++; return false }))
	if calls != 1 {
		t.Errorf("yield was called %d times after false", calls)
	}
}

// testConcurrent writes disjoint ranges from many goroutines.
func testConcurrent(t *testing.T, d nbd.Device) {
	const workers, span = 8, 128 << 10
	ctx := t.Context()
	errs := make(chan error, workers)
	var wg sync.WaitGroup
	for w := range uint64(workers) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(w, 2))
			model := make([]byte, span)
			for range 60 {
				off := rnd.Uint64N(span)
				n := min(1+rnd.Uint64N(9000), span-off)
				p := bytes.Repeat([]byte{byte(rnd.Uint32())}, int(n))
				copy(model[off:], p)
				if err := d.WriteAt(ctx, p, w*span+off, rnd.IntN(16) == 0); err != nil {
					errs <- err
					return
				}
				if rnd.IntN(16) == 0 {
					if err := d.Flush(ctx); err != nil {
						errs <- err
						return
					}
				}
			}
			got := make([]byte, span)
			if err := d.ReadAt(ctx, got, w*span); err != nil {
				errs <- err
			} else if i := firstDifference(got, model); i >= 0 {
				errs <- fmt.Errorf("worker %d: byte %d differs", w, i)
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}
