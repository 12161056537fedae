package volumedriver

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"scoria/internal/frame"
	"scoria/volumedriver/sco"
)

var update = flag.Bool("update", false, "write the golden files anew")

func sampleHead() *Head {
	return &Head{Volume: 7, Epoch: 3, Size: 10 << 30, Seq: 4711, SCO: 90, MaxSCO: 93, TLog: 12,
		TLogs: []TLogRef{{Number: 11, FirstSeq: 4000, LastSeq: 4500, LastSCO: 80, Bytes: 1234}, {Number: 12, FirstSeq: 4501, LastSeq: 4711, LastSCO: 90, Bytes: 99}}}
}

func sampleState() *state {
	return &state{Volume: 7, Namespace: 1007, Epoch: 3, Size: 10 << 30, HeadSeq: 4711, HeadSCO: 90, MaxSCO: 93, Drained: true}
}

// golden compares b with a file that later versions must still read.
func golden(t *testing.T, name string, b []byte) []byte {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) {
		t.Errorf("%s: the encoding has changed: give it a new version", name)
	}
	return want
}

func TestHeadGolden(t *testing.T) {
	b, err := sampleHead().Encode()
	if err != nil {
		t.Fatal(err)
	}
	h, err := DecodeHead(golden(t, "head.v1", b))
	if err != nil || !reflect.DeepEqual(h, sampleHead()) {
		t.Errorf("%+v, %v", h, err)
	}
	s, err := decodeState(golden(t, "state.v1", sampleState().encode()))
	if err != nil || !reflect.DeepEqual(s, sampleState()) {
		t.Errorf("%+v, %v", s, err)
	}
	var text bytes.Buffer
	if err := errors.Join(Dump(&text, b), Dump(&text, sampleState().encode())); err != nil {
		t.Fatal(err)
	}
	golden(t, "dump.txt", text.Bytes())
	if err := Dump(&text, []byte("something else entirely")); !errors.Is(err, frame.ErrMagic) {
		t.Errorf("dump of a foreign file: %v", err)
	}
}

func TestHeadRefuses(t *testing.T) {
	good, err := sampleHead().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for i := range good { // every flipped byte
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if _, err := DecodeHead(bad); err == nil {
			t.Fatalf("byte %d flipped: no error", i)
		} else if !errors.Is(err, ErrCorrupt) && !isForeign(err) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	for n := range good {
		if _, err := DecodeHead(good[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	_, body, _, err := frame.Parse(good, magicHead, maxHeadBytes)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"foreign":          {frame.Append(nil, magicState, typeHead, headVersion, 0, body), frame.ErrMagic},
		"newer version":    {frame.Append(nil, magicHead, typeHead, headVersion+1, 0, body), frame.ErrVersion},
		"newer section":    {frame.Append(nil, magicHead, typeHead, headVersion, 0, appendSection(bytes.Clone(body), 9, nil)), frame.ErrVersion},
		"other type":       {frame.Append(nil, magicHead, 9, headVersion, 0, body), ErrCorrupt},
		"trailing":         {append(bytes.Clone(good), 0), ErrCorrupt},
		"section missing":  {frame.Append(nil, magicHead, typeHead, headVersion, 0, nil), ErrCorrupt},
		"section repeated": {frame.Append(nil, magicHead, typeHead, headVersion, 0, append(bytes.Clone(body), body...)), ErrCorrupt},
	} {
		if _, err := DecodeHead(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	optional := frame.Append(nil, magicHead, typeHead, headVersion, 0, appendSection(bytes.Clone(body), sectionOptional, []byte("later")))
	if h, err := DecodeHead(optional); err != nil || !reflect.DeepEqual(h, sampleHead()) {
		t.Errorf("an optional section: %+v, %v", h, err)
	}
	for name, change := range map[string]func(h *Head){
		"no volume": func(h *Head) { h.Volume = 0 }, "no epoch": func(h *Head) { h.Epoch = 0 },
		"size": func(h *Head) { h.Size = MaxSize + 1 }, "sco": func(h *Head) { h.SCO = h.MaxSCO + 1 },
		"gap": func(h *Head) { h.TLogs[1].FirstSeq++ }, "order": func(h *Head) { h.TLogs[1].Number = 11 },
		"end": func(h *Head) { h.Seq++ }, "zero": func(h *Head) { h.TLogs[0].Number = 0 },
		"map": func(h *Head) { h.Map = make([]byte, maxHeadBytes) },
	} {
		h := sampleHead()
		change(h)
		if _, err := h.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func FuzzDecodeHead(f *testing.F) {
	b, err := sampleHead().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(sampleState().encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, reframe(b, magicHead, typeHead), reframe(b, magicState, typeState)} {
			if h, err := DecodeHead(b); err == nil {
				again, err := h.Encode()
				if err != nil {
					t.Fatalf("decoded and not encodable: %v", err)
				}
				if h2, err := DecodeHead(again); err != nil || !reflect.DeepEqual(h, h2) {
					t.Fatalf("%+v became %+v, %v", h, h2, err)
				}
			}
			if s, err := decodeState(b); err == nil {
				if s2, err := decodeState(s.encode()); err != nil || !reflect.DeepEqual(s, s2) {
					t.Fatalf("%+v became %+v, %v", s, s2, err)
				}
			}
		}
	})
}

// reframe puts b into a right frame, so that the fuzzer gets behind the checksum.
func reframe(b []byte, magic uint32, typ uint8) []byte {
	if len(b) >= frame.HeaderSize {
		b = b[frame.HeaderSize:]
	}
	return frame.Append(nil, magic, typ, 1, 0, b)
}

func TestNamesAndSizes(t *testing.T) {
	for _, name := range []string{"a", "Demo-1_x.y", "0", string(bytes.Repeat([]byte("n"), maxNameBytes))} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "-a", ".a", "a b", "a/b", "a@s", "ä", "a\x00", string(bytes.Repeat([]byte("n"), maxNameBytes+1))} {
		if err := CheckName(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for size, ok := range map[uint64]bool{0: false, 1: false, 4096: true, 4097: false, MaxSize: true, MaxSize + 4096: false} {
		if err := CheckSize(size); (err == nil) != ok || !ok && !errors.Is(err, ErrInvalid) {
			t.Errorf("%d: %v", size, err)
		}
	}
}

func TestSCOName(t *testing.T) {
	for n := uint64(1); n <= sco.MaxNumber; n = n*3 + 1 {
		if scoName(n) != sco.Name(n) {
			t.Errorf("%s, want %s", scoName(n), sco.Name(n))
		}
	}
}

func TestStripeMask(t *testing.T) {
	for addr := uint64(0); addr < 64*64*2; addr += 37 {
		for _, n := range []uint64{1, 5, 64, 65, 1000, 4000, 1 << 30} {
			want := uint64(0)
			for r := addr >> regionShift; r <= (addr+n-1)>>regionShift && r < addr>>regionShift+64; r++ {
				want |= 1 << (r & 63)
			}
			if got := stripeMask(addr, n); got != want {
				t.Fatalf("%d+%d: %016x, want %016x", addr, n, got, want)
			}
		}
	}
}
