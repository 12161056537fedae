package osd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"scoria/internal/frame"
)

const (
	// settleTime is how long after a change the index is flushed and dead space given back,
	// when nothing asks for it earlier. An idle store does nothing at all.
	settleTime = 10 * time.Second
	// punchMin is the smallest hole that is punched: small holes cost extents and discards
	// and come together to larger ones, or to whole segments, with time.
	punchMin = 64 << 10
	// reapRanges bounds the dead ranges of one segment that are read at once.
	reapRanges = 1 << 16
)

// upkeep is what the maintainer has to do.
type upkeep struct {
	wake  chan struct{}
	log   atomic.Int64 // bytes logged since the last flush
	dirty atomic.Bool  // something changed since the last pass
	pass  sync.Mutex   // one pass at a time

	mu      sync.Mutex
	retired []*segment // synced, get no more records
}

func (u *upkeep) retire(seg *segment) {
	u.mu.Lock()
	u.retired = append(u.retired, seg)
	u.mu.Unlock()
	u.dirty.Store(true)
	kick(u.wake)
}

// count notes n bytes of applied log.
func (u *upkeep) count(n int64) {
	u.log.Add(n)
	if !u.dirty.Swap(true) {
		kick(u.wake) // let the timer be set
	}
}

// runMaintainer is the goroutine that flushes the index and gives back dead space.
func (s *Store) runMaintainer() {
	timer := time.NewTimer(settleTime)
	defer timer.Stop()
	armed := true
	for {
		select {
		case <-s.quit:
			return
		case <-s.failed:
			return
		case <-timer.C:
			armed = false
			if s.upkeep.dirty.Load() {
				s.pass(true)
			}
		case <-s.upkeep.wake:
			if s.due() {
				s.pass(false)
			}
			if !armed && s.upkeep.dirty.Load() {
				timer.Reset(settleTime)
				armed = true
			}
		}
	}
}

// due tells whether a pass is worth it now.
func (s *Store) due() bool {
	s.upkeep.mu.Lock()
	retired := len(s.upkeep.retired)
	s.upkeep.mu.Unlock()
	return retired > 0 || s.space.full.Load() || s.upkeep.log.Load() >= s.opts.FlushBytes || s.index.dead() >= s.opts.ReapBytes
}

// nudge wakes the maintainer when a bound is reached.
func (s *Store) nudge() {
	if s.upkeep.log.Load() >= s.opts.FlushBytes || s.index.fresh.Load() >= s.opts.ReapBytes {
		kick(s.upkeep.wake)
	}
}

// pass does what is to do: truncate retired segments, flush the index, give back dead space.
func (s *Store) pass(all bool) {
	s.upkeep.pass.Lock()
	defer s.upkeep.pass.Unlock()
	s.trimRetired()
	full := s.space.full.Load()
	if !all && !full && s.upkeep.log.Load() < s.opts.FlushBytes && s.index.dead() < s.opts.ReapBytes {
		return
	}
	s.upkeep.dirty.Store(false)
	logged := s.upkeep.log.Load()
	// What is dead in the snapshot is dead durably after the flush, and never replayed.
	snap := s.index.db.NewSnapshot()
	err := s.index.flush()
	if err == nil {
		s.upkeep.log.Add(-logged)
		err = s.reap(snap, full)
	}
	if err = errors.Join(err, s.index.fs.guard(snap.Close)); err != nil {
		s.log.Warn("osd upkeep", "err", err)
	}
	s.space.refresh()
	s.space.keepBallast()
}

// trimRetired gives back what was preallocated for segments and not used.
func (s *Store) trimRetired() {
	s.upkeep.mu.Lock()
	retired := s.upkeep.retired
	s.upkeep.retired = nil
	s.upkeep.mu.Unlock()
	for _, seg := range retired {
		err := seg.f.Truncate(seg.off)
		if err == nil {
			err = seg.f.Sync()
		}
		if err = errors.Join(err, seg.f.Close()); err != nil {
			s.log.Warn("osd cannot trim a segment", "segment", seg.info.No, "err", err)
		}
		s.index.touch(seg.info.No)
	}
}

// reap removes dead segments and punches dead ranges that snap knows.
func (s *Store) reap(snap *pebble.Snapshot, full bool) error {
	for _, c := range s.index.candidates(full) {
		select {
		case <-s.failed:
			return nil
		default:
		}
		switch {
		case c.remove:
			if err := s.segs.remove(c.no); err != nil {
				return err
			}
			if err := s.index.removed(c.no); err != nil {
				return err
			}
		case c.open && !full:
			s.index.touch(c.no) // punching would hold up the writer
		default:
			if err := s.punch(snap, c.no, full); err != nil {
				return err
			}
		}
	}
	return nil
}

// deadRange is a range of a segment that nobody needs.
type deadRange struct{ off, n int64 }

// punch gives back the dead ranges of a segment that are worth it.
func (s *Store) punch(snap *pebble.Snapshot, no uint32, full bool) (err error) {
	least := int64(punchMin)
	if full {
		least = align
	}
	ranges, err := readDead(snap, no)
	if err != nil {
		return err
	}
	var parts, gone []deadRange // neighbours that make up a hole; all parts of the holes punched
	var f interface {
		Punch(off, n int64) error
		Sync() error
		Close() error
	}
	flush := func() error {
		if len(parts) == 0 {
			return nil
		}
		off := parts[0].off
		n := parts[len(parts)-1].off + parts[len(parts)-1].n - off
		if n >= least {
			if f == nil {
				file, err := s.fs.OpenFile(path.Join(s.dir, segmentName(no)), os.O_RDWR, 0)
				if err != nil {
					return err
				}
				f = file
			}
			if err := f.Punch(off, n); err != nil {
				return err
			}
			gone = append(gone, parts...)
		}
		parts = parts[:0]
		return nil
	}
	for _, r := range ranges {
		if n := len(parts); n > 0 && parts[n-1].off+parts[n-1].n != r.off {
			if err = flush(); err != nil {
				break
			}
		}
		parts = append(parts, r)
	}
	if err == nil {
		err = flush()
	}
	if f != nil {
		// Only when the holes are durable may the index forget that they are wanted.
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("punch segment %d: %w", no, err)
	}
	if len(gone) == 0 {
		return nil
	}
	return s.index.punched(no, gone)
}

func readDead(snap *pebble.Snapshot, no uint32) ([]deadRange, error) {
	it, err := snap.NewIter(&pebble.IterOptions{LowerBound: deadKey(no, 0), UpperBound: deadKey(no+1, 0)})
	if err != nil {
		return nil, fmt.Errorf("index dead ranges: %w", err)
	}
	var ranges []deadRange
	for ok := it.First(); ok && len(ranges) < reapRanges; ok = it.Next() {
		d := frame.NewDecoder(it.Value())
		r := deadRange{n: int64(d.Uvarint())}
		if len(it.Key()) != 13 || d.Finish() != nil || r.n <= 0 || r.n%align != 0 {
			return nil, errors.Join(fmt.Errorf("index dead range %x: %w", it.Key(), ErrCorrupt), it.Close())
		}
		r.off = int64(binary.BigEndian.Uint64(it.Key()[5:]))
		ranges = append(ranges, r)
	}
	return ranges, it.Close()
}

// candidate is a segment that reaping should look at.
type candidate struct {
	no     uint32
	remove bool // nothing in it is needed
	open   bool // it is the one that is written
}

// candidates returns the segments with dead ranges that were not looked at yet, and takes the mark off them.
// A full store takes what it can get.
func (x *index) candidates(full bool) []candidate {
	x.mu.Lock()
	defer x.mu.Unlock()
	flushed := x.flushed.Load()
	var list []candidate
	for no, s := range x.mu.segs {
		if !s.fresh && (!full || s.dead == 0) {
			continue
		}
		c := candidate{no: no, open: no == x.mu.state.Seg}
		c.remove = s.live == 0 && !c.open && s.changed <= flushed
		if !c.remove && !full && (s.live == 0 || s.dead < punchMin) {
			continue // it is removed whole soon, or not worth it yet
		}
		s.fresh = false
		list = append(list, c)
	}
	x.fresh.Store(0)
	return list
}

// touch marks a segment for reaping.
func (x *index) touch(no uint32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s := x.mu.segs[no]; s != nil {
		s.fresh = true
	}
}

// dead returns the bytes that were found dead since the last reaping.
func (x *index) dead() int64 { return x.fresh.Load() }

// removed forgets a segment.
func (x *index) removed(no uint32) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.mu.segs[no]
	e := &edit{x: x, b: x.db.NewBatch(), used: -(segmentHeader + s.live + s.dead)}
	delete(x.mu.segs, no)
	err := e.b.Delete(segKey(no), nil)
	if err == nil {
		err = e.b.DeleteRange(deadKey(no, 0), deadKey(no+1, 0), nil)
	}
	if err != nil {
		return errors.Join(err, e.b.Close())
	}
	return e.commit(x.mu.state)
}

// punched forgets dead ranges.
func (x *index) punched(no uint32, gone []deadRange) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.mu.segs[no]
	e := &edit{x: x, b: x.db.NewBatch(), segs: map[uint32]struct{}{no: {}}}
	for _, r := range gone {
		s.dead -= r.n
		e.used -= r.n
		if err := e.b.Delete(deadKey(no, uint64(r.off)), nil); err != nil {
			return errors.Join(err, e.b.Close())
		}
	}
	return e.commit(x.mu.state)
}
