package volumedriver

import (
	"encoding/binary"
	"fmt"
	"io"

	"scoria/internal/frame"
	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/sco"
)

// Head says what a volume consists of: a checkpoint of its map and the TLogs after it. It
// is the object "head" of the volume's namespace, replaced in the transaction that makes a
// TLog visible. Everything it names exists; what it does not name is garbage. FORMAT.md has
// the layout.
type Head struct {
	Volume uint64 // id
	Epoch  uint64 // owner epoch of the gateway that wrote it
	Size   uint64 // bytes
	Seq    uint64 // the state after all records up to this number; 0: nothing written yet
	SCO    uint64 // last SCO that is covered by a TLog
	// MaxSCO is the largest SCO number that may have been used so far, for objects that are
	// not part of the volume too: such a number is never given to other data.
	MaxSCO uint64
	TLog   uint64 // last TLog number used
	// Map is a checkpoint record of the cluster map, of a sequence number ≤ Seq; empty: the
	// empty map at sequence number 0.
	Map   []byte
	TLogs []TLogRef // all TLogs with records behind the checkpoint, in order
}

// TLogRef names a TLog in a Head.
type TLogRef struct {
	Number   uint64
	FirstSeq uint64
	LastSeq  uint64
	LastSCO  uint64
	Bytes    uint64 // size of the object
}

// Limits of a head.
const (
	maxHeadTLogs = 1 << 16
	maxHeadBytes = clustermap.MaxRecord + 4<<20
)

const (
	magicHead  = 'S' | 'C'<<8 | 'V'<<16 | 'H'<<24
	magicState = 'S' | 'C'<<8 | 'V'<<16 | 'S'<<24

	typeHead, typeState       = 1, 2
	headVersion, stateVersion = 1, 1
)

// Sections of head and state. Those from sectionOptional on may be skipped by a reader that
// does not know them; any other unknown one means that the reader is too old. Snapshot
// roots and the ancestors of clones will be sections.
const (
	sectionBase     = 1
	sectionMap      = 2
	sectionTLogs    = 3
	sectionOptional = 128
)

// appendSection appends a section: number, length, body.
func appendSection(dst []byte, number uint8, body []byte) []byte {
	return frame.AppendBytes(append(dst, number), body)
}

// sections calls f for each section of a body, and checks that all known ones up to last
// are there once, in order.
func sections(body []byte, last uint8, f func(number uint8, d *frame.Decoder)) error {
	d := frame.NewDecoder(body)
	next := uint8(1)
	for d.Rest() > 0 && d.Err() == nil {
		number := d.U8()
		content := d.Bytes(maxHeadBytes)
		if d.Err() != nil {
			break
		}
		switch {
		case number >= sectionOptional:
		case number > last:
			return fmt.Errorf("section %d is unknown: %w", number, frame.ErrVersion)
		case number != next:
			d.Fail("section %d, want %d", number, next)
		default:
			next++
			s := frame.NewDecoder(content)
			f(number, s)
			if err := s.Finish(); err != nil {
				return fmt.Errorf("section %d: %w", number, err)
			}
		}
	}
	if next <= last {
		d.Fail("section %d is missing", next)
	}
	return d.Finish()
}

// Encode returns the head as the object is stored.
func (h *Head) Encode() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	var base []byte
	for _, v := range []uint64{h.Volume, h.Epoch, h.Size, h.Seq, h.SCO, h.MaxSCO, h.TLog} {
		base = binary.AppendUvarint(base, v)
	}
	tlogs := binary.AppendUvarint(nil, uint64(len(h.TLogs)))
	for _, t := range h.TLogs {
		for _, v := range []uint64{t.Number, t.FirstSeq, t.LastSeq, t.LastSCO, t.Bytes} {
			tlogs = binary.AppendUvarint(tlogs, v)
		}
	}
	body := appendSection(nil, sectionBase, base)
	body = appendSection(body, sectionMap, h.Map)
	body = appendSection(body, sectionTLogs, tlogs)
	return frame.Append(nil, magicHead, typeHead, headVersion, 0, body), nil
}

// DecodeHead reads a head. Its errors are those of internal/frame (a foreign object, an
// unknown version, damage), with ErrCorrupt added for damage.
func DecodeHead(b []byte) (*Head, error) {
	body, err := openFrame(b, magicHead, typeHead, headVersion)
	if err != nil {
		return nil, fmt.Errorf("volume head: %w", err)
	}
	h := &Head{}
	err = sections(body, sectionTLogs, func(number uint8, d *frame.Decoder) {
		switch number {
		case sectionBase:
			for _, v := range []*uint64{&h.Volume, &h.Epoch, &h.Size, &h.Seq, &h.SCO, &h.MaxSCO, &h.TLog} {
				*v = d.Uvarint()
			}
		case sectionMap:
			h.Map = append(h.Map, d.Take(d.Rest())...)
		case sectionTLogs:
			for n := d.Count(5, maxHeadTLogs); n > 0 && d.Err() == nil; n-- {
				h.TLogs = append(h.TLogs, TLogRef{d.Uvarint(), d.Uvarint(), d.Uvarint(), d.Uvarint(), d.Uvarint()})
			}
		}
	})
	if err == nil {
		err = h.check()
	}
	if err != nil {
		return nil, fmt.Errorf("volume head: %w", asCorrupt(err))
	}
	return h, nil
}

// check tells whether the parts of a head fit together.
func (h *Head) check() error {
	switch {
	case h.Volume == 0 || h.Epoch == 0:
		return fmt.Errorf("volume %d, epoch %d: %w", h.Volume, h.Epoch, frame.ErrInvalid)
	case h.Size > MaxSize:
		return fmt.Errorf("size %d: %w", h.Size, frame.ErrInvalid)
	case h.SCO > h.MaxSCO || h.MaxSCO > sco.MaxNumber || h.TLog > sco.MaxNumber:
		return fmt.Errorf("SCO %d of %d, TLog %d: %w", h.SCO, h.MaxSCO, h.TLog, frame.ErrInvalid)
	case len(h.TLogs) > maxHeadTLogs || len(h.Map) > clustermap.MaxRecord:
		return fmt.Errorf("%d TLogs, map record of %d bytes: %w", len(h.TLogs), len(h.Map), frame.ErrTooLong)
	}
	var last TLogRef
	for i, t := range h.TLogs {
		if t.Number == 0 || t.FirstSeq == 0 || t.LastSeq < t.FirstSeq ||
			i > 0 && (t.Number <= last.Number || t.FirstSeq != last.LastSeq+1 || t.LastSCO <= last.LastSCO) {
			return fmt.Errorf("TLog %d (records %d-%d, up to SCO %d) behind TLog %d (records up to %d, SCO %d): %w",
				t.Number, t.FirstSeq, t.LastSeq, t.LastSCO, last.Number, last.LastSeq, last.LastSCO, frame.ErrInvalid)
		}
		last = t
	}
	if len(h.TLogs) > 0 && (last.LastSeq != h.Seq || last.LastSCO != h.SCO || last.Number > h.TLog) {
		return fmt.Errorf("last TLog %d (record %d, SCO %d) is not the end (TLog %d, record %d, SCO %d): %w",
			last.Number, last.LastSeq, last.LastSCO, h.TLog, h.Seq, h.SCO, frame.ErrInvalid)
	}
	return nil
}

// openFrame checks the frame around a head or a state and returns its body.
func openFrame(b []byte, magic uint32, typ, version uint8) ([]byte, error) {
	h, body, rest, err := frame.Parse(b, magic, maxHeadBytes)
	switch {
	case err != nil:
		return nil, asCorrupt(err)
	case h.Type != typ:
		return nil, asCorrupt(fmt.Errorf("type %d, want %d: %w", h.Type, typ, frame.ErrInvalid))
	case h.Version != version:
		return nil, fmt.Errorf("version %d, this is a reader of version %d: %w", h.Version, version, frame.ErrVersion)
	case len(rest) != 0:
		return nil, asCorrupt(fmt.Errorf("%d bytes behind the end: %w", len(rest), frame.ErrInvalid))
	}
	return body, nil
}

// asCorrupt marks an error of decoding as damage, unless the bytes are of another format
// or version.
func asCorrupt(err error) error {
	if err == nil || isForeign(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// state is what a gateway keeps of a volume in its directory beside log and packs: the
// newest local checkpoint of the map and the epoch under which the log is written. It is
// replaced atomically.
type state struct {
	Volume    uint64
	Namespace uint64
	Epoch     uint64
	Size      uint64 // bytes
	HeadSeq   uint64 // what the head was known to cover; the log may lack records up to here
	HeadSCO   uint64
	MaxSCO    uint64 // as in Head
	Drained   bool   // closed cleanly with nothing that is not in the backend
	Map       []byte // checkpoint record; empty: the empty map
}

func (s *state) encode() []byte {
	var base []byte
	drained := uint64(0)
	if s.Drained {
		drained = 1
	}
	for _, v := range []uint64{s.Volume, s.Namespace, s.Epoch, s.Size, s.HeadSeq, s.HeadSCO, s.MaxSCO, drained} {
		base = binary.AppendUvarint(base, v)
	}
	body := appendSection(nil, sectionBase, base)
	body = appendSection(body, sectionMap, s.Map)
	return frame.Append(nil, magicState, typeState, stateVersion, 0, body)
}

func decodeState(b []byte) (*state, error) {
	body, err := openFrame(b, magicState, typeState, stateVersion)
	if err != nil {
		return nil, fmt.Errorf("local volume state: %w", err)
	}
	s := &state{}
	err = sections(body, sectionMap, func(number uint8, d *frame.Decoder) {
		switch number {
		case sectionBase:
			var drained uint64
			for _, v := range []*uint64{&s.Volume, &s.Namespace, &s.Epoch, &s.Size, &s.HeadSeq, &s.HeadSCO, &s.MaxSCO, &drained} {
				*v = d.Uvarint()
			}
			if s.Volume == 0 || s.Epoch == 0 || s.Size > MaxSize || drained > 1 || s.HeadSCO > s.MaxSCO || s.MaxSCO > sco.MaxNumber {
				d.Fail("volume %d, epoch %d, size %d, SCO %d of %d, drained %d", s.Volume, s.Epoch, s.Size, s.HeadSCO, s.MaxSCO, drained)
			}
			s.Drained = drained == 1
		case sectionMap:
			s.Map = append(s.Map, d.Take(d.Rest())...)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("local volume state: %w", asCorrupt(err))
	}
	return s, nil
}

// Dump writes what a head or a local state file says as text, one fact a line. It returns
// frame.ErrMagic (wrapped) for anything else.
func Dump(w io.Writer, b []byte) error {
	var record []byte
	if h, err := DecodeHead(b); err == nil {
		_, err = fmt.Fprintf(w, "volume head\nvolume %d\nepoch %d\nsize %d\nrecord %d\nsco %d\nmax-sco %d\ntlog %d\n",
			h.Volume, h.Epoch, h.Size, h.Seq, h.SCO, h.MaxSCO, h.TLog)
		for _, t := range h.TLogs {
			if err == nil {
				_, err = fmt.Fprintf(w, "tlog %d: records %d-%d, up to sco %d, %d bytes\n", t.Number, t.FirstSeq, t.LastSeq, t.LastSCO, t.Bytes)
			}
		}
		if err != nil {
			return err
		}
		record = h.Map
	} else if s, serr := decodeState(b); serr == nil {
		if _, err := fmt.Fprintf(w, "local volume state\nvolume %d\nnamespace %d\nepoch %d\nsize %d\nhead record %d\nhead sco %d\nmax-sco %d\ndrained %t\n",
			s.Volume, s.Namespace, s.Epoch, s.Size, s.HeadSeq, s.HeadSCO, s.MaxSCO, s.Drained); err != nil {
			return err
		}
		record = s.Map
	} else {
		return err
	}
	if len(record) == 0 {
		_, err := fmt.Fprintln(w, "map empty")
		return err
	}
	info, err := clustermap.DecodeRecord(record)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "map checkpoint: record %d, %d clusters, %d mapped, %d packs, next pack %d\n",
		info.Seq, info.Clusters, info.Mapped, len(info.Packs), info.NextPack)
	return err
}
