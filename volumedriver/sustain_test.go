package volumedriver_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scoria/internal/vfs"
	"scoria/volumedriver"
)

// TestSustained writes much more than the write buffer holds, to several volumes at once,
// none of which fills a TLog before the buffer is full. Nobody may get stuck or fail.
func TestSustained(t *testing.T) {
	r := newRig(t, func(o *volumedriver.Options) {
		o.SCOClusters, o.TLogSCOs, o.WriteBufferBytes = 64, 16, 8<<20 // a TLog would take 4 MiB of each
	})
	const volumes, perVolume = 6, 12 << 20
	var wg sync.WaitGroup
	var longest atomic.Int64
	handles := make([]*volumedriver.Handle, volumes)
	for i := range handles {
		handles[i] = r.volume(fmt.Sprintf("v%d", i), 4<<20)
	}
	start := time.Now()
	models := make([][]byte, volumes)
	for i, h := range handles {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			model := make([]byte, h.Size())
			models[i] = model
			for n := 0; n < perVolume; n += 4 * cluster {
				off := rnd.Uint64N(h.Size()/cluster-4) * cluster
				p := pattern(uint64(n), off, 4*cluster)
				copy(model[off:], p)
				began := time.Now()
				if err := h.WriteAt(r.ctx, p, off, false); err != nil {
					t.Error(err)
					return
				}
				for d := int64(time.Since(began)); ; {
					if old := longest.Load(); d <= old || longest.CompareAndSwap(old, d) {
						break
					}
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	took := time.Since(start)
	s := r.d.Stats()
	t.Logf("%d MiB through a buffer of 8 MiB: %.0f MB/s, longest write %v, pool %+v", volumes*perVolume>>20,
		float64(volumes*perVolume)/1e6/took.Seconds(), time.Duration(longest.Load()), s.Pool)
	if s.Pool.TotalBytes > s.Pool.HardBytes+volumes*(64*cluster) {
		t.Errorf("%d bytes in the write buffer, limit %d", s.Pool.TotalBytes, s.Pool.HardBytes)
	}
	for i, h := range handles {
		r.check(h, 0, models[i])
		r.must(h.Drain(r.ctx, nil))
	}
	r.restart(true)
	for i := range handles {
		r.check(r.open(fmt.Sprintf("v%d", i)), 0, models[i])
	}
}

// TestMapPressure keeps far more map than the cache holds in use: pages are evicted, written
// and read back, and recovery from the object store reads only what is asked for.
func TestMapPressure(t *testing.T) {
	r := newRig(t, func(o *volumedriver.Options) {
		o.MapCacheBytes, o.CheckpointDirty, o.MapDiskBytes = 256<<10, 64<<10, 128<<10
	})
	const size = 16 << 40
	h := r.volume("v", size)
	rnd := rand.New(rand.NewPCG(1, 1))
	written := make(map[uint64]uint64)
	offs, data, errs := make([]uint64, 8), make([][]byte, 8), make([]error, 8)
	for i := range uint64(250) {
		for k := range offs {
			offs[k] = rnd.Uint64N(size/cluster) * cluster
			data[k] = pattern(i, offs[k], cluster)
			written[offs[k]] = i
		}
		if !h.TryWriteBatch(offs, data, errs) {
			for k := range offs {
				r.must(h.WriteAt(r.ctx, data[k], offs[k], false))
			}
		}
		r.must(errors.Join(errs...))
	}
	r.must(h.Drain(r.ctx, nil))
	verify := func(n int) {
		for off, i := range written {
			r.check(h, off, pattern(i, off, cluster))
			if n--; n == 0 {
				return
			}
		}
	}
	verify(len(written))
	s := r.status(h)
	if s.Map.Loads == 0 || s.Stats.Checkpoints == 0 {
		t.Errorf("the map was never under pressure: %+v", s.Map)
	}
	r.must(h.Close())
	r.restart(true)
	began := time.Now()
	h = r.open("v")
	verify(1)
	t.Logf("first read %v after the loss of the local directory", time.Since(began))
	verify(len(written))
	r.eventually("the map fits its memory", func() bool { return r.d.Stats().MapCache.Used <= 256<<10 })
}

// TestSyncFails: after a failed fdatasync nothing is promised any more, reads go on, and a
// restart finds what was durable.
func TestSyncFails(t *testing.T) {
	disk := vfs.NewFaulty(vfs.NewMem(vfs.MemOptions{}), nil)
	r := newRig(t, func(o *volumedriver.Options) { o.FS = disk })
	h := r.volume("v", 1<<20)
	p := pattern(1, 0, 4*cluster)
	r.must(h.WriteAt(r.ctx, p, 0, true))
	disk.SetHook(func(c vfs.Call) error {
		if c.Op == vfs.OpSync {
			return vfs.ErrInjected
		}
		return nil
	})
	r.must(h.WriteAt(r.ctx, pattern(2, 0, cluster), 8*cluster, false))
	r.want(h.Flush(r.ctx), vfs.ErrInjected)
	disk.SetHook(nil)
	if err := h.Flush(r.ctx); err == nil {
		t.Error("a flush succeeds after one that failed")
	}
	if err := h.WriteAt(r.ctx, p, 0, false); err == nil {
		t.Error("a write succeeds after a flush that failed")
	}
	r.check(h, 0, p)
	if s := r.status(h); s.Failed == "" {
		t.Error("the status does not tell")
	}
	r.must(h.Close())
	_ = r.d.Close(r.ctx) // tells of the failure
	r.d = r.start(r.opts)
	h = r.open("v")
	r.check(h, 0, p)
	r.must(h.WriteAt(r.ctx, p, 16*cluster, true))
}

// TestCloseWhileBusy closes the driver under load: every call returns, nothing is left running.
func TestCloseWhileBusy(t *testing.T) {
	base := goroutines()
	r := newRig(t, func(o *volumedriver.Options) { o.WriteBufferBytes = 1 << 20 })
	h := r.volume("v", 4<<20)
	var wg sync.WaitGroup
	for i := range uint64(4) {
		wg.Go(func() {
			p, got := pattern(i, 0, 8*cluster), make([]byte, 8*cluster)
			for n := uint64(0); ; n++ {
				off := (i*64 + n%32) * cluster
				err := h.WriteAt(r.ctx, p, off, n%7 == 0)
				if err == nil {
					err = h.ReadAt(r.ctx, got, off)
					if err == nil && !bytes.Equal(got, p) {
						t.Error("wrong bytes")
					}
				}
				if err != nil {
					if !errors.Is(err, volumedriver.ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	r.eventually("something is uploaded", func() bool { return r.store.BytesIn() > 2<<20 })
	r.must(r.d.Close(r.ctx))
	wg.Wait()
	r.must(r.d.Close(r.ctx))
	if _, err := r.d.OpenVolume(r.ctx, "v"); !errors.Is(err, volumedriver.ErrClosed) {
		t.Errorf("open after close: %v", err)
	}
	r.eventually("all goroutines have ended", func() bool { return goroutines() <= base+1 })
}
