package dump

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scoria/metadata/abm"
	abmstate "scoria/metadata/abm/state"
	"scoria/metadata/metatest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// root is the repository's.
const root = "../../../../"

// goldens are the durable formats' own golden files, and scoria.json.
var goldens = map[string]string{
	"head":        root + "volumedriver/testdata/head.v1",
	"state":       root + "volumedriver/testdata/state.v1",
	"map-pack":    root + "volumedriver/clustermap/testdata/v1.pack1",
	"map-record":  root + "volumedriver/clustermap/testdata/v1.record",
	"tlog":        root + "volumedriver/tlog/testdata/v1.tlog",
	"segment":     root + "volumedriver/writebuffer/testdata/v1.segment",
	"osd-id":      root + "alba/osd/testdata/identity",
	"osd-segment": root + "alba/osd/testdata/seg-00000003",
	"data-dir":    "testdata/scoria.json",
}

func TestGolden(t *testing.T) {
	for name, file := range goldens {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			kind, err := File(&got, file)
			if err != nil {
				t.Fatal(err)
			}
			if kind == "" {
				t.Error("no kind")
			}
			golden := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("dump of %s is\n%s\nwant\n%s", file, &got, want)
			}
		})
	}
}

// damaged writes a changed copy of a golden file under the name that its decoder expects.
func damaged(t testing.TB, file string, change func([]byte) []byte) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), filepath.Base(file))
	if err := os.WriteFile(name, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestDamaged(t *testing.T) {
	// In a log, what is damaged behind the file's header ends the log: that is told in the text.
	log := map[string]bool{"segment": true, "osd-segment": true}
	unsummed := map[string]bool{"data-dir": true, "map-pack": true} // a pack's pages have their sums elsewhere
	for name, file := range goldens {
		t.Run(name, func(t *testing.T) {
			for what, change := range map[string]func([]byte) []byte{
				"header flipped": func(b []byte) []byte { b[9] ^= 0x40; return b },
				"cut in header":  func(b []byte) []byte { return b[:10] },
				"magic only":     func(b []byte) []byte { return b[:4] },
				"middle flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
				"end cut off":    func(b []byte) []byte { return b[:len(b)-3] },
			} {
				if log[name] && (what == "middle flipped" || what == "end cut off") || unsummed[name] && what == "middle flipped" {
					continue
				}
				_, err := File(io.Discard, damaged(t, file, change))
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("%s: %v, want %v", what, err, ErrDamaged)
				}
			}
		})
	}
}

// TestNewer: a version this build does not know is told apart from damage.
func TestNewer(t *testing.T) {
	for _, name := range []string{"data-dir"} {
		file := damaged(t, goldens[name], func(b []byte) []byte { return bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 2`), 1) })
		if _, err := File(io.Discard, file); !errors.Is(err, ErrNewer) || errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want %v", name, err, ErrNewer)
		}
	}
}

func TestUnknown(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[string]error{
		"notes.txt": ErrUnknown, "empty": ErrUnknown, "seg-00000001": ErrDamaged, "NODE": ErrDamaged, "state.db": ErrDamaged, "identity": ErrDamaged, "scoria.json": ErrDamaged,
	} {
		text := "some notes of somebody, of no format at all"
		if name == "empty" {
			text = ""
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := File(io.Discard, filepath.Join(dir, name)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if _, err := File(io.Discard, dir); !errors.Is(err, ErrUnknown) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := File(io.Discard, filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent file: %v", err)
	}
}

// TestMetadata dumps a node's files while it runs (refused: locked) and after.
func TestMetadata(t *testing.T) {
	dir := t.TempDir()
	n := metatest.Solo(t, dir, abmstate.Machine{})
	if err := abm.NewService(n).CreatePreset(t.Context(), metatest.Preset("findme")); err != nil {
		t.Fatal(err)
	}
	if err := n.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := File(io.Discard, filepath.Join(dir, "state.db")); !errors.Is(err, ErrBusy) {
		t.Errorf("state.db of a running node: %v, want %v", err, ErrBusy)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	snapshots, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	if err != nil || len(snapshots) != 1 {
		t.Fatal(snapshots, err)
	}
	for file, text := range map[string]string{filepath.Join(dir, "NODE"): "abm", filepath.Join(dir, "raft.db"): "findme", filepath.Join(dir, "state.db"): "findme", snapshots[0]: "findme"} {
		var out strings.Builder
		kind, err := File(&out, file)
		if err != nil || !strings.Contains(out.String(), text) || !strings.HasPrefix(kind, "metadata") {
			t.Errorf("%s: %q, %v\n%s", file, kind, err, out.String())
		}
	}
	if err := os.Rename(filepath.Join(dir, "state.db"), filepath.Join(dir, "mine.db")); err != nil {
		t.Fatal(err)
	}
	if _, err := File(io.Discard, filepath.Join(dir, "mine.db")); !errors.Is(err, ErrUnknown) {
		t.Errorf("a database of another name: %v", err)
	}
}

// FuzzFile: whatever the bytes, a dump ends without a panic, and an error is one of ours.
func FuzzFile(f *testing.F) {
	names := []string{"seg-00000003", "identity", "state", "head", "NODE", "state.bin", "scoria.json"}
	for _, file := range goldens {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for i := range names {
			f.Add(uint8(i), b[:min(len(b), 4096)])
			f.Add(uint8(i), append(b[:min(len(b), 4096):min(len(b), 4096)], make([]byte, 4096)...)) // longer than some may be
		}
	}
	f.Fuzz(func(t *testing.T, name uint8, b []byte) {
		file := filepath.Join(t.TempDir(), names[int(name)%len(names)])
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := File(io.Discard, file)
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNewer) {
			t.Errorf("untyped error: %v", err)
		}
	})
}
