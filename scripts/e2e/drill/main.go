// Command drill runs a real Scoria, of one process, of several, or in a guest, under load, and
// does to it what bad days do: it kills and stops processes, cuts and silences networks, fills
// disks, makes them slow or fail, removes and damages what is on them, cuts the power and sets the
// clock. After each fault every volume is compared with the history of its writes: nothing
// acknowledged may be lost by a kill (C1), nothing flushed by a loss of power (C2), without its write
// buffer a volume is a prefix that has all that was drained (C3), no read ever returns wrong bytes
// (C6), `scoria status` tells each degraded state while it lasts and is ok again afterwards, and nobody
// waits longer than is documented. It ends with a report.
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

type options struct {
	bin, dir string
	duration time.Duration
	seed     uint64
	only     string
	report   string
	keep     bool
	passes   int
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin/scoria", "binary of scoria")
	flag.StringVar(&o.dir, "dir", "", "where data and logs go; default: the directory for temporary files")
	flag.DurationVar(&o.duration, "for", 10*time.Minute, "no round begins after this time")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64(), "of all random choices")
	flag.StringVar(&o.only, "only", "", "faults to run, by parts of their names with commas between; default: all")
	flag.StringVar(&o.report, "report", "", "file for the report as JSON")
	flag.IntVar(&o.passes, "passes", 1, "rounds of each fault at least, however long they take")
	flag.BoolVar(&o.keep, "keep", false, "keep data and logs")
	flag.Parse()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	go func() { // what was taken from the machine is given back; the processes die with this one
		<-interrupted
		_ = cleanUp.run() // the exit code tells already
		os.Exit(130)
	}()
	fmt.Printf("drill: seed %d\n", o.seed)
	rep, err := drill(o)
	fmt.Print(rep.text())
	if o.report != "" {
		err = errors.Join(err, rep.write(o.report))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "drill: FAILED: %v (again: -seed %d)\n", err, o.seed)
		os.Exit(1)
	}
}

// chosen returns the faults to run on a kind of rig.
func (o options) chosen(kind string) (list []fault) {
	for _, f := range faults() {
		wanted := o.only == "" || slices.ContainsFunc(strings.Split(o.only, ","), func(s string) bool { return strings.Contains(f.name, s) })
		if wanted && (f.kind == kind || f.kind == "" && kind != "guest") {
			list = append(list, f)
		}
	}
	return list
}

// drill gives each kind of rig a third of the time. Each fault has its turn before one comes again.
func drill(o options) (*report, error) {
	rep := newReport(o)
	r := rand.New(rand.NewPCG(o.seed, 1))
	begin := time.Now()
	kinds := []string{"inside", "processes", "guest"}
	for i, kind := range kinds {
		list := o.chosen(kind)
		if len(list) == 0 {
			continue
		}
		if kind == "guest" {
			if _, err := guestKernel(); err != nil {
				rep.lack("a guest (no power loss, no clock jumps)", err)
				continue
			}
		}
		until := begin.Add(o.duration * time.Duration(i+1) / time.Duration(len(kinds)))
		if err := drillRig(o, kind, list, until, r, rep); err != nil {
			return rep.end(), fmt.Errorf("disk servers %s: %w", kind, err)
		}
	}
	return rep.end(), nil
}

func drillRig(o options, kind string, list []fault, until time.Time, r *rand.Rand, rep *report) (err error) {
	g, err := newRig(o, kind, r)
	if err != nil {
		return err
	}
	cleanUp.set(func() error { return g.close(true) })
	defer func() {
		rep.sent(g)
		keep := err != nil || o.keep
		cleanUp.set(nil)
		err = errors.Join(err, g.close(keep))
		if keep {
			fmt.Fprintln(os.Stderr, "drill: data and logs are kept in", g.dir)
		}
	}()
	for pass := 0; pass < o.passes || time.Now().Before(until); pass++ {
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for _, f := range list {
			if pass >= o.passes && time.Now().After(until) {
				return nil
			}
			res, err := g.round(f, rand.New(rand.NewPCG(r.Uint64(), 5)))
			res.Kind = kind
			rep.add(res)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	return nil
}

// cleanUp is what an interruption has to do.
var cleanUp atExit

type atExit struct {
	mu sync.Mutex
	f  func() error
}

func (a *atExit) set(f func() error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.f = f
}

func (a *atExit) run() error {
	a.mu.Lock() // for ever: nothing follows
	if a.f == nil {
		return nil
	}
	return a.f()
}

// okWithin is how long repair may take until status is ok again.
const okWithin = 3 * time.Minute

// round runs one fault: load, fault, recovery, comparison.
func (g *rig) round(f fault, rnd *rand.Rand) (res result, err error) {
	res = result{Fault: f.name}
	before := g.sent()
	rd := &round{rig: g, r: rnd, load: startLoad(g.front.addr(), g.volumes, rnd)}
	defer func() {
		if err != nil {
			err = errors.Join(err, rd.load.end())
		}
		res.Acknowledged = g.sent().Acknowledged - before.Acknowledged
		res.Stall, res.Slowest = rd.load.longest()
		res.Held, res.Note, res.Told = rd.held, rd.note, summary(rd.told)
		res.Errors = rd.load.errnos
		var wrong *wrongBytes
		if errors.As(err, &wrong) {
			res.Wrong++
		}
	}()
	if _, err := rd.load.working(restartBound); err != nil {
		return res, fmt.Errorf("before the fault: %w", err)
	}
	time.Sleep(rd.between(100*time.Millisecond, 1500*time.Millisecond))
	if err := f.strike(rd); errors.Is(err, errSkipped) {
		res.Skipped = true
		return res, rd.load.end()
	} else if err != nil {
		return res, err
	}
	if res.Back, err = rd.recovered(f); err != nil {
		return res, err
	}
	if err := g.check(f.promise); err != nil {
		return res, err
	}
	if h, err := g.status(); err != nil {
		return res, err
	} else if f.loses && len(h.lost) < len(g.volumes) {
		return res, fmt.Errorf("the write buffer was wiped, and status tells of the loss for %d of %d volumes: %q", len(h.lost), len(g.volumes), append(h.lost, h.Problems...))
	}
	if res.OK, res.Left, err = g.untilOK(okWithin); err != nil {
		return res, err
	}
	res.Stall, res.Slowest = rd.load.longest()
	if bound := rd.held + f.bound; res.Stall > bound {
		return res, fmt.Errorf("no answer for %v, longer than %v: the fault and %v for its end", res.Stall, bound, f.bound)
	}
	if n := len(rd.load.errnos); n > 0 && !f.errors {
		return res, fmt.Errorf("requests failed that should have waited: %v", rd.load.errnos)
	}
	return res, nil
}

// recovered waits until all volumes work again, and ends the load.
func (r *round) recovered(f fault) (time.Duration, error) {
	if r.load.stopped() { // by the fault: it needed silence
		return 0, nil
	}
	back, err := r.load.working(f.bound)
	if err != nil {
		return 0, err
	}
	time.Sleep(r.between(0, 300*time.Millisecond))
	return back, r.load.end()
}

// untilOK waits until status has nothing to tell any more, and returns what it told last.
func (g *rig) untilOK(limit time.Duration) (took time.Duration, last []string, err error) {
	begin := time.Now()
	for {
		h, err := g.status()
		switch {
		case err != nil:
			return 0, last, err
		case h.answered && h.Health == "ok":
			return time.Since(begin), last, nil
		case time.Since(begin) > limit:
			return 0, last, fmt.Errorf("not ok %v after the fault: %q", limit, h.Problems)
		}
		if h.answered {
			last = h.Problems
		}
		time.Sleep(100 * time.Millisecond)
	}
}
