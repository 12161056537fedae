package alba_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"scoria/alba"
	"scoria/alba/albatest"
	"scoria/alba/osd/osdtest"
)

// TestProbesLeaveNothing: probes that are cut off after they have written do not pile up on the
// disk, and the first one that gets through takes away what they left.
func TestProbesLeaveNothing(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: fast()})
	ns := cl.Namespace("v")
	d := cl.OSD(0)
	var once, failing atomic.Bool
	failing.Store(true)
	d.SetHook(func(_ context.Context, op osdtest.Op) error {
		if op == osdtest.OpApply && once.CompareAndSwap(false, true) || op == osdtest.OpRead && failing.Load() {
			return errors.New("the disk fails")
		}
		return nil
	})
	put(t, cl.Client, ns, "o", data(1, 1<<20)) // finds the disk failing
	probes := func() (n int) {
		for _, key := range d.Keys() {
			if alba.KeyKind(key[0]) == alba.KeyProbe {
				n++
			}
		}
		return n
	}
	albatest.Eventually(t, "three probes", func() bool { return d.Calls(osdtest.OpRead) >= 3 })
	if n := probes(); n > 1 {
		t.Errorf("%d probes have left as many keys", n)
	}
	failing.Store(false)
	albatest.Eventually(t, "the disk is back and clean", func() bool { return probes() == 0 && !cl.Client.Disks()[0].Disqualified })
}
