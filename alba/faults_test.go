package alba_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"scoria/alba"
	"scoria/alba/albatest"
	"scoria/alba/osd"
	"scoria/alba/osd/osdtest"
	"scoria/internal/blocksum"
	"scoria/metadata"
	"scoria/metadata/nsm"
)

// fast are options for tests with failing disks.
func fast() alba.Options {
	return alba.Options{Slack: time.Millisecond, HedgeMin: 2 * time.Millisecond, ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second, ProbeInterval: 5 * time.Millisecond, BlockCacheBytes: -1}
}

// corruptAll damages every block of the object's fragments on a disk.
func corruptAll(d *albatest.Disk, m *metadata.Manifest) (n int) {
	for _, key := range d.Keys() {
		k, kind, err := alba.ParseFragmentKey(key)
		if err != nil || kind != alba.KeyData || k.ObjectID != m.ObjectID {
			continue
		}
		for off := 0; d.Corrupt(key, off); off += 4096 {
			n++
		}
	}
	return n
}

// TestFaultsUpToM states the fault model: any two of six disks missing their data, damaged,
// down or hanging, in any mix, never show to a reader.
func TestFaultsUpToM(t *testing.T) {
	faults := map[string]func(d *albatest.Disk, m *metadata.Manifest){
		"wiped":   func(d *albatest.Disk, _ *metadata.Manifest) { d.Wipe() },
		"corrupt": func(d *albatest.Disk, m *metadata.Manifest) { corruptAll(d, m) },
		"down":    func(d *albatest.Disk, _ *metadata.Manifest) { d.SetDown(true) },
		"hanging": func(d *albatest.Disk, _ *metadata.Manifest) { d.SetHang(osdtest.OpRead, true) },
		"slow":    func(d *albatest.Disk, _ *metadata.Manifest) { d.SetDelay(osdtest.OpRead, 20*time.Millisecond) },
		"full":    func(d *albatest.Disk, _ *metadata.Manifest) { d.SetFull(true) },
	}
	names := []string{"wiped", "corrupt", "down", "hanging", "slow", "full"}
	for i, a := range names {
		b := names[(i+1)%len(names)]
		t.Run(a+"+"+b, func(t *testing.T) {
			t.Parallel()
			p := albatest.Preset()
			if i%2 == 1 {
				p.Compression, p.Encryption = metadata.CompressS2, metadata.EncryptAES256GCM
			}
			cl := albatest.New(t, albatest.Config{Preset: p, Client: fast()})
			ns := cl.Namespace("v")
			want := data(uint64(i), 1<<20+77777)
			put(t, cl.Client, ns, "o", want)
			var m *metadata.Manifest
			albatest.Eventually(t, "all fragments placed", func() bool {
				m = cl.Manifest(ns, "o")
				return m.Placed() == 6
			})
			faults[a](cl.OSD(i%6), m)
			faults[b](cl.OSD((i+2)%6), m)
			checkAll(t, cl.Client, ns, "o", want)
		})
	}
}

func TestBeyondMIsReportedNotInvented(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: fast()})
	ns := cl.Namespace("v")
	want := data(1, 1<<20)
	put(t, cl.Client, ns, "o", want)
	albatest.Eventually(t, "all fragments placed", func() bool { return cl.Manifest(ns, "o").Placed() == 6 })
	m := cl.Manifest(ns, "o")
	for i := range 3 {
		if corruptAll(cl.OSD(i), m) == 0 {
			t.Fatal("nothing to damage")
		}
	}
	if _, err := cl.Client.Get(t.Context(), ns, "o", 1<<20); !errors.Is(err, alba.ErrUnreadable) {
		t.Fatalf("get with 3 damaged fragments: %v", err)
	}
	cl2 := albatest.New(t, albatest.Config{Client: fast()})
	ns = cl2.Namespace("v")
	put(t, cl2.Client, ns, "o", want)
	for i := range 3 {
		cl2.OSD(i).SetDown(true)
	}
	if _, err := cl2.Client.Get(t.Context(), ns, "o", 1<<20); !errors.Is(err, alba.ErrUnavailable) || errors.Is(err, alba.ErrUnreadable) {
		t.Fatalf("get with 3 disks down: %v", err)
	}
	for i := range 3 {
		cl2.OSD(i).SetDown(false)
	}
	albatest.Eventually(t, "disks back in use", func() bool {
		_, err := cl2.Client.Get(t.Context(), ns, "o", 1<<20)
		return err == nil
	})
}

// TestWrongButConsistentFragment: a disk that returns other data than was written, with sums that
// agree with it, is found out by the sums of the ingest.
func TestWrongButConsistentFragment(t *testing.T) {
	for _, degraded := range []bool{false, true} {
		t.Run(fmt.Sprint("degraded=", degraded), func(t *testing.T) {
			cl := albatest.New(t, albatest.Config{Client: fast()})
			ns := cl.Namespace("v")
			want := data(1, 1<<20)
			put(t, cl.Client, ns, "o", want)
			m := cl.Manifest(ns, "o")
			lie := func(frag int) {
				f := m.Chunks[0].Fragments[frag]
				key := alba.FragmentKey{Namespace: ns, ObjectID: m.ObjectID, Fragment: uint8(frag), Version: f.Version}.Bytes(alba.KeyData)
				d := cl.ByID(f.OSD)
				if err := d.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: key, Value: data(99, int(m.Chunks[0].FragmentLen))}}}); err != nil {
					t.Fatal(err)
				}
			}
			lie(1)
			if degraded { // the block's own disk is down and one of the others lies
				cl.ByID(m.Chunks[0].Fragments[0].OSD).SetDown(true)
			}
			sums := blocksum.Sums(nil, want)
			b := make([]byte, 4096)
			for blk := range 256 {
				s := alba.Slice{Name: "o", Off: uint64(blk) * 4096, Data: b, Sums: sums[blk : blk+1]}
				if err := cl.Client.Read(t.Context(), ns, []alba.Slice{s}); err != nil {
					t.Fatalf("block %d: %v", blk, err)
				}
				if !bytes.Equal(b, want[blk*4096:][:4096]) {
					t.Fatalf("block %d: wrong data", blk)
				}
			}
		})
	}
}

func TestRepairOnRead(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: fast()})
	ns := cl.Namespace("v")
	want := data(1, 3<<20)
	put(t, cl.Client, ns, "o", want)
	albatest.Eventually(t, "all fragments placed", func() bool { return cl.Manifest(ns, "o").Placed() == 6 })
	m := cl.Manifest(ns, "o")
	corruptAll(cl.OSD(0), m)
	cl.OSD(1).Wipe()
	checkAll(t, cl.Client, ns, "o", want)
	albatest.Eventually(t, "repair behind the reads", func() bool {
		checkAll(t, cl.Client, ns, "o", want)
		got := cl.Manifest(ns, "o")
		for i := range got.Chunks { // reads come across data fragments only: parity is scrub's
			got.Chunks[i].Fragments = got.Chunks[i].Fragments[:got.Policy.K]
		}
		return cl.Client.Stats().Repaired > 0 && got.Version > 0 && len(badFragments(t, cl, ns, got)) == 0
	})
}

// badFragments reads every fragment of an object from its disk.
func badFragments(t testing.TB, cl *albatest.Cluster, ns metadata.NamespaceID, m *metadata.Manifest) (bad []string) {
	for i := range m.Chunks {
		for j, f := range m.Chunks[i].Fragments {
			if f.OSD == 0 {
				bad = append(bad, fmt.Sprintf("%d/%d: hole", i, j))
				continue
			}
			key := alba.FragmentKey{Namespace: ns, ObjectID: m.ObjectID, Chunk: uint16(i), Fragment: uint8(j), Version: f.Version}
			r := []osd.Read{{Key: key.Bytes(alba.KeyData), Buf: make([]byte, m.Chunks[i].FragmentLen)}}
			if err := cl.ByID(f.OSD).API.Read(t.Context(), r); err != nil || r[0].Err != nil {
				bad = append(bad, fmt.Sprintf("%v: %v %v", key, err, r[0].Err))
			}
		}
	}
	return bad
}

func TestPutWithFailingDisks(t *testing.T) {
	t.Run("replacement", func(t *testing.T) {
		cl := albatest.New(t, albatest.Config{OSDs: 8, Client: fast()})
		ns := cl.Namespace("v")
		cl.OSD(0).SetDown(true)
		cl.OSD(1).SetFull(true)
		for i := range 8 {
			want := data(uint64(i), 1<<20)
			put(t, cl.Client, ns, fmt.Sprint(i), want)
			if m := cl.Manifest(ns, fmt.Sprint(i)); m.Placed() != 6 {
				t.Fatalf("put %d: %d fragments placed", i, m.Placed())
			}
			checkAll(t, cl.Client, ns, fmt.Sprint(i), want)
		}
	})
	t.Run("hole", func(t *testing.T) {
		cl := albatest.New(t, albatest.Config{Client: fast()})
		ns := cl.Namespace("v")
		cl.OSD(0).SetDown(true)
		want := data(1, 1<<20)
		put(t, cl.Client, ns, "o", want)
		if m := cl.Manifest(ns, "o"); m.Placed() != 5 || m.Policy.K != 4 {
			t.Fatalf("%d fragments placed, policy %v", m.Placed(), m.Policy)
		}
		checkAll(t, cl.Client, ns, "o", want)
	})
	t.Run("fallback", func(t *testing.T) {
		cl := albatest.New(t, albatest.Config{Client: fast()})
		ns := cl.Namespace("v")
		for i := range 3 {
			cl.OSD(i).SetDown(true)
		}
		want := data(1, 1<<20)
		put(t, cl.Client, ns, "o", want)
		if m := cl.Manifest(ns, "o"); m.Policy.K != 2 {
			t.Fatalf("policy %v with three disks", m.Policy)
		}
		checkAll(t, cl.Client, ns, "o", want)
	})
	t.Run("none", func(t *testing.T) {
		cl := albatest.New(t, albatest.Config{Client: fast()})
		ns := cl.Namespace("v")
		for i := range 6 {
			cl.OSD(i).SetDown(true)
		}
		if err := putErr(t, cl.Client, ns, "o", data(1, 1<<20)); !errors.Is(err, alba.ErrUnavailable) {
			t.Fatalf("put without disks: %v", err)
		}
	})
}

func TestLateFragmentIsAdded(t *testing.T) {
	o := fast()
	o.WriteTimeout = time.Minute
	cl := albatest.New(t, albatest.Config{Client: o})
	ns := cl.Namespace("v")
	cl.OSD(3).SetHang(osdtest.OpApply, true)
	want := data(1, 1<<20)
	released := make(chan struct{})
	err := cl.Client.Apply(t.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: "o", Data: want, Release: func() { close(released) }}}})
	if err != nil {
		t.Fatal(err)
	}
	if m := cl.Manifest(ns, "o"); m.Placed() != 5 || m.Version != 0 {
		t.Fatalf("%d fragments, version %d", m.Placed(), m.Version)
	}
	select {
	case <-released:
		t.Fatal("data released while a fragment is on its way")
	default:
	}
	checkAll(t, cl.Client, ns, "o", want)
	cl.OSD(3).SetHang(osdtest.OpApply, false)
	<-released
	albatest.Eventually(t, "late fragment", func() bool { return cl.Manifest(ns, "o").Placed() == 6 })
	if bad := badFragments(t, cl, ns, cl.Manifest(ns, "o")); len(bad) > 0 {
		t.Fatal(bad)
	}
	cl.Client.FlushTags(t.Context())
	albatest.Eventually(t, "no GC tags are left", func() bool {
		cl.Client.FlushTags(t.Context())
		return countKeys(cl, alba.KeyTag) == 0
	})
}

func countKeys(cl *albatest.Cluster, kind alba.KeyKind) (n int) {
	for _, d := range cl.OSDs() {
		for _, k := range d.Keys() {
			if alba.KeyKind(k[0]) == kind {
				n++
			}
		}
	}
	return n
}

func TestFencing(t *testing.T) {
	cl := albatest.New(t, albatest.Config{})
	ns := cl.Namespace("v")
	put1 := func(fence metadata.Epoch) error {
		return cl.Client.Apply(t.Context(), ns, alba.Txn{Fence: fence, Puts: []alba.PutObject{{Name: "o", Data: data(uint64(fence), 5000)}}})
	}
	if err := put1(3); err != nil {
		t.Fatal(err)
	}
	if err := cl.Client.SetFence(t.Context(), ns, 5); err != nil {
		t.Fatal(err)
	}
	for _, stale := range []metadata.Epoch{0, 3, 4} {
		if err := put1(stale); !errors.Is(err, metadata.ErrFenced) {
			t.Fatalf("put under epoch %d: %v", stale, err)
		}
	}
	checkAll(t, cl.Client, ns, "o", data(3, 5000))
	err := cl.Client.Apply(t.Context(), ns, alba.Txn{Fence: 5, Asserts: []nsm.Assert{{Name: "o"}}, Deletes: []string{"o"}})
	if !errors.Is(err, metadata.ErrAssertFailed) {
		t.Fatalf("assert of absence: %v", err)
	}
}

func TestStaleGCEpochIsRetried(t *testing.T) {
	cl := albatest.New(t, albatest.Config{})
	ns := cl.Namespace("v")
	put(t, cl.Client, ns, "a", data(1, 1<<20))
	_, next, err := cl.NSM.GCEpochs(t.Context(), ns, nsm.GCOp{Open: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := cl.NSM.GCEpochs(t.Context(), ns, nsm.GCOp{CloseBelow: next - 1}); err != nil {
		t.Fatal(err)
	}
	put(t, cl.Client, ns, "b", data(2, 1<<20))
	checkAll(t, cl.Client, ns, "b", data(2, 1<<20))
	if n := cl.Client.Stats().PutRetries; n != 1 {
		t.Fatalf("%d retries", n)
	}
}

// TestStaleManifest: a client whose cached manifest is old finds the new one.
func TestStaleManifest(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: fast()})
	ns := cl.Namespace("v")
	other := cl.NewClient(fast())
	put(t, cl.Client, ns, "o", data(1, 300_000))
	checkAll(t, other, ns, "o", data(1, 300_000))
	put(t, cl.Client, ns, "o", data(2, 400_000))
	// The old fragments are gone, as the delete queue would have it.
	m := cl.Manifest(ns, "o")
	for _, d := range cl.OSDs() {
		for _, key := range d.Keys() {
			if k, _, err := alba.ParseFragmentKey(key); err == nil && k.ObjectID != m.ObjectID {
				d.Lose(key)
			}
		}
	}
	got, err := read(t, other, ns, "o", 1000, 200_000)
	if err != nil || !bytes.Equal(got, data(2, 400_000)[1000:201_000]) {
		t.Fatalf("read through a stale manifest: %v", err)
	}
}

func TestHedge(t *testing.T) {
	o := fast()
	o.ReadTimeout = time.Minute
	cl := albatest.New(t, albatest.Config{Client: o})
	ns := cl.Namespace("v")
	want := data(1, 1<<20)
	put(t, cl.Client, ns, "o", want)
	for range 50 { // earn the right to hedge
		if _, err := read(t, cl.Client, ns, "o", 0, 4096); err != nil {
			t.Fatal(err)
		}
	}
	id := cl.Manifest(ns, "o").Chunks[0].Fragments[0].OSD
	cl.ByID(id).SetHang(osdtest.OpRead, true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := make([]byte, 8192)
	if err := cl.Client.Read(ctx, ns, []alba.Slice{{Name: "o", Off: 4096, Data: b}}); err != nil || !bytes.Equal(b, want[4096:12288]) {
		t.Fatalf("hedged read: %v", err)
	}
	if st := cl.Client.Stats(); st.HedgesWon == 0 {
		t.Fatalf("no hedge won: %+v", st)
	}
}

// TestHungDisk: a disk that answers nothing is taken out of use long before a request to it
// times out, also when nothing is left for hedges.
func TestHungDisk(t *testing.T) {
	o := fast()
	o.ReadTimeout, o.HedgeMin, o.HedgeMax = time.Hour, time.Millisecond, time.Millisecond // without the budget, hedges would come at once
	cl := albatest.New(t, albatest.Config{Client: o})
	ns := cl.Namespace("v")
	want := data(1, 1<<20)
	put(t, cl.Client, ns, "o", want)
	id := cl.Manifest(ns, "o").Chunks[0].Fragments[0].OSD
	cl.ByID(id).SetHang(osdtest.OpRead, true)
	for i := range 100 { // more than there are hedges
		off := i % 32 * 4096
		got, err := read(t, cl.Client, ns, "o", off, 4096)
		if err != nil || !bytes.Equal(got, want[off:off+4096]) {
			t.Fatalf("read %d: %v", i, err)
		}
	}
	if st := cl.Client.Stats(); st.HedgesWon > 60 {
		t.Errorf("%d reads waited for a hedge: the disk was never taken out of use", st.HedgesWon)
	}
}

func TestOneBlockOneRead(t *testing.T) {
	cl := albatest.New(t, albatest.Config{})
	ns := cl.Namespace("v")
	want := data(1, 1<<20)
	put(t, cl.Client, ns, "o", want)
	before := cl.Client.Stats()
	s := alba.Slice{Name: "o", Off: 300 << 10, Data: make([]byte, 4096)}
	if cl.Client.TryRead(ns, s) {
		t.Fatal("in memory before it was read")
	}
	if err := cl.Client.Read(t.Context(), ns, []alba.Slice{s}); err != nil {
		t.Fatal(err)
	}
	after := cl.Client.Stats()
	if n, b := after.OSDReads-before.OSDReads, after.OSDReadBytes-before.OSDReadBytes; n != 1 || b != 4096 {
		t.Fatalf("a 4 KiB read cost %d reads of %d bytes", n, b)
	}
	albatest.Eventually(t, "block in the cache", func() bool {
		clear(s.Data)
		return cl.Client.TryRead(ns, s)
	})
	if !bytes.Equal(s.Data, want[300<<10:][:4096]) {
		t.Fatal("wrong data from the cache")
	}
	if n := testing.AllocsPerRun(100, func() { cl.Client.TryRead(ns, s) }); n > 0 {
		t.Errorf("TryRead allocates %v times", n)
	}
	s.Sums = []uint32{1}
	if cl.Client.TryRead(ns, s) {
		t.Fatal("TryRead gave a block with another sum")
	}
}

// TestConcurrentEverything runs readers, writers and failing disks together; run it with -race.
func TestConcurrentEverything(t *testing.T) {
	o := fast()
	o.BlockCacheBytes = 1 << 20
	p := albatest.Preset()
	p.Policies = p.Policies[:1] // the fallbacks do not bear a hole and a disk down
	cl := albatest.New(t, albatest.Config{OSDs: 8, Client: o, Preset: p})
	ns := cl.Namespace("v")
	const objects = 8
	content := func(i, gen int) []byte { return data(uint64(i*1000+gen), 100_000+i*70_000) }
	for i := range objects {
		put(t, cl.Client, ns, fmt.Sprint(i), content(i, 0))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // trouble on one disk at a time
		rng := rand.New(rand.NewPCG(1, 2))
		for {
			d := cl.OSD(rng.IntN(8))
			switch rng.IntN(3) {
			case 0:
				d.SetDown(true)
			case 1:
				d.SetFull(true)
			case 2:
				d.SetDelay(osdtest.OpRead, 5*time.Millisecond)
			}
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			d.SetDown(false)
			d.SetFull(false)
			d.SetDelay(osdtest.OpRead, 0)
		}
	})
	var work sync.WaitGroup
	for i := range objects {
		work.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 3))
			for gen := 1; gen <= 6; gen++ {
				want := content(i, gen)
				for { // too many disks may be out of use for a moment
					err := cl.Client.Apply(t.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: fmt.Sprint(i), Data: want}}})
					if err == nil {
						break
					}
					if !errors.Is(err, alba.ErrUnavailable) || t.Context().Err() != nil {
						t.Errorf("put %d: %v", i, err)
						return
					}
				}
				for range 20 {
					off := rng.IntN(len(want) - 1)
					n := rng.IntN(min(len(want)-off, 30_000)) + 1
					got := make([]byte, n)
					if err := cl.Client.Read(t.Context(), ns, []alba.Slice{{Name: fmt.Sprint(i), Off: uint64(off), Data: got}}); err != nil {
						t.Errorf("read %d: %v", i, err)
						return
					}
					if !bytes.Equal(got, want[off:off+n]) {
						t.Errorf("object %d generation %d: wrong data at %d", i, gen, off)
						return
					}
				}
			}
		})
	}
	work.Wait()
	close(stop)
	wg.Wait()
}
