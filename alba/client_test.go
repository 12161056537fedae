package alba_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"scoria/alba"
	"scoria/alba/albatest"
	"scoria/alba/osd/osdtest"
	"scoria/internal/blocksum"
	"scoria/metadata"
)

// data returns n bytes that depend on seed; every second KiB compresses well.
func data(seed uint64, n int) []byte {
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	b := make([]byte, n)
	_, _ = rng.Read(b)
	for i := 0; i < n; i += 2048 {
		clear(b[i:min(i+1024, n)])
	}
	return b
}

// put stores one object and waits until its data is released.
func put(t testing.TB, c *alba.Client, ns metadata.NamespaceID, name string, b []byte) {
	t.Helper()
	if err := putErr(t, c, ns, name, b); err != nil {
		t.Fatalf("put %q: %v", name, err)
	}
}

func putErr(t testing.TB, c *alba.Client, ns metadata.NamespaceID, name string, b []byte) error {
	t.Helper()
	var released atomic.Int32
	err := c.Apply(t.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: name, Data: b, Sums: blocksum.Sums(nil, b), Release: func() { released.Add(1) }}}})
	albatest.Eventually(t, "release", func() bool { return released.Load() == 1 })
	return err
}

func read(t testing.TB, c *alba.Client, ns metadata.NamespaceID, name string, off, n int) ([]byte, error) {
	t.Helper()
	b := make([]byte, n)
	return b, c.Read(t.Context(), ns, []alba.Slice{{Name: name, Off: uint64(off), Data: b}})
}

// checkAll reads an object as a whole, and in pieces with and without sums.
func checkAll(t testing.TB, c *alba.Client, ns metadata.NamespaceID, name string, want []byte) {
	t.Helper()
	got, err := c.Get(t.Context(), ns, name, len(want))
	if err != nil {
		t.Fatalf("get %q: %v", name, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("get %q: wrong data", name)
	}
	rng := rand.New(rand.NewPCG(uint64(len(want)), 7))
	sums := blocksum.Sums(nil, want)
	for range 20 {
		if len(want) == 0 {
			break
		}
		off := rng.IntN(len(want))
		n := rng.IntN(min(len(want)-off, 200<<10) + 1)
		got, err := read(t, c, ns, name, off, n)
		if err != nil {
			t.Fatalf("read %q [%d,+%d): %v", name, off, n, err)
		}
		if !bytes.Equal(got, want[off:off+n]) {
			t.Fatalf("read %q [%d,+%d): wrong data", name, off, n)
		}
		first := off / 4096
		last := min(first+1+rng.IntN(40), len(sums))
		b := make([]byte, min(last*4096, len(want))-first*4096)
		s := alba.Slice{Name: name, Off: uint64(first) * 4096, Data: b, Sums: sums[first:last]}
		if err := c.Read(t.Context(), ns, []alba.Slice{s}); err != nil {
			t.Fatalf("read %q blocks [%d,%d): %v", name, first, last, err)
		}
		if !bytes.Equal(b, want[first*4096:first*4096+len(b)]) {
			t.Fatalf("read %q blocks [%d,%d): wrong data", name, first, last)
		}
	}
}

func newFake(i int) *osdtest.Fake {
	f := osdtest.NewFake()
	f.SetUUID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i+1))
	return f
}

var sizes = []int{0, 1, 4095, 4096, 4097, 100_000, 1<<20 - 1, 1 << 20, 1<<20 + 1, 5<<20 + 12345}

func presets() []metadata.Preset {
	var out []metadata.Preset
	for _, comp := range []metadata.Compression{metadata.CompressNone, metadata.CompressS2, metadata.CompressZstd} {
		for _, enc := range []metadata.Encryption{metadata.EncryptNone, metadata.EncryptAES256GCM} {
			p := albatest.Preset()
			p.Compression, p.Encryption = comp, enc
			out = append(out, p)
		}
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	for _, p := range presets() {
		for _, inline := range []uint32{0, 16 << 10} {
			t.Run(fmt.Sprintf("comp%d-enc%d-inline%d", p.Compression, p.Encryption, inline), func(t *testing.T) {
				p.InlineLimit = inline
				cl := albatest.New(t, albatest.Config{Preset: p})
				ns := cl.Namespace("v")
				for i, n := range sizes {
					name := fmt.Sprint("o", n)
					want := data(uint64(i), n)
					put(t, cl.Client, ns, name, want)
					checkAll(t, cl.Client, ns, name, want)
					if m := cl.Manifest(ns, name); (m.Inline != nil) != (n <= int(inline)) {
						t.Errorf("object of %d bytes with inline limit %d: inline is %v", n, inline, m.Inline != nil)
					}
				}
				checkAll(t, cl.NewClient(alba.Options{BlockCacheBytes: -1}), ns, "o1048577", data(8, 1<<20+1))
			})
		}
	}
}

func TestAbsentAndDeleted(t *testing.T) {
	cl := albatest.New(t, albatest.Config{})
	ns := cl.Namespace("v")
	if _, err := read(t, cl.Client, ns, "none", 0, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("read of an absent object: %v", err)
	}
	put(t, cl.Client, ns, "a", data(1, 10000))
	if err := cl.Client.Apply(t.Context(), ns, alba.Txn{Deletes: []string{"a", "b"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, cl.Client, ns, "a", 0, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("read of a deleted object: %v", err)
	}
	if _, err := cl.Client.Get(t.Context(), 99, "a", 1); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("get from an absent namespace: %v", err)
	}
	if _, err := read(t, cl.Client, ns, "a", 0, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestCreateNamespaceIsIdempotent(t *testing.T) {
	cl := albatest.New(t, albatest.Config{})
	a, err := cl.Client.CreateNamespace(t.Context(), "v", "")
	if err != nil {
		t.Fatal(err)
	}
	b, err := cl.Client.CreateNamespace(t.Context(), "v", "default")
	if err != nil || b.ID != a.ID {
		t.Fatalf("again: %d, %v; the first was %d", b.ID, err, a.ID)
	}
	other := albatest.Preset()
	other.Name, other.Default = "other", false
	if err := cl.ABM.CreatePreset(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Client.CreateNamespace(t.Context(), "v", "other"); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("with another preset: %v", err)
	}
	if _, err := cl.Client.CreateNamespace(t.Context(), "w", "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("with an unknown preset: %v", err)
	}
	// A creator that died before the NSM knew: the next one succeeds.
	if _, err := cl.ABM.CreateNamespace(t.Context(), "half", "default"); err != nil {
		t.Fatal(err)
	}
	ns := cl.Namespace("half")
	put(t, cl.Client, ns, "o", data(1, 5000))
	if err := cl.Client.DeleteNamespace(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	if c, err := cl.Client.CreateNamespace(t.Context(), "v", ""); err != nil || c.ID == a.ID {
		t.Fatalf("after deletion: %d, %v", c.ID, err)
	}
}

// TestCloseGivesUpAndReleases: Close with a fragment hanging returns, releases the data, and
// the client refuses work afterwards.
func TestCloseGivesUpAndReleases(t *testing.T) {
	cl := albatest.New(t, albatest.Config{})
	ns := cl.Namespace("v")
	c := cl.NewClient(alba.Options{Slack: time.Millisecond, WriteTimeout: time.Hour})
	cl.OSD(1).SetHang(osdtest.OpApply, true)
	var released atomic.Int32
	want := data(1, 1<<20)
	if err := c.Apply(t.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: "o", Data: want, Release: func() { released.Add(1) }}}}); err != nil {
		t.Fatal(err)
	}
	if released.Load() != 0 {
		t.Fatal("released while a fragment is on its way")
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if released.Load() != 1 {
		t.Fatalf("released %d times", released.Load())
	}
	if err := c.Apply(t.Context(), ns, alba.Txn{Deletes: []string{"o"}}); !errors.Is(err, alba.ErrClosed) {
		t.Fatalf("apply after close: %v", err)
	}
	if _, err := read(t, c, ns, "o", 0, 1); !errors.Is(err, alba.ErrClosed) {
		t.Fatalf("read after close: %v", err)
	}
	checkAll(t, cl.Client, ns, "o", want)
}

// TestHangingDiskGetsNoNewFragments: puts do not pile up behind a disk that hangs.
func TestHangingDiskGetsNoNewFragments(t *testing.T) {
	cl := albatest.New(t, albatest.Config{OSDs: 7, Client: alba.Options{Slack: time.Millisecond, WriteTimeout: time.Second}})
	ns := cl.Namespace("v")
	cl.OSD(2).SetHang(osdtest.OpApply, true)
	albatest.Eventually(t, "a put without the hanging disk", func() bool {
		before := cl.OSD(2).Calls(osdtest.OpApply)
		if err := cl.Client.Apply(t.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: "o", Data: data(1, 100_000)}}}); err != nil {
			t.Fatal(err)
		}
		return before > 0 && cl.OSD(2).Calls(osdtest.OpApply) == before && cl.Manifest(ns, "o").Placed() == 6
	})
}

func TestInvalidRequests(t *testing.T) {
	cl := albatest.New(t, albatest.Config{})
	ns := cl.Namespace("v")
	put(t, cl.Client, ns, "o", data(1, 10_000))
	for name, s := range map[string]alba.Slice{
		"behind the end": {Name: "o", Off: 9_000, Data: make([]byte, 1001)}, "far away": {Name: "o", Off: 1 << 63, Data: make([]byte, 1)},
		"sums off a border": {Name: "o", Off: 1, Data: make([]byte, 4096), Sums: make([]uint32, 1)},
		"too few sums":      {Name: "o", Data: make([]byte, 8192), Sums: make([]uint32, 1)},
	} {
		if err := cl.Client.Read(t.Context(), ns, []alba.Slice{s}); !errors.Is(err, alba.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if cl.Client.TryRead(ns, s) {
			t.Errorf("%s: TryRead gave something", name)
		}
	}
	if _, err := cl.Client.Get(t.Context(), ns, "o", 9_999); !errors.Is(err, alba.ErrInvalid) {
		t.Errorf("get over the limit: %v", err)
	}
	for name, txn := range map[string]alba.Txn{
		"sums": {Puts: []alba.PutObject{{Name: "x", Data: make([]byte, 5000), Sums: []uint32{1}}}},
		"name": {Puts: []alba.PutObject{{Name: "", Data: make([]byte, 1)}}},
		"many": {Puts: make([]alba.PutObject, alba.MaxTxnPuts+1)},
	} {
		if err := cl.Client.Apply(t.Context(), ns, txn); !errors.Is(err, alba.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
