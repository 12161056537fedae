package writebuffer

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"scoria/internal/blocksum"
	"scoria/internal/frame"
	"scoria/volumedriver/sco"
	"scoria/volumedriver/tlog"
)

// The layout of segment files; FORMAT.md draws and explains it.
const (
	segmentMagic   = 0x53574353 // "SCWS"
	recordMagic    = 0x52574353 // "SCWR"
	formatVersion  = 1          // of records
	segmentVersion = 3          // of segments that are written over an old one
	aheadVersion   = 2          // of others; 1 has no zeroes behind its records
	headerSize     = 64         // of a segment and of a record
	pageSize       = 4096
	maxDataOffset  = headerSize + 4*sco.MaxClusters + pageSize
	segmentPattern = "sco-%09x.log"
	// maxSegmentBytes bounds what is read of a segment file: the largest SCO, headers, and
	// padding of two pages for each record.
	maxSegmentBytes = headerSize + sco.MaxClusters*3*pageSize + maxHeaderBytes
)

// segmentHeader is the start of a segment file.
type segmentHeader struct {
	volume, number, epoch uint64
	firstSeq              uint64 // of the first record here
	synced                uint64 // records up to here were durable when this was written
	prev                  uint32 // checksum of the record before the first one here
	version               uint16
}

// encode writes the header into b and returns its checksum, which the first record chains to.
func (h *segmentHeader) encode(b []byte) uint32 {
	le := binary.LittleEndian
	clear(b[:headerSize])
	le.PutUint32(b[0:], segmentMagic)
	le.PutUint16(b[4:], h.version)
	le.PutUint64(b[8:], h.volume)
	le.PutUint64(b[16:], h.number)
	le.PutUint64(b[24:], h.epoch)
	le.PutUint64(b[32:], h.firstSeq)
	le.PutUint64(b[40:], h.synced)
	le.PutUint32(b[48:], h.prev)
	crc := blocksum.Of(b[:60])
	le.PutUint32(b[60:], crc)
	return crc
}

// parseSegmentHeader decodes the start of a segment file and returns its checksum too.
func parseSegmentHeader(b []byte) (segmentHeader, uint32, error) {
	le := binary.LittleEndian
	if len(b) < headerSize {
		return segmentHeader{}, 0, fmt.Errorf("segment header: %d bytes: %w", len(b), frame.ErrTruncated)
	}
	if m := le.Uint32(b); m != segmentMagic {
		return segmentHeader{}, 0, fmt.Errorf("segment header: magic %08x: %w", m, frame.ErrMagic)
	}
	crc := le.Uint32(b[60:])
	if got := blocksum.Of(b[:60]); got != crc {
		return segmentHeader{}, 0, fmt.Errorf("segment header: crc %08x, stored %08x: %w", got, crc, frame.ErrChecksum)
	}
	v := le.Uint16(b[4:])
	if v == 0 || v > segmentVersion {
		return segmentHeader{}, 0, fmt.Errorf("segment header: version %d, this program knows 1..%d: %w", v, segmentVersion, frame.ErrVersion)
	}
	h := segmentHeader{version: v, volume: le.Uint64(b[8:]), number: le.Uint64(b[16:]), epoch: le.Uint64(b[24:]),
		firstSeq: le.Uint64(b[32:]), synced: le.Uint64(b[40:]), prev: le.Uint32(b[48:])}
	if h.volume == 0 || h.number == 0 || h.number > sco.MaxNumber || h.epoch == 0 || h.firstSeq == 0 {
		return segmentHeader{}, 0, fmt.Errorf("segment header: volume %d, SCO %x, epoch %d, first record %d: %w",
			h.volume, h.number, h.epoch, h.firstSeq, frame.ErrInvalid)
	}
	return h, crc, nil
}

// record is the header of a record.
type record struct {
	kind       tlog.Kind
	epoch, seq uint64
	addr       uint64
	count      uint64
	index      uint32 // first cluster in the SCO
	dataOff    uint32 // of the data, from the start of the record; 0 for a Clear
	synced     uint64 // records up to here were durable when this was written
	prev       uint32 // checksum of the record (or segment header) before
}

// headBytes is the size of header and sums.
func (r *record) headBytes() int {
	if r.kind == tlog.Write {
		return headerSize + 4*int(r.count)
	}
	return headerSize
}

// size is the size of the whole record in bytes.
func (r *record) size() int64 {
	if r.kind == tlog.Write {
		return int64(r.dataOff) + int64(r.count)*ClusterSize
	}
	return headerSize
}

// encode writes header and sums into b, which has at least headBytes, and returns the checksum.
func (r *record) encode(b []byte, sums []uint32) uint32 {
	le := binary.LittleEndian
	le.PutUint32(b[0:], recordMagic)
	le.PutUint32(b[8:], r.prev)
	b[12], b[13], b[14], b[15] = byte(r.kind), formatVersion, 0, 0
	le.PutUint64(b[16:], r.epoch)
	le.PutUint64(b[24:], r.seq)
	le.PutUint64(b[32:], r.addr)
	le.PutUint64(b[40:], r.count)
	le.PutUint32(b[48:], r.index)
	le.PutUint32(b[52:], r.dataOff)
	le.PutUint64(b[56:], r.synced)
	n := headerSize
	for _, s := range sums {
		le.PutUint32(b[n:], s)
		n += 4
	}
	crc := blocksum.Of(b[8:n])
	le.PutUint32(b[4:], crc)
	return crc
}

// parseRecord decodes the record header at the start of b and verifies it with its sums,
// which it returns encoded. It does not look at the data.
func parseRecord(b []byte) (r record, crc uint32, sums []byte, err error) {
	le := binary.LittleEndian
	if len(b) < headerSize {
		return r, 0, nil, fmt.Errorf("record header: %d bytes: %w", len(b), frame.ErrTruncated)
	}
	if m := le.Uint32(b); m != recordMagic {
		return r, 0, nil, fmt.Errorf("record header: magic %08x: %w", m, frame.ErrMagic)
	}
	r = record{kind: tlog.Kind(b[12]), epoch: le.Uint64(b[16:]), seq: le.Uint64(b[24:]), addr: le.Uint64(b[32:]), count: le.Uint64(b[40:]),
		index: le.Uint32(b[48:]), dataOff: le.Uint32(b[52:]), synced: le.Uint64(b[56:]), prev: le.Uint32(b[8:])}
	// Bounds first: the checksum covers as many sums as the count says.
	switch {
	case r.count == 0 || r.addr >= tlog.MaxAddr || r.count > tlog.MaxAddr-r.addr || r.index > sco.MaxClusters,
		r.kind == tlog.Write && (r.count > sco.MaxClusters-uint64(r.index) || r.dataOff < uint32(r.headBytes()) || r.dataOff > maxDataOffset),
		r.kind == tlog.Clear && r.dataOff != 0,
		r.kind != tlog.Write && r.kind != tlog.Clear:
		return r, 0, nil, fmt.Errorf("record header: kind %d, %d+%d, index %d, data at %d: %w", r.kind, r.addr, r.count, r.index, r.dataOff, frame.ErrInvalid)
	}
	n := r.headBytes()
	if len(b) < n {
		return r, 0, nil, fmt.Errorf("record header: %d of %d bytes: %w", len(b), n, frame.ErrTruncated)
	}
	crc = le.Uint32(b[4:])
	if got := blocksum.Of(b[8:n]); got != crc {
		return r, 0, nil, fmt.Errorf("record header: crc %08x, stored %08x: %w", got, crc, frame.ErrChecksum)
	}
	if b[13] != formatVersion {
		return r, 0, nil, fmt.Errorf("record header: version %d, this program knows %d: %w", b[13], formatVersion, frame.ErrVersion)
	}
	return r, crc, b[headerSize:n], nil
}

// verifyData checks data (count clusters) against the encoded sums.
func (r *record) verifyData(sums, data []byte) error {
	for i := range r.count {
		got := blocksum.Seal(blocksum.Of(data[i*ClusterSize:(i+1)*ClusterSize]), r.addr+i)
		if want := binary.LittleEndian.Uint32(sums[4*i:]); got != want {
			return fmt.Errorf("record %d: data of cluster %d: sum %08x, stored %08x: %w", r.seq, r.addr+i, got, want, frame.ErrChecksum)
		}
	}
	return nil
}

// alignUp returns the next multiple of pageSize from n on.
func alignUp(n int64) int64 { return (n + pageSize - 1) &^ (pageSize - 1) }

// scanner walks over the records of one segment that is in memory. It takes only what
// fits: checksum, chain, number, epoch, index. It is pure.
type scanner struct {
	b      []byte
	header segmentHeader
	chain  uint32 // checksum of the last good record
	off    int64  // behind the last good record
	seq    uint64 // of the last good record; firstSeq-1 at the start
	index  uint32 // clusters so far
	synced uint64 // greatest claim of any good record or the header

	verifyAfter uint64 // data of records with greater numbers is verified

	sums   []byte // of the last record
	dataAt int64  // of its data
	cut    error  // why the segment ends here, once next returned false; nil: at the end of b, or before zeroes
}

func newScanner(b []byte, verifyAfter uint64) (*scanner, error) {
	h, crc, err := parseSegmentHeader(b)
	if err != nil {
		return nil, err
	}
	return &scanner{b: b, header: h, chain: crc, off: headerSize, seq: h.firstSeq - 1, synced: h.synced, verifyAfter: verifyAfter}, nil
}

// next steps to the next record; false at the end, when s.cut tells why.
func (s *scanner) next(r *record) bool {
	if s.off >= int64(len(s.b)) {
		return false
	}
	at := s.off
	crc, err := s.check(at, r)
	if next := alignUp(at); err != nil && next != at && next < int64(len(s.b)) {
		// A record whose data goes by O_DIRECT begins at a page.
		if c, e := s.check(next, r); e == nil {
			at, crc, err = next, c, nil
		}
	}
	if err != nil {
		if s.header.version == 1 || !isZero(s.b[s.off:]) { // zeroes are space ahead of the end
			s.cut = fmt.Errorf("SCO %x, offset %d: %w", s.header.number, at, err)
		}
		return false
	}
	s.chain, s.seq, s.off = crc, r.seq, at+r.size()
	s.synced = max(s.synced, r.synced)
	if r.kind == tlog.Write {
		s.index += uint32(r.count)
	}
	return true
}

func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroes))
		if !bytes.Equal(b[:n], zeroes[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// check tells whether the record at off is the one that follows.
func (s *scanner) check(off int64, r *record) (crc uint32, err error) {
	var sums []byte
	*r, crc, sums, err = parseRecord(s.b[off:])
	switch {
	case err != nil:
		return 0, err
	case r.epoch != s.header.epoch || r.seq != s.seq+1 || r.index != s.index || r.prev != s.chain:
		return 0, fmt.Errorf("record %d of epoch %d, index %d, behind %08x; want %d of %d, index %d, behind %08x: %w",
			r.seq, r.epoch, r.index, r.prev, s.seq+1, s.header.epoch, s.index, s.chain, frame.ErrInvalid)
	case r.size() > int64(len(s.b))-off:
		return 0, fmt.Errorf("record %d: %d of %d bytes: %w", r.seq, int64(len(s.b))-off, r.size(), frame.ErrTruncated)
	}
	s.sums, s.dataAt = sums, off+int64(r.dataOff)
	if r.kind == tlog.Write && r.seq > s.verifyAfter {
		if err := r.verifyData(sums, s.b[s.dataAt:off+r.size()]); err != nil {
			return 0, err
		}
	}
	return crc, nil
}
