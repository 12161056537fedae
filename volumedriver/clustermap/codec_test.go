package clustermap

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"scoria/internal/frame"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sampleLeaves are leaves of all kinds: runs, random, sparse, empty, extreme.
func sampleLeaves() []*[fanOut]packed {
	r := rand.New(rand.NewPCG(11, 12))
	fill := func(f func(i int) Entry) *[fanOut]packed {
		var e [fanOut]packed
		for i := range e {
			e[i] = pack(f(i))
		}
		return &e
	}
	return []*[fanOut]packed{
		fill(func(i int) Entry { return Entry{NewLocation(5, uint16(i), 0), r.Uint32()} }),
		fill(func(i int) Entry { return Entry{NewLocation(1+r.Uint64N(5000), uint16(r.IntN(1024)), 0), r.Uint32()} }),
		fill(func(i int) Entry { return Entry{} }),
		fill(func(i int) Entry {
			if i != 200 {
				return Entry{}
			}
			return Entry{NewLocation(MaxSCO, MaxIndex, MaxAncestor), 0xffffffff}
		}),
		fill(func(i int) Entry {
			return Entry{NewLocation(1+r.Uint64N(MaxSCO), uint16(r.IntN(MaxIndex+1)), uint16(r.IntN(MaxAncestor+1))), r.Uint32()}
		}),
		fill(func(i int) Entry {
			if i%3 == 0 {
				return Entry{}
			}
			return Entry{NewLocation(uint64(100+i/16), uint16(i), uint16(i/128)), r.Uint32()}
		}),
	}
}

func sampleKids() [fanOut]ref {
	var kids [fanOut]ref
	at := uint32(16)
	for i := range kids {
		switch {
		case i%5 == 4:
		case i < 100:
			kids[i] = ref{pack: 7, off: at, length: 1030, crc: uint32(i) * 77, count: 256}
			at += 1030
		default:
			kids[i] = ref{pack: uint32(1 + i*i), off: uint32(20 + i*5000), length: uint32(i), crc: ^uint32(i), count: uint64(i % 257)}
		}
	}
	return kids
}

func TestLeafCodec(t *testing.T) {
	for n, want := range sampleLeaves() {
		for form, b := range map[string][]byte{
			"chosen": appendLeaf(nil, 1<<26-1, want),
			"runs":   appendLeafRuns(nil, 1<<26-1, want),
			"packed": appendLeafPacked(nil, 1<<26-1, want),
		} {
			if form == "chosen" && len(b) > maxPage/2 {
				t.Errorf("leaf %d takes %d bytes", n, len(b))
			}
			var got [fanOut]packed
			if err := decodeLeaf(b, 1<<26-1, 0, &got); err != nil || got != *want {
				t.Fatalf("leaf %d as %s: %v", n, form, err)
			}
			if decodeLeaf(b, 5, 0, new([fanOut]packed)) == nil {
				t.Errorf("leaf %d as %s: accepted at another place", n, form)
			}
			if decodeInner(b, 1, 1<<26-1, new([fanOut]ref)) == nil {
				t.Errorf("leaf %d as %s: accepted as an inner page", n, form)
			}
			for cut := range b {
				if decodeLeaf(b[:cut], 1<<26-1, 0, new([fanOut]packed)) == nil {
					t.Fatalf("leaf %d as %s: accepted when cut at %d", n, form, cut)
				}
			}
		}
	}
}

func TestInnerCodec(t *testing.T) {
	want := sampleKids()
	b := appendInner(nil, 2, 9, &want)
	var got [fanOut]ref
	if err := decodeInner(b, 2, 9, &got); err != nil || got != want {
		t.Fatal(err)
	}
	for cut := range b {
		if decodeInner(b[:cut], 2, 9, new([fanOut]ref)) == nil {
			t.Fatalf("accepted when cut at %d", cut)
		}
	}
	for i := range want { // the longest possible page stays below the bound
		want[i] = ref{pack: uint32(1 + i%2*0xfffffff0), off: 0xffff0000, length: maxPage, crc: 1, count: span(3)}
	}
	if b := appendInner(nil, 4, 1<<60, &want); len(b) > maxPage {
		t.Errorf("longest inner page takes %d bytes", len(b))
	}
}

func sampleRecord() *record {
	return &record{
		seq: 1 << 40, clusters: 12345678, height: 3, nextPack: 900, lineage: []uint32{40, 7, 0},
		root:    ref{pack: 899, off: 5000, length: 700, crc: 0xdeadbeef, count: 1234567},
		packs:   []PackInfo{{3, 70000, 60000}, {50, 1 << 31, 1}, {899, 5800, 5700}},
		dropped: []drop{{ref{pack: 3, off: 99, length: 2000, crc: 5, count: 65536}, 1, 17}},
	}
}

func TestRecordCodec(t *testing.T) {
	b, err := sampleRecord().encode()
	if err != nil {
		t.Fatal(err)
	}
	r, err := decodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.encode(); err != nil || !bytes.Equal(again, b) {
		t.Fatalf("%+v does not encode as it was (%v)", r, err)
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 0x10
		if _, err := decodeRecord(c); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if _, err := decodeRecord(b[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	newer := frame.Append(nil, magicRecord, typeRecord, recordVersion+1, 0, b[frame.HeaderSize:])
	if _, err := decodeRecord(newer); !errors.Is(err, frame.ErrVersion) || errors.Is(err, ErrCorrupt) {
		t.Errorf("newer version: %v", err)
	}
	foreign := frame.Append(nil, magicPack, typeRecord, recordVersion, 0, b[frame.HeaderSize:])
	if _, err := decodeRecord(foreign); !errors.Is(err, frame.ErrMagic) {
		t.Errorf("foreign file: %v", err)
	}
}

// goldenStore writes the map of the golden files: always the same.
func goldenStore(t *testing.T) (*memStore, []byte, model) {
	s, want := newMemStore(), model{}
	m := New(NewCache(0), s, 1<<30)
	for i, l := range sampleLeaves() {
		es := make([]Entry, fanOut)
		for k, p := range l {
			es[k] = Entry{p.loc(), p.sum}
		}
		addr := uint64(i) * 70000
		m.Set(addr, es)
		want.set(addr, es)
	}
	checkpoint(t, m, 41)
	m.Clear(10, 20)
	want.clear(10, 20)
	w := checkpoint(t, m, 42)
	return s, w.Record, want
}

func TestGolden(t *testing.T) {
	s, record, want := goldenStore(t)
	files := map[string][]byte{"v1.record": record, "v1.pack1": s.packs[1], "v1.pack2": s.packs[2]}
	old := newMemStore()
	for name, b := range files {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, golden) {
			t.Errorf("%s is not written as it was in version 1", name)
		}
		files[name] = golden
	}
	old.packs[1], old.packs[2] = files["v1.pack1"], files["v1.pack2"]
	m, err := Open(NewCache(0), old, files["v1.record"])
	if err != nil {
		t.Fatal(err)
	}
	if err := checkWalk(t.Context(), m, want); err != nil {
		t.Error(err)
	}
	for _, p := range m.Packs() {
		places, err := readIndex(t.Context(), old, p)
		if err != nil || len(places) == 0 {
			t.Errorf("index of pack %d: %d pages, %v", p.Number, len(places), err)
		}
	}
}

func FuzzLeaf(f *testing.F) {
	for _, l := range sampleLeaves() {
		f.Add(appendLeafRuns(nil, 3, l), uint16(0))
		f.Add(appendLeafPacked(nil, 3, l), uint16(2))
	}
	f.Fuzz(func(t *testing.T, b []byte, ancestor uint16) {
		var ent, again [fanOut]packed
		if decodeLeaf(b, 3, ancestor, &ent) != nil {
			return
		}
		for i := range ent {
			if l := ent[i].loc(); l != 0 && (!l.Mapped() || l.Ancestor() < ancestor) {
				t.Fatalf("entry %d is %v", i, l)
			}
		}
		if err := decodeLeaf(appendLeaf(nil, 3, &ent), 3, 0, &again); err != nil || ent != again {
			t.Fatalf("does not survive encoding: %v", err)
		}
	})
}

func FuzzInner(f *testing.F) {
	kids := sampleKids()
	f.Add(appendInner(nil, 2, 3, &kids))
	f.Fuzz(func(t *testing.T, b []byte) {
		var kids, again [fanOut]ref
		if decodeInner(b, 2, 3, &kids) != nil {
			return
		}
		for i, r := range kids {
			if !r.absent() && r.check(1) != nil {
				t.Fatalf("child %d is %+v", i, r)
			}
		}
		if err := decodeInner(appendInner(nil, 2, 3, &kids), 2, 3, &again); err != nil || kids != again {
			t.Fatalf("does not survive encoding: %v", err)
		}
	})
}

// FuzzRecord fuzzes the body, since a fuzzer does not find checksums.
func FuzzRecord(f *testing.F) {
	b, _ := sampleRecord().encode()
	f.Add(b[frame.HeaderSize:])
	b, _ = (&record{nextPack: 1}).encode()
	f.Add(b[frame.HeaderSize:])
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decodeRecordBody(body)
		if err != nil {
			return
		}
		b, err := r.encode()
		if err != nil {
			return
		}
		if _, err := decodeRecord(b); err != nil {
			t.Fatalf("does not survive encoding: %v", err)
		}
	})
}

func FuzzPackIndex(f *testing.F) {
	var body bytes.Buffer
	p := &packWriter{w: &body, pack: 1, off: 16}
	for i := range uint64(3) {
		if _, err := p.page(0, i, make([]byte, 10), 0); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(append([]byte{3}, p.index...))
	f.Fuzz(func(t *testing.T, body []byte) {
		places, err := decodeIndex(frame.Append(nil, magicPack, typePackIndex, packVersion, 0, body))
		if err == nil && len(places)*3 > len(body) {
			t.Fatalf("%d places from %d bytes", len(places), len(body))
		}
	})
}
