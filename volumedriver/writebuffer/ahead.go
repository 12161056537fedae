package writebuffer

import (
	"sync/atomic"

	"scoria/internal/vfs"
)

// A log that is synced often gets space ahead of its end: blocks of zeroes that are already
// on the disk. Writes into them change neither the size nor the blocks of the file, so a sync
// writes data and has nothing to commit in the file system's journal.

const (
	aheadMin = 64 << 10 // the least that is added at a time
	aheadMax = 1 << 20  // and the most; in between as much as the segment has already
	// oftenBytes is how little must have been written from one sync to the next, oftenSyncs how
	// many times in a row, to be "often".
	oftenBytes = 1 << 20
	oftenSyncs = 8
	// maxHasten bounds what is worth being written out early for a sync that is expected.
	maxHasten = 256 << 10
)

var zeroes = vfs.AlignedBuffer(aheadMin) // never written to

// rhythm is how the owner syncs.
type rhythm struct {
	streak int           // syncs in a row with little between them; the syncer's
	mark   atomic.Uint64 // stats.writtenBytes at the begin of the last sync
	// between is the bytes that were written between the last two syncs, 0 when they are not
	// often.
	between  atomic.Uint64
	hastened uint64 // mark for which hasten was done; the leader's
}

// beat notes the begin of a sync.
func (b *Buffer) beat() {
	r := &b.rhythm
	now := b.stats.writtenBytes.Load()
	n := now - r.mark.Load()
	if n == 0 {
		return // nothing was written, so it says nothing
	}
	r.mark.Store(now)
	if n > oftenBytes {
		r.streak, n = 0, 0
	} else if r.streak++; r.streak < b.opts.oftenSyncs {
		n = 0
	}
	r.between.Store(n)
}

// often returns how much was written between the last two syncs and since the last one, if the
// log is synced often.
func (b *Buffer) often() (between, since uint64, ok bool) {
	between, since = b.rhythm.between.Load(), b.stats.writtenBytes.Load()-b.rhythm.mark.Load()
	return between, since, between > 0 && since <= oftenBytes
}

// hasten starts to write out what the next sync has to, if all that was written between the last two
// has been written again: the disk works while the answer and the FLUSH are on their way. It costs that write
// some 40 µs, and saves its FLUSH more.
func (b *Buffer) hasten() {
	r, t := &b.rhythm, &b.tail
	mark := r.mark.Load()
	between, since, ok := b.often()
	if !ok || between > maxHasten || since < between || r.hastened == mark {
		return
	}
	r.hastened = mark
	from := max(0, t.size-int64(between)-2*pageSize) &^ (pageSize - 1)
	if err := t.file.f.StartWrite(from, t.size-from); err != nil {
		b.opts.Logger.Debug("early write-out failed; the sync tells", "file", t.seg.path, "err", err)
	}
}

// extend puts zeroes behind the batch if it reaches beyond those that are there and the log
// is synced often. A failure costs nothing but speed.
func (s *scratch) extend(b *Buffer) {
	t := &b.tail
	if s.size <= t.zeroed || s.size < b.opts.aheadAfter || t.noAhead || t.noDirect {
		return
	}
	if _, _, ok := b.often(); !ok {
		return
	}
	from := alignUp(s.size)
	left := int64(b.opts.SCOClusters-int(s.clusters)) * (ClusterSize + headerSize + 4)
	n := alignUp(min(max(s.size, aheadMin), aheadMax, left))
	if n == 0 {
		return
	}
	f, err := b.directFile()
	if err == nil {
		var bufs [aheadMax / aheadMin][]byte
		list := bufs[:0]
		for rest := n; rest > 0; rest -= aheadMin {
			list = append(list, zeroes[:min(rest, aheadMin)])
		}
		_, err = f.WriteVAt(list, from)
	}
	if err != nil {
		t.noAhead = true // zeroes at the end of a file are fine, so what was written may stay
		b.opts.Logger.Debug("no space ahead of the log's end", "file", t.seg.path, "err", err)
		return
	}
	t.zeroed = from + n
	b.stats.aheadBytes.Add(uint64(n))
}

// pad fills the last page of a batch that lies in zeroed space. The page cache does not have
// that page, and would read it from the disk for a write of a part of it.
func (s *scratch) pad(b *Buffer) {
	if end := alignUp(s.size); end != s.size && end <= b.tail.zeroed {
		s.iovs = append(s.iovs, zeroes[:end-s.size])
	}
}

// trimAhead gives the space behind the end of the open segment back, when it closes.
func (b *Buffer) trimAhead() {
	t := &b.tail
	if t.zeroed > t.size {
		if err := t.file.f.Truncate(t.size); err != nil {
			b.opts.Logger.Debug("space ahead of a segment's end stays", "file", t.seg.path, "err", err)
		}
	}
	t.zeroed = 0
}
