package clustermap

import (
	"encoding/binary"
	"fmt"
	"slices"

	"scoria/internal/frame"
)

// Magic numbers: "SCMR" (record) and "SCMP" (pack) as the bytes of a file.
const (
	magicRecord = 'S' | 'C'<<8 | 'M'<<16 | 'R'<<24
	magicPack   = 'S' | 'C'<<8 | 'M'<<16 | 'P'<<24
)

const (
	typeRecord    = 1
	recordVersion = 1

	// MaxRecord bounds an encoded checkpoint record, in bytes.
	MaxRecord = 16 << 20

	maxPacks   = 1 << 20 // packs of a record
	maxDropped = 1 << 17 // dropped subtrees of a record
)

// PackInfo tells about a pack that a checkpoint record refers to.
type PackInfo struct {
	Number uint32
	Size   int64 // bytes of the pack
	Live   int64 // bytes of its pages that the record's tree refers to (never too few)
}

// drop is a subtree that was cut off without being loaded. Its pages count as live until
// a checkpoint has walked them.
type drop struct {
	ref   ref
	level int
	index uint64
}

// record is a decoded checkpoint record: all that Open needs.
type record struct {
	seq      uint64
	clusters uint64
	height   int
	root     ref // absent: empty map
	nextPack uint32
	lineage  []uint32 // packs below lineage[i] were written by ancestor i+1 or an older one; descending
	packs    []PackInfo
	dropped  []drop
}

func (r *record) encode() ([]byte, error) {
	var b []byte
	b = binary.AppendUvarint(b, r.seq)
	b = binary.AppendUvarint(b, r.clusters)
	b = append(b, byte(r.height))
	if r.root.absent() {
		b = append(b, 0)
	} else {
		b = appendRef(append(b, 1), r.root, ref{})
	}
	b = binary.AppendUvarint(b, uint64(r.nextPack))
	b = binary.AppendUvarint(b, uint64(len(r.lineage)))
	for _, n := range r.lineage {
		b = binary.AppendUvarint(b, uint64(n))
	}
	b = binary.AppendUvarint(b, uint64(len(r.packs)))
	last := uint32(0)
	for _, p := range r.packs {
		b = binary.AppendUvarint(b, uint64(p.Number-last))
		b = binary.AppendUvarint(b, uint64(p.Size))
		b = binary.AppendUvarint(b, uint64(p.Live))
		last = p.Number
	}
	b = binary.AppendUvarint(b, uint64(len(r.dropped)))
	for _, d := range r.dropped {
		b = append(b, byte(d.level))
		b = binary.AppendUvarint(b, d.index)
		b = appendRef(b, d.ref, ref{})
	}
	if len(b) > MaxRecord-frame.HeaderSize || len(r.packs) > maxPacks || len(r.dropped) > maxDropped {
		return nil, fmt.Errorf("cluster map: checkpoint record of %d bytes, %d packs, %d dropped subtrees: %w",
			len(b), len(r.packs), len(r.dropped), frame.ErrTooLong)
	}
	return frame.Append(nil, magicRecord, typeRecord, recordVersion, 0, b), nil
}

func decodeRecord(b []byte) (*record, error) {
	h, body, rest, err := frame.Parse(b, magicRecord, MaxRecord)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cluster map: checkpoint record: %w: %w", ErrCorrupt, err)
	case h.Type != typeRecord || h.Version != recordVersion:
		return nil, fmt.Errorf("cluster map: checkpoint record: type %d, version %d: %w", h.Type, h.Version, frame.ErrVersion)
	case len(rest) != 0:
		return nil, fmt.Errorf("cluster map: checkpoint record: %d bytes behind it: %w", len(rest), ErrCorrupt)
	}
	r, err := decodeRecordBody(body)
	if err != nil {
		return nil, fmt.Errorf("cluster map: checkpoint record: %w: %w", ErrCorrupt, err)
	}
	return r, nil
}

func decodeRecordBody(body []byte) (*record, error) {
	d := frame.NewDecoder(body)
	r := &record{seq: d.Uvarint(), clusters: d.Uvarint(), height: int(d.U8())}
	if r.clusters > MaxClusters || r.height > maxHeight {
		d.Fail("%d clusters, height %d", r.clusters, r.height)
	}
	switch has := d.U8(); {
	case has == 1 && d.Err() == nil:
		r.root = decodeRef(d, ref{}, r.height)
	case has > 1:
		d.Fail("root flag %d", has)
	}
	next := d.Uvarint()
	if next == 0 || next != uint64(uint32(next)) {
		d.Fail("next pack %d", next)
	}
	r.nextPack = uint32(next)
	upper := r.nextPack
	for n := d.Count(1, MaxAncestor); n > 0 && d.Err() == nil; n-- {
		v := d.Uvarint()
		if v > uint64(upper) {
			d.Fail("lineage rises to %d over %d", v, upper)
			break
		}
		upper = uint32(v)
		r.lineage = append(r.lineage, upper)
	}
	r.decodePacks(d)
	for n := d.Count(9, maxDropped); n > 0 && d.Err() == nil; n-- {
		level, index := int(d.U8()), d.Uvarint()
		if level < 1 || level > maxHeight {
			d.Fail("dropped subtree of level %d", level)
			break
		}
		r.dropped = append(r.dropped, drop{decodeRef(d, ref{}, level), level, index})
	}
	return r, d.Finish()
}

func (r *record) decodePacks(d *frame.Decoder) {
	last := uint64(0)
	for n := d.Count(3, maxPacks); n > 0 && d.Err() == nil; n-- {
		step, size, live := d.Uvarint(), d.Uvarint(), d.Uvarint()
		if step == 0 || step >= uint64(r.nextPack) || last+step >= uint64(r.nextPack) || live > size || size > maxPackSize {
			d.Fail("pack %d + %d: %d of %d bytes live", last, step, live, size)
			return
		}
		last += step
		r.packs = append(r.packs, PackInfo{uint32(last), int64(size), int64(live)})
	}
}

// Info is what a checkpoint record says.
type Info struct {
	Seq      uint64     // state after all records up to this number
	Clusters uint64     // size of the volume
	Mapped   uint64     // clusters with data
	NextPack uint32     // packs from here on are not known to the record
	Lineage  []uint32   // packs below Lineage[i] belong to ancestor i+1 or an older one
	Packs    []PackInfo // all packs the record refers to, ascending
	Dropped  int        // subtrees whose garbage is not yet counted
}

// DecodeRecord tells what a checkpoint record says, for dumps and for the decision which
// packs may be deleted: a pack is garbage when no record that is kept (head, snapshots)
// lists it.
func DecodeRecord(b []byte) (Info, error) {
	r, err := decodeRecord(b)
	if err != nil {
		return Info{}, err
	}
	return Info{r.seq, r.clusters, r.root.count, r.nextPack, r.lineage, r.packs, len(r.dropped)}, nil
}

// CloneRecord turns the record of a snapshot into the first record of a clone, in O(packs):
// all pages are shared. In the clone every ancestor is one generation further away. The
// clone numbers its packs from the record's NextPack on; its PackStore must find lower
// numbers in the parent's namespace (and Info.Lineage says in which one further up).
func CloneRecord(b []byte) ([]byte, error) {
	r, err := decodeRecord(b)
	if err != nil {
		return nil, err
	}
	if len(r.lineage) >= MaxAncestor {
		return nil, fmt.Errorf("cluster map: clone would have %d ancestors: %w", len(r.lineage)+1, frame.ErrTooLong)
	}
	r.lineage = slices.Insert(r.lineage, 0, r.nextPack)
	r.seq = 0
	r.dropped = nil // garbage of the parent is the parent's business
	return r.encode()
}

// ancestorOf tells which ancestor wrote a pack, 0 for the volume itself.
func ancestorOf(lineage []uint32, pack uint32) uint16 {
	n := 0
	for n < len(lineage) && pack < lineage[n] {
		n++
	}
	return uint16(n)
}
