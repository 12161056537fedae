package volumedriver_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"scoria/volumedriver"
	"scoria/volumedriver/volumetest"
)

// busy writes a cluster each millisecond until the time has passed.
func (r *rig) busy(h *volumedriver.Handle, d time.Duration) {
	r.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
		off := uint64(time.Now().UnixMilli()) % 256 * cluster
		r.must(h.WriteAt(r.ctx, pattern(1, off, cluster), off, false))
	}
}

// TestDrainYields: while the write buffer is far from full, draining waits until clients
// pause; then it happens by itself.
func TestDrainYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		h := r.volume("v", 1<<20)
		r.busy(h, 2*time.Second)
		if s := r.status(h); s.Stats.UploadedSCOs != 0 {
			t.Errorf("%d SCOs were drained while the client wrote", s.Stats.UploadedSCOs)
		}
		time.Sleep(time.Second)
		if s := r.status(h); s.Stats.UploadedSCOs < 100 {
			t.Errorf("%d SCOs were drained in a pause", s.Stats.UploadedSCOs)
		}
		r.must(r.d.Close(r.ctx))
	})
}

// TestDrainsUnderLoad: old data is drained however busy clients are, and so is what
// somebody waits for.
func TestDrainsUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *volumedriver.Options) { o.DrainDelay = time.Second })
		h := r.volume("v", 1<<20)
		r.busy(h, 1500*time.Millisecond)
		if s := r.status(h); s.CommittedSeq < 900 {
			t.Errorf("only record %d of %d is drained; all from the first second should be", s.CommittedSeq, s.LastSeq)
		}
		drained := make(chan error)
		go func() { drained <- h.Drain(r.ctx, nil) }()
		r.busy(h, 100*time.Millisecond)
		select {
		case err := <-drained:
			r.must(err)
		default:
			t.Error("a drain that was asked for waits for clients")
			r.must(<-drained)
		}
		r.must(r.d.Close(r.ctx))
	})
}

// TestHeldBuffersAreLent: the object store may hold the data of what it has stored for long (a
// disk server hangs); that does not stop the drain.
func TestHeldBuffersAreLent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *volumedriver.Options) { o.Uploads = 2 })
		h := r.volume("v", 1<<20)
		r.store.HoldReleases(10)
		r.busy(h, 200*time.Millisecond) // dozens of SCOs
		begin := time.Now()
		r.must(h.Drain(r.ctx, nil))
		if d := time.Since(begin); d > 20*time.Second {
			t.Errorf("the drain took %v", d)
		}
		r.store.HoldReleases(0)
		r.must(r.d.Close(r.ctx))
	})
}

// TestCloseOfFullBufferDoesNotWait: a checkpoint waits for a drain at full speed, but not for
// one that has been ended.
func TestCloseOfFullBufferDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *volumedriver.Options) { o.WriteBufferBytes = 2 << 20 })
		h := r.volume("v", 1<<24)
		r.store.SetHook(func(ctx context.Context, call volumetest.StoreCall) error {
			if call.Op == volumetest.OpApply {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		for off := uint64(0); off < 1<<20; off += 8 * cluster {
			r.must(h.WriteAt(r.ctx, pattern(1, off, 8*cluster), off, false))
		}
		if s := r.status(h); s.CommittedSeq >= s.LastSeq {
			t.Fatalf("all is drained: record %d of %d", s.CommittedSeq, s.LastSeq)
		}
		begin := time.Now()
		r.must(r.d.Close(r.ctx))
		if d := time.Since(begin); d > 4*time.Second {
			t.Errorf("the end took %v", d)
		}
	})
}
