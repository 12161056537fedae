package codec

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"unsafe"

	"scoria/internal/blocksum"
	"scoria/metadata"
)

func newCodec(t testing.TB) *Codec {
	t.Helper()
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	for i := 0; i < n; i += 3000 { // half of it compresses
		clear(b[i:min(i+1500, n)])
	}
	return b
}

func TestObjectSumEqualsPlainCRC(t *testing.T) {
	c := newCodec(t)
	for _, n := range []int{0, 1, 4095, 4096, 4097, 3*4096 + 5, 1 << 20} {
		b := random(uint64(n), n)
		if got, want := c.ObjectSum(b, blocksum.Sums(nil, b)), blocksum.Of(b); got != want {
			t.Errorf("%d bytes: %08x, want %08x", n, got, want)
		}
	}
}

// TestEncodeAndLoseAny loses every set of up to m fragments and rebuilds exactly them.
func TestEncodeAndLoseAny(t *testing.T) {
	c := newCodec(t)
	for _, p := range []metadata.Policy{{K: 1}, {K: 1, M: 2}, {K: 2, M: 1}, {K: 4, M: 2}, {K: 5, M: 3}} {
		for _, n := range []int{1, 4095, 4096, 4097, 40_000, 300_000} {
			plain := random(uint64(n), n)
			e, err := c.Encode(plain, blocksum.Sums(nil, plain), 0, 0, nil, p)
			if err != nil {
				t.Fatal(err)
			}
			if packed := bytes.Join(e.Values[:p.K], nil); !bytes.Equal(packed[:n], plain) || bytes.ContainsFunc(packed[n:], func(r rune) bool { return r != 0 }) {
				t.Fatalf("%v, %d bytes: data fragments are not the padded data", p, n)
			}
			for i, v := range e.Values {
				if uint32(len(v)) != e.Chunk.FragmentLen || !equalSums(e.Sums[i], blocksum.Sums(nil, v)) || Digest(e.Sums[i]) != e.Chunk.Fragments[i].Digest {
					t.Fatalf("%v, %d bytes: fragment %d: length, sums or digest", p, n, i)
				}
			}
			for mask := range 1 << (p.K + p.M) {
				lose(t, c, p, e.Values, mask)
			}
			e.Free()
		}
	}
}

func equalSums(a, b []uint32) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

func lose(t *testing.T, c *Codec, p metadata.Policy, values [][]byte, mask int) {
	t.Helper()
	shards, want, lost := make([][]byte, len(values)), make([]bool, len(values)), 0
	for i := range values {
		if mask>>i&1 == 1 {
			want[i] = true
			shards[i] = make([]byte, 0, len(values[i]))
			lost++
		} else {
			shards[i] = values[i]
		}
	}
	err := c.Reconstruct(p.K, p.M, shards, want)
	if lost > p.M {
		if !errors.Is(err, ErrTooFew) {
			t.Fatalf("%v without %b: %v", p, mask, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("%v without %b: %v", p, mask, err)
	}
	for i := range values {
		if !bytes.Equal(shards[i], values[i]) {
			t.Fatalf("%v without %b: fragment %d is wrong", p, mask, i)
		}
	}
}

func TestDataFragmentsAreNotCopied(t *testing.T) {
	c := newCodec(t)
	plain := random(1, 1<<20)
	e, err := c.Encode(plain, blocksum.Sums(nil, plain), 0, 0, nil, metadata.Policy{K: 4, M: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Free()
	for i := range 4 {
		if &e.Values[i][0] != &plain[i<<18] {
			t.Errorf("data fragment %d is a copy", i)
		}
	}
	for i := 4; i < 6; i++ {
		if uintptr(unsafe.Pointer(&e.Values[i][0]))%BlockSize != 0 {
			t.Errorf("parity fragment %d is not aligned", i)
		}
	}
}

func sealers(t testing.TB, c *Codec) map[string]*Sealer {
	t.Helper()
	out := map[string]*Sealer{}
	for _, comp := range []metadata.Compression{metadata.CompressNone, metadata.CompressS2, metadata.CompressZstd} {
		for _, enc := range []metadata.Encryption{metadata.EncryptNone, metadata.EncryptAES256GCM} {
			s, err := c.Sealer(metadata.ObjectID{1}, comp, enc, bytes.Repeat([]byte{7}, KeySize))
			if err != nil {
				t.Fatal(err)
			}
			out[fmt.Sprintf("comp%d-enc%d", comp, enc)] = s
		}
	}
	return out
}

func TestPackUnits(t *testing.T) {
	c := newCodec(t)
	const unit = 16 << 10
	for name, s := range sealers(t, c) {
		for _, n := range []int{1, unit - 1, unit, unit + 1, 5*unit + 77} {
			plain := random(uint64(n), n)
			packed, units, err := s.Pack(nil, plain, 3, unit)
			if err != nil || len(units) != Units(uint32(n), unit) {
				t.Fatalf("%s: %d units, %v", name, len(units), err)
			}
			at := 0
			for i, u := range units {
				want := plain[i*unit : min((i+1)*unit, n)]
				got := make([]byte, len(want))
				if err := s.Unpack(got, bytes.Clone(packed[at:at+int(u)]), 3, i); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%s: unit %d of %d bytes: %v", name, i, n, err)
				}
				at += int(u)
			}
		}
	}
}

// TestSealedUnitsOpenOnlyAtHome: another place, another object, another length, a flipped bit.
func TestSealedUnitsOpenOnlyAtHome(t *testing.T) {
	c := newCodec(t)
	key := bytes.Repeat([]byte{7}, KeySize)
	seal := func(id byte, key []byte) *Sealer {
		s, err := c.Sealer(metadata.ObjectID{id}, metadata.CompressNone, metadata.EncryptAES256GCM, key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := seal(1, key)
	plain := random(1, 4096)
	packed, _, err := s.Pack(nil, plain, 0, 4096)
	if err != nil {
		t.Fatal(err)
	}
	try := func(s *Sealer, b []byte, chunk, unit, n int) error {
		return s.Unpack(make([]byte, n), bytes.Clone(b), chunk, unit)
	}
	if err := try(s, packed, 0, 0, 4096); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(packed)
	flipped[100] ^= 1
	for name, err := range map[string]error{
		"chunk": try(s, packed, 1, 0, 4096), "unit": try(s, packed, 0, 1, 4096), "length": try(s, packed, 0, 0, 8192),
		"object": try(seal(2, key), packed, 0, 0, 4096), "key": try(seal(1, bytes.Repeat([]byte{8}, KeySize)), packed, 0, 0, 4096),
		"bit": try(s, flipped, 0, 0, 4096), "cut": try(s, packed[:10], 0, 0, 4096),
	} {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("wrong %s: %v", name, err)
		}
	}
	again, _, _ := seal(2, key).Pack(nil, plain, 0, 4096)
	if bytes.Equal(again, packed) {
		t.Error("two objects with equal content have equal ciphertext")
	}
	if _, err := c.Sealer(metadata.ObjectID{}, metadata.CompressNone, metadata.EncryptAES256GCM, key[:31]); !errors.Is(err, ErrInvalid) {
		t.Errorf("short key: %v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	c := newCodec(f)
	all := sealers(f, c)
	for _, s := range all {
		p, _, err := s.Pack(nil, random(1, 9000), 0, UnitEncrypted)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p, uint16(9000))
	}
	f.Fuzz(func(t *testing.T, b []byte, n uint16) {
		for name, s := range all {
			guarded := make([]byte, int(n)+16)
			err := s.Unpack(guarded[:n:n], bytes.Clone(b), 0, 0)
			if err != nil && !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: %v", name, err)
			}
			if !bytes.Equal(guarded[n:], make([]byte, 16)) {
				t.Errorf("%s: wrote behind the unit", name)
			}
		}
	})
}

func FuzzCheckManifest(f *testing.F) {
	m := metadata.Manifest{Name: "n", Size: 5000, Policy: metadata.Policy{K: 2, M: 1, C: 2, X: 1}, Chunks: []metadata.Chunk{
		{Size: 5000, Packed: 5000, FragmentLen: 4096, Fragments: make([]metadata.Fragment, 3)}}, Compression: 1, Encryption: 1}
	b, err := metadata.EncodeManifest(&m)
	if err != nil {
		f.Fatal(err)
	}
	if err := CheckManifest(&m); err != nil {
		f.Fatal(err)
	}
	f.Add(b[16:])
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := metadata.DecodeManifest(body)
		if err == nil {
			_ = CheckManifest(m)
		}
		bad := metadata.Manifest{Size: uint64(len(body)), Chunks: []metadata.Chunk{{Size: uint32(len(body))}}}
		if CheckManifest(&bad) == nil {
			t.Error("a manifest without policy passes")
		}
	})
}

func TestBuffers(t *testing.T) {
	var p Buffers
	for _, n := range []int{0, 1, 4096, 4097, 1 << 20, 3 << 20} {
		b := p.Get(n)
		if len(b.B) != n {
			t.Fatalf("%d bytes, want %d", len(b.B), n)
		}
		if n > 0 && uintptr(unsafe.Pointer(&b.B[0]))%BlockSize != 0 {
			t.Errorf("buffer of %d bytes is not aligned", n)
		}
		b.Free()
	}
	(*Buf)(nil).Free()
}

func BenchmarkEncode(b *testing.B) {
	c := newCodec(b)
	plain := random(1, 8<<20)
	sums := blocksum.Sums(nil, plain)
	for name, s := range sealers(b, c) {
		unit := UnitSize(s.comp, metadata.EncryptNone)
		if s.aead != nil && unit == 0 {
			unit = UnitEncrypted
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				e, err := c.Encode(plain, sums, 0, unit, s, metadata.Policy{K: 4, M: 2})
				if err != nil {
					b.Fatal(err)
				}
				e.Free()
			}
		})
	}
}

func BenchmarkReconstruct4K(b *testing.B) {
	c := newCodec(b)
	plain := random(1, 4*4096)
	e, err := c.Encode(plain, blocksum.Sums(nil, plain), 0, 0, nil, metadata.Policy{K: 4, M: 2})
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 4096)
	shards, want := make([][]byte, 6), []bool{true, false, false, false, false, false}
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		copy(shards, e.Values)
		shards[0], shards[5] = buf[:0], nil
		if err := c.Reconstruct(4, 2, shards, want); err != nil {
			b.Fatal(err)
		}
	}
}

// TestNoncesDoNotRepeat: no two units are encrypted with the same key stream, whether of one
// object or of several. Units of zeroes show it.
func TestNoncesDoNotRepeat(t *testing.T) {
	c := newCodec(t)
	const size = 4096
	seen := make(map[string]string)
	for object := range 3 {
		s, err := c.Sealer(metadata.ObjectID{byte(object)}, metadata.CompressNone, metadata.EncryptAES256GCM, bytes.Repeat([]byte{7}, KeySize))
		if err != nil {
			t.Fatal(err)
		}
		for chunk := range 3 {
			packed, units, err := s.Pack(nil, make([]byte, 3*size), chunk, size)
			if err != nil {
				t.Fatal(err)
			}
			for unit, n := range units {
				place := fmt.Sprintf("object %d, chunk %d, unit %d", object, chunk, unit)
				stream := string(packed[:size])
				if other, ok := seen[stream]; ok {
					t.Errorf("%s and %s have the same key stream", place, other)
				}
				seen[stream] = place
				packed = packed[n:]
			}
		}
	}
}
