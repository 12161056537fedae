package codec

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGoldenUnits: units packed by earlier versions open. Compressors may pack otherwise one day,
// so only reading is held fast.
func TestGoldenUnits(t *testing.T) {
	c := newCodec(t)
	plain := random(42, 2*4096+100)
	for name, s := range sealers(t, c) {
		path := filepath.Join("testdata", "unit-v1-"+name+".bin")
		if *update {
			packed, _, err := s.Pack(nil, plain, 2, UnitCompressed)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, packed, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		packed, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(plain))
		if err := s.Unpack(got, packed, 2, 0); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
