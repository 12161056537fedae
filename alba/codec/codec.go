package codec

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/reedsolomon"

	"scoria/internal/blocksum"
	"scoria/metadata"
)

// Codec holds what coding shares: buffers, tables and the coders of each (k, m). It is safe
// for concurrent use.
type Codec struct {
	bufs    Buffers
	combine *Combiner
	zenc    *zstd.Encoder
	zdec    *zstd.Decoder
	zeroSum uint32 // of a block of zeroes
	mu      struct {
		sync.RWMutex
		coders map[[2]int]reedsolomon.Encoder
	}
}

// New returns a Codec.
func New() (*Codec, error) {
	c := &Codec{combine: NewCombiner(), zeroSum: blocksum.Of(make([]byte, BlockSize))}
	var err error
	if c.zenc, c.zdec, err = newZstd(); err != nil {
		return nil, err
	}
	c.mu.coders = map[[2]int]reedsolomon.Encoder{}
	return c, nil
}

// Close ends the goroutines of the coders. Idempotent.
func (c *Codec) Close() { c.zdec.Close() }

// Buffers returns the pools, for users that have to read into aligned memory.
func (c *Codec) Buffers() *Buffers { return &c.bufs }

// ObjectSum returns the CRC32C of data from the sums of its blocks.
func (c *Codec) ObjectSum(data []byte, sums []uint32) uint32 { return c.combine.Object(data, sums) }

func (c *Codec) coder(k, m int) (reedsolomon.Encoder, error) {
	key := [2]int{k, m}
	c.mu.RLock()
	rs := c.mu.coders[key]
	c.mu.RUnlock()
	if rs != nil {
		return rs, nil
	}
	if k < 1 || m < 0 || k+m > metadata.MaxFragments {
		return nil, fmt.Errorf("k=%d m=%d: %w", k, m, ErrInvalid)
	}
	// One goroutine: many chunks are coded at a time, and a hand-off costs more than it gains.
	rs, err := reedsolomon.New(k, m, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, fmt.Errorf("Reed–Solomon coder k=%d m=%d: %w", k, m, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.mu.coders[key]; old != nil {
		return old, nil
	}
	c.mu.coders[key] = rs
	return rs, nil
}

// Encoded is a chunk ready to be stored. Values[i] is fragment i, Sums[i] its plain block
// sums. Data fragments of chunks that are neither compressed nor encrypted are parts of
// the plain bytes; all else is memory of the Encoded, valid until Free.
type Encoded struct {
	Chunk  metadata.Chunk // Fragments have their Digest set, and no place
	Values [][]byte
	Sums   [][]uint32
	bufs   []*Buf
}

// Free returns the memory.
func (e *Encoded) Free() {
	for _, b := range e.bufs {
		b.Free()
	}
	e.bufs, e.Values = nil, nil
}

// Bytes returns how much memory coding a chunk of size plain bytes takes beside the plain bytes.
func Bytes(size, unitSize uint32, p metadata.Policy) int64 {
	packed := int(size)
	n := int64(BlockSize) * int64(p.K)
	if unitSize != 0 {
		packed = PackedBound(size, unitSize)
		n += int64(packed)
	}
	return n + int64(p.M)*int64(FragmentLen(uint32(packed), p.K))
}

// Encode codes one chunk. sums are the plain sums of plain's blocks; they are carried over
// to the fragments where the bytes are, so that data is not summed twice. s is needed when unitSize is not 0.
func (c *Codec) Encode(plain []byte, sums []uint32, chunk int, unitSize uint32, s *Sealer, p metadata.Policy) (*Encoded, error) {
	if len(plain) > MaxChunk || len(sums) != (len(plain)+BlockSize-1)/BlockSize {
		return nil, fmt.Errorf("chunk of %d bytes with %d sums: %w", len(plain), len(sums), ErrInvalid)
	}
	rs, err := c.coder(p.K, p.M)
	if err != nil {
		return nil, err
	}
	e := &Encoded{Values: make([][]byte, p.K+p.M), Sums: make([][]uint32, p.K+p.M)}
	packed := plain
	if unitSize != 0 {
		buf := c.bufs.Get(PackedBound(uint32(len(plain)), unitSize))
		e.bufs = append(e.bufs, buf)
		if packed, e.Chunk.Units, err = s.Pack(buf.B[:0], plain, chunk, unitSize); err != nil {
			e.Free()
			return nil, err
		}
		sums = blocksum.Sums(make([]uint32, 0, (len(packed)+BlockSize-1)/BlockSize), packed)
	}
	length := FragmentLen(uint32(len(packed)), p.K)
	e.Chunk.Size, e.Chunk.Packed, e.Chunk.FragmentLen = uint32(len(plain)), uint32(len(packed)), length
	c.cut(e, packed, sums, p.K, int(length))
	for i := p.K; i < p.K+p.M; i++ {
		buf := c.bufs.Get(int(length))
		e.bufs = append(e.bufs, buf)
		e.Values[i] = buf.B
	}
	if p.M > 0 {
		if err := rs.Encode(e.Values); err != nil {
			e.Free()
			return nil, fmt.Errorf("Reed–Solomon encode %v: %w", p, err)
		}
	}
	e.Chunk.Fragments = make([]metadata.Fragment, p.K+p.M)
	for i := range e.Values {
		if i >= p.K {
			e.Sums[i] = blocksum.Sums(make([]uint32, 0, int(length)/BlockSize), e.Values[i])
		}
		e.Chunk.Fragments[i].Digest = Digest(e.Sums[i])
	}
	return e, nil
}

// cut makes the data fragments: parts of packed where whole, padded copies at its end.
func (c *Codec) cut(e *Encoded, packed []byte, sums []uint32, k, length int) {
	per := length / BlockSize
	for i := range k {
		lo, hi := i*length, (i+1)*length
		if hi <= len(packed) {
			e.Values[i], e.Sums[i] = packed[lo:hi:hi], sums[i*per:(i+1)*per:(i+1)*per]
			continue
		}
		buf := c.bufs.Get(length)
		e.bufs = append(e.bufs, buf)
		n := 0
		own := make([]uint32, 0, per)
		if lo < len(packed) {
			n = copy(buf.B, packed[lo:])
			own = append(own, sums[i*per:]...)
		}
		clear(buf.B[n:])
		if n%BlockSize != 0 { // the short block has grown by its padding
			own[len(own)-1] = blocksum.Of(buf.B[n/BlockSize*BlockSize : n/BlockSize*BlockSize+BlockSize])
		}
		for len(own) < per {
			own = append(own, c.zeroSum)
		}
		e.Values[i], e.Sums[i] = buf.B, own
	}
}

// Reconstruct fills the wanted shards from those that are there: shards[i] with length 0
// is missing; wanted ones must have capacity for the length of the others. Equal ranges of
// fragments reconstruct the same range of a missing one. ErrTooFew when fewer than k are there.
func (c *Codec) Reconstruct(k, m int, shards [][]byte, want []bool) error {
	rs, err := c.coder(k, m)
	if err != nil {
		return err
	}
	if len(shards) != k+m || len(want) != k+m {
		return fmt.Errorf("%d shards for %d+%d: %w", len(shards), k, m, ErrInvalid)
	}
	have := 0
	for _, s := range shards {
		if len(s) > 0 {
			have++
		}
	}
	if have < k {
		return fmt.Errorf("%d of %d fragments: %w", have, k, ErrTooFew)
	}
	if err := rs.ReconstructSome(shards, want); err != nil {
		return fmt.Errorf("Reed–Solomon reconstruct %d+%d: %w", k, m, err)
	}
	return nil
}
