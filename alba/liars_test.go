package alba_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"scoria/alba"
	"scoria/alba/albatest"
	"scoria/alba/codec"
	"scoria/alba/osd"
	"scoria/internal/blocksum"
	"scoria/metadata"
)

// lie lets the disk of a fragment hold other data than it was given, with sums that fit.
func lie(t testing.TB, cl *albatest.Cluster, ns metadata.NamespaceID, m *metadata.Manifest, chunk, frag int) {
	t.Helper()
	f := m.Chunks[chunk].Fragments[frag]
	key := alba.FragmentKey{Namespace: ns, ObjectID: m.ObjectID, Chunk: uint16(chunk), Fragment: uint8(frag), Version: f.Version}.Bytes(alba.KeyData)
	b := &osd.Batch{Puts: []osd.Put{{Key: key, Value: data(99+uint64(frag), int(m.Chunks[chunk].FragmentLen))}}}
	if err := cl.ByID(f.OSD).Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

// wrongFragments lists fragments that are not what was stored, as the digests of the manifest tell.
func wrongFragments(t testing.TB, cl *albatest.Cluster, ns metadata.NamespaceID, m *metadata.Manifest) (wrong []string) {
	for i, ch := range m.Chunks {
		for j, f := range ch.Fragments {
			if f.OSD == 0 {
				wrong = append(wrong, fmt.Sprintf("%d/%d: hole", i, j))
				continue
			}
			key := alba.FragmentKey{Namespace: ns, ObjectID: m.ObjectID, Chunk: uint16(i), Fragment: uint8(j), Version: f.Version}
			r := []osd.Read{{Key: key.Bytes(alba.KeyData), Buf: make([]byte, ch.FragmentLen)}}
			if err := cl.ByID(f.OSD).API.Read(t.Context(), r); err != nil || r[0].Err != nil || codec.Digest(blocksum.Sums(nil, r[0].Buf)) != f.Digest {
				wrong = append(wrong, fmt.Sprintf("%v on OSD %d: %v %v", key, f.OSD, err, r[0].Err))
			}
		}
	}
	return wrong
}

// placed stores an object, of which every fragment has its place.
func placed(t testing.TB, cl *albatest.Cluster, ns metadata.NamespaceID, want []byte) *metadata.Manifest {
	t.Helper()
	put(t, cl.Client, ns, "o", want)
	albatest.Eventually(t, "all fragments placed", func() bool { return cl.Manifest(ns, "o").Placed() == 6 })
	return cl.Manifest(ns, "o")
}

// wrongByOSD is what a client says of disks that lie.
func wrongByOSD(c *alba.Client) map[metadata.OSDID]int {
	out := map[metadata.OSDID]int{}
	for _, d := range c.Disks() {
		if d.Wrong > 0 {
			out[d.ID] = d.Wrong
		}
	}
	return out
}

// presetOf is 4+2 plain, or compressed and encrypted.
func presetOf(packed bool) metadata.Preset {
	p := albatest.Preset()
	if packed {
		p.Compression, p.Encryption = metadata.CompressS2, metadata.EncryptAES256GCM
	}
	return p
}

// unhedged are options under which the first k fragments are asked, in order, and no other
// unless one of these fails: which are the sources of what is computed does not depend on time.
func unhedged() alba.Options {
	o := fast()
	o.HedgeMin, o.HedgeMax, o.ReadTimeout = time.Hour, time.Hour, time.Hour
	return o
}

// TestRepairLeavesLiarsOut: one fragment has to be made anew, and of those that it is computed
// from one is wrong with sums that fit. Both are made anew, and it is told which disk lied.
func TestRepairLeavesLiarsOut(t *testing.T) {
	for _, packed := range []bool{false, true} {
		for _, need := range []string{"lost", "bad", "moving and wrong"} {
			t.Run(fmt.Sprintf("%s, packed=%v", need, packed), func(t *testing.T) {
				t.Parallel()
				o := unhedged()
				o.OSDRefresh = 1 // look at once
				cl := albatest.New(t, albatest.Config{OSDs: 8, Client: o, Preset: presetOf(packed)})
				ns := cl.Namespace("v")
				want := data(1, 1<<20)
				m := placed(t, cl, ns, want)
				osdOf := func(frag int) metadata.OSDID { return m.Chunks[0].Fragments[frag].OSD }
				told := map[metadata.OSDID]int{osdOf(2): 1}
				opts := alba.RepairOptions{}
				switch need {
				case "lost":
					cl.ByID(osdOf(0)).SetDown(true)
					cl.SetState(cl.ByID(osdOf(0)), metadata.OSDLost)
				case "bad":
					opts.Bad = []alba.BadFragment{{Fragment: 0}}
				case "moving and wrong":
					lie(t, cl, ns, m, 0, 0)
					cl.SetState(cl.ByID(osdOf(0)), metadata.OSDDecommissioning)
					told[osdOf(0)] = 1
				}
				lie(t, cl, ns, m, 0, 2)
				res, err := cl.Client.Repair(t.Context(), ns, m, opts)
				if err != nil || res.Written != 2 || res.Holes != 0 {
					t.Fatalf("repair: %+v, %v", res, err)
				}
				if bad := wrongFragments(t, cl, ns, cl.Manifest(ns, "o")); len(bad) > 0 {
					t.Errorf("still wrong: %v", bad)
				}
				if got := wrongByOSD(cl.Client); !maps.Equal(got, told) {
					t.Errorf("wrong fragments by OSD: %v, want %v", got, told)
				}
				checkAll(t, cl.Client, ns, "o", want)
			})
		}
	}
}

// TestGetLeavesLiarsOut: an object whose reader has no sums of the ingest is right as a whole or
// an error. Up to m fragments that are lost or wrong with sums that fit do not show, and those are
// made anew behind the read.
func TestGetLeavesLiarsOut(t *testing.T) {
	for _, packed := range []bool{false, true} {
		for _, down := range []bool{false, true} {
			t.Run(fmt.Sprintf("packed=%v, one down=%v", packed, down), func(t *testing.T) {
				t.Parallel()
				cl := albatest.New(t, albatest.Config{Client: fast(), Preset: presetOf(packed)})
				ns := cl.Namespace("v")
				want := data(1, 1<<20-100)
				m := placed(t, cl, ns, want)
				lie(t, cl, ns, m, 0, 1)
				if down {
					cl.ByID(m.Chunks[0].Fragments[3].OSD).SetDown(true)
				} else {
					lie(t, cl, ns, m, 0, 3)
				}
				got, err := cl.Client.Get(t.Context(), ns, "o", len(want))
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				if !down {
					albatest.Eventually(t, "both made anew", func() bool { return len(wrongFragments(t, cl, ns, cl.Manifest(ns, "o"))) == 0 })
				}
				lie(t, cl, ns, cl.Manifest(ns, "o"), 0, 0)
				lie(t, cl, ns, cl.Manifest(ns, "o"), 0, 2)
				lie(t, cl, ns, cl.Manifest(ns, "o"), 0, 4)
				if got, err := cl.Client.Get(t.Context(), ns, "o", len(want)); !down && !errors.Is(err, alba.ErrUnreadable) || down && err == nil {
					t.Fatalf("with three wrong fragments: %d bytes, %v", len(got), err)
				}
			})
		}
	}
}

// TestReadTellsLiars: reads with sums of the ingest tell which disk lied, be it that of the
// block or one that it is computed from, and have its fragment made anew.
func TestReadTellsLiars(t *testing.T) {
	for _, degraded := range []bool{false, true} {
		t.Run(fmt.Sprint("degraded=", degraded), func(t *testing.T) {
			cl := albatest.New(t, albatest.Config{OSDs: 8, Client: unhedged()})
			ns := cl.Namespace("v")
			want := data(1, 1<<20)
			m := placed(t, cl, ns, want)
			const liar = 2
			lie(t, cl, ns, m, 0, liar)
			block := liar * 64
			if degraded {
				block = 0
				cl.ByID(m.Chunks[0].Fragments[0].OSD).SetDown(true)
			}
			s := alba.Slice{Name: "o", Off: uint64(block) * 4096, Data: make([]byte, 4096), Sums: blocksum.Sums(nil, want)[block : block+1]}
			if err := cl.Client.Read(t.Context(), ns, []alba.Slice{s}); err != nil || !bytes.Equal(s.Data, want[block*4096:][:4096]) {
				t.Fatalf("read: %v", err)
			}
			albatest.Eventually(t, "the wrong fragment is made anew", func() bool {
				return cl.Manifest(ns, "o").Chunks[0].Fragments[liar].Version > 0
			})
			if got := wrongByOSD(cl.Client); len(got) != 1 || got[m.Chunks[0].Fragments[liar].OSD] != 1 {
				t.Errorf("wrong fragments by OSD: %v, want one on %d", got, m.Chunks[0].Fragments[liar].OSD)
			}
		})
	}
}
