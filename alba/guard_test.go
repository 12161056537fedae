package alba_test

import (
	"context"
	"errors"
	"io/fs"
	"testing"
	"time"

	"scoria/alba"
	"scoria/alba/albatest"
	"scoria/alba/osd"
	"scoria/alba/osd/osdtest"
	"scoria/metadata"
)

// TestRepairVerifiesWhatItWrites: of k fragments that are left one is not what was stored,
// though its disk has sums that fit. What is computed from it must not be written: the
// object would be wrong for good, with sums that fit.
func TestRepairVerifiesWhatItWrites(t *testing.T) {
	o := fast()
	o.OSDRefresh, o.Slack = time.Nanosecond, 5*time.Second
	cl := albatest.New(t, albatest.Config{OSDs: 8, Client: o})
	ns := cl.Namespace("v")
	want := data(1, 1<<20)
	put(t, cl.Client, ns, "o", want)
	albatest.Eventually(t, "all fragments placed", func() bool { return cl.Manifest(ns, "o").Placed() == 6 })
	m := cl.Manifest(ns, "o")
	for _, frag := range []int{0, 5} {
		d := cl.ByID(m.Chunks[0].Fragments[frag].OSD)
		d.SetDown(true)
		cl.SetState(d, metadata.OSDLost)
	}
	liar := cl.ByID(m.Chunks[0].Fragments[2].OSD)
	key := alba.FragmentKey{Namespace: ns, ObjectID: m.ObjectID, Fragment: 2, Version: m.Chunks[0].Fragments[2].Version}.Bytes(alba.KeyData)
	good := osd.Read{Key: key, Buf: make([]byte, m.Chunks[0].FragmentLen)}
	reads := []osd.Read{good}
	if err := liar.Read(t.Context(), reads); err != nil || reads[0].Err != nil {
		t.Fatal(err, reads[0].Err)
	}
	store := func(value []byte) {
		if err := liar.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: key, Value: value}}}); err != nil {
			t.Fatal(err)
		}
	}
	store(data(99, len(good.Buf)))
	res, err := cl.Client.Repair(t.Context(), ns, cl.Manifest(ns, "o"), alba.RepairOptions{})
	if !errors.Is(err, alba.ErrUnreadable) || res.Written > 0 {
		t.Fatalf("repair from a wrong fragment: %+v, %v", res, err)
	}
	store(good.Buf) // had it been read wrongly only: now all can be had again
	if res, err = cl.Client.Repair(t.Context(), ns, cl.Manifest(ns, "o"), alba.RepairOptions{}); err != nil || res.Written != 2 {
		t.Fatalf("repair: %+v, %v", res, err)
	}
	checkAll(t, cl.Client, ns, "o", want)
}

// TestTooFewFragments: a put of which fewer fragments than c are stored fails; what it has
// stored is not visible.
func TestTooFewFragments(t *testing.T) {
	p := albatest.Preset()
	p.Policies = p.Policies[:1] // 4+2, 5 needed, no other
	cl := albatest.New(t, albatest.Config{Client: fast(), Preset: p})
	ns := cl.Namespace("v")
	for i := range 2 { // they do not look bad until they are written to
		cl.OSD(i).SetHook(func(_ context.Context, op osdtest.Op) error {
			if op == osdtest.OpApply {
				return osd.ErrUnavailable
			}
			return nil
		})
	}
	err := cl.Client.Apply(t.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: "o", Data: data(1, 1<<20)}}})
	if !errors.Is(err, alba.ErrUnavailable) {
		t.Fatalf("put with 4 of 6 fragments: %v", err)
	}
	if _, err := cl.Client.Stat(t.Context(), ns, "o"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("it is there: %v", err)
	}
}
