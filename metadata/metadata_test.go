package metadata_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"scoria/internal/frame"
	"scoria/metadata"
	"scoria/metadata/metatest"
)

var update = flag.Bool("update", false, "write the golden files")

// samples are manifests of every shape.
func samples() map[string]metadata.Manifest {
	packed := metatest.Manifest("tlog/7", metatest.ObjectID(9), 4, 2, 2, 1, 2, 3, 4, 5)
	packed.Version, packed.Compression, packed.Encryption, packed.KeyID, packed.UnitSize = 3, metadata.CompressZstd, metadata.EncryptAES256GCM, 7, 1<<18
	for i := range packed.Chunks {
		c := &packed.Chunks[i]
		c.Units, c.Packed, c.FragmentLen = []uint32{100, 2000, 30000, 4}, 32104, 8192
		c.Fragments[1] = metadata.Fragment{OSD: 77, Version: 3, Digest: 5}
	}
	empty := metatest.Inline("empty", metatest.ObjectID(3), "")
	empty.Created = time.Time{}
	return map[string]metadata.Manifest{
		"plain":  metatest.Manifest("sco/00000001", metatest.ObjectID(1), 4, 2, 4, 1, 2, 3, 4, 5, 6),
		"packed": packed,
		"inline": metatest.Inline("volume/head", metatest.ObjectID(2), "some small data"),
		"empty":  empty,
	}
}

func TestManifestRoundTrip(t *testing.T) {
	for name, m := range samples() {
		if err := m.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		b, err := metadata.EncodeManifest(&m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := metadata.DecodeManifest(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(*got, m) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, *got, m)
		}
	}
}

// TestManifestGolden reads files that earlier versions wrote; each must still be read, and
// be written alike by this version.
func TestManifestGolden(t *testing.T) {
	for name, m := range samples() {
		path := filepath.Join("testdata", "manifest-v1-"+name+".bin")
		b, err := metadata.EncodeManifest(&m)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := metadata.DecodeManifest(golden)
		if err != nil || !reflect.DeepEqual(*got, m) {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
		if !bytes.Equal(golden, b) {
			t.Errorf("%s is written differently now: a new version number is needed", path)
		}
	}
}

func TestManifestDamage(t *testing.T) {
	m := samples()["packed"]
	b, err := metadata.EncodeManifest(&m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x10
		if _, err := metadata.DecodeManifest(bad); !errors.Is(err, metadata.ErrCorrupt) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if _, err := metadata.DecodeManifest(b[:i]); !errors.Is(err, metadata.ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	newer := frame.Append(nil, 0x4e414d53, 1, 2, 0, []byte("later"))
	if _, err := metadata.DecodeManifest(newer); !errors.Is(err, metadata.ErrNewerVersion) {
		t.Fatalf("a newer version: %v", err)
	}
	if _, err := metadata.DecodeManifest(append(b, 0)); !errors.Is(err, metadata.ErrCorrupt) {
		t.Fatalf("a byte behind it: %v", err)
	}
}

func TestManifestLimits(t *testing.T) {
	huge := metatest.Manifest("big", metatest.ObjectID(1), 16, 16, 8000)
	if _, err := metadata.EncodeManifest(&huge); !errors.Is(err, metadata.ErrLimit) {
		t.Fatalf("a manifest of over 1 MiB: %v", err)
	}
	short := metatest.Manifest("short", metatest.ObjectID(1), 4, 2, 1)
	short.Chunks[0].Fragments = short.Chunks[0].Fragments[:3]
	if _, err := metadata.EncodeManifest(&short); !errors.Is(err, metadata.ErrInvalid) {
		t.Fatalf("a manifest with missing fragments: %v", err)
	}
}

func FuzzDecodeManifest(f *testing.F) {
	for _, m := range samples() {
		b, err := metadata.EncodeManifest(&m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[frame.HeaderSize:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _ = metadata.DecodeManifest(body) // as it is: must not panic
		b := frame.Append(nil, 0x4e414d53, 1, 1, 0, body)
		m, err := metadata.DecodeManifest(b)
		if err != nil {
			return
		}
		again, err := metadata.EncodeManifest(m)
		if err != nil {
			t.Fatalf("decoded %+v cannot be encoded: %v", m, err)
		}
		same, err := metadata.DecodeManifest(again)
		if err != nil || !reflect.DeepEqual(same, m) {
			t.Fatalf("%+v became %+v, %v", m, same, err)
		}
		if m.Validate() == nil && m.Inline == nil && m.Info().Missing < 0 {
			t.Fatalf("%+v misses fewer than none", m)
		}
	})
}

func TestErrorsKeepTheirKind(t *testing.T) {
	err := fmt.Errorf("outer: %w", metadata.Errorf(metadata.KindFenced, "volume %q", "v"))
	if !errors.Is(err, metadata.ErrFenced) || errors.Is(err, metadata.ErrOwned) || metadata.KindOf(err) != metadata.KindFenced {
		t.Fatalf("kind of %v is %d", err, metadata.KindOf(err))
	}
	if metadata.KindOf(nil) != 0 || metadata.KindOf(os.ErrClosed) != metadata.KindInternal {
		t.Fatal("kinds of nil and of a foreign error")
	}
}

func TestPolicyAndPresetValidation(t *testing.T) {
	for _, p := range []metadata.Policy{{K: 0, M: 1, C: 1, X: 1}, {K: 1, M: -1, C: 1, X: 1}, {K: 30, M: 3, C: 30, X: 1}, {K: 2, M: 1, C: 1, X: 1}, {K: 2, M: 1, C: 4, X: 1}, {K: 2, M: 1, C: 2}} {
		if err := p.Validate(); !errors.Is(err, metadata.ErrInvalid) {
			t.Errorf("policy %v: %v", p, err)
		}
	}
	for name, spoil := range map[string]func(*metadata.Preset){
		"name":        func(p *metadata.Preset) { p.Name = strings.Repeat("x", 129) },
		"policies":    func(p *metadata.Preset) { p.Policies = nil },
		"many":        func(p *metadata.Preset) { p.Policies = make([]metadata.Policy, 17) },
		"chunk":       func(p *metadata.Preset) { p.ChunkSize = 4096 },
		"odd chunk":   func(p *metadata.Preset) { p.ChunkSize++ },
		"inline":      func(p *metadata.Preset) { p.InlineLimit = 64<<10 + 1 },
		"compression": func(p *metadata.Preset) { p.Compression = 0 },
		"encryption":  func(p *metadata.Preset) { p.Encryption = 3 },
	} {
		p := metatest.Preset("p")
		spoil(&p)
		if err := p.Validate(); !errors.Is(err, metadata.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkDecodeManifest(b *testing.B) {
	m := samples()["plain"]
	enc, err := metadata.EncodeManifest(&m)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(len(enc)), "bytes")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := metadata.DecodeManifest(enc); err != nil {
			b.Fatal(err)
		}
	}
}
