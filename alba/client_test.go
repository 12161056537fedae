package alba_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync/atomic"
	"testing"

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
