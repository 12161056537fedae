package osd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"scoria/internal/vfs"
)

// damageWindow is how far behind the end of the log its segment is searched for
// records that say that more was there.
const damageWindow = 32 << 20

// cursor is a place in the log.
type cursor struct {
	seg  uint32
	off  int64
	next uint64 // sequence number of the record that is expected there
}

// logReader reads the log of a stopped store.
type logReader struct {
	segs *segments
	uuid string

	f    vfs.File
	info segmentInfo
	size int64
	buf  []byte
}

func (l *logReader) close() {
	if l.f != nil {
		_ = l.f.Close() // read only
		l.f = nil
	}
}

// errForeign marks a segment that belongs to another OSD: copying it here was a mistake that must not go unseen.
var errForeign = errors.New("segment of another osd")

// open opens a segment. ok is false when there is no usable one: missing, or its creation was interrupted.
func (l *logReader) open(no uint32) (ok bool, err error) {
	l.close()
	f, err := l.segs.fs.OpenFile(l.segs.name(no), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open segment: %w", err)
	}
	l.f = f
	if l.size, err = f.Size(); err != nil {
		return false, fmt.Errorf("segment %d: %w", no, err)
	}
	if l.size < segmentHeader {
		return false, nil
	}
	l.buf = grow(l.buf, segmentHeader)
	if _, err := f.ReadAt(l.buf, 0); err != nil {
		return false, fmt.Errorf("segment %d: read its header: %w: %w", no, err, ErrCorrupt)
	}
	l.info, err = parseSegment(l.buf)
	if err != nil || l.info.No != no {
		return false, nil
	}
	if l.info.UUID != l.uuid {
		return true, fmt.Errorf("segment %d belongs to osd %s, this is %s: %w: %w", no, l.info.UUID, l.uuid, errForeign, ErrWrongOSD)
	}
	return true, nil
}

// record reads the record header at off of the open segment. ok is false when there is no valid one of this segment.
// The operations refer to a buffer that the next call uses again.
func (l *logReader) record(off int64) (r recordInfo, header int64, ops []op, ok bool, err error) {
	none := func(err error) (recordInfo, int64, []op, bool, error) { return recordInfo{}, 0, nil, false, err }
	if off+align > l.size {
		return none(nil)
	}
	l.buf = grow(l.buf, align)
	if _, err := l.f.ReadAt(l.buf, off); err != nil {
		return none(fmt.Errorf("segment %d: read record at %d: %w", l.info.No, off, err))
	}
	header, perr := recordLength(l.buf)
	if perr != nil || off+header > l.size {
		return none(nil)
	}
	if header > align {
		l.buf = grow(l.buf, int(header))
		if _, err := l.f.ReadAt(l.buf, off); err != nil {
			return none(fmt.Errorf("segment %d: read record at %d: %w", l.info.No, off, err))
		}
	}
	r, ops, perr = parseRecord(l.buf[:header])
	if perr != nil || r.Segment != l.info.No || r.Nonce != l.info.Nonce || r.Off != uint64(off) || off+header+int64(r.Values) > l.size {
		return none(nil)
	}
	return r, header, ops, true, nil
}

func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// walk calls fn for the records from at on, until the log ends or fn returns false, and returns the end.
func (l *logReader) walk(at cursor, fn func(r recordInfo, header int64, ops []op) (bool, error)) (cursor, error) {
	open, err := l.open(at.seg)
	if err != nil {
		return at, err
	}
	for {
		if open {
			r, header, ops, ok, err := l.record(at.off)
			if err != nil {
				return at, err
			}
			if ok && r.Seq == at.next {
				more, err := fn(r, header, ops)
				if err != nil || !more {
					return at, err
				}
				at.off += header + int64(r.Values)
				at.next++
				continue
			}
		}
		// The segment ends here. The log goes on in the next one, or it ends.
		if open, err = l.open(at.seg + 1); err != nil {
			return at, err
		}
		if !open || l.info.FirstSeq != at.next {
			return at, nil
		}
		at.seg, at.off = at.seg+1, segmentHeader
	}
}

// valuesIntact reads the values of a record and checks them.
func (l *logReader) valuesIntact(ops []op) (bool, error) {
	var buf []byte
	for i := range ops {
		o := &ops[i]
		e, err := parseEntry(o.entry)
		if o.kind != opPut || err != nil {
			continue
		}
		for off := uint64(0); off < e.size; off += verifyChunk {
			buf = grow(buf, int(min(verifyChunk, e.size-off)))
			if _, err := l.f.ReadAt(buf, int64(e.off+off)); err != nil && !errors.Is(err, io.EOF) {
				return false, fmt.Errorf("segment %d: read values: %w", l.info.No, err)
			}
			if _, ok := checkBlocks(o.key, &e, off, buf, nil); !ok {
				return false, nil
			}
		}
	}
	return true, nil
}

// recover brings the index up to the log and returns the writer that goes on behind it.
//
// Records are believed up to the first gap in the sequence. Whether the values of a record
// are whole is only in question for those that no later record says to be durable.
func (s *Store) recover() (*writer, error) {
	st := s.index.mu.state
	from := cursor{seg: st.Seg, off: int64(st.Off), next: st.Seq + 1}
	if st.Seg == 0 {
		from.seg, from.off = 1, segmentHeader
	}
	l := &logReader{segs: s.segs, uuid: s.UUID()}
	defer l.close()
	var durable uint64
	_, err := l.walk(from, func(r recordInfo, _ int64, _ []op) (bool, error) {
		durable = r.Durable
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	end, err := l.walk(from, func(r recordInfo, header int64, ops []op) (bool, error) {
		if r.Seq > durable {
			if ok, err := l.valuesIntact(ops); err != nil || !ok {
				return false, err
			}
		}
		if err := s.index.apply(r, header, ops); err != nil {
			return false, err
		}
		s.upkeep.log.Add(header + int64(r.Values))
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	if end.next > from.next {
		s.upkeep.dirty.Store(true)
		s.log.Info("osd replayed its log", "records", end.next-from.next, "seq", end.next-1)
	}
	s.durable.Store(end.next - 1)
	// Records that survived the end of the process may not be on the disk yet; what readers
	// see from now on must be.
	for no := from.seg; no <= end.seg; no++ {
		if err := s.syncSegment(no); err != nil {
			return nil, err
		}
	}
	last, err := s.cut(l, end)
	if err != nil {
		return nil, err
	}
	return &writer{s: s, lastNo: last, seq: end.next - 1}, nil
}

// cut removes what is behind the end of the log: batches that were never acknowledged. It
// returns the highest segment number in use. If records there prove that
// acknowledged ones are missing, nothing is removed and the store refuses writes.
func (s *Store) cut(l *logReader, end cursor) (last uint32, err error) {
	nos, err := s.segs.list()
	if err != nil {
		return 0, err
	}
	for _, no := range nos {
		if no < end.seg {
			continue
		}
		lost, err := l.provesLoss(no, end)
		if err != nil {
			return 0, err
		}
		if lost != 0 {
			s.fail(fmt.Errorf("the log is damaged: record %d in segment %d is missing although record %d says that it was durable; "+
				"repair this osd's data onto others and replace the disk", end.next, end.seg, lost))
			return nos[len(nos)-1], nil
		}
	}
	if end.next > 1 {
		last = end.seg
	}
	for _, no := range nos {
		_, known := s.index.mu.segs[no]
		switch {
		case no > end.seg, no < end.seg && !known:
			// Started and never used; or removed, and the removal did not survive a power loss.
			if err := s.segs.remove(no); err != nil {
				return 0, err
			}
		case no == end.seg:
			if err := s.trim(no, end.off); err != nil {
				return 0, err
			}
		}
	}
	return last, nil
}

// provesLoss looks in a segment for a valid record behind end that says end.next was durable, and returns its number.
func (l *logReader) provesLoss(no uint32, end cursor) (uint64, error) {
	open, err := l.open(no)
	if err != nil || !open {
		return 0, err
	}
	off := int64(segmentHeader)
	if no == end.seg {
		off = end.off
	}
	limit := min(l.size, off+damageWindow)
	head := make([]byte, verifyChunk)
	for ; off < limit; off += int64(len(head)) {
		head = head[:min(int64(verifyChunk), limit-off)]
		if _, err := l.f.ReadAt(head, off); err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("segment %d: %w", no, err)
		}
		for i := 0; i+align <= len(head); i += align {
			if _, err := recordLength(head[i : i+align]); err != nil {
				continue
			}
			r, _, _, ok, err := l.record(off + int64(i))
			if err != nil {
				return 0, err
			}
			if ok && r.Seq > end.next && r.Durable >= end.next {
				return r.Seq, nil
			}
		}
	}
	return 0, nil
}

func (s *Store) syncSegment(no uint32) error {
	f, err := s.fs.OpenFile(s.segs.name(no), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("sync segment %d: %w", no, err)
	}
	return nil
}

// trim cuts a segment behind the last record, so that nothing that was left there can be taken for a
// later record. Records are never appended to a segment of a former run.
func (s *Store) trim(no uint32, off int64) error {
	f, err := s.fs.OpenFile(s.segs.name(no), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("trim segment: %w", err)
	}
	size, err := f.Size()
	if err == nil && size > off {
		if err = f.Truncate(off); err == nil {
			err = f.Sync()
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("trim segment: %w", err)
	}
	return nil
}
