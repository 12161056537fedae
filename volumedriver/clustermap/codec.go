package clustermap

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"scoria/internal/frame"
)

// Forms of a page on disk (its first byte). Numbers are never reused.
const (
	formLeafRuns   = 1 // runs of consecutive locations
	formLeafPacked = 2 // presence bitmap and bit-packed locations
	formInner      = 3
)

// maxPage bounds an encoded page, in bytes. The longest inner page is below 7.5 KiB.
const maxPage = 8192

func zigzag(v int64) uint64   { return uint64(v<<1) ^ uint64(v>>63) }
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// appendLeaf encodes entries (none unknown) in the shorter of the two forms.
func appendLeaf(dst []byte, index uint64, ent *[fanOut]packed) []byte {
	start := len(dst)
	dst = appendLeafRuns(dst, index, ent)
	runs := len(dst) - start
	if packedLeafBound(ent) >= runs {
		return dst
	}
	return appendLeafPacked(dst[:start], index, ent)
}

// appendLeafRuns: form, level, index, number of runs, then for each run the holes in
// front of it, its length - 1 and where it starts, relative to where the last one ended;
// then the sums of all mapped entries.
func appendLeafRuns(dst []byte, index uint64, ent *[fanOut]packed) []byte {
	dst = append(dst, formLeafRuns, 0)
	dst = binary.AppendUvarint(dst, index)
	runs := 0
	eachRun(ent, func(int, int) { runs++ })
	dst = binary.AppendUvarint(dst, uint64(runs))
	end, next := 0, Location(0)
	eachRun(ent, func(from, to int) {
		dst = binary.AppendUvarint(dst, uint64(from-end))
		dst = binary.AppendUvarint(dst, uint64(to-from-1))
		first := ent[from].loc()
		dst = binary.AppendUvarint(dst, zigzag(int64(first-next)))
		end, next = to, first+Location(to-from)
	})
	return appendSums(dst, ent)
}

// eachRun calls f for each maximal run [from, to) of mapped entries whose locations follow
// each other.
func eachRun(ent *[fanOut]packed, f func(from, to int)) {
	for i := 0; i < fanOut; {
		if ent[i].hole() {
			i++
			continue
		}
		from := i
		for i++; i < fanOut && !ent[i].hole() && ent[i].loc() == ent[i-1].loc()+1; i++ {
		}
		f(from, i)
	}
}

func appendSums(dst []byte, ent *[fanOut]packed) []byte {
	for i := range ent {
		if !ent[i].hole() {
			dst = binary.LittleEndian.AppendUint32(dst, ent[i].sum)
		}
	}
	return dst
}

// packing tells how the locations of a leaf are packed: each as the offsets of SCO and
// ancestor above the smallest ones and the index, in as many bits as the largest needs.
type packing struct {
	n                int
	sco0, anc0       uint64
	scoW, ancW, idxW int
}

func planPacking(ent *[fanOut]packed) packing {
	p := packing{sco0: MaxSCO, anc0: MaxAncestor}
	var sco1, anc1, idx1 uint64
	for i := range ent {
		l := ent[i].loc()
		if l == 0 {
			continue
		}
		p.n++
		p.sco0, sco1 = min(p.sco0, l.SCO()), max(sco1, l.SCO())
		a := uint64(l.Ancestor())
		p.anc0, anc1 = min(p.anc0, a), max(anc1, a)
		idx1 = max(idx1, uint64(l.Index()))
	}
	if p.n > 0 {
		p.scoW, p.ancW, p.idxW = bits.Len64(sco1-p.sco0), bits.Len64(anc1-p.anc0), bits.Len64(idx1)
	}
	return p
}

func (p packing) width() int { return p.scoW + p.ancW + p.idxW }

// packedLeafBound returns at most 16 bytes more than appendLeafPacked needs.
func packedLeafBound(ent *[fanOut]packed) int {
	p := planPacking(ent)
	return 8 + fanOut/8 + 16 + (p.n*p.width()+7)/8 + 4*p.n
}

// appendLeafPacked: form, level, index, bitmap of presence, smallest SCO and ancestor,
// widths in bits of SCO, ancestor and index (a byte each), the locations as a stream of
// bits (low first), then the sums of all mapped entries.
func appendLeafPacked(dst []byte, index uint64, ent *[fanOut]packed) []byte {
	p := planPacking(ent)
	dst = append(dst, formLeafPacked, 0)
	dst = binary.AppendUvarint(dst, index)
	var present [fanOut / 8]byte
	for i := range ent {
		if !ent[i].hole() {
			present[i/8] |= 1 << (i % 8)
		}
	}
	dst = append(dst, present[:]...)
	dst = binary.AppendUvarint(dst, p.sco0)
	dst = binary.AppendUvarint(dst, p.anc0)
	dst = append(dst, byte(p.scoW), byte(p.ancW), byte(p.idxW))
	var acc uint64 // bits not yet written, fewer than 8 between two fields
	have := 0
	put := func(v uint64, w int) { // w <= 36
		acc |= v << have
		for have += w; have >= 8; have -= 8 {
			dst = append(dst, byte(acc))
			acc >>= 8
		}
	}
	for i := range ent {
		if l := ent[i].loc(); l != 0 {
			put(l.SCO()-p.sco0, p.scoW)
			put(uint64(l.Ancestor())-p.anc0, p.ancW)
			put(uint64(l.Index()), p.idxW)
		}
	}
	if have > 0 {
		dst = append(dst, byte(acc))
	}
	return appendSums(dst, ent)
}

// decodeHead checks form, level and index of a page against what the reference promised.
func decodeHead(d *frame.Decoder, level int, index uint64) (form uint8) {
	form = d.U8()
	gotLevel, gotIndex := d.U8(), d.Uvarint()
	if d.Err() != nil {
		return 0
	}
	isLeaf := form == formLeafRuns || form == formLeafPacked
	switch {
	case !isLeaf && form != formInner:
		d.Fail("page form %d is not known", form)
	case isLeaf != (level == 0) || int(gotLevel) != level || gotIndex != index:
		d.Fail("page of level %d, index %d where level %d, index %d belongs", gotLevel, gotIndex, level, index)
	}
	return form
}

// decodeLeaf decodes a leaf that was written by a volume that is ancestor generations above.
func decodeLeaf(b []byte, index uint64, ancestor uint16, ent *[fanOut]packed) error {
	d := frame.NewDecoder(b)
	switch decodeHead(d, 0, index) {
	case formLeafRuns:
		decodeLeafRuns(d, ancestor, ent)
	case formLeafPacked:
		decodeLeafPacked(d, ancestor, ent)
	}
	for i := range ent {
		if !ent[i].hole() {
			ent[i].sum = d.U32()
		}
	}
	return d.Finish()
}

// rebase makes a location that is relative to a page's writer relative to its reader.
func rebase(d *frame.Decoder, l Location, ancestor uint16) packed {
	if !l.Mapped() {
		d.Fail("location %#x has no SCO", uint64(l))
		return packed{}
	}
	if uint64(l.Ancestor())+uint64(ancestor) > MaxAncestor {
		d.Fail("ancestor %d + %d is over the limit", l.Ancestor(), ancestor)
		return packed{}
	}
	l += Location(ancestor) << (indexBits + scoBits)
	return packed{lo: uint32(l), hi: uint32(l >> 32)}
}

func decodeLeafRuns(d *frame.Decoder, ancestor uint16, ent *[fanOut]packed) {
	i, next := 0, Location(0)
	for runs := d.Count(3, fanOut); runs > 0 && d.Err() == nil; runs-- {
		gap, n := d.Uvarint(), d.Uvarint()
		first := next + Location(unzigzag(d.Uvarint()))
		if gap >= fanOut || n >= fanOut || i+int(gap)+int(n)+1 > fanOut {
			d.Fail("run over the end of the leaf")
			return
		}
		i += int(gap)
		for k := range int(n) + 1 {
			ent[i] = rebase(d, first+Location(k), ancestor)
			i++
		}
		next = first + Location(n+1)
	}
}

func decodeLeafPacked(d *frame.Decoder, ancestor uint16, ent *[fanOut]packed) {
	present := d.Take(fanOut / 8)
	p := packing{sco0: d.Uvarint(), anc0: d.Uvarint()}
	p.scoW, p.ancW, p.idxW = int(d.U8()), int(d.U8()), int(d.U8())
	if d.Err() != nil {
		return
	}
	if p.sco0 > MaxSCO || p.anc0 > MaxAncestor || p.scoW > scoBits || p.ancW > ancestorBits || p.idxW > indexBits {
		d.Fail("packing %+v out of bounds", p)
		return
	}
	for _, b := range present {
		p.n += bits.OnesCount8(b)
	}
	stream := d.Take((p.n*p.width() + 7) / 8)
	if d.Err() != nil {
		return
	}
	var acc uint64
	have := 0
	get := func(w int) uint64 { // w <= 36
		for have < w {
			acc |= uint64(stream[0]) << have
			stream = stream[1:]
			have += 8
		}
		v := acc & (1<<w - 1)
		acc >>= w
		have -= w
		return v
	}
	for i := range ent {
		if present[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		sco, anc, idx := p.sco0+get(p.scoW), p.anc0+get(p.ancW), get(p.idxW)
		if sco > MaxSCO || anc > MaxAncestor {
			d.Fail("SCO %d, ancestor %d out of bounds", sco, anc)
			return
		}
		ent[i] = rebase(d, Location(anc)<<(indexBits+scoBits)|Location(sco)<<indexBits|Location(idx), ancestor)
	}
}

// appendInner: form, level, index, number of children, then for each child the absent
// ones in front of it and its ref. A child that follows the last one in the same pack
// needs neither pack nor offset.
func appendInner(dst []byte, level int, index uint64, kids *[fanOut]ref) []byte {
	dst = append(dst, formInner, byte(level))
	dst = binary.AppendUvarint(dst, index)
	n := 0
	for i := range kids {
		if !kids[i].absent() {
			n++
		}
	}
	dst = binary.AppendUvarint(dst, uint64(n))
	last, prev := 0, ref{}
	for i := range kids {
		if r := kids[i]; !r.absent() {
			dst = binary.AppendUvarint(dst, uint64(i-last))
			dst = appendRef(dst, r, prev)
			last, prev = i+1, r
		}
	}
	return dst
}

func appendRef(dst []byte, r, prev ref) []byte {
	if r.pack == prev.pack && r.off == prev.off+prev.length {
		dst = append(dst, 1)
	} else {
		dst = binary.AppendUvarint(dst, zigzag(int64(r.pack)-int64(prev.pack))<<1)
		dst = binary.AppendUvarint(dst, uint64(r.off))
	}
	dst = binary.AppendUvarint(dst, uint64(r.length))
	dst = binary.AppendUvarint(dst, r.count)
	return binary.LittleEndian.AppendUint32(dst, r.crc)
}

// decodeRef decodes the ref of a page of the level.
func decodeRef(d *frame.Decoder, prev ref, level int) ref {
	r := ref{pack: prev.pack, off: prev.off + prev.length}
	if h := d.Uvarint(); h != 1 {
		p := int64(prev.pack) + unzigzag(h>>1)
		off := d.Uvarint()
		if h&1 != 0 || p != int64(uint32(p)) || off != uint64(uint32(off)) {
			d.Fail("pack %d, offset %d out of bounds", p, off)
			return ref{}
		}
		r.pack, r.off = uint32(p), uint32(off)
	}
	length := d.Uvarint()
	r.count = d.Uvarint()
	r.crc = d.U32()
	if d.Err() != nil {
		return ref{}
	}
	r.length = uint32(min(length, maxPage+1))
	if err := r.check(level); err != nil {
		d.Fail("%v", err)
		return ref{}
	}
	return r
}

// check tells what is impossible about a ref to a page of the level.
func (r ref) check(level int) error {
	switch {
	case r.pack == 0:
		return fmt.Errorf("pack number 0")
	case r.length == 0 || r.length > maxPage || r.off < frame.HeaderSize || r.off+r.length < r.off:
		return fmt.Errorf("page at %d, length %d", r.off, r.length)
	case r.count > span(level):
		return fmt.Errorf("%d clusters below a page for %d", r.count, span(level))
	}
	return nil
}

// decodeInner decodes the children of an inner page.
func decodeInner(b []byte, level int, index uint64, kids *[fanOut]ref) error {
	d := frame.NewDecoder(b)
	decodeHead(d, level, index)
	i, prev := 0, ref{}
	for n := d.Count(8, fanOut); n > 0 && d.Err() == nil; n-- {
		gap := d.Uvarint()
		if gap >= fanOut || i+int(gap) >= fanOut {
			d.Fail("child over the end of the page")
			break
		}
		i += int(gap)
		kids[i] = decodeRef(d, prev, level-1)
		prev = kids[i]
		i++
	}
	return d.Finish()
}
