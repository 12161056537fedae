package osd

import (
	"encoding/binary"
	"fmt"

	"scoria/internal/blocksum"
	"scoria/internal/frame"
	"scoria/internal/vfs"
)

// The formats in this file are described in FORMAT.md.

const (
	logMagic = 0x474c4f53 // "SOLG": segments of the log

	typeSegment uint8 = 1 // the first block of a segment
	typeRecord  uint8 = 2 // one group of batches

	segmentVersion uint8 = 1
	recordVersion  uint8 = 1

	// align is what offsets and lengths in a segment are multiples of.
	align = vfs.DirectAlign
	// segmentHeader is the number of bytes of a segment's header block.
	segmentHeader = align
	// inlineMax is the largest value that is kept in the record header and the index
	// rather than in blocks of its own. A block costs 4 KiB of disk and of every
	// read; above half of one the block is the better place.
	inlineMax = 2048
	// maxHeader bounds a record's header: the operations of a full group with their
	// keys, inline values and block sums fit several times.
	maxHeader = 32 << 20
	// maxGroupOps bounds the operations of one record.
	maxGroupOps = 4 * MaxBatchOps
	// maxValues bounds the bytes of the values of one record, padding included.
	maxValues = 2*MaxBatch + maxGroupOps*align
)

// The kinds of operations in a record.
const (
	opPut    uint8 = 1 // value in blocks behind the header
	opInline uint8 = 2 // value in the header
	opDelete uint8 = 3
)

func alignUp(n int64) int64 { return (n + align - 1) &^ (align - 1) }

// segmentInfo is the content of a segment's header block.
type segmentInfo struct {
	UUID     string // of the OSD
	No       uint32 // number of the segment, 1.., never used again
	Nonce    uint64 // random; records of the segment repeat it
	FirstSeq uint64 // sequence number of its first record
}

func appendSegment(dst []byte, s segmentInfo) []byte {
	body := frame.AppendString(nil, s.UUID)
	body = binary.LittleEndian.AppendUint32(body, s.No)
	body = binary.LittleEndian.AppendUint64(body, s.Nonce)
	body = binary.LittleEndian.AppendUint64(body, s.FirstSeq)
	return frame.Append(dst, logMagic, typeSegment, segmentVersion, 0, body)
}

func parseSegment(block []byte) (segmentInfo, error) {
	h, body, _, err := frame.Parse(block, logMagic, align)
	if err != nil {
		return segmentInfo{}, fmt.Errorf("segment header: %w", err)
	}
	if h.Type != typeSegment {
		return segmentInfo{}, fmt.Errorf("segment header: frame of type %d: %w", h.Type, frame.ErrInvalid)
	}
	if h.Version != segmentVersion {
		return segmentInfo{}, fmt.Errorf("segment header: version %d, this program knows %d: %w", h.Version, segmentVersion, frame.ErrVersion)
	}
	d := frame.NewDecoder(body)
	s := segmentInfo{UUID: d.String(64), No: d.U32(), Nonce: d.U64(), FirstSeq: d.U64()}
	if err := d.Finish(); err != nil {
		return segmentInfo{}, fmt.Errorf("segment header: %w", err)
	}
	return s, nil
}

// recordInfo is the fixed part of a record's header.
type recordInfo struct {
	Seq     uint64 // 1.., without gaps over all segments
	Durable uint64 // every record up to this one was synced before this one was written
	Segment uint32
	Nonce   uint64
	Off     uint64 // of the record in its segment
	Values  uint64 // bytes of the values behind the header, padding included
}

// op is one operation of a record. Put and inline operations carry an index entry, in
// which the place of the value is set when it is known.
type op struct {
	kind  uint8
	key   []byte
	entry []byte // index entry (see index.go); nil for deletes
	value []byte // the bytes behind the header, for opPut when writing
}

// appendRecord appends the header of a record, padded to align. ops are at most maxGroupOps.
func appendRecord(dst []byte, r recordInfo, ops []op) []byte {
	start := len(dst)
	// The frame is built in place, as bodies can be large.
	dst = append(dst, make([]byte, frame.HeaderSize)...)
	dst = binary.LittleEndian.AppendUint64(dst, r.Seq)
	dst = binary.LittleEndian.AppendUint64(dst, r.Durable)
	dst = binary.LittleEndian.AppendUint32(dst, r.Segment)
	dst = binary.LittleEndian.AppendUint64(dst, r.Nonce)
	dst = binary.LittleEndian.AppendUint64(dst, r.Off)
	dst = binary.LittleEndian.AppendUint64(dst, r.Values)
	dst = binary.AppendUvarint(dst, uint64(len(ops)))
	for i := range ops {
		o := &ops[i]
		dst = append(dst, o.kind)
		dst = frame.AppendBytes(dst, o.key)
		if o.kind != opDelete {
			dst = frame.AppendBytes(dst, entryBody(o.entry))
		}
	}
	sealFrame(dst[start:], logMagic, typeRecord, recordVersion)
	for (len(dst)-start)%align != 0 {
		n := min(align-(len(dst)-start)%align, len(zeroes))
		dst = append(dst, zeroes[:n]...)
	}
	return dst
}

var zeroes [align]byte

// sealFrame fills in the frame header at the start of b, whose body follows it.
func sealFrame(b []byte, magic uint32, typ, version uint8) {
	binary.LittleEndian.PutUint32(b, magic)
	b[4], b[5] = typ, version
	binary.LittleEndian.PutUint16(b[6:], 0)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-frame.HeaderSize))
	crc := blocksum.Update(blocksum.Of(b[:12]), b[frame.HeaderSize:])
	binary.LittleEndian.PutUint32(b[12:], crc)
}

// recordLength returns the padded length of the record header that starts with block.
func recordLength(block []byte) (int64, error) {
	h, err := frame.ParseHeader(block, logMagic, maxHeader)
	if err != nil {
		return 0, fmt.Errorf("record: %w", err)
	}
	if h.Type != typeRecord {
		return 0, fmt.Errorf("record: frame of type %d: %w", h.Type, frame.ErrInvalid)
	}
	if h.Version != recordVersion {
		return 0, fmt.Errorf("record: version %d, this program knows %d: %w", h.Version, recordVersion, frame.ErrVersion)
	}
	return alignUp(int64(frame.HeaderSize) + int64(h.Length)), nil
}

// parseRecord decodes a record header. The places of the values are set in the entries. The
// operations refer to b.
func parseRecord(b []byte) (recordInfo, []op, error) {
	if _, err := recordLength(b); err != nil {
		return recordInfo{}, nil, err
	}
	_, body, _, err := frame.Parse(b, logMagic, maxHeader)
	if err != nil {
		return recordInfo{}, nil, fmt.Errorf("record: %w", err)
	}
	header := alignUp(int64(frame.HeaderSize + len(body)))
	d := frame.NewDecoder(body)
	r := recordInfo{Seq: d.U64(), Durable: d.U64(), Segment: d.U32(), Nonce: d.U64(), Off: d.U64(), Values: d.U64()}
	if d.Err() == nil && (r.Seq == 0 || r.Durable >= r.Seq || r.Values > maxValues || r.Values%align != 0 || r.Off%align != 0 || r.Off > 1<<40) {
		d.Fail("record %d, durable %d, at %d, %d bytes of values", r.Seq, r.Durable, r.Off, r.Values)
	}
	ops := make([]op, d.Count(3, maxGroupOps))
	place := uint64(header)
	for i := range ops {
		o := &ops[i]
		o.kind = d.U8()
		o.key = d.Bytes(MaxKey)
		if d.Err() == nil && len(o.key) == 0 {
			d.Fail("operation %d has no key", i)
		}
		switch o.kind {
		case opDelete:
			continue
		case opPut, opInline:
		default:
			d.Fail("operation %d is of kind %d", i, o.kind)
		}
		tail := d.Bytes(maxEntry)
		if d.Err() != nil {
			return recordInfo{}, nil, fmt.Errorf("record: %w", d.Err())
		}
		o.entry = makeEntry(o.kind, tail)
		e, err := parseEntry(o.entry)
		if err != nil {
			return recordInfo{}, nil, fmt.Errorf("record: operation %d: %w", i, err)
		}
		if o.kind == opPut {
			setPlace(o.entry, r.Segment, r.Off+place)
			place += uint64(e.padded())
		}
	}
	if d.Err() == nil && place != uint64(header)+r.Values {
		d.Fail("values take %d bytes, the record says %d", place-uint64(header), r.Values)
	}
	if err := d.Finish(); err != nil {
		return recordInfo{}, nil, fmt.Errorf("record: %w", err)
	}
	return r, ops, nil
}
