package alba

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file in testdata. What lies on disks must still be read by later versions.
func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return want
}

func TestGoldenRecovery(t *testing.T) {
	_, b := recoverySeed(t)
	want := golden(t, "recovery-v1.bin", b)
	if !bytes.Equal(b, want) {
		t.Error("recovery information is encoded differently: that needs a new version")
	}
	r, err := DecodeRecovery(want)
	if err != nil || r.Namespace != 5 || r.Chunk != 1 || r.Chunks != 2 || r.Manifest.Checksum != 9 {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestGoldenKeys(t *testing.T) {
	k := FragmentKey{Namespace: 0x0102030405060708, Chunk: 0x1122, Fragment: 0x33, Version: 0x44556677}
	for i := range k.ObjectID {
		k.ObjectID[i] = byte(0xa0 + i)
	}
	tag := TagKey{Namespace: k.Namespace, Epoch: 0x1112131415161718, ObjectID: k.ObjectID, Version: 9, Nonce: 0xdeadbeef}
	b := append(append(k.Bytes(KeyData), k.Bytes(KeyRecovery)...), tag.Bytes()...)
	b = append(b, tagValue([]part{{1, 2}, {0x1122, 0x33}})...)
	if want := golden(t, "keys-v1.bin", b); !bytes.Equal(b, want) {
		t.Errorf("keys are encoded differently:\n%x\n%x", b, want)
	}
}
