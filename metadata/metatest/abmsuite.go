package metatest

import (
	"strings"
	"testing"
	"time"

	"scoria/metadata"
	"scoria/metadata/abm"
)

// TestABM checks that an implementation of abm.API does what it promises. open returns an
// empty one for each part; it cleans up by itself (t.Cleanup).
func TestABM(t *testing.T, open func(t *testing.T) abm.API) {
	parts := []struct {
		name string
		run  func(*testing.T, abm.API)
	}{
		{"BackendID", abmBackend}, {"Presets", abmPresets}, {"OSDs", abmOSDs}, {"Namespaces", abmNamespaces},
		{"NSMHosts", abmHosts}, {"Volumes", abmVolumes}, {"VolumeNames", abmVolumeNames}, {"Ownership", abmOwnership},
		{"Deleting", abmDeleting}, {"Leases", abmLeases},
	}
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) { p.run(t, open(t)) })
	}
}

func abmBackend(t *testing.T, api abm.API) {
	id, err := api.BackendID(t.Context())
	want(t, err, nil)
	again, err := api.BackendID(t.Context())
	want(t, err, nil)
	if len(id) < 16 || again != id {
		t.Fatalf("backend id %q, then %q", id, again)
	}
}

func abmPresets(t *testing.T, api abm.API) {
	ctx := t.Context()
	p, q := Preset("p"), Preset("q")
	p.Version, q.Version = 77, 0 // chosen by the ABM
	want(t, api.CreatePreset(ctx, p), nil)
	want(t, api.CreatePreset(ctx, p), metadata.ErrExists)
	want(t, api.CreatePreset(ctx, q), nil)
	bad := Preset("bad")
	bad.Policies = append(bad.Policies, metadata.Policy{K: 4, M: 2, C: 3, X: 1})
	want(t, api.CreatePreset(ctx, bad), metadata.ErrInvalid)
	bad = Preset("bad")
	bad.ChunkSize = 100
	want(t, api.CreatePreset(ctx, bad), metadata.ErrInvalid)
	want(t, api.CreatePreset(ctx, Preset("")), metadata.ErrInvalid)

	p.Version, p.Default, q.Version = 1, true, 1 // the first is the default
	list := func() []metadata.Preset {
		t.Helper()
		ps, err := api.Presets(ctx)
		want(t, err, nil)
		return ps
	}
	equal(t, "presets", list(), []metadata.Preset{p, q})
	want(t, api.UpdatePreset(ctx, metadata.Preset{Name: "q", Policies: q.Policies[:1], InlineLimit: 0, Default: true}), nil)
	p.Default = false
	q.Policies, q.InlineLimit, q.Version, q.Default = q.Policies[:1], 0, 2, true
	equal(t, "presets", list(), []metadata.Preset{p, q})
	other := q
	other.ChunkSize *= 2
	want(t, api.UpdatePreset(ctx, other), metadata.ErrInvalid)
	want(t, api.UpdatePreset(ctx, Preset("none")), metadata.ErrNotFound)
	want(t, api.DeletePreset(ctx, "q"), metadata.ErrState) // the default
	want(t, api.DeletePreset(ctx, "none"), metadata.ErrNotFound)
	want(t, api.AddNSMHost(ctx, metadata.NSMHost{ID: "h", Addrs: []string{"a:1"}}), nil)
	ns, err := api.CreateNamespace(ctx, "n", "p")
	want(t, err, nil)
	want(t, api.DeletePreset(ctx, "p"), metadata.ErrState) // in use
	want(t, api.SetNamespaceState(ctx, ns.ID, metadata.NamespaceDeleting), nil)
	want(t, api.RemoveNamespace(ctx, ns.ID), nil)
	want(t, api.DeletePreset(ctx, "p"), nil)
	equal(t, "presets", list(), []metadata.Preset{q})
}

func abmOSDs(t *testing.T, api abm.API) {
	ctx := t.Context()
	o, err := api.SeenOSD(ctx, metadata.OSD{UUID: "u1", Node: "n1", Addr: "a:1", Capacity: 100, ID: 55, State: metadata.OSDGone})
	want(t, err, nil)
	if o.ID != 0 || o.State != metadata.OSDAvailable || o.LastSeen.IsZero() {
		t.Fatalf("first seen: %+v", o)
	}
	_, err = api.ClaimOSD(ctx, "unknown")
	want(t, err, metadata.ErrNotFound)
	claimed, err := api.ClaimOSD(ctx, "u1")
	want(t, err, nil)
	again, err := api.ClaimOSD(ctx, "u1")
	want(t, err, nil)
	if claimed.ID != 1 || again.ID != 1 || again.State != metadata.OSDClaimed {
		t.Fatalf("claimed %+v, then %+v", claimed, again)
	}
	failed := time.Unix(1800000000, 5).UTC()
	o, err = api.SeenOSD(ctx, metadata.OSD{UUID: "u1", Node: "n1", Addr: "b:2", Capacity: 100, Used: 99, Full: true, LastError: failed, ErrorText: "EIO"})
	want(t, err, nil)
	if o.ID != 1 || o.State != metadata.OSDClaimed || o.Addr != "b:2" || !o.Full || !o.LastError.Equal(failed) || o.ErrorText != "EIO" {
		t.Fatalf("seen again: %+v", o)
	}
	_, err = api.SeenOSD(ctx, metadata.OSD{UUID: "", Node: "n", Addr: "a"})
	want(t, err, metadata.ErrInvalid)

	for _, step := range []struct {
		to  metadata.OSDState
		err error
	}{
		{metadata.OSDGone, metadata.ErrState}, {metadata.OSDAvailable, metadata.ErrState},
		{metadata.OSDDecommissioning, nil}, {metadata.OSDDecommissioning, nil}, {metadata.OSDClaimed, nil},
		{metadata.OSDLost, nil}, {metadata.OSDClaimed, nil}, {metadata.OSDDecommissioning, nil}, {metadata.OSDGone, nil},
		{metadata.OSDClaimed, metadata.ErrState}, {0, metadata.ErrState}, {99, metadata.ErrState},
	} {
		want(t, api.SetOSDState(ctx, 1, step.to), step.err)
	}
	want(t, api.SetOSDState(ctx, 9, metadata.OSDLost), metadata.ErrNotFound)
	_, err = api.ClaimOSD(ctx, "u1")
	want(t, err, metadata.ErrState)
	_, err = api.SeenOSD(ctx, metadata.OSD{UUID: "u2", Node: "n1", Addr: "c:3"})
	want(t, err, nil)
	second, err := api.ClaimOSD(ctx, "u2")
	want(t, err, nil)
	equal(t, "second id", second.ID, 2)
	osds, err := api.ListOSDs(ctx)
	want(t, err, nil)
	if len(osds) != 2 || osds[0].UUID != "u1" || osds[1].ID != 2 {
		t.Fatalf("OSDs %+v", osds)
	}
}

// withNamespace makes a preset, a host and an active namespace.
func withNamespace(t *testing.T, api abm.API, name string) metadata.Namespace {
	t.Helper()
	ctx := t.Context()
	if ps, err := api.Presets(ctx); err == nil && len(ps) == 0 {
		want(t, api.CreatePreset(ctx, Preset("p")), nil)
		want(t, api.AddNSMHost(ctx, metadata.NSMHost{ID: "nsm-0", Addrs: []string{"inproc:nsm-0"}}), nil)
	}
	ns, err := api.CreateNamespace(ctx, name, "")
	want(t, err, nil)
	want(t, api.SetNamespaceState(ctx, ns.ID, metadata.NamespaceActive), nil)
	return ns
}

func abmNamespaces(t *testing.T, api abm.API) {
	ctx := t.Context()
	_, err := api.CreateNamespace(ctx, "a", "")
	want(t, err, metadata.ErrNotFound) // no preset
	secret := Preset("secret")
	secret.Encryption = metadata.EncryptAES256GCM
	want(t, api.CreatePreset(ctx, secret), nil)
	_, err = api.CreateNamespace(ctx, "a", "")
	want(t, err, metadata.ErrState) // no host
	want(t, api.AddNSMHost(ctx, metadata.NSMHost{ID: "h", Addrs: []string{"a:1"}}), nil)
	want(t, api.CreatePreset(ctx, Preset("plain")), nil)

	a, err := api.CreateNamespace(ctx, "a", "")
	want(t, err, nil)
	if a.State != metadata.NamespaceCreating || a.Preset != "secret" || a.NSM != "h" || len(a.Key) != 32 || a.KeyID != 1 || a.Created.IsZero() {
		t.Fatalf("created %+v", a)
	}
	_, err = api.Namespace(ctx, "a")
	want(t, err, metadata.ErrNotFound) // not active yet
	twin, err := api.CreateNamespace(ctx, "a", "plain")
	want(t, err, nil)
	if twin.ID == a.ID || twin.Key != nil {
		t.Fatalf("second %+v", twin)
	}
	want(t, api.SetNamespaceState(ctx, twin.ID, metadata.NamespaceActive), nil)
	want(t, api.SetNamespaceState(ctx, twin.ID, metadata.NamespaceActive), nil)
	want(t, api.SetNamespaceState(ctx, a.ID, metadata.NamespaceActive), metadata.ErrExists) // the name went to the other
	_, err = api.CreateNamespace(ctx, "a", "plain")
	want(t, err, metadata.ErrExists)
	got, err := api.Namespace(ctx, "a")
	want(t, err, nil)
	equal(t, "by name", got.ID, twin.ID)
	want(t, api.RemoveNamespace(ctx, twin.ID), metadata.ErrState)
	want(t, api.SetNamespaceState(ctx, twin.ID, metadata.NamespaceDeleting), nil)
	want(t, api.SetNamespaceState(ctx, twin.ID, metadata.NamespaceActive), metadata.ErrState)
	_, err = api.Namespace(ctx, "a")
	want(t, err, metadata.ErrNotFound)
	got, err = api.NamespaceByID(ctx, twin.ID)
	want(t, err, nil)
	equal(t, "state", got.State, metadata.NamespaceDeleting)
	want(t, api.SetNamespaceState(ctx, a.ID, metadata.NamespaceActive), nil) // the name is free again
	want(t, api.RemoveNamespace(ctx, twin.ID), nil)
	_, err = api.NamespaceByID(ctx, twin.ID)
	want(t, err, metadata.ErrNotFound)
	_, err = api.NamespaceByID(ctx, 0)
	want(t, err, metadata.ErrInvalid)
	all, err := api.ListNamespaces(ctx)
	want(t, err, nil)
	if len(all) != 1 || all[0].ID != a.ID || string(all[0].Key) != string(a.Key) {
		t.Fatalf("namespaces %+v", all)
	}
	next, err := api.CreateNamespace(ctx, "b", "plain")
	want(t, err, nil)
	if next.ID <= twin.ID {
		t.Fatalf("id %d was given again", next.ID)
	}
}

func abmHosts(t *testing.T, api abm.API) {
	ctx := t.Context()
	want(t, api.CreatePreset(ctx, Preset("p")), nil)
	want(t, api.AddNSMHost(ctx, metadata.NSMHost{ID: "h0", Addrs: nil}), metadata.ErrInvalid)
	want(t, api.AddNSMHost(ctx, metadata.NSMHost{ID: "h0", Addrs: []string{"a:1"}}), nil)
	want(t, api.AddNSMHost(ctx, metadata.NSMHost{ID: "h1", Addrs: []string{"a:2"}}), nil)
	for i := range 6 {
		_, err := api.CreateNamespace(ctx, strings.Repeat("x", i+1), "")
		want(t, err, nil)
	}
	want(t, api.AddNSMHost(ctx, metadata.NSMHost{ID: "h1", Addrs: []string{"b:2", "b:3"}, Lost: true}), nil)
	_, err := api.CreateNamespace(ctx, "y", "")
	want(t, err, nil)
	hosts, err := api.NSMHosts(ctx)
	want(t, err, nil)
	equal(t, "hosts", hosts, []metadata.NSMHost{
		{ID: "h0", Addrs: []string{"a:1"}, Namespaces: 4},
		{ID: "h1", Addrs: []string{"b:2", "b:3"}, Namespaces: 3, Lost: true},
	})
}

func abmVolumes(t *testing.T, api abm.API) {
	ctx := t.Context()
	ns := withNamespace(t, api, "a")
	v, err := api.CreateVolume(ctx, metadata.VolumeRecord{Name: "demo", Namespace: ns.ID, Size: 1 << 30, ID: 99, Epoch: 5, Owner: "x"})
	want(t, err, nil)
	if v.ID != 1 || v.Epoch != 0 || v.Owner != "" || v.Preset != "p" || v.Created.IsZero() {
		t.Fatalf("created %+v", v)
	}
	_, err = api.CreateVolume(ctx, metadata.VolumeRecord{Name: "demo", Namespace: ns.ID, Size: 1 << 30})
	want(t, err, metadata.ErrExists)
	_, err = api.CreateVolume(ctx, metadata.VolumeRecord{Name: "other", Namespace: ns.ID, Size: 1 << 30})
	want(t, err, metadata.ErrExists) // one namespace, one volume
	_, err = api.CreateVolume(ctx, metadata.VolumeRecord{Name: "other", Namespace: 99, Size: 1 << 30})
	want(t, err, metadata.ErrNotFound)
	other := withNamespace(t, api, "b")
	for _, size := range []uint64{0, 4097, 64<<40 + 4096} {
		_, err = api.CreateVolume(ctx, metadata.VolumeRecord{Name: "other", Namespace: other.ID, Size: size})
		want(t, err, metadata.ErrInvalid)
	}
	_, err = api.CreateVolume(ctx, metadata.VolumeRecord{Name: "other", Namespace: other.ID, Size: 64 << 40})
	want(t, err, nil)
	want(t, api.RenameVolume(ctx, v.ID, "other"), metadata.ErrExists)
	want(t, api.RenameVolume(ctx, v.ID, "bad/name"), metadata.ErrInvalid)
	want(t, api.RenameVolume(ctx, v.ID, "renamed"), nil)
	want(t, api.RenameVolume(ctx, v.ID, "renamed"), nil)
	_, err = api.Volume(ctx, "demo")
	want(t, err, metadata.ErrNotFound)
	got, err := api.Volume(ctx, "renamed")
	want(t, err, nil)
	v.Name = "renamed"
	equal(t, "volume", got, v)
	all, err := api.ListVolumes(ctx)
	want(t, err, nil)
	equal(t, "volumes", len(all), 2)
}

func abmVolumeNames(t *testing.T, api abm.API) {
	ctx := t.Context()
	ns := withNamespace(t, api, "a")
	for _, name := range []string{"", "a@b", "a/b", "a\nb", "\xff", strings.Repeat("x", 129), " a", "a ", ".", "..", "-a", "a\x00"} {
		if _, err := api.CreateVolume(ctx, metadata.VolumeRecord{Name: name, Namespace: ns.ID, Size: 4096}); metadata.KindOf(err) != metadata.KindInvalid {
			t.Errorf("volume name %q: %v", name, err)
		}
	}
	_, err := api.CreateVolume(ctx, metadata.VolumeRecord{Name: "Größe 1.5 (テスト)", Namespace: ns.ID, Size: 4096})
	want(t, err, nil)
}

func abmOwnership(t *testing.T, api abm.API) {
	ctx := t.Context()
	v, err := api.CreateVolume(ctx, metadata.VolumeRecord{Name: "v", Namespace: withNamespace(t, api, "a").ID, Size: 1 << 20})
	want(t, err, nil)
	w, err := api.CreateVolume(ctx, metadata.VolumeRecord{Name: "w", Namespace: withNamespace(t, api, "b").ID, Size: 1 << 20})
	want(t, err, nil)
	acquire := func(id metadata.VolumeID, owner string, lease time.Duration, force bool, epoch, since metadata.Epoch) metadata.VolumeRecord {
		t.Helper()
		r, err := api.AcquireVolume(ctx, id, owner, lease, force)
		want(t, err, nil)
		if r.Epoch != epoch || r.Owner != owner || r.LastOwner != owner || r.OwnerSince != since || r.LeaseUntil.IsZero() {
			t.Fatalf("acquired %+v, want epoch %d since %d", r, epoch, since)
		}
		return r
	}
	acquire(v.ID, "g1", time.Hour, false, 1, 1)
	acquire(w.ID, "g1", time.Hour, false, 1, 1)
	_, err = api.AcquireVolume(ctx, v.ID, "g2", time.Hour, false)
	want(t, err, metadata.ErrOwned)
	acquire(v.ID, "g1", time.Hour, false, 2, 1)
	want(t, api.ReleaseVolume(ctx, v.ID, 1), metadata.ErrFenced)
	acquire(v.ID, "g2", time.Hour, true, 3, 3)
	want(t, api.ResizeVolume(ctx, v.ID, 2, 2<<20), metadata.ErrFenced)
	want(t, api.ResizeVolume(ctx, v.ID, 3, 4096), metadata.ErrInvalid)
	want(t, api.ResizeVolume(ctx, v.ID, 3, 2<<20), nil)
	want(t, api.ReleaseVolume(ctx, v.ID, 3), nil)
	want(t, api.ReleaseVolume(ctx, v.ID, 3), nil)
	got, err := api.Volume(ctx, "v")
	want(t, err, nil)
	if got.Owner != "" || got.LastOwner != "g2" || got.OwnerSince != 3 || !got.LeaseUntil.IsZero() || got.Size != 2<<20 {
		t.Fatalf("released %+v", got)
	}
	acquire(v.ID, "g2", time.Hour, false, 4, 3) // nobody else had it meanwhile
	acquire(v.ID, "g3", time.Nanosecond, true, 5, 5)
	acquire(v.ID, "g4", time.Hour, false, 6, 6) // the lease of g3 is over
	before, err := api.Volume(ctx, "w")
	want(t, err, nil)
	want(t, api.RenewOwner(ctx, "g1", 2*time.Hour), nil)
	after, err := api.Volume(ctx, "w")
	want(t, err, nil)
	if !after.LeaseUntil.After(before.LeaseUntil) {
		t.Fatalf("lease until %v, renewed %v", before.LeaseUntil, after.LeaseUntil)
	}
	want(t, api.RenewOwner(ctx, "nobody", time.Hour), nil)
	_, err = api.AcquireVolume(ctx, 77, "g1", time.Hour, false)
	want(t, err, metadata.ErrNotFound)
	_, err = api.AcquireVolume(ctx, v.ID, "", time.Hour, false)
	want(t, err, metadata.ErrInvalid)
	_, err = api.AcquireVolume(ctx, v.ID, "g1", 0, true)
	want(t, err, metadata.ErrInvalid)
}

func abmDeleting(t *testing.T, api abm.API) {
	ctx := t.Context()
	ns := withNamespace(t, api, "a")
	v, err := api.CreateVolume(ctx, metadata.VolumeRecord{Name: "v", Namespace: ns.ID, Size: 1 << 20})
	want(t, err, nil)
	want(t, api.RemoveVolume(ctx, v.ID), metadata.ErrState)
	owned, err := api.AcquireVolume(ctx, v.ID, "g1", time.Hour, false)
	want(t, err, nil)
	want(t, api.MarkVolumeDeleting(ctx, v.ID), metadata.ErrOwned)
	want(t, api.ReleaseVolume(ctx, v.ID, owned.Epoch), nil)
	want(t, api.MarkVolumeDeleting(ctx, v.ID), nil)
	want(t, api.MarkVolumeDeleting(ctx, v.ID), nil)
	_, err = api.Volume(ctx, "v")
	want(t, err, metadata.ErrNotFound)
	_, err = api.AcquireVolume(ctx, v.ID, "g1", time.Hour, true)
	want(t, err, metadata.ErrState)
	all, err := api.ListVolumes(ctx)
	want(t, err, nil)
	if len(all) != 1 || !all[0].Deleting {
		t.Fatalf("volumes %+v", all)
	}
	_, err = api.CreateVolume(ctx, metadata.VolumeRecord{Name: "v", Namespace: withNamespace(t, api, "b").ID, Size: 1 << 20})
	want(t, err, nil) // the name is free
	want(t, api.SetNamespaceState(ctx, ns.ID, metadata.NamespaceDeleting), nil)
	want(t, api.RemoveNamespace(ctx, ns.ID), metadata.ErrState) // the record of the volume goes first
	want(t, api.RemoveVolume(ctx, v.ID), nil)
	want(t, api.RemoveVolume(ctx, v.ID), metadata.ErrNotFound)
	want(t, api.RemoveNamespace(ctx, ns.ID), nil)
}

func abmLeases(t *testing.T, api abm.API) {
	ctx := t.Context()
	take := func(holder string, lease time.Duration, wantHolder string) {
		t.Helper()
		got, err := api.TakeLease(ctx, "gc", holder, lease)
		want(t, err, nil)
		equal(t, "holder", got, wantHolder)
	}
	take("a", time.Hour, "a")
	take("b", time.Hour, "a")
	take("a", time.Hour, "a")
	take("b", 0, "a") // not b's to give back
	take("a", 0, "")
	take("b", time.Nanosecond, "b")
	take("c", time.Hour, "c") // b's is over
	_, err := api.TakeLease(ctx, "", "a", time.Hour)
	want(t, err, metadata.ErrInvalid)
}
