package tlog

import (
	"encoding/binary"
	"fmt"

	"scoria/internal/blocksum"
	"scoria/internal/frame"
	"scoria/volumedriver/sco"
)

// Numbers of the format; FORMAT.md explains them.
const (
	magic         = 0x4c544353 // "SCTL"
	frameType     = 1
	version       = 1
	objectHeader  = 24 // bytes in front of the sections
	sectionHeader = 32 // bytes in front of the entries of a section
	countInline   = 63 // the tag holds counts up to this
	minEntryBytes = 2  // tag and address
)

// MaxSectionBytes bounds one section. It holds the entries of any segment of the write buffer.
const MaxSectionBytes = 8 << 20

// Section encodes the entries of one SCO. Use Reset first. It is not safe for concurrent use.
type Section struct {
	b        []byte
	number   uint64
	firstSeq uint64
	entries  uint32
	clusters uint32
	next     uint64 // address behind the last entry
}

// Reset starts the section of the SCO with the given number, and keeps the memory.
func (s *Section) Reset(number uint64) {
	*s = Section{b: append(s.b[:0], make([]byte, sectionHeader)...), number: number}
}

// Add appends an entry of this SCO. Seq and Index must follow the entry before; the first
// entry has index 0. An entry that does not, or exceeds the limits, is ErrInvalid and leaves
// the section as it was.
func (s *Section) Add(e *Entry) error {
	if !e.Valid() || e.SCO != s.number || e.Index != s.clusters || s.entries > 0 && e.Seq != s.firstSeq+uint64(s.entries) {
		return fmt.Errorf("record %d: %v %d+%d at SCO %x index %d, %d sums; in section %x after %d entries, %d clusters: %w",
			e.Seq, e.Kind, e.Addr, e.Count, e.SCO, e.Index, len(e.Sums), s.number, s.entries, s.clusters, ErrInvalid)
	}
	if s.entries >= MaxEntries || len(s.b)+32+4*len(e.Sums) > MaxSectionBytes {
		return fmt.Errorf("record %d: the section of SCO %x is full: %w", e.Seq, s.number, ErrInvalid)
	}
	if s.entries == 0 {
		s.firstSeq = e.Seq
	}
	tag := byte(e.Kind)
	if e.Count <= countInline {
		s.b = append(s.b, tag|byte(e.Count-1)<<2)
	} else {
		s.b = append(s.b, tag|countInline<<2)
		s.b = binary.AppendUvarint(s.b, e.Count)
	}
	s.b = binary.AppendVarint(s.b, int64(e.Addr)-int64(s.next))
	for _, sum := range e.Sums {
		s.b = binary.LittleEndian.AppendUint32(s.b, sum)
	}
	s.next = e.Addr + e.Count
	s.entries++
	if e.Kind == Write {
		s.clusters += uint32(e.Count)
	}
	return nil
}

// Entries returns the number of entries so far.
func (s *Section) Entries() int { return int(s.entries) }

// Bytes returns the encoded section. It is valid until the next Add or Reset.
func (s *Section) Bytes() []byte {
	h := s.b[:sectionHeader]
	binary.LittleEndian.PutUint64(h[0:], s.number)
	binary.LittleEndian.PutUint64(h[8:], s.firstSeq)
	binary.LittleEndian.PutUint32(h[16:], s.entries)
	binary.LittleEndian.PutUint32(h[20:], s.clusters)
	binary.LittleEndian.PutUint32(h[24:], uint32(len(s.b)-sectionHeader))
	binary.LittleEndian.PutUint32(h[28:], sectionCRC(s.b))
	return s.b
}

func sectionCRC(section []byte) uint32 {
	return blocksum.Update(blocksum.Of(section[:28]), section[sectionHeader:])
}

// Info describes a TLog or a section. Of an empty one only Number (and Epoch) count.
type Info struct {
	Number, Epoch     uint64 // of the TLog; 0 for a section
	FirstSeq, LastSeq uint64
	FirstSCO, LastSCO uint64
	Sections          int
	Entries, Clusters uint64
}

// AppendObject appends to dst the TLog made of sections (from Section.Bytes), which must be
// in order and without a gap in Seq. At least one section is needed, and none may be empty.
func AppendObject(dst []byte, number, epoch uint64, sections [][]byte) ([]byte, error) {
	if number == 0 || number > sco.MaxNumber || epoch == 0 || len(sections) == 0 || len(sections) > MaxSections {
		return dst, fmt.Errorf("TLog %x of epoch %d with %d sections: %w", number, epoch, len(sections), ErrInvalid)
	}
	size := objectHeader
	for _, s := range sections {
		size += len(s)
	}
	if size > MaxObjectBytes-frame.HeaderSize {
		return dst, fmt.Errorf("TLog %x of %d bytes: %w", number, size, ErrInvalid)
	}
	body := make([]byte, 0, size)
	body = binary.LittleEndian.AppendUint64(body, number)
	body = binary.LittleEndian.AppendUint64(body, epoch)
	body = binary.LittleEndian.AppendUint32(body, uint32(len(sections)))
	body = binary.LittleEndian.AppendUint32(body, 0)
	info := Info{Number: number}
	for _, s := range sections {
		d := frame.NewDecoder(s)
		h, err := takeSection(d)
		if err == nil {
			err = d.Finish()
		}
		if err != nil {
			return dst, fmt.Errorf("TLog %x: %w", number, err)
		}
		if err := info.join(h); err != nil {
			return dst, fmt.Errorf("TLog %x: %w", number, err)
		}
		body = append(body, s...)
	}
	return frame.Append(dst, magic, frameType, version, 0, body), nil
}

// header is a decoded section header with the encoded entries.
type header struct {
	number, firstSeq  uint64
	entries, clusters uint32
	body              []byte
}

// takeSection reads and verifies the next section, without its entries.
func takeSection(d *frame.Decoder) (header, error) {
	hb := d.Take(sectionHeader)
	if hb == nil {
		return header{}, fmt.Errorf("section header: %w", d.Err())
	}
	hd := frame.NewDecoder(hb)
	h := header{number: hd.U64(), firstSeq: hd.U64(), entries: hd.U32(), clusters: hd.U32()}
	length, crc := hd.U32(), hd.U32()
	switch {
	case h.number == 0 || h.number > sco.MaxNumber || h.firstSeq == 0:
		d.Fail("section of SCO %x from record %d", h.number, h.firstSeq)
	case h.entries == 0 || h.entries > MaxEntries || h.clusters > sco.MaxClusters:
		d.Fail("section of SCO %x with %d entries, %d clusters", h.number, h.entries, h.clusters)
	case h.firstSeq > 1<<63:
		d.Fail("section of SCO %x from record %d", h.number, h.firstSeq)
	case length > MaxSectionBytes || uint64(length) < minEntryBytes*uint64(h.entries)+4*uint64(h.clusters):
		d.Fail("section of SCO %x: %d bytes for %d entries, %d clusters", h.number, length, h.entries, h.clusters)
	}
	h.body = d.Take(int(length))
	if d.Err() != nil {
		return header{}, d.Err()
	}
	if got := blocksum.Update(blocksum.Of(hb[:28]), h.body); got != crc {
		return header{}, fmt.Errorf("section of SCO %x: crc %08x, stored %08x: %w", h.number, got, crc, frame.ErrChecksum)
	}
	return h, nil
}

// zigzag undoes the encoding of binary.AppendVarint.
func zigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// join counts a section that follows.
func (i *Info) join(h header) error {
	if i.Sections > 0 && (h.firstSeq != i.LastSeq+1 || h.number <= i.LastSCO) {
		return fmt.Errorf("section of SCO %x from record %d behind SCO %x up to record %d: %w",
			h.number, h.firstSeq, i.LastSCO, i.LastSeq, frame.ErrInvalid)
	}
	if i.Sections == 0 {
		i.FirstSeq, i.FirstSCO = h.firstSeq, h.number
	}
	i.LastSeq, i.LastSCO = h.firstSeq+uint64(h.entries)-1, h.number
	i.Sections++
	i.Entries += uint64(h.entries)
	i.Clusters += uint64(h.clusters)
	if i.Entries > MaxEntries {
		return fmt.Errorf("more than %d entries: %w", MaxEntries, frame.ErrTooLong)
	}
	return nil
}

// Decode checks a TLog and calls fn for each entry in order; the Entry and its Sums are valid
// during the call. fn may be nil. Errors wrap those of package frame, or are fn's, which
// end the decoding. fn may have been called before damage is found in a later entry; that
// takes a wrong encoder, since the checksum over all is verified first.
func Decode(obj []byte, fn func(*Entry) error) (Info, error) {
	h, body, rest, err := frame.Parse(obj, magic, MaxObjectBytes)
	if err != nil {
		return Info{}, fmt.Errorf("TLog: %w", err)
	}
	if h.Type != frameType || h.Version != version {
		return Info{}, fmt.Errorf("TLog: type %d version %d, want %d version %d: %w", h.Type, h.Version, frameType, version, frame.ErrVersion)
	}
	if len(rest) != 0 {
		return Info{}, fmt.Errorf("TLog: %d bytes behind its end: %w", len(rest), frame.ErrInvalid)
	}
	d := frame.NewDecoder(body)
	info := Info{Number: d.U64(), Epoch: d.U64()}
	n := d.U32()
	d.U32()
	if d.Err() == nil && (info.Number == 0 || info.Number > sco.MaxNumber || info.Epoch == 0 || n == 0 || n > MaxSections) {
		d.Fail("TLog %x of epoch %d with %d sections", info.Number, info.Epoch, n)
	}
	var scratch []uint32
	for range n {
		s, err := takeSection(d)
		if err != nil {
			return info, fmt.Errorf("TLog %x: %w", info.Number, err)
		}
		if err := info.join(s); err != nil {
			return info, fmt.Errorf("TLog %x: %w", info.Number, err)
		}
		if scratch, err = s.each(scratch, fn); err != nil {
			return info, err
		}
	}
	if err := d.Finish(); err != nil {
		return info, fmt.Errorf("TLog: %w", err)
	}
	return info, nil
}

// DecodeSection does for one section what Decode does for a TLog.
func DecodeSection(section []byte, fn func(*Entry) error) (Info, error) {
	d := frame.NewDecoder(section)
	h, err := takeSection(d)
	if err == nil {
		err = d.Finish()
	}
	if err != nil {
		return Info{}, fmt.Errorf("TLog section: %w", err)
	}
	var info Info
	if err := info.join(h); err != nil {
		return Info{}, err
	}
	_, err = h.each(nil, fn)
	return info, err
}

// each decodes the entries. scratch is memory for sums, which it returns for the next call.
func (h *header) each(scratch []uint32, fn func(*Entry) error) ([]uint32, error) {
	d := frame.NewDecoder(h.body)
	e := Entry{SCO: h.number}
	next := uint64(0)
	for i := range h.entries {
		tag := d.U8()
		e.Seq, e.Kind, e.Count = h.firstSeq+uint64(i), Kind(tag&3), uint64(tag>>2)+1
		if e.Count > countInline {
			if e.Count = d.Uvarint(); e.Count <= countInline && d.Err() == nil {
				d.Fail("count %d is not in its short form", e.Count)
			}
		}
		e.Addr = next + uint64(zigzag(d.Uvarint()))
		e.Sums = nil
		if e.Kind == Write && d.Err() == nil && e.Count <= sco.MaxClusters {
			scratch = scratch[:0]
			for raw := d.Take(4 * int(e.Count)); len(raw) > 0; raw = raw[4:] {
				scratch = append(scratch, binary.LittleEndian.Uint32(raw))
			}
			e.Sums = scratch
		}
		if d.Err() == nil && !e.Valid() {
			d.Fail("record %d: %v %d+%d at index %d", e.Seq, e.Kind, e.Addr, e.Count, e.Index)
		}
		if d.Err() != nil {
			break
		}
		if fn != nil {
			if err := fn(&e); err != nil {
				return scratch, err
			}
		}
		next = e.Addr + e.Count
		if e.Kind == Write {
			e.Index += uint32(e.Count)
		}
	}
	if d.Err() == nil && e.Index != h.clusters {
		d.Fail("%d clusters, the header says %d", e.Index, h.clusters)
	}
	if err := d.Finish(); err != nil {
		return scratch, fmt.Errorf("TLog section of SCO %x: %w", h.number, err)
	}
	return scratch, nil
}
