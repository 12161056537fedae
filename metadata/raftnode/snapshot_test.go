package raftnode

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"scoria/metadata"
)

var update = flag.Bool("update", false, "write the golden files")

// sampleSnapshot streams a state of a few pairs.
func sampleSnapshot(t testing.TB) []byte {
	t.Helper()
	db, err := openBolt(filepath.Join(t.TempDir(), "db"), stateOptions())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var out bytes.Buffer
	err = db.Update(func(tx *bbolt.Tx) error {
		if err := initState(tx, "kv"); err != nil {
			return err
		}
		for i := range 5 {
			if err := tx.Bucket(bucketKV).Put(fmt.Append(nil, "key", i), bytes.Repeat([]byte{byte(i)}, i)); err != nil {
				return err
			}
		}
		if err := putApplied(tx, 77); err != nil {
			return err
		}
		return writeSnapshot(&out, tx, "kv")
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func readAll(r io.Reader) (kind string, applied uint64, pairs map[string]string, err error) {
	s, err := newSnapshotReader(r)
	if err != nil {
		return "", 0, nil, err
	}
	pairs = make(map[string]string)
	for err == nil {
		err = s.page(func(k, v []byte) error { pairs[string(k)] = string(v); return nil })
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return s.Kind, s.Applied, pairs, err
}

func TestGoldenFiles(t *testing.T) {
	node := nodeInfo{Kind: "nsm", ID: "node-1", Created: time.Unix(1700000000, 1).UTC()}
	golden := func(name string, now []byte) []byte {
		t.Helper()
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, now, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, now) {
			t.Errorf("%s is written differently now: a new version number is needed", path)
		}
		return b
	}
	got, err := decodeNode(golden("node-v1.bin", encodeNode(node)))
	if err != nil || got != node {
		t.Errorf("node file: %+v, %v", got, err)
	}
	kind, applied, pairs, err := readAll(bytes.NewReader(golden("snapshot-v1.bin", sampleSnapshot(t))))
	if err != nil || kind != "kv" || applied != 77 || len(pairs) != 5 || pairs["key3"] != "\x03\x03\x03" {
		t.Errorf("snapshot: %s %d %q, %v", kind, applied, pairs, err)
	}
}

func TestSnapshotDamage(t *testing.T) {
	b := sampleSnapshot(t)
	for i := range b {
		if _, _, _, err := readAll(bytes.NewReader(b[:i])); !errors.Is(err, metadata.ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
		bad := bytes.Clone(b)
		bad[i] ^= 4
		if _, _, _, err := readAll(bytes.NewReader(bad)); !errors.Is(err, metadata.ErrCorrupt) && !errors.Is(err, ErrNewer) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	path := filepath.Join(t.TempDir(), "state")
	if err := restoreInto(path, "other", bytes.NewReader(b)); !errors.Is(err, ErrForeign) {
		t.Fatalf("restore of another kind: %v", err)
	}
	if err := restoreInto(path, "kv", bytes.NewReader(b[:len(b)-1])); !errors.Is(err, metadata.ErrCorrupt) {
		t.Fatalf("restore of a part: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a failed restore leaves its file: %v", err)
	}
}

func FuzzSnapshot(f *testing.F) {
	f.Add(sampleSnapshot(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, _, err := readAll(bytes.NewReader(b)); err != nil && !errors.Is(err, metadata.ErrCorrupt) && !errors.Is(err, ErrNewer) {
			t.Fatalf("unmarked error: %v", err)
		}
		if _, err := decodeNode(b); err != nil && !errors.Is(err, metadata.ErrCorrupt) && !errors.Is(err, ErrNewer) && !errors.Is(err, ErrForeign) {
			t.Fatalf("unmarked error: %v", err)
		}
	})
}
