package osd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"scoria/alba/osd"
	"scoria/alba/osd/osdtest"
	"scoria/internal/vfs"
)

// The fault model of the tests in this file: the machine loses power at any operation that
// changes the disk. What was synced stays, of the rest any part may; the store is opened
// again on what is left, and may lose power again while it recovers. Every batch that
// was acknowledged must be there, every other one that was under way wholly or not at all.

// smallOptions make a store roll, flush and reap all the time.
func smallOptions(fsys vfs.FS) osd.Options {
	return osd.Options{FS: fsys, SegmentSize: 256 << 10, FlushBytes: 200 << 10, ReapBytes: 64 << 10, GroupBytes: 64 << 10}
}

const (
	crashWorkers = 3
	crashKeys    = 4 // of one worker, written together
)

// worker is what one writer knows. Version v holds crashKeys keys with content made of v, or none of them for every fifth v.
type worker struct {
	acked, tried uint64
}

func crashKey(w, k int) []byte { return fmt.Appendf(nil, "w%d-%d", w, k) }

func crashValue(w int, v uint64, k int) []byte {
	sizes := []int{10, 5000, 20_000, 4096}
	return osdtest.Fill(v<<8|uint64(w)<<4|uint64(k), sizes[(k+int(v))%len(sizes)])
}

// run writes versions until n are done or the store fails.
func (w *worker) run(ctx context.Context, s osd.API, me, n int) {
	for range n {
		v := w.tried + 1
		var b osd.Batch
		for k := range crashKeys {
			if v%5 == 0 {
				b.Deletes = append(b.Deletes, crashKey(me, k))
			} else {
				b.Puts = append(b.Puts, osd.Put{Key: crashKey(me, k), Value: crashValue(me, v, k)})
			}
		}
		w.tried = v
		if err := s.Apply(ctx, &b); err != nil {
			return
		}
		w.acked = v
	}
}

// check finds out which version is there and fails if it is not one of those that may be.
func (w *worker) check(ctx context.Context, s osd.API, me int) error {
	holds := func(v uint64) error {
		for k := range crashKeys {
			want := crashValue(me, v, k)
			r := []osd.Read{{Key: crashKey(me, k), Buf: make([]byte, len(want))}}
			if err := s.Read(ctx, r); err != nil {
				return err
			}
			if v%5 == 0 || v == 0 {
				if !errors.Is(r[0].Err, osd.ErrNotFound) {
					return fmt.Errorf("key %s: %v, want not found", r[0].Key, r[0].Err)
				}
				continue
			}
			if r[0].Err != nil {
				return r[0].Err
			}
			if !bytes.Equal(r[0].Buf, want) {
				return fmt.Errorf("key %s: other content", r[0].Key)
			}
		}
		return nil
	}
	var errs error
	for v := w.acked; v <= w.tried; v++ {
		err := holds(v)
		if err == nil {
			w.acked, w.tried = v, v
			return nil
		}
		errs = errors.Join(errs, fmt.Errorf("version %d: %w", v, err))
	}
	return errs
}

// crashRound opens the store on a disk that dies at its k-th change, writes, and returns
// the disk as it is afterwards. died is false when k was never reached.
func crashRound(ctx context.Context, mem *vfs.Mem, ws []worker, k int64, r *rand.Rand, mode vfs.CrashMode) (after *vfs.Mem, died bool, err error) {
	var n atomic.Int64
	cut := r.IntN(20_000)
	f := vfs.NewFaulty(mem, func(c vfs.Call) error {
		if c.Op.Mutates() && n.Add(1) == k {
			if c.Op == vfs.OpWrite {
				return &vfs.Torn{Keep: cut, Err: vfs.ErrCrashed}
			}
			return vfs.ErrCrashed
		}
		return nil
	})
	s, err := osd.Open("/osd", smallOptions(f))
	if err == nil {
		var wg sync.WaitGroup
		for i := range ws {
			if err := ws[i].check(ctx, s, i); err != nil && !f.Crashed() {
				return nil, false, fmt.Errorf("after reopening, worker %d: %w", i, err)
			}
		}
		for i := range ws {
			wg.Go(func() { ws[i].run(ctx, s, i, 12) })
		}
		wg.Wait()
	} else if !f.Crashed() {
		return nil, false, fmt.Errorf("open: %w", err)
	}
	died = f.Crashed()
	if !died {
		if err := s.Close(); err != nil && !f.Crashed() {
			return nil, false, fmt.Errorf("close: %w", err)
		}
		died = f.Crashed()
		f.Crash()
		return mem.Crash(r, mode), died, nil
	}
	f.Crash()
	after = mem.Crash(r, mode)
	if s != nil {
		_ = s.Close() // the machine is off
	}
	return after, true, nil
}

func TestPowerLoss(t *testing.T) {
	step := int64(7)
	if os.Getenv("SCORIA_STRESS") != "" {
		step = 1
	}
	for _, mode := range vfs.Modes() {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			for k := int64(1); ; k += step {
				r := rand.New(rand.NewPCG(uint64(k), uint64(mode)))
				mem := vfs.NewMem(vfs.MemOptions{Capacity: 1 << 30})
				ws := make([]worker, crashWorkers)
				mem, died, err := crashRound(t.Context(), mem, ws, k, r, mode)
				if err != nil {
					t.Fatalf("crash at change %d: %v", k, err)
				}
				if !died {
					break
				}
				// Again, early: in or soon after recovery. Then for good.
				for _, again := range []int64{1 + r.Int64N(40), 1 << 60} {
					if mem, _, err = crashRound(t.Context(), mem, ws, again, r, mode); err != nil {
						t.Fatalf("crash at change %d, then at %d: %v", k, again, err)
					}
				}
			}
		})
	}
}
