package volumedriver_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"scoria/internal/vfs"
	"scoria/volumedriver"
	"scoria/volumedriver/sco"
	"scoria/volumedriver/volumetest"
)

// putsHead tells whether a call of the object store publishes a head.
func putsHead(c volumetest.StoreCall) bool {
	return c.Op == volumetest.OpApply && slices.Contains(c.Names, sco.HeadName)
}

// TestNothingUncommittedIsEvicted: SCOs that are stored, but in no TLog, stay in the local
// log however full it is: if the gateway dies now, only the log knows them.
func TestNothingUncommittedIsEvicted(t *testing.T) {
	const limit = 2 << 20
	r := newRig(t, func(o *volumedriver.Options) { o.WriteBufferBytes = limit })
	h := r.volume("v", 16<<20)
	r.store.SetHook(func(_ context.Context, c volumetest.StoreCall) error {
		if putsHead(c) {
			return volumedriver.ErrUnavailable
		}
		return nil
	})
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	acked := make(chan uint64, 1)
	go func() { // until the log is full, or twice as much as it may hold has gone through it
		off := uint64(0)
		for ; off < 2*limit; off += cluster {
			if err := h.WriteAt(ctx, pattern(1, off, cluster), off, true); err != nil {
				break
			}
		}
		cancel()
		acked <- off
	}()
	r.eventually("the log is full", func() bool {
		return ctx.Err() != nil || r.d.Stats().Pool.TotalBytes > limit-limit/16
	})
	cancel()
	end := <-acked
	disk := r.fs.(*vfs.Mem).Crash(nil, vfs.CrashKept)
	r.must(h.Close())
	_ = r.d.Close(r.ctx) // it cannot publish
	r.store.SetHook(nil)
	r.fs = disk
	r.d = r.start(r.opts)
	h = r.open("v")
	for off := uint64(0); off < end; off += cluster {
		r.check(h, off, pattern(1, off, cluster))
	}
}

// TestFencedCommit: an owner that had stored its SCOs and was about to publish them when
// another one took over publishes nothing.
func TestFencedCommit(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	r.must(h.WriteAt(r.ctx, pattern(1, 0, 8*cluster), 0, false))
	r.must(h.Drain(r.ctx, nil))
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.store.SetHook(func(_ context.Context, c volumetest.StoreCall) error {
		if putsHead(c) {
			once.Do(func() { close(reached) })
			<-goOn
		}
		return nil
	})
	r.must(h.WriteAt(r.ctx, pattern(2, 0, cluster), 0, true))
	drained := make(chan error, 1)
	go func() { drained <- h.Drain(r.ctx, nil) }()
	select {
	case <-reached:
	case err := <-drained:
		t.Fatalf("drain, before anybody took over: %v", err)
	}
	r.store.SetHook(nil)
	second := r.opts
	second.GatewayID, second.Dir = "gw-2", "/gw2"
	d2 := r.start(second)
	h2, err := d2.TakeOver(r.ctx, "v")
	r.must(err)
	head, err := r.store.Get(r.ctx, 1001, sco.HeadName, 1<<20)
	r.must(err)
	close(goOn)
	if err := <-drained; !errors.Is(err, volumedriver.ErrFenced) {
		t.Errorf("drain of the former owner: %v", err)
	}
	if now, err := r.store.Get(r.ctx, 1001, sco.HeadName, 1<<20); err != nil || string(now) != string(head) {
		t.Errorf("the former owner has changed the head: %v", err)
	}
	r.check(h2, 0, pattern(1, 0, 8*cluster))
	r.must(h.Close())
}

// TestOrphansOfPowerLoss: SCOs that were stored and whose records the local log then lost
// are removed with the next commit.
func TestOrphansOfPowerLoss(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	r.must(h.WriteAt(r.ctx, pattern(1, 0, 16*cluster), 0, false))
	r.must(h.Drain(r.ctx, nil))
	before := len(r.store.Names(1001, sco.PrefixSCO))
	r.store.SetHook(func(_ context.Context, c volumetest.StoreCall) error {
		if putsHead(c) {
			return volumedriver.ErrUnavailable
		}
		return nil
	})
	r.must(h.WriteAt(r.ctx, pattern(2, 0, 32*cluster), 0, false)) // two SCOs, not synced
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- h.Drain(ctx, nil) }()
	r.eventually("the SCOs are stored", func() bool { return len(r.store.Names(1001, sco.PrefixSCO)) == before+2 })
	disk := r.fs.(*vfs.Mem).Crash(nil, vfs.CrashLost)
	cancel()
	<-drained
	r.must(h.Close())
	_ = r.d.Close(r.ctx) // it cannot publish
	r.store.SetHook(nil)
	r.fs = disk
	r.d = r.start(r.opts)
	h = r.open("v")
	r.check(h, 0, pattern(1, 0, 16*cluster))
	r.must(h.WriteAt(r.ctx, pattern(3, 0, 16*cluster), 0, false))
	r.must(h.Drain(r.ctx, nil))
	if now := r.store.Names(1001, sco.PrefixSCO); len(now) != before+1 {
		t.Errorf("%d SCOs, want those of two commits, %d: %v", len(now), before+1, now)
	}
}
