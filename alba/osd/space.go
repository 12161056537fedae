package osd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"
	"sync/atomic"
)

const (
	ballastFile = "ballast"
	ballastSize = 16 << 20
)

// space decides what fits.
type space struct {
	s        *Store
	capacity atomic.Uint64 // bytes that may be used
	inFlight atomic.Int64  // written, not yet in the index
	tail     atomic.Int64  // preallocated and not yet written bytes of the open segment
	full     atomic.Bool   // a set was refused, and nothing happened since that would let it in

	mu      sync.Mutex // of the ballast; no caller of it is on the road of a write that has space
	ballast bool       // it is there
}

func (p *space) init(s *Store) { p.s = s }

// used is the bytes taken from the disk, by the log and the index.
func (p *space) used() uint64 {
	return uint64(max(0, p.s.index.used.Load()+p.inFlight.Load()+p.s.index.bytes.Load()))
}

// limit is where sets are refused: deletes need some space as well, until they give back more.
func (p *space) limit() int64 {
	c := int64(p.capacity.Load())
	return c - min(c/32, 64<<20)
}

// reserve is what a store leaves free on a file system of total bytes: full file
// systems are slow, and the index must have room to write what makes room.
func reserve(total uint64) uint64 { return min(max(total/100, 64<<20), total/16) }

// refresh looks at the file system again.
func (p *space) refresh() {
	o := &p.s.opts
	if o.Capacity != 0 {
		p.capacity.Store(o.Capacity)
	} else if total, free, err := o.FS.Space(p.s.dir); err == nil {
		p.capacity.Store(p.used() + uint64(max(0, p.tail.Load())) + (free-min(free, reserve(total)))/uint64(o.Sharers))
	} else {
		p.s.log.Warn("osd cannot tell the space of its file system", "err", err)
	}
	if l := p.limit(); p.full.Load() && int64(p.used())+l/64 <= l {
		p.full.Store(false)
	}
}

// admit tells whether a set that needs n bytes fits.
func (p *space) admit(n int64) error {
	if int64(p.used())+n <= p.limit() {
		return nil
	}
	p.refresh()
	if used, limit := int64(p.used()), p.limit(); used+n > limit {
		p.full.Store(true)
		kick(p.s.upkeep.wake)
		return fmt.Errorf("osd %s: %d bytes do not fit, %d of %d are used: %w", p.s.dir, n, used, limit, ErrFull)
	}
	return nil
}

// segment returns the size of a new segment that is wanted with size bytes and needs need of them.
func (p *space) segment(size, need int64, puts bool) (int64, error) {
	// A small disk is not taken by one preallocated segment.
	size = max(need, min(size, alignUp(int64(p.capacity.Load()/16))))
	total, free, err := p.s.opts.FS.Space(p.s.dir)
	if err != nil {
		return size, nil // the allocation will tell
	}
	avail := int64(free-min(free, reserve(total))) &^ (align - 1)
	if size <= avail {
		return size, nil
	}
	if avail < need && puts {
		p.full.Store(true)
		kick(p.s.upkeep.wake)
		return 0, fmt.Errorf("osd %s: the file system has %d bytes left, of which %d are reserved: %w", p.s.dir, free, reserve(total), ErrFull)
	}
	return max(need, avail), nil
}

// diskFull notes that the file system refused space, and gives back the ballast.
func (s *Store) diskFull() {
	s.space.full.Store(true)
	s.space.dropBallast()
	kick(s.upkeep.wake)
}

// dropBallast gives back the space that was set aside for the case that others fill the disk.
func (p *space) dropBallast() {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := path.Join(p.s.dir, ballastFile)
	if err := p.s.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.s.log.Warn("osd cannot give back its ballast", "file", name, "err", err)
	}
	p.ballast = false
}

// keepBallast sets the ballast aside if the disk has room for it.
func (p *space) keepBallast() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ballast || p.full.Load() {
		return
	}
	total, free, err := p.s.fs.Space(p.s.dir)
	size := int64(min(ballastSize, total/256)) &^ (align - 1)
	if err != nil || free < reserve(total)+uint64(size) || size == 0 {
		return
	}
	name := path.Join(p.s.dir, ballastFile)
	f, err := p.s.fs.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(f.Allocate(0, size), f.Close())
	}
	if err != nil {
		p.s.log.Warn("osd cannot set its ballast aside", "file", name, "err", err)
		return
	}
	p.ballast = true
}
