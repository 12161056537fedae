package metatest

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"scoria/metadata"
	"scoria/metadata/nsm"
)

// TestNSM checks that an implementation of nsm.API does what it promises. open returns an
// empty one for each part; it cleans up by itself (t.Cleanup).
func TestNSM(t *testing.T, open func(t *testing.T) nsm.API) {
	parts := []struct {
		name string
		run  func(*testing.T, nsm.API)
	}{
		{"Namespaces", nsmNamespaces}, {"PutGetDelete", nsmPutGetDelete}, {"Conditions", nsmConditions},
		{"Fence", nsmFence}, {"Validation", nsmValidation}, {"Replace", nsmReplace}, {"List", nsmList},
		{"Scan", nsmScan}, {"UpdateManifest", nsmUpdate}, {"DeleteQueue", nsmDeleteQueue}, {"GCEpochs", nsmGC},
		{"DeleteNamespace", nsmDeleteNamespace}, {"Atomic", nsmAtomic},
	}
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) { p.run(t, open(t)) })
	}
}

// want fails the test unless err is of the wanted kind (nil: no error).
func want(t *testing.T, err, target error) {
	t.Helper()
	if target == nil && err != nil || target != nil && !errors.Is(err, target) {
		t.Fatalf("got error %v, want %v", err, target)
	}
}

func newNamespace(t *testing.T, api nsm.API, id metadata.NamespaceID) {
	t.Helper()
	want(t, api.CreateNamespace(t.Context(), id, Preset("p")), nil)
}

func put(t *testing.T, api nsm.API, ns metadata.NamespaceID, ms ...metadata.Manifest) {
	t.Helper()
	want(t, api.Apply(t.Context(), ns, nsm.Txn{Puts: ms}), nil)
}

func info(t *testing.T, api nsm.API, ns metadata.NamespaceID) nsm.NamespaceInfo {
	t.Helper()
	infos, err := api.Namespaces(t.Context(), ns)
	want(t, err, nil)
	if len(infos) != 1 {
		t.Fatalf("%d namespaces, want 1", len(infos))
	}
	return infos[0]
}

func equal[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

func nsmNamespaces(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 7)
	newNamespace(t, api, 7) // again is fine
	newNamespace(t, api, 3)
	want(t, api.CreateNamespace(ctx, 0, Preset("p")), metadata.ErrInvalid)
	want(t, api.CreateNamespace(ctx, 8, metadata.Preset{Name: "p"}), metadata.ErrInvalid)
	want(t, api.CreateNamespace(ctx, 7, Preset("other")), metadata.ErrExists)
	infos, err := api.Namespaces(ctx)
	want(t, err, nil)
	if len(infos) != 2 || infos[0].ID != 3 || infos[1].ID != 7 {
		t.Fatalf("namespaces %+v", infos)
	}
	equal(t, "preset", infos[0].Preset, Preset("p"))
	_, err = api.Namespaces(ctx, 9)
	want(t, err, metadata.ErrNotFound)
	newer := Preset("p")
	newer.Version, newer.InlineLimit = 2, 4096
	want(t, api.CreateNamespace(ctx, 7, newer), nil)
	equal(t, "updated preset", info(t, api, 7).Preset, newer)
	newNamespace(t, api, 7)
	equal(t, "preset stays", info(t, api, 7).Preset, newer)
}

func nsmPutGetDelete(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	a := Manifest("a", ObjectID(1), 2, 1, 2, 11, 12, 13)
	b := Inline("b", ObjectID(2), "hello")
	empty := Inline("empty", ObjectID(3), "")
	packed := Manifest("packed", ObjectID(4), 2, 1, 1, 11, 12)
	packed.Compression, packed.Encryption, packed.KeyID, packed.UnitSize = metadata.CompressS2, metadata.EncryptAES256GCM, 3, 1<<19
	packed.Chunks[0].Units, packed.Chunks[0].Packed = []uint32{1000, 500}, 1500
	packed.Chunks[0].FragmentLen = 4096
	put(t, api, 1, a, b, empty, packed)
	got, err := api.Get(ctx, 1, []string{"b", "nothing", "a", "empty", "packed"})
	want(t, err, nil)
	equal(t, "manifests", got, []*metadata.Manifest{&b, nil, &a, &empty, &packed})
	_, err = api.Get(ctx, 2, []string{"a"})
	want(t, err, metadata.ErrNotFound)

	in := info(t, api, 1)
	equal(t, "objects", in.Objects, 4)
	equal(t, "logical", in.LogicalBytes, 3<<20+5)
	equal(t, "stored", in.StoredBytes, 6*(1<<19)+5+2*4096)
	equal(t, "usage", in.PerOSD, map[metadata.OSDID]nsm.OSDUsage{
		11: {Fragments: 3, Bytes: 2<<19 + 4096}, 12: {Fragments: 3, Bytes: 2<<19 + 4096}, 13: {Fragments: 2, Bytes: 2 << 19},
	})
	equal(t, "buckets", in.Buckets, []nsm.Bucket{{K: 2, M: 1, Placed: 2, Objects: 1}, {K: 2, M: 1, Placed: 3, Objects: 1}})

	want(t, api.Apply(ctx, 1, nsm.Txn{Deletes: []string{"a", "b", "empty", "packed", "nothing"}}), nil)
	in = info(t, api, 1)
	if in.Objects != 0 || in.LogicalBytes != 0 || in.StoredBytes != 0 || len(in.Buckets) != 0 {
		t.Fatalf("after deletes: %+v", in)
	}
	equal(t, "usage", in.PerOSD, map[metadata.OSDID]nsm.OSDUsage{
		11: {QueuedDeletes: 3}, 12: {QueuedDeletes: 3}, 13: {QueuedDeletes: 2},
	})
}

func nsmConditions(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	put(t, api, 1, Inline("a", ObjectID(1), "x"))
	for _, c := range []struct {
		assert nsm.Assert
		err    error
	}{
		{nsm.Assert{Name: "a", Exists: true}, nil},
		{nsm.Assert{Name: "a", Exists: true, ObjectID: ObjectID(1)}, nil},
		{nsm.Assert{Name: "b"}, nil},
		{nsm.Assert{Name: "a"}, metadata.ErrAssertFailed},
		{nsm.Assert{Name: "b", Exists: true}, metadata.ErrAssertFailed},
		{nsm.Assert{Name: "a", Exists: true, ObjectID: ObjectID(2)}, metadata.ErrAssertFailed},
	} {
		want(t, api.Apply(ctx, 1, nsm.Txn{Asserts: []nsm.Assert{c.assert}}), c.err)
	}
	want(t, api.Apply(ctx, 2, nsm.Txn{}), metadata.ErrNotFound)
}

func nsmFence(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	want(t, api.Apply(ctx, 1, nsm.Txn{Puts: []metadata.Manifest{Inline("a", ObjectID(1), "x")}}), nil)
	want(t, api.Apply(ctx, 1, nsm.Txn{Fence: 5}), nil)
	equal(t, "fence", info(t, api, 1).Fence, 5)
	want(t, api.Apply(ctx, 1, nsm.Txn{Fence: 4, Deletes: []string{"a"}}), metadata.ErrFenced)
	want(t, api.Apply(ctx, 1, nsm.Txn{Deletes: []string{"a"}}), metadata.ErrFenced)
	// A transaction that fails does not raise the fence either.
	want(t, api.Apply(ctx, 1, nsm.Txn{Fence: 9, Asserts: []nsm.Assert{{Name: "a"}}}), metadata.ErrAssertFailed)
	want(t, api.Apply(ctx, 1, nsm.Txn{Fence: 5, Deletes: []string{"a"}}), nil)
	equal(t, "objects", info(t, api, 1).Objects, 0)
}

func nsmValidation(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	good := func() metadata.Manifest { return Manifest("a", ObjectID(1), 2, 1, 2, 11, 12, 13) }
	for name, spoil := range map[string]func(*metadata.Manifest){
		"no id":            func(m *metadata.Manifest) { m.ObjectID = metadata.ObjectID{} },
		"no name":          func(m *metadata.Manifest) { m.Name = "" },
		"version":          func(m *metadata.Manifest) { m.Version = 1 },
		"same OSD twice":   func(m *metadata.Manifest) { m.Chunks[1].Fragments[2].OSD = 11 },
		"too few placed":   func(m *metadata.Manifest) { m.Chunks[1].Fragments[0].OSD, m.Chunks[1].Fragments[1].OSD = 0, 0 },
		"size":             func(m *metadata.Manifest) { m.Size++ },
		"packed":           func(m *metadata.Manifest) { m.Chunks[0].Packed-- },
		"fragment length":  func(m *metadata.Manifest) { m.Chunks[0].FragmentLen -= 4096 },
		"unaligned":        func(m *metadata.Manifest) { m.Chunks[0].FragmentLen++ },
		"units":            func(m *metadata.Manifest) { m.Chunks[0].Units = []uint32{5} },
		"epoch not open":   func(m *metadata.Manifest) { m.GCEpoch = 2 },
		"no chunks":        func(m *metadata.Manifest) { m.Chunks, m.Size = nil, 0 },
		"inline of a size": func(m *metadata.Manifest) { m.Chunks, m.Inline = nil, []byte("abc") },
		"compression":      func(m *metadata.Manifest) { m.Compression = 9 },
	} {
		m := good()
		spoil(&m)
		if err := api.Apply(ctx, 1, nsm.Txn{Puts: []metadata.Manifest{m}}); !errors.Is(err, metadata.ErrInvalid) {
			t.Errorf("%s: %v, want it to be invalid", name, err)
		}
	}
	m := good()
	m.GCEpoch = 0
	want(t, api.Apply(ctx, 1, nsm.Txn{Puts: []metadata.Manifest{m}}), metadata.ErrStaleGCEpoch)
	want(t, api.Apply(ctx, 1, nsm.Txn{Puts: []metadata.Manifest{good(), good()}}), metadata.ErrInvalid)
	want(t, api.Apply(ctx, 1, nsm.Txn{Puts: []metadata.Manifest{good()}, Deletes: []string{"a"}}), metadata.ErrInvalid)
	put(t, api, 1, good())
	again := good()
	again.Name = "b"
	want(t, api.Apply(ctx, 1, nsm.Txn{Puts: []metadata.Manifest{again}}), metadata.ErrExists)
	want(t, api.Apply(ctx, 1, nsm.Txn{Deletes: []string{"a"}}), nil)
	want(t, api.Apply(ctx, 1, nsm.Txn{Puts: []metadata.Manifest{again}}), metadata.ErrExists) // its fragments await deletion
}

func nsmReplace(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	put(t, api, 1, Manifest("a", ObjectID(1), 2, 1, 1, 11, 12, 13))
	second := Manifest("a", ObjectID(2), 2, 1, 1, 13, 12, 14)
	put(t, api, 1, second)
	got, err := api.Get(ctx, 1, []string{"a"})
	want(t, err, nil)
	equal(t, "manifest", got, []*metadata.Manifest{&second})
	in := info(t, api, 1)
	equal(t, "objects", in.Objects, 1)
	equal(t, "usage", in.PerOSD, map[metadata.OSDID]nsm.OSDUsage{
		11: {QueuedDeletes: 1}, 12: {Fragments: 1, Bytes: 1 << 19, QueuedDeletes: 1},
		13: {Fragments: 1, Bytes: 1 << 19, QueuedDeletes: 1}, 14: {Fragments: 1, Bytes: 1 << 19},
	})
}

func nsmList(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	newNamespace(t, api, 2)
	for i := range 25 {
		put(t, api, 1, Inline(fmt.Sprintf("sco/%02d", i), ObjectID(uint64(i)+1), "x"))
	}
	put(t, api, 1, Inline("tlog/1", ObjectID(100), "x"), Manifest("scp", ObjectID(101), 2, 2, 1, 1, 2, 3))
	put(t, api, 2, Inline("sco/99", ObjectID(1), "x"))
	var names []string
	after := ""
	for {
		objects, err := api.List(ctx, 1, "sco/", after, 10)
		want(t, err, nil)
		for _, o := range objects {
			names = append(names, o.Name)
		}
		if len(objects) < 10 {
			break
		}
		after = objects[len(objects)-1].Name
	}
	if len(names) != 25 || names[0] != "sco/00" || names[24] != "sco/24" {
		t.Fatalf("listed %v", names)
	}
	all, err := api.List(ctx, 1, "", "", 0)
	want(t, err, nil)
	equal(t, "all", len(all), 27)
	one, err := api.List(ctx, 1, "scp", "", 5)
	want(t, err, nil)
	m := Manifest("scp", ObjectID(101), 2, 2, 1, 1, 2, 3)
	equal(t, "object", one, []metadata.ObjectInfo{m.Info()})
	equal(t, "missing", one[0].Missing, 1)
	none, err := api.List(ctx, 1, "sco/", "sdo", 5)
	want(t, err, nil)
	equal(t, "behind the prefix", len(none), 0)
}

func nsmScan(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	for i := range 30 {
		osds := []metadata.OSDID{1, 2, 3}
		if i%3 == 0 {
			osds = []metadata.OSDID{2, 3}
		}
		put(t, api, 1, Manifest(fmt.Sprint(i), ObjectID(uint64(i)+1), 2, 1, 1, osds...))
	}
	put(t, api, 1, Inline("inline", ObjectID(99), "x"))
	walk := func(req nsm.ScanRequest) (n int) {
		req.Namespace, req.Limit = 1, 7
		for {
			page, err := api.Scan(ctx, req)
			want(t, err, nil)
			n += len(page.Manifests)
			if !page.More {
				return n
			}
			req.After = page.Next
		}
	}
	equal(t, "all", walk(nsm.ScanRequest{}), 31)
	equal(t, "of OSD 1", walk(nsm.ScanRequest{OSD: 1}), 20)
	equal(t, "of OSD 2", walk(nsm.ScanRequest{OSD: 2}), 30)
	equal(t, "of OSD 9", walk(nsm.ScanRequest{OSD: 9}), 0)
	equal(t, "weak", walk(nsm.ScanRequest{Bucket: &nsm.Bucket{K: 2, M: 1, Placed: 2}}), 10)
	equal(t, "full", walk(nsm.ScanRequest{Bucket: &nsm.Bucket{K: 2, M: 1, Placed: 3}}), 20)
	page, err := api.Scan(ctx, nsm.ScanRequest{Namespace: 1, IDs: []metadata.ObjectID{ObjectID(3), ObjectID(1000), ObjectID(99)}})
	want(t, err, nil)
	equal(t, "by id", len(page.Manifests), 2)
	page, err = api.Scan(ctx, nsm.ScanRequest{Namespace: 1, IDs: []metadata.ObjectID{}})
	want(t, err, nil)
	equal(t, "by no id", len(page.Manifests), 0)
}

func nsmUpdate(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	m := Manifest("a", ObjectID(1), 2, 1, 2, 11, 12)
	put(t, api, 1, m)
	late := Manifest("a", ObjectID(1), 2, 1, 2, 11, 12, 13) // late fragments, written under version 0
	late.Version = 1
	want(t, api.UpdateManifest(ctx, 1, &late, 1), nil)
	want(t, api.UpdateManifest(ctx, 1, &late, 1), metadata.ErrAssertFailed)
	equal(t, "buckets", info(t, api, 1).Buckets, []nsm.Bucket{{K: 2, M: 1, Placed: 3, Objects: 1}})

	moved := Manifest("a", ObjectID(1), 2, 1, 2, 11, 12, 13) // fragment 0 of chunk 1 goes to OSD 14
	moved.Version = 2
	moved.Chunks[1].Fragments[0].OSD, moved.Chunks[1].Fragments[0].Version = 14, 2
	want(t, api.UpdateManifest(ctx, 1, &moved, 5), metadata.ErrInvalid)
	want(t, api.UpdateManifest(ctx, 1, &moved, 0), metadata.ErrStaleGCEpoch)
	want(t, api.UpdateManifest(ctx, 1, &moved, 1), nil)
	queue, err := api.DeleteQueue(ctx, nsm.DeleteQueueRequest{OSD: 11, Limit: 10})
	want(t, err, nil)
	equal(t, "queue", queue, []nsm.QueuedDelete{{Namespace: 1, OSD: 11, ObjectID: ObjectID(1), Chunk: 1}})
	got, err := api.Get(ctx, 1, []string{"a"})
	want(t, err, nil)
	equal(t, "manifest", got, []*metadata.Manifest{&moved})

	back := moved // the old place cannot come back: it is being deleted
	back.Version = 3
	back.Chunks = late.Chunks
	want(t, api.UpdateManifest(ctx, 1, &back, 1), metadata.ErrInvalid)
	other := moved
	other.Version, other.Checksum = 3, 1
	want(t, api.UpdateManifest(ctx, 1, &other, 1), metadata.ErrAssertFailed)
	gone := Manifest("b", ObjectID(9), 2, 1, 2, 11, 12)
	gone.Version = 1
	want(t, api.UpdateManifest(ctx, 1, &gone, 1), metadata.ErrAssertFailed)
	lost := Manifest("a", ObjectID(1), 2, 1, 2, 0, 0, 13) // places of lost OSDs become holes
	lost.Version = 3
	want(t, api.UpdateManifest(ctx, 1, &lost, 0), nil)
	equal(t, "buckets", info(t, api, 1).Buckets, []nsm.Bucket{{K: 2, M: 1, Placed: 1, Objects: 1}})
}

func nsmDeleteQueue(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	newNamespace(t, api, 2)
	for ns := range metadata.NamespaceID(2) {
		put(t, api, ns+1, Manifest("a", ObjectID(1), 2, 1, 4, 11, 12, 13))
		want(t, api.Apply(ctx, ns+1, nsm.Txn{Deletes: []string{"a"}}), nil)
	}
	queue := func(req nsm.DeleteQueueRequest) []nsm.QueuedDelete {
		t.Helper()
		q, err := api.DeleteQueue(ctx, req)
		want(t, err, nil)
		return q
	}
	equal(t, "of all", len(queue(nsm.DeleteQueueRequest{OSD: 11, Limit: 100})), 8)
	equal(t, "of one", len(queue(nsm.DeleteQueueRequest{OSD: 11, Namespace: 2, Limit: 100})), 4)
	first := queue(nsm.DeleteQueueRequest{OSD: 11, Limit: 3})
	equal(t, "limited", len(first), 3)
	rest := queue(nsm.DeleteQueueRequest{OSD: 11, Done: first, Limit: 100})
	equal(t, "after done", len(rest), 5)
	equal(t, "done again", len(queue(nsm.DeleteQueueRequest{OSD: 11, Done: first, Limit: 100})), 5)
	equal(t, "only done", len(queue(nsm.DeleteQueueRequest{OSD: 11, Done: rest})), 0)
	equal(t, "at last", len(queue(nsm.DeleteQueueRequest{OSD: 11, Limit: 100})), 0)
	equal(t, "usage", info(t, api, 2).PerOSD, map[metadata.OSDID]nsm.OSDUsage{12: {QueuedDeletes: 4}, 13: {QueuedDeletes: 4}})
}

func nsmGC(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	step := func(op nsm.GCOp, wantMin, wantNext metadata.GCEpoch) {
		t.Helper()
		low, next, err := api.GCEpochs(ctx, 1, op)
		want(t, err, nil)
		if low != wantMin || next != wantNext {
			t.Fatalf("GCEpochs(%+v) = %d, %d; want %d, %d", op, low, next, wantMin, wantNext)
		}
	}
	step(nsm.GCOp{}, 1, 2)
	step(nsm.GCOp{Open: true}, 1, 3)
	step(nsm.GCOp{CloseBelow: 2}, 2, 3)
	step(nsm.GCOp{CloseBelow: 1}, 2, 3)
	step(nsm.GCOp{CloseBelow: 100}, 2, 3)
	want(t, api.Apply(ctx, 1, nsm.Txn{Puts: []metadata.Manifest{Manifest("a", ObjectID(1), 2, 1, 1, 1, 2)}}), metadata.ErrStaleGCEpoch)
	m := Manifest("a", ObjectID(1), 2, 1, 1, 1, 2)
	m.GCEpoch = 2
	put(t, api, 1, m)
	_, _, err := api.GCEpochs(ctx, 2, nsm.GCOp{})
	want(t, err, metadata.ErrNotFound)
}

func nsmDeleteNamespace(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	newNamespace(t, api, 2)
	const objects = 1100 // more than one step removes
	for at := uint64(0); at < objects; at += 100 {
		txn := nsm.Txn{}
		for i := range uint64(100) {
			txn.Puts = append(txn.Puts, Manifest(fmt.Sprint("o", at+i), ObjectID(at+i+1), 2, 1, 1, 1, 2, 3))
		}
		want(t, api.Apply(ctx, 1, txn), nil)
	}
	put(t, api, 2, Manifest("a", ObjectID(1), 2, 1, 1, 1, 2, 3))
	want(t, api.Apply(ctx, 1, nsm.Txn{Deletes: []string{"o1"}}), nil)
	steps := 0
	for done := false; !done; steps++ {
		var err error
		done, err = api.DeleteNamespace(ctx, 1)
		want(t, err, nil)
		if steps == 0 {
			if done {
				t.Fatal("all gone in one step: it is to be bounded")
			}
			want(t, api.Apply(ctx, 1, nsm.Txn{}), metadata.ErrState)
			if !info(t, api, 1).Deleting {
				t.Fatal("not shown as deleting")
			}
		}
	}
	_, err := api.Namespaces(ctx, 1)
	want(t, err, metadata.ErrNotFound)
	done, err := api.DeleteNamespace(ctx, 1)
	want(t, err, nil)
	equal(t, "done again", done, true)
	queue, err := api.DeleteQueue(ctx, nsm.DeleteQueueRequest{OSD: 1, Limit: 10})
	want(t, err, nil)
	equal(t, "queue", len(queue), 0)
	equal(t, "the other", info(t, api, 2).Objects, 1)
}

func nsmAtomic(t *testing.T, api nsm.API) {
	ctx := t.Context()
	newNamespace(t, api, 1)
	put(t, api, 1, Manifest("a", ObjectID(1), 2, 1, 1, 11, 12, 13), Inline("b", ObjectID(2), "b"))
	before := info(t, api, 1)
	bad := Manifest("z", ObjectID(5), 2, 1, 1, 11, 12, 13)
	bad.Size++
	err := api.Apply(ctx, 1, nsm.Txn{
		Fence:   7,
		Deletes: []string{"a"},
		Puts:    []metadata.Manifest{Manifest("b", ObjectID(3), 2, 1, 1, 1, 2, 3), Inline("c", ObjectID(4), "c"), bad},
	})
	want(t, err, metadata.ErrInvalid)
	equal(t, "namespace", info(t, api, 1), before)
	got, err := api.Get(ctx, 1, []string{"a", "b", "c"})
	want(t, err, nil)
	if got[0] == nil || got[1] == nil || got[1].ObjectID != ObjectID(2) || got[2] != nil {
		t.Fatalf("a failed transaction left %v", got)
	}
	queue, err := api.DeleteQueue(ctx, nsm.DeleteQueueRequest{OSD: 11, Limit: 10})
	want(t, err, nil)
	equal(t, "queue", len(queue), 0)
}
