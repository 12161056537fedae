package writebuffer

import (
	"errors"
	"fmt"
	"io/fs"
)

const (
	// maxUnsynced is how many bytes of closed segments a log keeps in the page cache before it
	// begins to write them out, oldest first. A FLUSH that comes after a long time without one finds
	// no more than that to do, and a burst that is shorter does not pay for it. While all volumes drain
	// as fast as they can nothing is written out: what would be is about to be removed.
	maxUnsynced = 256 << 20
	// writeOutPiece is how much is given to the kernel at a time, which may wait for the disk.
	writeOutPiece = 1 << 20
)

// lateLocked returns the closed segments that should be written out by now. b.mu is held.
func (b *Buffer) lateLocked() (late []*segment) {
	n := int64(0)
	for i := len(b.mu.unsynced) - 1; i >= 0; i-- {
		seg := b.mu.unsynced[i]
		if n += seg.size - seg.syncedSize; n <= b.opts.maxUnsynced {
			continue
		}
		if seg.writeOut {
			break // and all before it
		}
		if seg.state != stateOpen {
			seg.writeOut = true
			late = append(late, seg)
		}
	}
	return late
}

// writeLate has the Pool write segments out.
func (p *Pool) writeLate(b *Buffer, segs []*segment) {
	if len(segs) == 0 {
		return
	}
	p.mu.Lock()
	for i := len(segs) - 1; i >= 0; i-- {
		p.mu.late = append(p.mu.late, evictable{b, segs[i]})
	}
	p.mu.Unlock()
	select {
	case p.kickLate <- struct{}{}:
	default:
	}
}

// writeOuts is a goroutine of the Pool: it waits for the disk so that nobody else has to.
func (p *Pool) writeOuts() {
	for {
		p.mu.Lock()
		var next evictable
		if len(p.mu.late) > 0 {
			next = p.mu.late[0]
			p.mu.late = p.mu.late[1:]
		} else {
			p.mu.late = nil
		}
		p.mu.Unlock()
		if next.seg == nil {
			select {
			case <-p.kickLate:
				continue
			case <-p.stop:
				return
			}
		}
		if err := p.writeOut(next.b, next.seg); err != nil {
			next.b.opts.Logger.Debug("early write-out failed; the sync tells", "file", next.seg.path, "err", err)
		}
	}
}

func (p *Pool) writeOut(b *Buffer, seg *segment) error {
	h := seg.handle.Load() // an unsynced segment has one; it goes with the sync, eviction or Close
	if h == nil || !h.ref() {
		return nil
	}
	b.mu.Lock()
	size := seg.size
	b.mu.Unlock()
	var err error
	for off := int64(0); off < size && err == nil && !seg.removed.Load(); off += writeOutPiece {
		err = h.f.StartWrite(off, min(writeOutPiece, size-off))
	}
	if err = errors.Join(err, h.unref()); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("write out %s: %w", seg.path, err)
	}
	return nil
}
