package writebuffer

import (
	"math"
	"sort"
	"time"
)

// govern is a goroutine of the Pool: it evicts, grants room to waiting writers, and asks
// volumes to drain.
func (p *Pool) govern() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		p.evict()
		p.press()
		wait := p.grant()
		timer.Reset(wait)
		select {
		case <-p.stop:
			return
		case <-p.kick:
		case <-timer.C:
		}
	}
}

// grant serves waiting writers, volume by volume in turn, and returns when to look again.
func (p *Pool) grant() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.pacer.tick(p.mu.dirty, p.mu.uploaded)
	for len(p.mu.ring) > 0 {
		b := p.mu.ring[0]
		w := b.waiters[0]
		if !p.admitLocked(w.n) {
			return p.mu.pacer.wait(p.mu.dirty, p.mu.uploaded)
		}
		b.waiters = b.waiters[1:]
		p.mu.waiting--
		p.mu.ring = p.mu.ring[1:]
		if len(b.waiters) > 0 {
			p.mu.ring = append(p.mu.ring, b)
		} else {
			b.waiters = nil
		}
		close(w.granted)
	}
	p.mu.ring = nil
	return time.Hour
}

// evict removes the oldest disposable segments until the fill is below the mark.
func (p *Pool) evict() {
	for {
		p.mu.Lock()
		if len(p.mu.cached) == 0 || !p.mu.needed && p.mu.total <= p.evictAbove() {
			p.mu.needed = false
			p.mu.Unlock()
			return
		}
		n := 1
		if p.mu.needed {
			n = max(1, len(p.mu.cached)/2) // make real room at once
			p.mu.needed = false
		}
		victims := append([]evictable(nil), p.mu.cached[:n]...)
		clear(p.mu.cached[:n])
		p.mu.cached = p.mu.cached[n:]
		p.mu.Unlock()
		var failed []evictable
		for _, v := range victims {
			if err := v.b.evictSegment(v.seg); err != nil {
				v.b.opts.Logger.Warn("removing a cached segment failed, its space is tried again", "file", v.seg.path, "err", err)
				failed = append(failed, v)
			}
		}
		p.mu.Lock()
		p.mu.stats.Evicted += uint64(len(victims) - len(failed))
		p.mu.stats.EvictFails += uint64(len(failed))
		p.mu.cached = append(p.mu.cached, failed...)
		p.mu.Unlock()
		if len(failed) > 0 {
			return
		}
	}
}

// pressEvery is the least time between two rounds of Pressure.
const pressEvery = 100 * time.Millisecond

// press asks the volumes with the largest open SCOs to drain, when the Pool is past its soft
// limit: what lies in an open SCO does not drain by itself.
func (p *Pool) press() {
	p.mu.Lock()
	now := time.Now()
	if p.mu.dirty <= p.soft || now.Sub(p.mu.pressed) < pressEvery {
		p.mu.Unlock()
		return
	}
	p.mu.pressed = now
	type candidate struct {
		b    *Buffer
		open int64
	}
	var list []candidate
	sum := int64(0)
	for b := range p.mu.buffers {
		if n := b.openBytes.Load(); n > 0 && !b.pressed.Load() {
			list = append(list, candidate{b, n})
			sum += n
		}
	}
	target := p.mu.dirty - p.soft
	p.mu.Unlock()
	// One busy volume's open SCO closes by itself; it is many small ones that add up.
	if sum < p.soft/4 {
		return
	}
	sort.Slice(list, func(i, j int) bool { return list[i].open > list[j].open })
	for _, c := range list {
		if target <= 0 {
			return
		}
		target -= c.open
		c.b.pressed.Store(true)
		c.b.opts.Pressure()
	}
}

// Fill says how much of a Pool waits for the object store, and so how hard it should drain.
type Fill int

// The levels, from little to much.
const (
	FillLow    Fill = iota // far from the soft limit: clients go first
	FillMiddle             // on the way to it
	FillHigh               // writers are being paced, or soon will be
)

// Where the levels begin, as shares of the soft limit.
const (
	fillMiddle = 0.5
	fillHigh   = 0.8
)

// Fill tells the level of the moment.
func (p *Pool) Fill() Fill {
	p.mu.Lock()
	waits, soft := float64(p.mu.dirty-p.mu.uploaded), float64(p.soft)
	p.mu.Unlock()
	switch {
	case waits >= soft*fillHigh:
		return FillHigh
	case waits >= soft*fillMiddle:
		return FillMiddle
	}
	return FillLow
}

// pacer is a token bucket whose rate follows the measured drain: writers get nearly any
// rate just past the soft limit, the drain's rate half way up, and half of it at the top.
// So the fill settles where input and output are equal, and nobody runs into the wall.
//
// Two fills count: what is not on the object store yet, against the lower part of
// the range (it falls smoothly, SCO by SCO), and all that is dirty, against the upper part
// (it falls TLog by TLog, in large steps). The guard is Pool.mu.
type pacer struct {
	lowFrom, lowTo   float64 // bytes not uploaded
	highFrom, highTo float64 // bytes dirty

	tokens   float64 // bytes; negative: a debt
	refilled time.Time

	drain       float64 // bytes/s; 0: never measured
	windowStart time.Time
	windowBytes int64
}

const (
	paceMax    = 8e9                    // bytes/s: no limit in practice
	paceMin    = 2e6                    // bytes/s: even when nothing drains writers go on, up to the hard limit
	paceBurst  = 10 * time.Millisecond  // tokens that may be saved up
	paceWindow = 250 * time.Millisecond // of measuring
	paceMemory = 2.5                    // seconds: the time constant of the drain rate
	waitMin    = 500 * time.Microsecond
	waitMax    = 50 * time.Millisecond
)

func (c *pacer) init(hard, soft int64) {
	h, s := float64(hard), float64(soft)
	c.lowFrom, c.lowTo = s, s+(h-s)*0.5
	c.highFrom, c.highTo = s+(h-s)*0.7, h
}

// fill tells how far into the range of pacing we are: ≤ 0 not at all, 1 at the top.
func (c *pacer) fill(dirty, uploaded int64) float64 {
	low := (float64(dirty-uploaded) - c.lowFrom) / max(c.lowTo-c.lowFrom, 1)
	high := (float64(dirty) - c.highFrom) / max(c.highTo-c.highFrom, 1)
	return min(max(low, high), 1)
}

// rate returns the bytes/s for writers; 0: no limit.
func (c *pacer) rate(dirty, uploaded int64) float64 {
	f := c.fill(dirty, uploaded)
	if f <= 0 || c.drain == 0 {
		return 0
	}
	return min(max(c.drain/(2*f), paceMin), paceMax)
}

func (c *pacer) refill(rate float64) {
	now := time.Now()
	if !c.refilled.IsZero() {
		c.tokens += now.Sub(c.refilled).Seconds() * rate
	}
	c.refilled = now
	c.tokens = min(c.tokens, rate*paceBurst.Seconds())
}

// admit takes n bytes of tokens. A large write may make a debt, which the next ones wait for.
func (c *pacer) admit(n, dirty, uploaded int64) bool {
	rate := c.rate(dirty, uploaded)
	if rate == 0 {
		c.tokens, c.refilled = 0, time.Time{}
		return true
	}
	c.refill(rate)
	if c.tokens < 0 {
		return false
	}
	c.tokens -= float64(n)
	return true
}

// wait tells when tokens will be there.
func (c *pacer) wait(dirty, uploaded int64) time.Duration {
	rate := c.rate(dirty, uploaded)
	if rate == 0 || c.tokens >= 0 {
		return waitMax // the hard limit: somebody kicks when room appears
	}
	d := time.Duration(math.Ceil(-c.tokens / rate * 1e9))
	return min(max(d, waitMin), waitMax)
}

// drained measures. Only windows in which all drained as fast as they could say how fast that is.
func (c *pacer) drained(n int64) {
	c.windowBytes += n
}

// tick closes the window of measuring when it is over.
func (c *pacer) tick(dirty, uploaded int64) {
	now := time.Now()
	backlog := float64(dirty-uploaded) > c.lowFrom*fillHigh
	if !backlog || c.windowStart.IsZero() {
		c.windowStart, c.windowBytes = now, 0
		if !backlog {
			c.windowStart = time.Time{}
		}
		return
	}
	took := now.Sub(c.windowStart).Seconds()
	if took < paceWindow.Seconds() {
		return
	}
	got := float64(c.windowBytes) / took
	c.windowStart, c.windowBytes = now, 0
	if c.drain == 0 {
		c.drain = got
		return
	}
	c.drain += (got - c.drain) * (1 - math.Exp(-took/paceMemory))
}
