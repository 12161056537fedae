package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"scoria/scripts/e2e/internal/e2e"
	"scoria/scripts/e2e/internal/history"
)

// volume is one volume and all that is known of it.
type volume struct {
	name        string
	h           *history.History
	connections int
	depth       int
}

// load writes and reads on all volumes until it is stopped. Its connections come back by
// themselves, as those of any client that shall outlive a fault.
type load struct {
	network, addr string
	pace          time.Duration   // longest pause after each request
	ctx           context.Context // of the load's life
	stop          context.CancelFunc
	wg            sync.WaitGroup
	gauges        []*gauge // as volumes

	mu     sync.Mutex
	errnos map[string]int // replies that were errors, by what they were to
	wrong  []error        // wrong bytes: nothing excuses them
}

// gauge measures one volume.
type gauge struct {
	last  atomic.Int64 // unix nanoseconds of the last answer
	worst atomic.Int64 // longest time without one
	acks  atomic.Int64
	slow  [3]atomic.Int64 // longest single request, by kind
	reads atomic.Int64
}

// kinds of requests
var requestKinds = [3]string{"read", "write", "flush"}

// answered notes an answer to a request that was sent at begin.
func (g *gauge) answered(what string, begin time.Time) {
	now := time.Now()
	raise(&g.slow[slices.Index(requestKinds[:], what)], int64(now.Sub(begin)))
	raise(&g.worst, now.UnixNano()-g.last.Swap(now.UnixNano()))
}

func raise(v *atomic.Int64, to int64) {
	for old := v.Load(); to > old && !v.CompareAndSwap(old, to); old = v.Load() {
	}
}

// silent returns the longest time for which a volume has not answered, up to now.
func (l *load) silent() (longest time.Duration) {
	for _, g := range l.gauges {
		longest = max(longest, time.Since(time.Unix(0, g.last.Load())))
	}
	return longest
}

func startLoad(addr string, volumes []*volume, r *rand.Rand) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{network: "tcp", addr: addr, ctx: ctx, stop: stop, errnos: make(map[string]int)}
	l.pace = []time.Duration{0, 2 * time.Millisecond, 20 * time.Millisecond}[r.IntN(3)]
	for _, v := range volumes {
		g := new(gauge)
		g.last.Store(time.Now().UnixNano())
		l.gauges = append(l.gauges, g)
		for range v.connections {
			seed := r.Uint64()
			l.wg.Go(func() { l.connection(ctx, v, g, rand.New(rand.NewPCG(seed, 3))) })
		}
	}
	return l
}

// connection keeps one connection and its workers going.
func (l *load) connection(ctx context.Context, v *volume, g *gauge, r *rand.Rand) {
	for ctx.Err() == nil {
		c, err := e2e.Dial(l.network, l.addr, v.name)
		if err != nil {
			pause(ctx, 10*time.Millisecond)
			continue
		}
		end := context.AfterFunc(ctx, func() { time.AfterFunc(stopPatience, c.Abort) }) // a server that never answers shall not hold us for ever
		var wg sync.WaitGroup
		for range v.depth {
			seed := r.Uint64()
			wg.Go(func() { l.work(ctx, c, v, g, rand.New(rand.NewPCG(seed, 4))) })
		}
		wg.Wait()
		end()
		_ = c.Close() // or it was dead before
	}
}

// stopPatience is how long a request may still take after the load was told to stop.
const stopPatience = 60 * time.Second

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// work sends one request after the other until the connection breaks or the load ends.
func (l *load) work(ctx context.Context, c *e2e.Client, v *volume, g *gauge, r *rand.Rand) {
	for ctx.Err() == nil {
		begin := time.Now()
		what, err := l.request(c, v, g, r)
		var wrong *wrongBytes
		switch {
		case err == nil:
			g.answered(what, begin)
		case errors.As(err, &wrong):
			l.mu.Lock()
			l.wrong = append(l.wrong, err)
			l.mu.Unlock()
			return
		default:
			errno, replied := err.(syscall.Errno) //nolint:errorlint // a reply is the bare number, what the socket says is wrapped
			if !replied {
				return
			}
			l.mu.Lock()
			l.errnos[what+" "+errno.Error()]++
			l.mu.Unlock()
			pause(ctx, 100*time.Millisecond)
		}
		if l.pace > 0 {
			pause(ctx, time.Duration(r.Int64N(int64(l.pace))))
		}
	}
}

// wrongBytes is what no fault excuses.
type wrongBytes struct {
	volume string
	err    error
}

func (w *wrongBytes) Error() string { return "volume " + w.volume + ": WRONG BYTES: " + w.err.Error() }
func (w *wrongBytes) Unwrap() error { return w.err }

func (l *load) request(c *e2e.Client, v *volume, g *gauge, r *rand.Rand) (what string, err error) {
	switch k := r.IntN(64); {
	case k == 0:
		b := v.h.Before(history.Flushed)
		if err := c.Flush(); err != nil {
			return "flush", err
		}
		v.h.Done(b)
		return "flush", nil
	case k < 16:
		n := 1 + r.IntN(128)
		first := r.IntN(v.h.Sectors() - n)
		acked, data := v.h.Acked(first, n), make([]byte, n*history.Sector)
		if err := c.ReadAt(data, uint64(first)*history.Sector); err != nil {
			return "read", err
		}
		g.reads.Add(1)
		if err := v.h.CheckRead(data, first, acked); err != nil {
			return "read", &wrongBytes{v.name, err}
		}
		return "read", nil
	default:
		w, ok := v.h.BeginRandom(r)
		if !ok {
			return "write", fmt.Errorf("no place is free for one more write")
		}
		if err := c.WriteAt(w.Data, w.Offset()); err != nil {
			return "write", err
		}
		v.h.End(w)
		g.acks.Add(1)
		return "write", nil
	}
}

// working waits until each volume has had an answer to a write that came after now.
func (l *load) working(limit time.Duration) (time.Duration, error) {
	begin := time.Now()
	acks := make([]int64, len(l.gauges))
	for i, g := range l.gauges {
		acks[i] = g.acks.Load()
	}
	for i := 0; i < len(l.gauges); {
		switch {
		case l.gauges[i].acks.Load() > acks[i]:
			i++
		case time.Since(begin) > limit:
			return 0, fmt.Errorf("volume %d: no write was acknowledged for %v after the fault had ended", i, time.Since(begin).Round(time.Millisecond))
		default:
			time.Sleep(5 * time.Millisecond)
		}
	}
	return time.Since(begin), nil
}

// stopped tells whether the load was told to stop.
func (l *load) stopped() bool { return l.ctx.Err() != nil }

// end stops the load, and returns what it did wrong.
func (l *load) end() error {
	l.stop()
	l.wg.Wait()
	wrong := l.wrong[:min(len(l.wrong), 5)]
	l.wrong = nil
	return errors.Join(wrong...)
}

// longest returns the longest time without an answer, and the slowest request by kind, of any volume.
func (l *load) longest() (stall time.Duration, requests map[string]time.Duration) {
	requests = make(map[string]time.Duration)
	for _, g := range l.gauges {
		stall = max(stall, time.Duration(g.worst.Load()))
		for i, kind := range requestKinds {
			requests[kind] = max(requests[kind], time.Duration(g.slow[i].Load()))
		}
	}
	return stall, requests
}

// readAll reads the part of a volume that the history is about.
func readAll(addr string, v *volume) (data []byte, err error) {
	c, err := e2e.Dial("tcp", addr, v.name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	data = make([]byte, v.h.Sectors()*history.Sector)
	const step = 256 << 10
	for at := 0; at < len(data); at += step {
		if err := c.ReadAt(data[at:min(at+step, len(data))], uint64(at)); err != nil {
			return nil, fmt.Errorf("volume %s: read back at %d: %w", v.name, at, err)
		}
	}
	return data, nil
}
