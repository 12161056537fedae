package tlog

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"scoria/internal/frame"
	"scoria/volumedriver/sco"
)

var update = flag.Bool("update", false, "rewrite golden files")

// generate makes sections of random entries.
func generate(r *rand.Rand, sections, perSection int) (list [][]byte, want []Entry) {
	seq, number := uint64(r.IntN(1000)+1), uint64(r.IntN(1000)+1)
	for range sections {
		var s Section
		s.Reset(number)
		index := uint32(0)
		for range perSection {
			e := Entry{Seq: seq, Kind: Write, Count: 1, SCO: number, Index: index, Addr: r.Uint64N(MaxAddr - 20000)}
			switch r.IntN(5) {
			case 0:
				e.Kind, e.Count = Clear, r.Uint64N(MaxAddr-e.Addr)+1
			case 1:
				e.Count = r.Uint64N(min(200, uint64(sco.MaxClusters-index))) + 1
			}
			if e.Kind == Write {
				for range e.Count {
					e.Sums = append(e.Sums, r.Uint32())
				}
				index += uint32(e.Count)
			}
			if err := s.Add(&e); err != nil {
				panic(err)
			}
			want = append(want, e)
			seq++
		}
		list = append(list, bytes.Clone(s.Bytes()))
		number += r.Uint64N(3) + 1
	}
	return list, want
}

func collect(list *[]Entry) func(*Entry) error {
	return func(e *Entry) error {
		c := *e
		c.Sums = slices.Clone(e.Sums)
		*list = append(*list, c)
		return nil
	}
}

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		sections, want := generate(r, r.IntN(5)+1, r.IntN(100)+1)
		obj, err := AppendObject([]byte("head"), 77, 5, sections)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		var got []Entry
		info, err := Decode(obj[4:], collect(&got))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: decoded %d of %d entries, err %v", seed, len(got), len(want), err)
		}
		first, last := want[0], want[len(want)-1]
		if info.Number != 77 || info.Epoch != 5 || info.FirstSeq != first.Seq || info.LastSeq != last.Seq ||
			info.FirstSCO != first.SCO || info.LastSCO != last.SCO || info.Entries != uint64(len(want)) || info.Sections != len(sections) {
			t.Fatalf("seed %d: info %+v", seed, info)
		}
		var bySection []Entry
		for _, s := range sections {
			if _, err := DecodeSection(s, collect(&bySection)); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(bySection, want) {
			t.Fatalf("seed %d: sections decode differently", seed)
		}
	}
}

// A random 4 KiB write must take at most 9 bytes and its sum.
func TestSize(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var s Section
	s.Reset(1)
	for i := range uint64(sco.DefaultClusters) {
		e := Entry{Seq: i + 1, Kind: Write, Addr: r.Uint64N(1 << 32), Count: 1, SCO: 1, Index: uint32(i), Sums: []uint32{r.Uint32()}}
		if err := s.Add(&e); err != nil {
			t.Fatal(err)
		}
	}
	obj, err := AppendObject(nil, 1, 1, [][]byte{s.Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	per := float64(len(obj)) / sco.DefaultClusters
	t.Logf("%.2f bytes per random 4 KiB write in 16 TiB, with its sum", per)
	if per > 9+4 {
		t.Errorf("%.2f bytes per entry, want ≤ 13", per)
	}
}

func TestAddRefuses(t *testing.T) {
	one := []uint32{1}
	for name, e := range map[string]Entry{
		"no kind":       {Seq: 2, Addr: 1, Count: 1, SCO: 9, Index: 1, Sums: one},
		"zero count":    {Seq: 2, Kind: Clear, Addr: 1, SCO: 9, Index: 1},
		"other SCO":     {Seq: 2, Kind: Write, Addr: 1, Count: 1, SCO: 8, Index: 1, Sums: one},
		"gap in seq":    {Seq: 3, Kind: Write, Addr: 1, Count: 1, SCO: 9, Index: 1, Sums: one},
		"gap in index":  {Seq: 2, Kind: Write, Addr: 1, Count: 1, SCO: 9, Index: 2, Sums: one},
		"missing sums":  {Seq: 2, Kind: Write, Addr: 1, Count: 2, SCO: 9, Index: 1, Sums: one},
		"sums of clear": {Seq: 2, Kind: Clear, Addr: 1, Count: 1, SCO: 9, Index: 1, Sums: one},
		"beyond volume": {Seq: 2, Kind: Clear, Addr: MaxAddr - 1, Count: 2, SCO: 9, Index: 1},
		"too long":      {Seq: 2, Kind: Write, Addr: 1, Count: sco.MaxClusters, SCO: 9, Index: 1, Sums: make([]uint32, sco.MaxClusters)},
	} {
		var s Section
		s.Reset(9)
		if err := s.Add(&Entry{Seq: 1, Kind: Write, Addr: 1, Count: 1, SCO: 9, Sums: one}); err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(s.Bytes())
		if err := s.Add(&e); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: err %v", name, err)
		}
		if !bytes.Equal(before, s.Bytes()) {
			t.Errorf("%s: the section changed", name)
		}
	}
}

func TestObjectRefuses(t *testing.T) {
	sections, _ := generate(rand.New(rand.NewPCG(3, 3)), 3, 5)
	flipped := bytes.Clone(sections[1])
	flipped[len(flipped)-1] ^= 1
	for name, list := range map[string][][]byte{
		"none":        {},
		"wrong order": {sections[1], sections[0]},
		"gap":         {sections[0], sections[2]},
		"twice":       {sections[0], sections[0]},
		"damaged":     {sections[0], flipped, sections[2]},
		"empty":       {{}},
	} {
		if _, err := AppendObject(nil, 1, 1, list); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Every flipped byte and every cut must be found; other magic and version have their own error.
func TestDamage(t *testing.T) {
	sections, _ := generate(rand.New(rand.NewPCG(4, 4)), 2, 4)
	obj, err := AppendObject(nil, 1, 1, sections)
	if err != nil {
		t.Fatal(err)
	}
	for i := range obj {
		bad := bytes.Clone(obj)
		bad[i] ^= 0x10
		if _, err := Decode(bad, nil); err == nil {
			t.Fatalf("byte %d flipped: no error", i)
		} else if i < 4 && !errors.Is(err, frame.ErrMagic) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if _, err := Decode(obj[:i], nil); err == nil {
			t.Fatalf("cut at %d: no error", i)
		}
	}
	_, body, _, err := frame.Parse(obj, magic, MaxObjectBytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(frame.Append(nil, magic, frameType, version+1, 0, body), nil); !errors.Is(err, frame.ErrVersion) {
		t.Errorf("next version: %v", err)
	}
	stop := errors.New("stop")
	if _, err := Decode(obj, func(*Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("callback's error: %v", err)
	}
}

// goldenObject is fixed for ever: later versions must read the file as it is.
func goldenObject(t *testing.T) []byte {
	var a, b Section
	a.Reset(0x10)
	b.Reset(0x12)
	many := make([]uint32, 100)
	for i := range many {
		many[i] = uint32(i) * 0x01010101
	}
	for _, x := range []struct {
		s *Section
		e Entry
	}{
		{&a, Entry{Seq: 5, Kind: Write, Addr: 7, Count: 1, SCO: 0x10, Sums: []uint32{0xdeadbeef}}},
		{&a, Entry{Seq: 6, Kind: Clear, Addr: 0, Count: MaxAddr, SCO: 0x10, Index: 1}},
		{&a, Entry{Seq: 7, Kind: Write, Addr: 8, Count: 100, SCO: 0x10, Index: 1, Sums: many}},
		{&b, Entry{Seq: 8, Kind: Write, Addr: MaxAddr - 1, Count: 1, SCO: 0x12, Sums: []uint32{1}}},
	} {
		if err := x.s.Add(&x.e); err != nil {
			t.Fatal(err)
		}
	}
	obj, err := AppendObject(nil, 3, 2, [][]byte{a.Bytes(), b.Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	return obj
}

func TestGolden(t *testing.T) {
	const name = "testdata/v1.tlog"
	obj := goldenObject(t)
	if *update {
		if err := os.WriteFile(name, obj, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(obj, want) {
		t.Errorf("the encoding changed: readers of version 1 would not understand it")
	}
	var text strings.Builder
	if err := Dump(&text, want); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"tlog 3 epoch 2: 2 sections, SCOs 10..12, records 5..8, 102 clusters\n",
		"5 write 7+1 sco 10[0] sums [deadbeef]\n",
		"6 clear 0+17179869184\n",
		"8 write 17179869183+1 sco 12[0] sums [00000001]\n",
	} {
		if !strings.Contains(text.String(), line) {
			t.Errorf("dump lacks %q:\n%s", line, text.String())
		}
	}
}

func FuzzDecode(f *testing.F) {
	for seed := range uint64(4) {
		sections, _ := generate(rand.New(rand.NewPCG(seed, 9)), 2, 6)
		obj, err := AppendObject(nil, 1, 1, sections)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(obj)
		_, body, _, err := frame.Parse(obj, magic, MaxObjectBytes)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = Decode(b, nil)
		// Behind the checksums: whatever decodes must encode to the same again.
		obj := frame.Append(nil, magic, frameType, version, 0, resealed(b))
		var s Section
		var sections [][]byte
		info, err := Decode(obj, func(e *Entry) error {
			if !e.Valid() {
				t.Fatalf("invalid entry %+v", e)
			}
			if s.number != e.SCO {
				if s.number != 0 {
					sections = append(sections, bytes.Clone(s.Bytes()))
				}
				s.Reset(e.SCO)
			}
			return s.Add(e)
		})
		if err != nil {
			return
		}
		again, err := AppendObject(nil, info.Number, info.Epoch, append(sections, s.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		second, err := Decode(again, nil)
		if err != nil || second != info {
			t.Fatalf("encoded again: %+v, was %+v: %v", second, info, err)
		}
	})
}

// resealed corrects the checksums of the sections in a body.
func resealed(body []byte) []byte {
	body = bytes.Clone(body)
	for rest := body[min(len(body), objectHeader):]; len(rest) >= sectionHeader; {
		n := int(rest[24]) | int(rest[25])<<8 | int(rest[26])<<16
		if n > len(rest)-sectionHeader {
			break
		}
		crc := sectionCRC(rest[:sectionHeader+n])
		rest[28], rest[29], rest[30], rest[31] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
		rest = rest[sectionHeader+n:]
	}
	return body
}
