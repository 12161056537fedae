package alba

import (
	"context"
	"fmt"
	"sync"

	"scoria/alba/cache"
	"scoria/alba/codec"
	"scoria/internal/blocksum"
)

type cacheToken = cache.Token

// reader makes the pieces that a Read needs, has them fetched, and puts them together.
type reader struct {
	c       *Client
	sp      *space
	objs    []*object
	pieces  []piece
	patches []patch
	direct  bool // past the block cache
}

// piece is a range of whole blocks within one fragment.
type piece struct {
	sp    *space
	o     *object
	chunk int
	frag  int
	off   uint32   // within the fragment
	buf   []byte   // to fill
	want  []uint32 // plain sums that the blocks must have, or nil
	sums  []uint32 // those that they have; valid when err is nil
	err   error
	bad   bool  // what its OSD has is missing or damaged
	keep  bool  // its blocks go to the block cache
	liars []int // fragments that are not what was stored: not to be computed from
}

// patch is what remains to do for a slice when its pieces are there.
type patch struct {
	s           *Slice
	o           *object
	scratch     *codec.Buf
	first, last int // pieces [first, last) fill scratch

	dst      []byte   // of the slice
	at       int      // where dst's bytes begin: in scratch, or in the first unit's plain bytes
	sum      []uint32 // expected plain sums of dst's blocks, or nil
	chunk    int
	unit     int // first unit; -1: scratch is plain
	units    int
	packedAt int // where the first unit begins in scratch
}

var readers = sync.Pool{New: func() any { return new(reader) }}

func newReader(c *Client, sp *space) *reader {
	r := readers.Get().(*reader)
	r.c, r.sp = c, sp
	return r
}

func (r *reader) reset() {
	for i := range r.patches {
		r.patches[i].scratch.Free()
	}
	clear(r.patches)
	clear(r.pieces)
	r.pieces, r.patches = r.pieces[:0], r.patches[:0]
}

func (r *reader) free() {
	r.reset()
	clear(r.objs)
	r.c, r.sp, r.objs, r.direct = nil, nil, r.objs[:0], false
	readers.Put(r)
}

// read fills the slices from the objects.
func (r *reader) read(ctx context.Context, slices []Slice, objs []*object) error {
	for i := range slices {
		if err := r.plan(&slices[i], objs[i]); err != nil {
			return err
		}
	}
	if len(r.pieces) == 0 {
		return nil
	}
	r.c.fetch(ctx, r.pieces)
	for i := range r.pieces {
		if p := &r.pieces[i]; p.err != nil {
			return fmt.Errorf("object %q (%v), chunk %d, fragment %d, offset %d: %w", p.o.Name, p.o.ObjectID, p.chunk, p.frag, p.off, p.err)
		}
	}
	for i := range r.patches {
		if err := r.finish(ctx, &r.patches[i]); err != nil {
			return fmt.Errorf("object %q (%v): %w", r.patches[i].o.Name, r.patches[i].o.ObjectID, err)
		}
	}
	r.remember()
	return nil
}

// plan makes the pieces of a slice, unless memory has it.
func (r *reader) plan(s *Slice, o *object) error {
	end := s.Off + uint64(len(s.Data))
	if s.Off > o.Size || end > o.Size {
		return fmt.Errorf("object %q: %d bytes at %d of %d: %w", o.Name, len(s.Data), s.Off, o.Size, ErrInvalid)
	}
	if s.Sums != nil && (s.Off%codec.BlockSize != 0 || (end%codec.BlockSize != 0 && end != o.Size) || len(s.Sums) != (len(s.Data)+codec.BlockSize-1)/codec.BlockSize) {
		return fmt.Errorf("object %q: %d sums for %d bytes at %d: %w", o.Name, len(s.Sums), len(s.Data), s.Off, ErrInvalid)
	}
	r.c.stats.sliceBytes.Add(uint64(len(s.Data)))
	switch {
	case len(s.Data) == 0:
		return nil
	case o.Inline != nil:
		return r.inline(s, o)
	case !r.direct && r.c.fromCache(o, s):
		return nil
	}
	r.c.stats.misses.Add(1)
	for pos := s.Off; pos < end; {
		chunk := int(pos / o.chunkSize)
		base := uint64(chunk) * o.chunkSize
		stop := min(end, base+uint64(o.Chunks[chunk].Size))
		lo, hi := uint32(pos-base), uint32(stop-base)
		data := s.Data[pos-s.Off : stop-s.Off]
		var sums []uint32
		if s.Sums != nil {
			sums = s.Sums[(pos-s.Off)/codec.BlockSize : (stop-s.Off+codec.BlockSize-1)/codec.BlockSize]
		}
		if o.UnitSize == 0 {
			r.planPlain(s, o, chunk, lo, hi, data, sums)
		} else {
			r.planUnits(s, o, chunk, lo, hi, data, sums)
		}
		pos = stop
	}
	return nil
}

// inline copies from the manifest.
func (r *reader) inline(s *Slice, o *object) error {
	plain := o.Inline
	if o.sealer != nil {
		plain = make([]byte, o.Size)
		packed := append([]byte(nil), o.Inline...) // Unpack writes to it
		if err := o.sealer.Unpack(plain, packed, 0, 0); err != nil {
			return fmt.Errorf("%w: %w", ErrUnreadable, err)
		}
	}
	copy(s.Data, plain[s.Off:])
	return checkSums(s.Data, s.Sums)
}

func checkSums(data []byte, want []uint32) error {
	for i, w := range want {
		lo := i * codec.BlockSize
		if got := blocksum.Of(data[lo:min(lo+codec.BlockSize, len(data))]); got != w {
			return fmt.Errorf("block %d: crc %08x, ingested with %08x: %w", i, got, w, ErrUnreadable)
		}
	}
	return nil
}

// planPlain reads whole blocks straight to where they are wanted, and cut ones through scratch.
func (r *reader) planPlain(s *Slice, o *object, chunk int, lo, hi uint32, data []byte, sums []uint32) {
	const mask = codec.BlockSize - 1
	if cut := lo & mask; cut != 0 {
		n := min(codec.BlockSize-cut, hi-lo)
		r.cutBlock(s, o, chunk, lo&^mask, int(cut), data[:n], nil)
		lo, data = lo+n, data[n:]
	}
	if whole := (hi - lo) &^ mask; whole > 0 {
		var want []uint32
		if sums != nil {
			want, sums = sums[:whole/codec.BlockSize], sums[whole/codec.BlockSize:]
		}
		r.addPieces(o, chunk, lo, data[:whole], want, len(s.Data) <= cacheSlice)
		lo, data = lo+whole, data[whole:]
	}
	if lo < hi {
		r.cutBlock(s, o, chunk, lo, 0, data, sums)
	}
}

// cutBlock plans a block of which only a part is wanted.
func (r *reader) cutBlock(s *Slice, o *object, chunk int, block uint32, at int, dst []byte, sums []uint32) {
	buf := r.c.codec.Buffers().Get(codec.BlockSize)
	first := len(r.pieces)
	r.addPieces(o, chunk, block, buf.B, nil, len(s.Data) <= cacheSlice)
	r.patches = append(r.patches, patch{s: s, o: o, scratch: buf, first: first, last: len(r.pieces), dst: dst, at: at, sum: sums, chunk: chunk, unit: -1})
}

// addPieces plans the packed bytes of a chunk from off on; they may lie in several fragments.
func (r *reader) addPieces(o *object, chunk int, off uint32, buf []byte, want []uint32, keep bool) {
	length := o.Chunks[chunk].FragmentLen
	for len(buf) > 0 {
		frag, in := off/length, off%length
		n := min(uint32(len(buf)), length-in)
		p := piece{sp: r.sp, o: o, chunk: chunk, frag: int(frag), off: in, buf: buf[:n:n], keep: keep}
		if want != nil {
			p.want, want = want[:n/codec.BlockSize], want[n/codec.BlockSize:]
		}
		r.pieces = append(r.pieces, p)
		buf, off = buf[n:], off+n
	}
}

// planUnits plans the blocks that hold the packed units of a range.
func (r *reader) planUnits(s *Slice, o *object, chunk int, lo, hi uint32, data []byte, sums []uint32) {
	ch := &o.Chunks[chunk]
	first, end := int(lo/o.UnitSize), int((hi+o.UnitSize-1)/o.UnitSize)
	from := uint32(0)
	for _, u := range ch.Units[:first] {
		from += u
	}
	to := from
	for _, u := range ch.Units[first:end] {
		to += u
	}
	start := from &^ (codec.BlockSize - 1)
	stop := (to + codec.BlockSize - 1) &^ (codec.BlockSize - 1)
	buf := r.c.codec.Buffers().Get(int(stop - start))
	p := patch{s: s, o: o, scratch: buf, first: len(r.pieces), dst: data, at: int(lo - uint32(first)*o.UnitSize), sum: sums,
		chunk: chunk, unit: first, units: end - first, packedAt: int(from - start)}
	r.addPieces(o, chunk, start, buf.B, nil, false)
	p.last = len(r.pieces)
	r.patches = append(r.patches, p)
}

// finish copies or unpacks what lies in scratch. What fails its checks is made once more
// from other fragments.
func (r *reader) finish(ctx context.Context, p *patch) error {
	err := r.unpack(p)
	if err == nil {
		return nil
	}
	if doubtErr := r.doubt(ctx, p.first, p.last); doubtErr != nil {
		return fmt.Errorf("%w (%w)", err, doubtErr)
	}
	return r.unpack(p)
}

func (r *reader) unpack(p *patch) error {
	if p.unit < 0 {
		copy(p.dst, p.scratch.B[p.at:])
		return checkSums(p.dst, p.sum)
	}
	ch, unitSize := &p.o.Chunks[p.chunk], int(p.o.UnitSize)
	packed, dst, at := p.scratch.B[p.packedAt:], p.dst, p.at
	for u := p.unit; u < p.unit+p.units; u++ {
		plain := min(unitSize, int(ch.Size)-u*unitSize)
		body := packed[:ch.Units[u]]
		if err := r.unpackUnit(p, body, u, plain, &dst, at); err != nil {
			return fmt.Errorf("%w: %w", ErrUnreadable, err)
		}
		packed, at = packed[ch.Units[u]:], 0
	}
	return checkSums(p.dst, p.sum)
}

// unpackUnit opens a unit of plain bytes and moves what is wanted of it, from at on, to dst.
func (r *reader) unpackUnit(p *patch, body []byte, unit, plain int, dst *[]byte, at int) error {
	if at == 0 && len(*dst) >= plain {
		if err := p.o.sealer.Unpack((*dst)[:plain], body, p.chunk, unit); err != nil {
			return err
		}
		r.cacheUnit(p, unit, (*dst)[:plain])
		*dst = (*dst)[plain:]
		return nil
	}
	buf := r.c.codec.Buffers().Get(plain)
	defer buf.Free()
	if err := p.o.sealer.Unpack(buf.B, body, p.chunk, unit); err != nil {
		return err
	}
	r.cacheUnit(p, unit, buf.B)
	n := copy(*dst, buf.B[at:])
	*dst = (*dst)[n:]
	return nil
}

// cacheUnit offers all blocks of a unit: its neighbours cost nothing more.
func (r *reader) cacheUnit(p *patch, unit int, plain []byte) {
	if len(p.s.Data) > cacheSlice || r.c.blocks == nil || r.direct {
		return
	}
	index := uint32((uint64(p.chunk)*p.o.chunkSize + uint64(unit)*uint64(p.o.UnitSize)) / codec.BlockSize)
	for ; len(plain) > 0; index++ {
		n := min(len(plain), codec.BlockSize)
		r.c.blocks.Add(&p.o.ObjectID, index, plain[:n], blocksum.Of(plain[:n]))
		plain = plain[n:]
	}
}

// remember offers the whole blocks of small plain slices to the block cache.
func (r *reader) remember() {
	if r.c.blocks == nil || r.direct {
		return
	}
	for i := range r.pieces {
		p := &r.pieces[i]
		if !p.keep {
			continue
		}
		index := uint32((uint64(p.chunk)*p.o.chunkSize + uint64(p.frag)*uint64(p.o.Chunks[p.chunk].FragmentLen) + uint64(p.off)) / codec.BlockSize)
		for j := range p.sums {
			lo := uint64(index+uint32(j)) * codec.BlockSize
			blk, sum := p.buf[j*codec.BlockSize:(j+1)*codec.BlockSize], p.sums[j]
			if short := p.o.Size - lo; short < codec.BlockSize { // the object's last block is padded in its fragment
				blk = blk[:short]
				sum = blocksum.Of(blk)
			}
			r.c.blocks.Add(&p.o.ObjectID, index+uint32(j), blk, sum)
		}
	}
}
