package maintenance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"scoria/alba"
	"scoria/alba/albatest"
	"scoria/alba/maintenance"
	"scoria/alba/osd"
	"scoria/alba/osd/osdtest"
	"scoria/metadata"
	"scoria/metadata/nsm"
)

func data(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func newAgent(t testing.TB, cl *albatest.Cluster, o maintenance.Options) *maintenance.Agent {
	t.Helper()
	o.Client, o.ABM = cl.Client, cl.ABM
	if o.GCGrace == 0 {
		o.GCGrace = -1
	}
	o.RepairAge, o.BytesPerSecond = -1, -1
	a, err := maintenance.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func run(t testing.TB, a *maintenance.Agent, tasks ...maintenance.Task) {
	t.Helper()
	if err := a.RunOnce(t.Context(), tasks...); err != nil {
		t.Fatalf("maintenance %v: %v", tasks, err)
	}
}

func clientOptions() alba.Options {
	return alba.Options{BlockCacheBytes: -1, Slack: 5 * time.Second, ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second, OSDRefresh: time.Nanosecond}
}

// fill stores objects and returns their content.
func fill(t testing.TB, cl *albatest.Cluster, ns metadata.NamespaceID, n, size int) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for i := range n {
		name := fmt.Sprintf("o%03d", i)
		all[name] = data(uint64(i), size)
		if err := cl.Client.Apply(t.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: name, Data: all[name]}}}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func check(t testing.TB, cl *albatest.Cluster, ns metadata.NamespaceID, all map[string][]byte) {
	t.Helper()
	for name, want := range all {
		got, err := cl.Client.Get(t.Context(), ns, name, len(want))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("object %s: %v", name, err)
		}
	}
}

// audit compares all disks with the NSM: every fragment that manifests name is there, and
// nothing else is.
func audit(t testing.TB, cl *albatest.Cluster, spaces ...metadata.NamespaceID) (missing, extra int) {
	t.Helper()
	type at struct {
		osd metadata.OSDID
		key string
	}
	want := map[at]bool{}
	for _, ns := range spaces {
		reply, err := cl.NSM.Scan(t.Context(), nsm.ScanRequest{Namespace: ns, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range reply.Manifests {
			for c := range m.Chunks {
				for f, frag := range m.Chunks[c].Fragments {
					if frag.OSD == 0 {
						continue
					}
					k := alba.FragmentKey{Namespace: ns, ObjectID: m.ObjectID, Chunk: uint16(c), Fragment: uint8(f), Version: frag.Version}
					want[at{frag.OSD, string(k.Bytes(alba.KeyData))}] = true
					want[at{frag.OSD, string(k.Bytes(alba.KeyRecovery))}] = true
				}
			}
		}
	}
	for _, d := range cl.OSDs() {
		for _, key := range d.Keys() {
			if alba.KeyKind(key[0]) == alba.KeyProbe {
				continue
			}
			if want[at{d.Record.ID, string(key)}] {
				delete(want, at{d.Record.ID, string(key)})
			} else {
				extra++
			}
		}
	}
	return len(want), extra
}

func wantClean(t testing.TB, cl *albatest.Cluster, spaces ...metadata.NamespaceID) {
	t.Helper()
	cl.Client.FlushTags(t.Context())
	if missing, extra := audit(t, cl, spaces...); missing > 0 || extra > 0 {
		t.Fatalf("%d keys are missing, %d too many", missing, extra)
	}
}

func wantFull(t testing.TB, cl *albatest.Cluster, ns metadata.NamespaceID, avoid ...metadata.OSDID) {
	t.Helper()
	reply, err := cl.NSM.Scan(t.Context(), nsm.ScanRequest{Namespace: ns, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range reply.Manifests {
		for c := range m.Chunks {
			for f, frag := range m.Chunks[c].Fragments {
				if frag.OSD == 0 {
					t.Fatalf("%s chunk %d fragment %d is a hole", m.Name, c, f)
				}
				for _, id := range avoid {
					if frag.OSD == id {
						t.Fatalf("%s chunk %d fragment %d is still on OSD %d", m.Name, c, f, id)
					}
				}
			}
		}
	}
}

func TestDeleteQueue(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: clientOptions()})
	ns := cl.Namespace("v")
	all := fill(t, cl, ns, 5, 1<<20+5)
	all["o001"] = data(77, 2<<20)
	txn := alba.Txn{Puts: []alba.PutObject{{Name: "o001", Data: all["o001"]}}, Deletes: []string{"o002", "o003"}}
	if err := cl.Client.Apply(t.Context(), ns, txn); err != nil {
		t.Fatal(err)
	}
	delete(all, "o002")
	delete(all, "o003")
	a := newAgent(t, cl, maintenance.Options{})
	cl.OSD(2).SetDown(true)
	if err := a.RunOnce(t.Context(), maintenance.TaskDeletes); err == nil {
		t.Fatal("no word of the disk that is down")
	}
	cl.OSD(2).SetDown(false)
	run(t, a, maintenance.TaskDeletes)
	wantClean(t, cl, ns)
	check(t, cl, ns, all)
}

// crashNSM fails Apply as a client that dies before the commit would leave things.
type crashNSM struct {
	nsm.API
	crash bool
}

func (c *crashNSM) Apply(ctx context.Context, ns metadata.NamespaceID, txn nsm.Txn) error {
	if c.crash {
		return errors.New("crash")
	}
	return c.API.Apply(ctx, ns, txn)
}

func TestOrphansAreCollectedAndNothingElse(t *testing.T) {
	var wrap *crashNSM
	cl := albatest.New(t, albatest.Config{Client: clientOptions(), WrapNSM: func(a nsm.API) nsm.API { wrap = &crashNSM{API: a}; return wrap }})
	ns := cl.Namespace("v")
	all := fill(t, cl, ns, 4, 1<<20+5) // their tags are still there: not flushed
	wrap.crash = true
	if err := cl.Client.Apply(t.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: "lost", Data: data(9, 1<<20)}}}); err == nil {
		t.Fatal("put succeeded")
	}
	wrap.crash = false
	if _, extra := audit(t, cl, ns); extra == 0 {
		t.Fatal("the crash left nothing")
	}
	graceful := newAgent(t, cl, maintenance.Options{GCGrace: time.Hour})
	run(t, graceful, maintenance.TaskGC)
	if _, extra := audit(t, cl, ns); extra == 0 {
		t.Fatal("collected within the grace time")
	}
	a := newAgent(t, cl, maintenance.Options{})
	run(t, a, maintenance.TaskGC)
	if missing, extra := audit(t, cl, ns); missing > 0 || extra > 0 {
		t.Fatalf("%d keys are missing, %d too many", missing, extra)
	}
	check(t, cl, ns, all)
	fill(t, cl, ns, 1, 1<<20) // an upload under the closed epoch is made anew
}

// TestLateUploadAfterGC: fragments that arrive when their epoch is closed never become live.
func TestLateUploadAfterGC(t *testing.T) {
	o := clientOptions()
	o.Slack = time.Millisecond
	cl := albatest.New(t, albatest.Config{Client: o})
	ns := cl.Namespace("v")
	cl.OSD(1).SetHang(osdtest.OpApply, true)
	want := data(1, 1<<20)
	released := make(chan struct{})
	if err := cl.Client.Apply(t.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: "o", Data: want, Release: func() { close(released) }}}}); err != nil {
		t.Fatal(err)
	}
	_, next, err := cl.NSM.GCEpochs(t.Context(), ns, nsm.GCOp{Open: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := cl.NSM.GCEpochs(t.Context(), ns, nsm.GCOp{CloseBelow: next - 1}); err != nil {
		t.Fatal(err)
	}
	cl.OSD(1).SetHang(osdtest.OpApply, false)
	<-released
	a := newAgent(t, cl, maintenance.Options{})
	albatest.Eventually(t, "late fragment is collected", func() bool {
		run(t, a, maintenance.TaskGC)
		cl.Client.FlushTags(t.Context())
		missing, extra := audit(t, cl, ns)
		return missing == 0 && extra == 0
	})
	if n := cl.Manifest(ns, "o").Placed(); n > 5 {
		t.Fatalf("%d fragments placed", n)
	}
	run(t, a, maintenance.TaskRepair)
	wantFull(t, cl, ns)
	wantClean(t, cl, ns)
}

func TestRepairOfLostDisks(t *testing.T) {
	cl := albatest.New(t, albatest.Config{OSDs: 8, Client: clientOptions()})
	ns := cl.Namespace("v")
	all := fill(t, cl, ns, 12, 1<<20+5)
	for i := range 2 {
		cl.OSD(i).SetDown(true)
		cl.SetState(cl.OSD(i), metadata.OSDLost)
	}
	a := newAgent(t, cl, maintenance.Options{})
	run(t, a)
	wantFull(t, cl, ns, cl.OSD(0).Record.ID, cl.OSD(1).Record.ID)
	check(t, cl, ns, all)
	if st := a.Status().Tasks[maintenance.TaskRepair]; st.Done == 0 || st.Bytes == 0 || st.Failed > 0 {
		t.Fatalf("status %+v", st)
	}
	for i := 2; i < 4; i++ { // and two more: what was repaired bears it
		cl.OSD(i).SetDown(true)
	}
	check(t, cl, ns, all)
	run(t, a) // drops what was queued for deletion on the lost disks
	list, err := cl.ABM.ListOSDs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list {
		if o.State == metadata.OSDLost {
			t.Errorf("OSD %d is still lost although nothing refers to it any more", o.ID)
		}
	}
}

func TestReturnedDisks(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: clientOptions()})
	ns := cl.Namespace("v")
	all := fill(t, cl, ns, 6, 1<<20)
	for i := range 2 {
		cl.SetState(cl.OSD(i), metadata.OSDLost)
		cl.OSD(i).Wipe()
	}
	a := newAgent(t, cl, maintenance.Options{})
	run(t, a, maintenance.TaskRepair)
	check(t, cl, ns, all)
	if n := cl.Manifest(ns, "o000").Placed(); n != 4 {
		t.Fatalf("%d fragments placed, 4 disks are left", n)
	}
	if st := a.Status().Tasks[maintenance.TaskRepair]; st.Done != 0 {
		t.Fatalf("status %+v", st)
	}
	cl.AddOSD()
	cl.AddOSD()
	run(t, a, maintenance.TaskRepair)
	wantFull(t, cl, ns, cl.OSD(0).Record.ID, cl.OSD(1).Record.ID)
	check(t, cl, ns, all)
	run(t, a, maintenance.TaskDeletes)
	wantClean(t, cl, ns)
}

// TestWipedDirectories: two disks come back empty under their own identity; scrub notices.
func TestWipedDirectories(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: clientOptions()})
	ns := cl.Namespace("v")
	all := fill(t, cl, ns, 20, 1<<20+5)
	cl.OSD(1).Wipe()
	cl.OSD(4).Wipe()
	a := newAgent(t, cl, maintenance.Options{})
	run(t, a, maintenance.TaskScrub, maintenance.TaskDeletes)
	wantFull(t, cl, ns)
	wantClean(t, cl, ns)
	check(t, cl, ns, all)
}

// TestForeignDisk: another disk answers where one is expected.
func TestForeignDisk(t *testing.T) {
	cl := albatest.New(t, albatest.Config{OSDs: 7, Client: clientOptions()})
	ns := cl.Namespace("v")
	all := fill(t, cl, ns, 8, 1<<20)
	cl.OSD(0).Wipe()
	cl.OSD(0).SetUUID("11111111-0000-4000-8000-000000000001")
	a := newAgent(t, cl, maintenance.Options{})
	run(t, a, maintenance.TaskHeartbeat, maintenance.TaskRepair)
	wantFull(t, cl, ns, cl.OSD(0).Record.ID)
	check(t, cl, ns, all)
}

func TestSilentDisk(t *testing.T) {
	cl := albatest.New(t, albatest.Config{OSDs: 7, Client: clientOptions()})
	ns := cl.Namespace("v")
	all := fill(t, cl, ns, 4, 1<<20)
	cl.OSD(0).SetDown(true)
	patient := newAgent(t, cl, maintenance.Options{RepairAfter: time.Hour})
	run(t, patient, maintenance.TaskHeartbeat, maintenance.TaskRepair)
	if st := patient.Status().Tasks[maintenance.TaskRepair]; st.Done != 0 {
		t.Fatal("repaired at once")
	}
	a := newAgent(t, cl, maintenance.Options{RepairAfter: time.Nanosecond})
	// All are silent for longer than a nanosecond: only what another disk can take is moved, and nothing is lost.
	if err := a.RunOnce(t.Context(), maintenance.TaskHeartbeat, maintenance.TaskRepair); err != nil {
		t.Log(err)
	}
	check(t, cl, ns, all)
}

func TestScrubFindsDamage(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: clientOptions()})
	ns := cl.Namespace("v")
	all := fill(t, cl, ns, 6, 1<<20+5)
	damaged := 0
	for i, key := range cl.OSD(3).Keys() {
		if _, kind, err := alba.ParseFragmentKey(key); err == nil && kind == alba.KeyData && i%2 == 0 {
			if cl.OSD(3).Corrupt(key, 4096) || cl.OSD(3).Corrupt(key, 1) {
				damaged++
			}
		}
	}
	if damaged == 0 {
		t.Fatal("nothing damaged")
	}
	a := newAgent(t, cl, maintenance.Options{})
	run(t, a, maintenance.TaskScrub, maintenance.TaskDeletes)
	bad, _, _, err := cl.OSD(3).Verify(t.Context(), []byte{'d'}, []byte{'e'})
	if err != nil || len(bad) > 0 {
		t.Fatalf("%d bad values are left, %v", len(bad), err)
	}
	wantFull(t, cl, ns)
	wantClean(t, cl, ns)
	check(t, cl, ns, all)
}

func TestScrubDropsStrayFragments(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: clientOptions()})
	ns := cl.Namespace("v")
	all := fill(t, cl, ns, 3, 1<<20)
	stray := alba.FragmentKey{Namespace: ns, ObjectID: metadata.ObjectID{1, 2, 3}}
	gone := alba.FragmentKey{Namespace: 4711, ObjectID: metadata.ObjectID{1, 2, 3}}
	b := &osd.Batch{}
	for _, k := range []alba.FragmentKey{stray, gone} {
		b.Puts = append(b.Puts, osd.Put{Key: k.Bytes(alba.KeyData), Value: make([]byte, 4096)}, osd.Put{Key: k.Bytes(alba.KeyRecovery), Value: []byte{1}})
	}
	if err := cl.OSD(0).Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	run(t, newAgent(t, cl, maintenance.Options{}), maintenance.TaskScrub)
	wantClean(t, cl, ns)
	check(t, cl, ns, all)
}

func TestDecommission(t *testing.T) {
	cl := albatest.New(t, albatest.Config{OSDs: 7, Client: clientOptions()})
	ns := cl.Namespace("v")
	all := fill(t, cl, ns, 8, 1<<20+5)
	d := cl.OSD(2)
	cl.SetState(d, metadata.OSDDecommissioning)
	a := newAgent(t, cl, maintenance.Options{})
	run(t, a, maintenance.TaskRepair, maintenance.TaskDeletes, maintenance.TaskRepair)
	wantFull(t, cl, ns, d.Record.ID)
	cl.Client.FlushTags(t.Context())
	if n := len(d.Keys()); n != 0 {
		t.Errorf("%d keys are left on the disk", n)
	}
	list, err := cl.ABM.ListOSDs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list {
		if o.ID == d.Record.ID && o.State != metadata.OSDGone {
			t.Errorf("state %d after decommissioning", o.State)
		}
	}
	check(t, cl, ns, all)
}

func TestNamespaceRemoval(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: clientOptions()})
	keep, drop := cl.Namespace("keep"), cl.Namespace("drop")
	all := fill(t, cl, keep, 3, 1<<20)
	fill(t, cl, drop, 3, 1<<20)
	if err := cl.Client.DeleteNamespace(t.Context(), drop); err != nil {
		t.Fatal(err)
	}
	run(t, newAgent(t, cl, maintenance.Options{}), maintenance.TaskNamespaces)
	wantClean(t, cl, keep)
	check(t, cl, keep, all)
	if _, err := cl.ABM.NamespaceByID(t.Context(), drop); !errors.Is(err, metadata.ErrNotFound) {
		t.Fatalf("record of the namespace: %v", err)
	}
	if err := cl.Client.DeleteNamespace(t.Context(), drop); err != nil {
		t.Fatalf("deleting it again: %v", err)
	}
}

// TestUnreadableAgainReadable: an object is listed as unreadable only as long as it is that.
func TestUnreadableAgainReadable(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: clientOptions()})
	ns := cl.Namespace("v")
	fill(t, cl, ns, 2, 1<<20)
	rot := func(name string) { // and once more: as it was
		m := cl.Manifest(ns, name)
		for f, fr := range m.Chunks[0].Fragments[:3] {
			k := alba.FragmentKey{Namespace: ns, ObjectID: m.ObjectID, Fragment: uint8(f), Version: fr.Version}
			if !cl.ByID(fr.OSD).Corrupt(k.Bytes(alba.KeyData), 0) {
				t.Fatalf("%s: no fragment %d", name, f)
			}
		}
	}
	rot("o000")
	rot("o001")
	a := newAgent(t, cl, maintenance.Options{})
	run(t, a, maintenance.TaskScrub)
	if s := a.Status().Tasks[maintenance.TaskScrub]; s.Left != 0 || s.Done != 6 {
		t.Fatalf("the scrub does not get behind what cannot be repaired: %d disks done, %d left", s.Done, s.Left)
	}
	run(t, a, maintenance.TaskRepair)
	if u := a.Status().Unreadable; len(u) != 2 {
		t.Fatalf("unreadable: %v", u)
	}
	rot("o000")
	if err := cl.Client.Apply(t.Context(), ns, alba.Txn{Fence: 1, Deletes: []string{"o001"}}); err != nil {
		t.Fatal(err)
	}
	run(t, a, maintenance.TaskRepair)
	if u := a.Status().Unreadable; len(u) != 0 {
		t.Fatalf("still unreadable: %v", u)
	}
}

func TestUnreadableIsListed(t *testing.T) {
	cl := albatest.New(t, albatest.Config{OSDs: 7, Client: clientOptions()})
	ns := cl.Namespace("v")
	fill(t, cl, ns, 1, 1<<20)
	m := cl.Manifest(ns, "o000")
	for f := range 3 {
		cl.SetState(cl.ByID(m.Chunks[0].Fragments[f].OSD), metadata.OSDLost)
	}
	a := newAgent(t, cl, maintenance.Options{})
	if err := a.RunOnce(t.Context(), maintenance.TaskRepair); !errors.Is(err, alba.ErrUnreadable) {
		t.Fatalf("repair: %v", err)
	}
	if u := a.Status().Unreadable; len(u) != 1 || u[0].Name != "o000" {
		t.Fatalf("unreadable: %v", u)
	}
	if _, err := cl.Client.Get(t.Context(), ns, "o000", 1<<20); !errors.Is(err, alba.ErrUnreadable) {
		t.Fatalf("get: %v", err)
	}
	for f := range 3 { // found again: all is well, since nothing was given up
		cl.SetState(cl.ByID(m.Chunks[0].Fragments[f].OSD), metadata.OSDClaimed)
	}
	run(t, a, maintenance.TaskRepair)
	check(t, cl, ns, map[string][]byte{"o000": data(0, 1<<20)})
}

func TestLeaseAndRun(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: clientOptions()})
	a := newAgent(t, cl, maintenance.Options{Name: "a"})
	b := newAgent(t, cl, maintenance.Options{Name: "b"})
	run(t, a)
	run(t, b)
	if st := b.Status().Tasks[maintenance.TaskRepair]; !st.Elsewhere || st.Runs != 0 {
		t.Fatalf("second agent: %+v", st)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	albatest.Eventually(t, "rounds", func() bool { return a.Status().Tasks[maintenance.TaskScrub].Runs >= 2 })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestPolicyUpgrade: what was written while disks were away is made anew, with more
// protection, when they are back.
func TestPolicyUpgrade(t *testing.T) {
	cl := albatest.New(t, albatest.Config{OSDs: 6, Client: clientOptions()})
	ns := cl.Namespace("v")
	for i := range 3 {
		cl.SetState(cl.OSD(i), metadata.OSDDecommissioning) // takes no new fragments
	}
	if err := cl.Client.RefreshOSDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := fill(t, cl, ns, 5, 1<<20+5)
	policies := func() (out []metadata.Policy) {
		for name := range all {
			m, err := cl.Client.Stat(t.Context(), ns, name)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, m.Policy)
		}
		return out
	}
	best := cl.Config.Preset.Policies[0]
	for _, p := range policies() {
		if p.K == best.K && p.M == best.M {
			t.Fatalf("policy %v with three disks", p)
		}
	}
	for i := range 3 {
		cl.SetState(cl.OSD(i), metadata.OSDClaimed)
	}
	a := newAgent(t, cl, maintenance.Options{})
	run(t, a, maintenance.TaskRepair)
	for _, p := range policies() {
		if p.K != best.K || p.M != best.M {
			t.Errorf("policy %v with all disks back, want %v", p, best)
		}
	}
	if n := a.Status().Fallback; n != 0 {
		t.Errorf("%d objects are said to be left", n)
	}
	check(t, cl, ns, all)
}
