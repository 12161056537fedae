package blocksum

import (
	"bytes"
	"hash/crc32"
	"math/rand/v2"
	"testing"
	"testing/quick"
)

func TestKnownValue(t *testing.T) {
	if got := Of([]byte("123456789")); got != 0xe3069283 { // the check value of CRC-32C
		t.Fatalf("%08x", got)
	}
}

func TestUpdateContinues(t *testing.T) {
	err := quick.Check(func(a, b []byte) bool {
		return Update(Of(a), b) == Of(append(bytes.Clone(a), b...))
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

func TestSealIsItsOwnInverse(t *testing.T) {
	if err := quick.Check(func(sum uint32, place uint64) bool { return Seal(Seal(sum, place), place) == sum }, nil); err != nil {
		t.Fatal(err)
	}
}

// TestSealMoves: a sum goes from place to place without the data.
func TestSealMoves(t *testing.T) {
	err := quick.Check(func(data []byte, from, to uint64) bool {
		stored := Seal(Of(data), from)
		return Seal(Seal(stored, from), to) == Seal(Of(data), to)
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// TestSealTellsPlacesApart: no two of many likely places (neighbours, high bits) seal alike.
func TestSealTellsPlacesApart(t *testing.T) {
	collisions := 0
	seen := make(map[uint32]uint64)
	check := func(place uint64) {
		s := Seal(0, place)
		if s == 0 {
			t.Errorf("place %d is not sealed", place)
		}
		if was, ok := seen[s]; ok && was != place {
			collisions++
		}
		seen[s] = place
	}
	const neighbours = 1 << 16
	for p := range uint64(neighbours) {
		check(p)
	}
	for shift := range 48 {
		check(1 << (shift + 16))
	}
	if collisions > 3 { // 2^16 values in 32 bits: half a collision is expected
		t.Fatalf("%d collisions", collisions)
	}
}

func TestSums(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, BlockSize - 1, BlockSize, BlockSize + 1, 3 * BlockSize, 10000} {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		sums := Sums([]uint32{7}, data)
		if sums[0] != 7 || len(sums) != 1+(n+BlockSize-1)/BlockSize {
			t.Fatalf("%d bytes: %d sums", n, len(sums))
		}
		table := crc32.MakeTable(crc32.Castagnoli)
		for i, s := range sums[1:] {
			if want := crc32.Checksum(data[i*BlockSize:min(n, (i+1)*BlockSize)], table); s != want {
				t.Fatalf("%d bytes, block %d: %08x, want %08x", n, i, s, want)
			}
		}
	}
}

func BenchmarkOf(b *testing.B) {
	data := make([]byte, BlockSize)
	b.SetBytes(BlockSize)
	for b.Loop() {
		Of(data)
	}
}
