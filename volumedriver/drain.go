package volumedriver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"scoria/internal/vfs"
	"scoria/volumedriver/sco"
	"scoria/volumedriver/writebuffer"
)

// drainState is a volume's way from the local log to the object store. While there is
// something to do, one goroutine runs drainLoop; it owns what is not guarded below.
type drainState struct {
	news     news          // told after each commit, checkpoint and failure
	wake     chan struct{} // wakes the loop; of capacity 1
	pressed  atomic.Bool   // the write buffer is filling up: drain what there is
	target   atomic.Uint64 // commit at least up to this record
	urgent   atomic.Uint64 // and up to this one as fast as possible: somebody waits for it
	uploaded atomic.Uint64 // bytes of SCOs stored since the volume was opened

	mu struct {
		sync.Mutex
		running bool // the loop
		again   bool // kicked while it was ending
		stopped bool // no goroutine may be started any more
	}

	head struct {
		sync.Mutex
		Head        // as it was published last
		exists bool // in the object store
	}
}

// upload is an SCO on its way.
type upload struct {
	sco  writebuffer.ClosedSCO
	turn bool // it has the turn of those that are in no hurry
	done bool
}

// kick makes sure that the loop runs and looks at the situation again. It does not wait.
func (v *Volume) kick() {
	d := &v.drain
	d.mu.Lock()
	start := !d.mu.running && !d.mu.stopped
	d.mu.running = d.mu.running || start
	d.mu.again = true
	if start {
		v.background.Go(v.drainLoop)
	}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// closedSCO is told by the write buffer that an SCO may be uploaded.
func (v *Volume) closedSCO(uint64) { v.kick() }

// pressure is told by the write buffer that it is filling up, for a good part by this
// volume. Others may hold as much in SCOs that wait for their TLog: the driver looks.
func (v *Volume) pressure() {
	v.drain.pressed.Store(true)
	v.kick()
	v.d.relieve()
}

// request asks for everything that is in the log now to be committed as fast as possible.
// It returns the number of the last record, 0 if there is nothing to do.
func (v *Volume) request() uint64 {
	last := v.aim()
	if last != 0 {
		raise(&v.drain.urgent, last)
		v.kick()
	}
	return last
}

// age asks for everything that is in the log now to be committed, without hurry.
func (v *Volume) age() {
	if v.aim() != 0 {
		v.kick()
	}
}

// aim makes everything that is in the log now wanted in the object store.
func (v *Volume) aim() uint64 {
	last := v.buf.LastSeq()
	if last <= v.committed() {
		return 0
	}
	raise(&v.drain.target, last)
	return last
}

// raise makes a at least n.
func raise(a *atomic.Uint64, n uint64) {
	for old := a.Load(); old < n && !a.CompareAndSwap(old, n); old = a.Load() {
	}
}

// committed returns the last record that the published head covers.
func (v *Volume) committed() uint64 {
	v.drain.head.Lock()
	defer v.drain.head.Unlock()
	return v.drain.head.Seq
}

// drainLoop uploads closed SCOs, several at a time, and commits runs of them in order. It
// ends when there is nothing to do, and when the volume ends.
func (v *Volume) drainLoop() {
	l := &drainLoop{v: v, events: make(chan func(), 1)}
	for v.ctx.Err() == nil {
		if !l.step() {
			break
		}
	}
	l.wait()
}

// drainLoop is the state of the loop. Only its goroutine touches it; uploads and commits
// report by sending a function over events.
type drainLoop struct {
	v          *Volume
	events     chan func()
	queue      []*upload // scheduled and not committed, in order
	next       []writebuffer.ClosedSCO
	scheduled  uint64    // last SCO in queue or before
	closed     uint64    // the open SCO was closed behind this record
	active     int       // uploads running
	turn       bool      // held for the next upload
	queued     time.Time // since when it waits for the turn; zero: it does not
	committing bool
}

// wait lets what was begun end.
func (l *drainLoop) wait() {
	for l.active > 0 || l.committing {
		(<-l.events)()
	}
	l.pass()
}

// pass gives the turn to others if it is held.
func (l *drainLoop) pass() {
	if l.turn {
		l.turn = false
		<-l.v.d.pace.turn
	}
}

// step does the next thing. false: there is nothing to do, and the loop has ended.
func (l *drainLoop) step() bool {
	v := l.v
	v.drain.mu.Lock()
	v.drain.mu.again = false
	v.drain.mu.Unlock()
	l.rotate()
	if len(l.next) == 0 {
		l.next = v.buf.ClosedSCOs(max(l.scheduled, v.lastCommittedSCO()))
	}
	l.commitIfDue()
	if len(l.next) == 0 && l.active == 0 && !l.committing && l.mayEnd() {
		return false
	}
	if len(l.next) > 0 && (l.next[0].Clusters == 0 || l.next[0].Uploaded) {
		l.take().done = true // nothing to upload but its TLog section
		return true
	}
	l.pause()
	return true
}

// pause waits until an upload can begin, which it begins, or until there is news.
func (l *drainLoop) pause() {
	v := l.v
	var buffers chan []byte
	var turn chan struct{}
	var again <-chan time.Time
	if len(l.next) > 0 {
		yes, inTurn := l.mayStart()
		switch {
		case !yes:
			l.pass()
			l.queued = time.Time{}
		case inTurn && !l.turn && !l.turnIsStuck():
			turn = v.d.pace.turn
		default:
			buffers = v.d.buffers
		}
		if !yes || inTurn {
			t := time.NewTimer(calmWindow)
			defer t.Stop()
			again = t.C
		}
	} else {
		l.pass()
	}
	select {
	case b := <-buffers:
		l.start(l.take(), b)
	case turn <- struct{}{}:
		l.turn, l.queued = true, time.Time{}
	case f := <-l.events:
		f()
	case <-v.drain.wake:
	case <-again:
	case <-v.ctx.Done():
	}
}

// mayEnd ends the loop unless somebody has kicked it since its last look.
func (l *drainLoop) mayEnd() bool {
	v := l.v
	v.drain.mu.Lock()
	defer v.drain.mu.Unlock()
	if v.drain.mu.again {
		return false
	}
	v.drain.mu.running = false
	return true
}

// rotate closes the open SCO when what is in it is wanted in the object store.
func (l *drainLoop) rotate() {
	v := l.v
	if v.drain.pressed.Swap(false) {
		v.aim()
	}
	if target := v.drain.target.Load(); target <= v.committed() || target <= l.closed {
		return
	}
	last := v.buf.LastSeq()
	if err := v.buf.Rotate(v.ctx); err != nil && v.ctx.Err() == nil {
		v.trouble.set("close an SCO", err)
		return
	}
	l.closed = last
	v.trouble.set("close an SCO", nil)
}

// take moves the next SCO to the queue.
func (l *drainLoop) take() *upload {
	u := &upload{sco: l.next[0]}
	l.next = l.next[1:]
	l.scheduled = u.sco.Number
	l.queue = append(l.queue, u)
	return u
}

// start uploads an SCO in the background, from buffer b (which may be nil or too small).
func (l *drainLoop) start(u *upload, b []byte) {
	l.active++
	u.turn, l.turn = l.turn, false
	l.v.background.Go(func() {
		err := l.v.upload(u.sco, b)
		if u.turn {
			<-l.v.d.pace.turn
		}
		l.events <- func() {
			l.active--
			u.done = err == nil
		}
	})
}

// commitIfDue starts a commit of the uploaded SCOs at the front of the queue, if they are
// enough for a TLog, or wanted, and none is running.
func (l *drainLoop) commitIfDue() {
	v := l.v
	n := 0
	for n < len(l.queue) && l.queue[n].done && n < v.d.opts.TLogSCOs {
		n++
	}
	if l.committing || n == 0 {
		return
	}
	if n < v.d.opts.TLogSCOs {
		wanted := v.drain.target.Load() >= l.queue[0].sco.FirstSeq
		if l.held(n) {
			wanted = true
			v.d.relieve()
		}
		if !wanted || n < len(l.queue) || len(l.next) > 0 {
			return // not needed, or more is coming
		}
	}
	run := make([]writebuffer.ClosedSCO, n)
	for i := range run {
		run[i] = l.queue[i].sco
	}
	l.committing = true
	v.background.Go(func() {
		err := v.commit(run)
		l.events <- func() {
			l.committing = false
			if err == nil {
				l.queue = l.queue[n:]
			}
		}
	})
}

// held tells that n uploaded SCOs, too few for a TLog, hold room in the local log that
// writers are short of.
func (l *drainLoop) held(n int) bool {
	s := l.v.d.pool.Stats()
	return s.DirtyBytes > s.SoftBytes && n > 0
}

// lendAfter is how long the object store may hold the buffer of an SCO that it has stored (a
// disk server that hangs keeps it for a second or more) until another one is made in its place.
const lendAfter = 200 * time.Millisecond

// upload stores the data of an SCO. It takes over buffer b, and gives it or another one back
// when the object store does not need it any more, or holds it for long.
func (v *Volume) upload(s writebuffer.ClosedSCO, b []byte) error {
	size := s.Clusters * ClusterSize
	if cap(b) < size {
		b = vfs.AlignedBuffer(max(size, v.d.opts.SCOClusters*ClusterSize))
	}
	data, sums := b[:size], make([]uint32, s.Clusters)
	var holds atomic.Int32 // on b: ours, and the store's of each attempt
	var once sync.Once
	giveBack := func(b []byte) { once.Do(func() { v.d.buffers <- b }) }
	release := func() {
		if holds.Add(-1) == 0 {
			giveBack(b)
		}
	}
	holds.Store(1)
	defer func() {
		release()
		if holds.Load() > 0 {
			time.AfterFunc(lendAfter, func() { giveBack(nil) })
		}
	}()
	damaged := 0
	err := v.insist(fmt.Sprintf("load SCO %d from the local log", s.Number), func(ctx context.Context) error {
		err := v.buf.Load(ctx, s.Number, data, sums)
		if errors.Is(err, writebuffer.ErrCorrupt) {
			if damaged++; damaged >= damagedAttempts {
				return v.loadDamaged(s, data, sums, err)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	err = v.insist(fmt.Sprintf("store SCO %d", s.Number), func(ctx context.Context) error {
		holds.Add(1)
		return v.d.opts.Store.Apply(ctx, v.ns, Txn{Epoch: v.epoch, Puts: []Put{
			{Name: sco.Name(s.Number), Data: data, Sums: sums, Release: release},
		}})
	})
	if err != nil {
		return err
	}
	v.buf.MarkUploaded(s.Number)
	v.drain.uploaded.Add(uint64(size))
	v.stats.uploadedBytes.Add(uint64(size))
	v.stats.uploadedSCOs.Add(1)
	v.drain.news.tell()
	return nil
}

// damagedAttempts is how often a damaged SCO is read again before it is taken as it is.
const damagedAttempts = 3

// loadDamaged reads an SCO of which the local log is damaged, as it is: the bad clusters
// fail the checksums of the map, so reading them is an error and never wrong data, while
// the others are saved and the volume goes on.
func (v *Volume) loadDamaged(s writebuffer.ClosedSCO, data []byte, sums []uint32, cause error) error {
	bad := 0
	for i := range s.Clusters {
		part := data[i*ClusterSize : (i+1)*ClusterSize]
		if ok, err := v.buf.ReadAt(s.Number, uint32(i), part); err != nil || !ok {
			clear(part)
			bad++
		}
		sums[i] = plainSum(part)
	}
	v.stats.damagedSCOs.Add(1)
	v.log.Error("an SCO is damaged in the local log before it was stored; its readable part is stored, reads of the rest will fail",
		"sco", s.Number, "unreadable clusters", bad, "error", cause)
	return nil
}

// Drained tells how far a drain is.
type Drained struct {
	Target    uint64 // record up to which the drain goes
	Committed uint64 // record up to which everything is in the object store
	Bytes     int64  // of the local log that are still to go
}

// Drain stores everything that was written before the call in the object store, and
// returns when that is done. progress, if not nil, is called now and then. It waits
// through outages until ctx ends.
func (v *Volume) Drain(ctx context.Context, progress func(Drained)) error {
	if err := v.enter(); err != nil {
		return err
	}
	v.leave() // not held while waiting: the volume may end
	target := v.request()
	for {
		news := v.drain.news.wait()
		done := v.committed()
		if progress != nil {
			progress(Drained{Target: max(target, done), Committed: done, Bytes: v.undrainedBytes()})
		}
		if done >= target {
			return nil
		}
		select {
		case <-news:
		case <-v.ctx.Done():
			return fmt.Errorf("drain: %w", v.gone())
		case <-ctx.Done():
			return fmt.Errorf("volume %s: drain, record %d of %d: %w", v.Name(), done, target, errors.Join(context.Cause(ctx), v.trouble.cause()))
		}
	}
}

// noteCommitted keeps the age of what is not drained.
func (v *Volume) noteCommitted(began time.Time) {
	v.apply.Lock()
	defer v.apply.Unlock()
	if v.apply.seq <= v.committed() {
		v.dirtySince.Store(0)
	} else {
		v.dirtySince.Store(began.UnixNano())
	}
}

// undrainedBytes is what of the local log is still to go; headers of empty segments are not.
func (v *Volume) undrainedBytes() int64 {
	if v.buf.LastSeq() <= v.committed() {
		return 0
	}
	return v.buf.DirtyBytes()
}
