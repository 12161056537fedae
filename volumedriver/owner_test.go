package volumedriver_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"scoria/volumedriver"
)

// TestFencing: a second gateway cannot open a volume, takes it over by force, and the first
// one can change nothing any more.
func TestFencing(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	r.must(h.WriteAt(r.ctx, pattern(1, 0, 8*cluster), 0, false))
	r.must(h.Drain(r.ctx, nil))
	r.must(h.WriteAt(r.ctx, pattern(2, 0, cluster), 0, true)) // only in the first one's log

	second := r.opts
	second.GatewayID, second.Dir = "gw-2", "/gw2"
	d2 := r.start(second)
	_, err := d2.OpenVolume(r.ctx, "v")
	r.want(err, volumedriver.ErrOwned)
	h2, err := d2.TakeOver(r.ctx, "v")
	r.must(err)
	r.check(h2, 0, pattern(1, 0, 8*cluster)) // the state of the last TLog
	if s, _ := d2.Status(h2.ID()); !strings.Contains(s.Lost, "gw-1") {
		t.Errorf("the loss is not told: %q", s.Lost)
	}
	r.must(h2.WriteAt(r.ctx, pattern(3, 0, cluster), 0, false))
	r.must(h2.Drain(r.ctx, nil))
	before := strings.Join(r.store.Names(1001, ""), " ")

	r.want(h.Drain(r.ctx, nil), volumedriver.ErrFenced)
	r.want(h.WriteAt(r.ctx, pattern(4, 0, cluster), 0, false), volumedriver.ErrFenced)
	r.want(h.ReadAt(r.ctx, make([]byte, cluster), 0), volumedriver.ErrFenced)
	if done, _ := h.TryReadAt(make([]byte, cluster), 0); done {
		t.Error("a fenced volume answers")
	}
	r.must(h.Close())
	if after := strings.Join(r.store.Names(1001, ""), " "); after != before {
		t.Errorf("the fenced gateway changed the namespace:\n%s\n%s", before, after)
	}
	r.eventually("the local directory is set aside", func() bool {
		list, err := r.fs.ReadDir("/gw/aside")
		return err == nil && len(list) == 1
	})
	_, err = r.d.OpenVolume(r.ctx, "v")
	r.want(err, volumedriver.ErrOwned)
	r.check(h2, 0, pattern(3, 0, cluster))

	// Back again, cleanly: nothing of the first run may come through.
	r.must(h2.Close())
	r.must(d2.Close(r.ctx))
	h = r.open("v")
	r.check(h, 0, pattern(3, 0, cluster))
	if s := r.status(h); s.Lost != "" {
		t.Errorf("a loss is told: %q", s.Lost)
	}
}

// TestStaleDirectory: a gateway comes back with a local log, after another one has owned
// the volume: the log is stale.
func TestStaleDirectory(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	r.must(h.WriteAt(r.ctx, pattern(1, 0, cluster), 0, false))
	r.must(h.Drain(r.ctx, nil))
	r.must(h.WriteAt(r.ctx, pattern(2, 0, cluster), 0, true))
	r.must(h.Close())
	r.must(r.d.Close(r.ctx)) // undrained: still owned

	second := r.opts
	second.GatewayID, second.Dir = "gw-2", "/gw2"
	d2 := r.start(second)
	h2, err := d2.TakeOver(r.ctx, "v")
	r.must(err)
	r.must(h2.WriteAt(r.ctx, pattern(3, 0, cluster), cluster, false))
	r.must(h2.Drain(r.ctx, nil))
	r.must(h2.Close())
	r.must(d2.Close(r.ctx))

	r.d = r.start(r.opts)
	h = r.open("v")
	r.check(h, 0, pattern(1, 0, cluster))
	r.check(h, cluster, pattern(3, 0, cluster))
}

// TestLeaseEnds: an owner that does not renew loses the volume to whoever asks, and learns
// of it.
func TestLeaseEnds(t *testing.T) {
	r := newRig(t, func(o *volumedriver.Options) { o.Lease = 60 * time.Millisecond })
	h := r.volume("v", 1<<20)
	p := pattern(1, 0, cluster)
	r.must(h.WriteAt(r.ctx, p, 0, false))
	r.must(h.Drain(r.ctx, nil))
	second := r.opts
	second.GatewayID, second.Dir, second.Lease = "gw-2", "/gw2", time.Hour
	d2 := r.start(second)
	_, err := d2.OpenVolume(r.ctx, "v")
	r.want(err, volumedriver.ErrOwned)
	r.reg.SetHook(func(call string) error { // the first one is cut off from the registry
		if call == "Renew" {
			return volumedriver.ErrUnavailable
		}
		return nil
	})
	r.eventually("the failure shows", func() bool { return r.d.Stats().Lease != "" })
	r.reg.Advance(time.Second)
	h2, err := d2.OpenVolume(r.ctx, "v")
	r.must(err)
	r.check(h2, 0, p)
	r.eventually("the first one stops answering", func() bool {
		return errors.Is(h.ReadAt(r.ctx, make([]byte, cluster), 0), volumedriver.ErrFenced)
	})
}

// TestIdleClose: an idle volume is closed and released, leaves next to nothing on the local
// disk, and opens again with all its data.
func TestIdleClose(t *testing.T) {
	r := newRig(t, func(o *volumedriver.Options) { o.IdleDelay, o.DrainDelay = 20*time.Millisecond, 10*time.Millisecond })
	h := r.volume("v", 4<<20)
	p := pattern(1, 0, 4<<20)
	for round := range uint64(3) {
		copy(p[round*cluster:], pattern(round, round*cluster, cluster))
		r.must(h.WriteAt(r.ctx, p, 0, false))
		r.must(h.Close())
		r.eventually("it is closed", func() bool { return r.d.Stats().OpenVolumes == 0 })
		rec, err := r.d.Lookup(r.ctx, "v")
		r.must(err)
		r.eventually("it is released", func() bool {
			rec, err = r.d.Lookup(r.ctx, "v")
			return err != nil || rec.Owner == ""
		})
		r.must(err)
		list, err := r.fs.ReadDir("/gw/volumes/0000000000000001/log")
		r.must(err)
		var left int64
		for _, e := range list {
			info, err := e.Info()
			r.must(err)
			left += info.Size()
		}
		if left > 4096 {
			t.Errorf("%d bytes of log are left of an idle volume", left)
		}
		h = r.open("v")
		r.check(h, 0, p)
		if s := r.status(h); s.Lost != "" || s.Stats.RemoteClusters == 0 {
			t.Errorf("%+v", s)
		}
	}
}

// TestLossStaysTold: what a volume lost with its local log is told for as long as the gateway
// runs, also when nobody uses the volume any more; others are closed when they are idle.
func TestLossStaysTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *volumedriver.Options) { o.IdleDelay = time.Second })
		h := r.volume("lost", 1<<20)
		r.must(h.WriteAt(r.ctx, pattern(1, 0, cluster), 0, true))
		lost := h.ID()
		r.restart(true)
		h = r.open("lost")
		if s := r.status(h); s.Lost == "" {
			t.Error("the loss is not told")
		}
		r.must(h.Close())
		h = r.volume("other", 1<<20)
		other := h.ID()
		r.must(h.Close())
		time.Sleep(time.Minute)
		if s, open := r.d.Status(lost); !open || s.Lost == "" {
			t.Errorf("a minute later the loss is not told any more (open: %v)", open)
		}
		if _, open := r.d.Status(other); open {
			t.Error("an idle volume that lost nothing is still open")
		}
		r.must(r.d.Close(r.ctx))
	})
}
