package volumedriver

import (
	"sync"
	"time"

	"scoria/volumedriver/writebuffer"
)

// pace decides how hard the volumes of a gateway drain. Draining costs as much CPU and disk
// as the writes themselves. While the write buffer has plenty of room, it can wait until the
// clients pause, or until the data is old; and then one SCO at a time does. All volumes
// together count, since they share CPU, disk and buffer.
type pace struct {
	turn chan struct{} // capacity 1: held by the upload of a drain that is in no hurry

	mu struct {
		sync.Mutex
		began time.Time // of the window
		ops   uint64    // of all volumes, at its beginning
		calm  bool      // what the last window showed
	}
}

func (p *pace) init() { p.turn = make(chan struct{}, 1) }

const (
	// calmWindow is how long clients are looked at before they are said to pause, and how
	// often a drain that waits for it looks.
	calmWindow = 50 * time.Millisecond
	calmOps    = 10 // in a window: fewer are a pause
)

// calm tells whether clients pause. total returns the requests of all volumes so far.
func (p *pace) calm(now time.Time, total func() uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	took := now.Sub(p.mu.began)
	if took < calmWindow {
		return p.mu.calm
	}
	ops := total()
	// Volumes that were closed meanwhile take their counts along; a long window says
	// nothing about its end.
	p.mu.calm = ops-p.mu.ops < calmOps && took < 5*calmWindow
	p.mu.began, p.mu.ops = now, ops
	return p.mu.calm
}

// ops counts the requests of all open volumes.
func (d *Driver) ops() uint64 {
	n := uint64(0)
	for _, v := range d.volumes() {
		n += v.stats.reads.Load() + v.stats.writes.Load()
	}
	return n
}

// mayStart tells whether an upload may begin now, and whether it needs the turn for that.
func (l *drainLoop) mayStart() (yes, turn bool) {
	v := l.v
	if v.drain.urgent.Load() > v.committed() {
		return true, false
	}
	switch v.d.pool.Fill() {
	case writebuffer.FillHigh:
		return true, false
	case writebuffer.FillMiddle:
		return true, true
	}
	aged := v.drain.target.Load() >= l.next[0].FirstSeq
	return aged || v.d.pace.calm(time.Now(), v.d.ops), true
}

// turnPatience is how long an upload waits for its turn. One that takes longer than that is
// stuck at its part of the object store, which is no reason for other volumes not to drain.
const turnPatience = 5 * time.Second

func (l *drainLoop) turnIsStuck() bool {
	if l.queued.IsZero() {
		l.queued = time.Now()
	}
	return time.Since(l.queued) > turnPatience
}
