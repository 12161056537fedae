package osdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"scoria/alba/osd"
	"scoria/internal/blocksum"
)

// Run checks that what open returns behaves as osd.API says. open returns a new, empty,
// unclaimed OSD each time and leaves its closing to t.Cleanup or to the suite (Close is idempotent).
func Run(t *testing.T, open func(t *testing.T) osd.API) {
	for _, c := range []struct {
		name string
		fn   func(t *testing.T, a osd.API)
	}{
		{"PutRead", testPutRead},
		{"PartialReads", testPartialReads},
		{"Missing", testMissing},
		{"Asserts", testAsserts},
		{"LastCounts", testLastCounts},
		{"WrongSums", testWrongSums},
		{"Limits", testLimits},
		{"List", testList},
		{"DeleteRange", testDeleteRange},
		{"Verify", testVerify},
		{"Claim", testClaim},
		{"Info", testInfo},
		{"Context", testContext},
		{"Concurrent", testConcurrent},
		{"Model", testModel},
		{"Closed", testClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := open(t)
			t.Cleanup(func() {
				if err := a.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			c.fn(t, a)
		})
	}
}

// Fill returns n bytes that depend on seed.
func Fill(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24), 1})
	r.Read(b) //nolint:errcheck // it does not fail
	return b
}

func put(t *testing.T, a osd.API, key string, value []byte) {
	t.Helper()
	if err := a.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: []byte(key), Value: value}}}); err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
}

// get reads a whole value.
func get(t *testing.T, a osd.API, key string) ([]byte, error) {
	t.Helper()
	stat := []osd.Read{{Key: []byte(key)}}
	if err := a.Read(t.Context(), stat); err != nil {
		t.Fatalf("stat %q: %v", key, err)
	}
	if stat[0].Err != nil {
		return nil, stat[0].Err
	}
	r := []osd.Read{{Key: []byte(key), Buf: make([]byte, stat[0].Size)}}
	if err := a.Read(t.Context(), r); err != nil {
		t.Fatalf("read %q: %v", key, err)
	}
	return r[0].Buf, r[0].Err
}

func want(t *testing.T, a osd.API, key string, value []byte) {
	t.Helper()
	v, err := get(t, a, key)
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	if !bytes.Equal(v, value) {
		t.Fatalf("get %q: wrong content (%d bytes, want %d)", key, len(v), len(value))
	}
}

func wantMissing(t *testing.T, a osd.API, key string) {
	t.Helper()
	if _, err := get(t, a, key); !errors.Is(err, osd.ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("get %q: %v, want ErrNotFound", key, err)
	}
}

var sizes = []int{0, 1, 100, 2048, 2049, 4095, 4096, 4097, 8192, 65536, 100_000, 1 << 20}

func testPutRead(t *testing.T, a osd.API) {
	for i, n := range sizes {
		put(t, a, fmt.Sprint("k", n), Fill(uint64(i), n))
	}
	for i, n := range sizes {
		want(t, a, fmt.Sprint("k", n), Fill(uint64(i), n))
	}
	// Unaligned memory, sums of the caller, replacing values of other sizes.
	raw := Fill(99, 70_000)
	v := raw[3:]
	err := a.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: []byte("k1"), Value: v, Sums: blocksum.Sums(nil, v)}}})
	if err != nil {
		t.Fatal(err)
	}
	want(t, a, "k1", v)
	put(t, a, "k1", []byte("short"))
	want(t, a, "k1", []byte("short"))
	for i := range raw {
		raw[i] = 0 // the batch's memory is the caller's again
	}
	want(t, a, "k65536", Fill(9, 65536))
}

func testPartialReads(t *testing.T, a osd.API) {
	const size = 10*osd.BlockSize + 123
	v := Fill(7, size)
	put(t, a, "v", v)
	sums := blocksum.Sums(nil, v)
	scratch := make([]uint32, 0, 16)
	for first := 0; first <= 10; first++ {
		for last := first; last <= 11; last++ {
			from, to := first*osd.BlockSize, min(last*osd.BlockSize, size)
			reads := []osd.Read{{Key: []byte("v"), Off: uint64(from), Buf: make([]byte, max(0, to-from)), Sums: scratch}}
			if err := a.Read(t.Context(), reads); err != nil || reads[0].Err != nil {
				t.Fatalf("read %d..%d: %v %v", from, to, err, reads[0].Err)
			}
			r := reads[0]
			if r.Size != size || !bytes.Equal(r.Buf, v[from:to]) || !slices.Equal(r.Sums, sums[first:last]) {
				t.Fatalf("read %d..%d: wrong result (size %d, %d sums)", from, to, r.Size, len(r.Sums))
			}
		}
	}
	bad := []osd.Read{
		{Key: []byte("v"), Off: 1, Buf: make([]byte, 10)},
		{Key: []byte("v"), Off: 0, Buf: make([]byte, 100)},
		{Key: []byte("v"), Off: 0, Buf: make([]byte, size+1)},
		{Key: []byte("v"), Off: 11 * osd.BlockSize, Buf: make([]byte, osd.BlockSize)},
		{Key: []byte("v"), Off: 1 << 63, Buf: make([]byte, osd.BlockSize)},
		{Key: nil, Buf: make([]byte, 1)},
		{Key: []byte("v"), Buf: make([]byte, osd.BlockSize)},
	}
	if err := a.Read(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	for i, r := range bad[:len(bad)-1] {
		if !errors.Is(r.Err, osd.ErrInvalid) {
			t.Errorf("bad read %d: %v, want ErrInvalid", i, r.Err)
		}
	}
	if r := bad[len(bad)-1]; r.Err != nil || !bytes.Equal(r.Buf, v[:osd.BlockSize]) {
		t.Errorf("a good read among bad ones: %v", r.Err)
	}
}

func testMissing(t *testing.T, a osd.API) {
	wantMissing(t, a, "nobody")
	put(t, a, "x", Fill(1, 5000))
	err := a.Apply(t.Context(), &osd.Batch{Deletes: [][]byte{[]byte("x"), []byte("never was")}})
	if err != nil {
		t.Fatal(err)
	}
	wantMissing(t, a, "x")
}

func testAsserts(t *testing.T, a osd.API) {
	ctx := t.Context()
	small, large := []byte("v1"), Fill(3, 9000)
	apply := func(b osd.Batch, wantErr error) {
		t.Helper()
		if err := a.Apply(ctx, &b); !errors.Is(err, wantErr) || (wantErr == nil && err != nil) {
			t.Fatalf("apply: %v, want %v", err, wantErr)
		}
	}
	absent := osd.Assert{Key: []byte("k")}
	is := func(v []byte) osd.Assert { return osd.Assert{Key: []byte("k"), Exists: true, Value: v} }
	set := func(v []byte) []osd.Put { return []osd.Put{{Key: []byte("k"), Value: v}} }
	apply(osd.Batch{Asserts: []osd.Assert{is(small)}, Puts: set(large)}, osd.ErrAssertFailed)
	wantMissing(t, a, "k")
	apply(osd.Batch{Asserts: []osd.Assert{absent}, Puts: set(small)}, nil)
	apply(osd.Batch{Asserts: []osd.Assert{absent}, Puts: set(large)}, osd.ErrAssertFailed)
	want(t, a, "k", small)
	apply(osd.Batch{Asserts: []osd.Assert{is([]byte("v2"))}, Puts: set(large)}, osd.ErrAssertFailed)
	apply(osd.Batch{Asserts: []osd.Assert{is(small)}, Puts: set(large)}, nil)
	apply(osd.Batch{Asserts: []osd.Assert{is(large)}}, nil)
	apply(osd.Batch{Asserts: []osd.Assert{is(Fill(4, 9000))}}, osd.ErrAssertFailed)
	apply(osd.Batch{Asserts: []osd.Assert{is(large)}, Deletes: [][]byte{[]byte("k")}}, nil)
	apply(osd.Batch{Asserts: []osd.Assert{absent}}, nil)
	// All or nothing.
	put(t, a, "other", small)
	apply(osd.Batch{
		Asserts: []osd.Assert{absent, {Key: []byte("other")}},
		Puts:    set(small), Deletes: [][]byte{[]byte("other")},
	}, osd.ErrAssertFailed)
	wantMissing(t, a, "k")
	want(t, a, "other", small)
}

func testLastCounts(t *testing.T, a osd.API) {
	k := []byte("k")
	before := info(t, a)
	err := a.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: k, Value: Fill(1, 5000)}, {Key: k, Value: Fill(2, 6000)}}})
	if err != nil {
		t.Fatal(err)
	}
	want(t, a, "k", Fill(2, 6000))
	if n := info(t, a).Keys - before.Keys; n != 1 {
		t.Errorf("%d keys more, want 1", n)
	}
	err = a.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: k, Value: Fill(1, 5000)}}, Deletes: [][]byte{k}})
	if err != nil {
		t.Fatal(err)
	}
	wantMissing(t, a, "k")
	if n := info(t, a).Keys - before.Keys; n != 0 {
		t.Errorf("%d keys more, want 0", n)
	}
}

// testWrongSums: data that does not fit its sums is refused, or found when it is read. It is never returned.
func testWrongSums(t *testing.T, a osd.API) {
	for _, n := range []int{100, 9000} {
		v := Fill(5, n)
		sums := blocksum.Sums(nil, v)
		sums[len(sums)-1]++
		key := fmt.Sprint("k", n)
		err := a.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: []byte(key), Value: v, Sums: sums}}})
		if err != nil {
			if !errors.Is(err, osd.ErrCorrupt) {
				t.Fatalf("put with wrong sums: %v", err)
			}
			wantMissing(t, a, key)
			continue
		}
		if _, err := get(t, a, key); !errors.Is(err, osd.ErrCorrupt) {
			t.Fatalf("get with wrong sums: %v, want ErrCorrupt", err)
		}
	}
}

func testLimits(t *testing.T, a osd.API) {
	ctx := t.Context()
	for name, b := range map[string]osd.Batch{
		"no key":        {Puts: []osd.Put{{Value: []byte("v")}}},
		"long key":      {Puts: []osd.Put{{Key: make([]byte, osd.MaxKey+1)}}},
		"long delete":   {Deletes: [][]byte{make([]byte, osd.MaxKey+1)}},
		"empty assert":  {Asserts: []osd.Assert{{}}},
		"too many":      {Deletes: slices.Repeat([][]byte{[]byte("k")}, osd.MaxBatchOps+1)},
		"value":         {Puts: []osd.Put{{Key: []byte("k"), Value: make([]byte, osd.MaxValue+1)}}},
		"sums":          {Puts: []osd.Put{{Key: []byte("k"), Value: make([]byte, 5000), Sums: []uint32{1}}}},
		"sums of empty": {Puts: []osd.Put{{Key: []byte("k"), Sums: []uint32{1}}}},
	} {
		if err := a.Apply(ctx, &b); !errors.Is(err, osd.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if err := a.Read(ctx, make([]osd.Read, osd.MaxReadOps+1)); !errors.Is(err, osd.ErrInvalid) {
		t.Errorf("many reads: %v", err)
	}
	for _, n := range []int{0, -1, osd.MaxList + 1} {
		if _, err := a.List(ctx, nil, nil, n); !errors.Is(err, osd.ErrInvalid) {
			t.Errorf("list of %d: %v", n, err)
		}
	}
	if err := a.Apply(ctx, &osd.Batch{}); err != nil {
		t.Errorf("empty batch: %v", err)
	}
	key := string(bytes.Repeat([]byte{255}, osd.MaxKey))
	put(t, a, key, []byte("longest and last key"))
	want(t, a, key, []byte("longest and last key"))
	var many osd.Batch
	for i := range osd.MaxBatchOps {
		many.Puts = append(many.Puts, osd.Put{Key: fmt.Appendf(nil, "many%d", i), Value: []byte{1}})
	}
	if err := a.Apply(ctx, &many); err != nil {
		t.Errorf("full batch: %v", err)
	}
	big := Fill(1, 8<<20)
	put(t, a, "big", big)
	want(t, a, "big", big)
}

func testList(t *testing.T, a osd.API) {
	ctx := t.Context()
	var b osd.Batch
	for i := range 2500 {
		b.Puts = append(b.Puts, osd.Put{Key: fmt.Appendf(nil, "k%04d", i), Value: make([]byte, i%3*1500)})
	}
	if err := a.Apply(ctx, &b); err != nil {
		t.Fatal(err)
	}
	var from []byte
	i := 0
	for {
		items, err := a.List(ctx, from, nil, 999)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			if string(it.Key) != fmt.Sprintf("k%04d", i) || it.Size != uint64(i%3*1500) {
				t.Fatalf("item %d: %q %d", i, it.Key, it.Size)
			}
			i++
		}
		if len(items) < 999 {
			break
		}
		from = append(items[len(items)-1].Key, 0)
	}
	if i != 2500 {
		t.Fatalf("%d items", i)
	}
	for _, c := range []struct {
		from, to string
		n        int
	}{{"k0010", "k0020", 10}, {"k0010", "k0010", 0}, {"k0020", "k0010", 0}, {"k2499", "", 0}, {"z", "zz", 0}} {
		items, err := a.List(ctx, []byte(c.from), []byte(c.to), 100)
		if err != nil || len(items) != c.n {
			t.Errorf("list %q..%q: %d items, %v", c.from, c.to, len(items), err)
		}
	}
}

func testDeleteRange(t *testing.T, a osd.API) {
	ctx := t.Context()
	var b osd.Batch
	for i := range 2500 {
		b.Puts = append(b.Puts, osd.Put{Key: fmt.Appendf(nil, "k%04d", i), Value: make([]byte, i%3*1500)})
	}
	if err := a.Apply(ctx, &b); err != nil {
		t.Fatal(err)
	}
	if err := a.DeleteRange(ctx, []byte("k0100"), []byte("k2400")); err != nil {
		t.Fatal(err)
	}
	items, err := a.List(ctx, nil, nil, 1000)
	if err != nil || len(items) != 200 || string(items[100].Key) != "k2400" {
		t.Fatalf("%d items left, %v", len(items), err)
	}
	if n := info(t, a).Keys; n != 200 {
		t.Errorf("info tells %d keys", n)
	}
	if err := a.DeleteRange(ctx, nil, nil); err != nil {
		t.Fatal(err)
	}
	if items, err := a.List(ctx, nil, nil, 1000); err != nil || len(items) != 0 {
		t.Fatalf("%d items left, %v", len(items), err)
	}
}

func testVerify(t *testing.T, a osd.API) {
	total := uint64(0)
	for i := range 50 {
		n := i * 4000
		put(t, a, fmt.Sprintf("k%02d", i), Fill(uint64(i), n))
		total += uint64(n)
	}
	var from []byte
	sum := uint64(0)
	for {
		bad, checked, next, err := a.Verify(t.Context(), from, nil)
		if err != nil || len(bad) != 0 {
			t.Fatalf("verify: %v %v", bad, err)
		}
		sum += checked
		if next == nil {
			break
		}
		from = next
	}
	if sum != total {
		t.Errorf("checked %d bytes of %d", sum, total)
	}
	if _, checked, _, err := a.Verify(t.Context(), []byte("k01"), []byte("k03")); err != nil || checked != 12000 {
		t.Errorf("a part: %d bytes, %v", checked, err)
	}
}

func testClaim(t *testing.T, a osd.API) {
	ctx := t.Context()
	for range 2 {
		if err := a.Claim(ctx, "backend", 7); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Claim(ctx, "backend", 8); !errors.Is(err, osd.ErrWrongOSD) {
		t.Errorf("other id: %v", err)
	}
	if err := a.Claim(ctx, "thief", 7); !errors.Is(err, osd.ErrWrongOSD) {
		t.Errorf("other backend: %v", err)
	}
	if err := a.Claim(ctx, "", 7); !errors.Is(err, osd.ErrInvalid) {
		t.Errorf("no backend: %v", err)
	}
	if in := info(t, a); in.Backend != "backend" || in.ID != 7 {
		t.Errorf("info: %+v", in)
	}
}

func info(t *testing.T, a osd.API) osd.Info {
	t.Helper()
	in, err := a.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func testInfo(t *testing.T, a osd.API) {
	before := info(t, a)
	if before.UUID == "" || before.Capacity == 0 || before.Failed != "" || before.Full {
		t.Fatalf("info of a new one: %+v", before)
	}
	put(t, a, "k", Fill(1, 100_000))
	want(t, a, "k", Fill(1, 100_000))
	after := info(t, a)
	if after.Keys != before.Keys+1 || after.Used < before.Used+100_000 || after.Used > before.Used+200_000 {
		t.Errorf("info: %+v, before %+v", after, before)
	}
	if st := after.Stats; st.Puts != 1 || st.Applies != 1 || st.BytesWritten != 100_000 || st.BytesRead != 100_000 || st.ReadBlocks != 25 {
		t.Errorf("stats: %+v", st)
	}
}

func testContext(t *testing.T, a osd.API) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Apply(ctx, &osd.Batch{Puts: []osd.Put{{Key: []byte("k")}}}); !errors.Is(err, context.Canceled) {
		t.Errorf("apply: %v", err)
	}
	if err := a.Read(ctx, []osd.Read{{Key: []byte("k")}}); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	if _, err := a.List(ctx, nil, nil, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("list: %v", err)
	}
	if _, err := a.Info(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("info: %v", err)
	}
}

// testConcurrent counts with conditional batches from many goroutines: no increment may be lost or doubled.
func testConcurrent(t *testing.T, a osd.API) {
	const workers, rounds = 8, 25
	put(t, a, "n", []byte("0"))
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			own := Fill(uint64(w), 10_000)
			for range rounds {
				for {
					stat := []osd.Read{{Key: []byte("n")}}
					if err := a.Read(t.Context(), stat); err != nil || stat[0].Err != nil {
						t.Errorf("read: %v %v", err, stat[0].Err)
						return
					}
					r := []osd.Read{{Key: []byte("n"), Buf: make([]byte, stat[0].Size)}}
					if err := a.Read(t.Context(), r); err != nil {
						t.Errorf("read: %v", err)
						return
					}
					if errors.Is(r[0].Err, osd.ErrInvalid) {
						continue // it grew a digit meanwhile
					}
					var n int
					if _, err := fmt.Sscan(string(r[0].Buf), &n); err != nil {
						t.Errorf("counter %q: %v", r[0].Buf, err)
						return
					}
					err := a.Apply(t.Context(), &osd.Batch{
						Asserts: []osd.Assert{{Key: []byte("n"), Exists: true, Value: r[0].Buf}},
						Puts: []osd.Put{
							{Key: []byte("n"), Value: fmt.Append(nil, n+1)},
							{Key: fmt.Appendf(nil, "w%d", w), Value: own},
						},
						Background: w%2 == 1,
					})
					if err == nil {
						break
					}
					if !errors.Is(err, osd.ErrAssertFailed) {
						t.Errorf("apply: %v", err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	want(t, a, "n", fmt.Append(nil, workers*rounds))
	for w := range workers {
		want(t, a, fmt.Sprintf("w%d", w), Fill(uint64(w), 10_000))
	}
}

// testModel runs random batches against a map.
func testModel(t *testing.T, a osd.API) {
	r := rand.New(rand.NewPCG(1, 2))
	model := map[string][]byte{}
	for step := range 300 {
		var b osd.Batch
		next := map[string][]byte{}
		for range r.IntN(4) {
			k := fmt.Sprint("k", r.IntN(40))
			v := Fill(uint64(step), sizes[r.IntN(len(sizes)-1)])
			b.Puts = append(b.Puts, osd.Put{Key: []byte(k), Value: v})
			next[k] = v
		}
		for range r.IntN(3) {
			k := fmt.Sprint("k", r.IntN(40))
			b.Deletes = append(b.Deletes, []byte(k))
			next[k] = nil
		}
		if err := a.Apply(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		for k, v := range next {
			if model[k] = v; v == nil {
				delete(model, k)
			}
		}
		k := fmt.Sprint("k", r.IntN(40))
		if v, ok := model[k]; ok {
			want(t, a, k, v)
		} else {
			wantMissing(t, a, k)
		}
	}
	items, err := a.List(t.Context(), nil, nil, 1000)
	if err != nil || len(items) != len(model) {
		t.Fatalf("%d keys, model has %d: %v", len(items), len(model), err)
	}
	for k, v := range model {
		want(t, a, k, v)
	}
	if n := info(t, a).Keys; n != uint64(len(model)) {
		t.Errorf("info tells %d keys, there are %d", n, len(model))
	}
}

func testClosed(t *testing.T, a osd.API) {
	for range 2 {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Apply(t.Context(), &osd.Batch{}); !errors.Is(err, osd.ErrUnavailable) {
		t.Errorf("apply: %v", err)
	}
	if err := a.Read(t.Context(), make([]osd.Read, 1)); !errors.Is(err, osd.ErrUnavailable) {
		t.Errorf("read: %v", err)
	}
	if _, err := a.Info(t.Context()); !errors.Is(err, osd.ErrUnavailable) {
		t.Errorf("info: %v", err)
	}
}
