package sim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Settings of TestSim, from the environment:
//
//	SCORIA_SIM_SEED    run this seed (and those behind it, see SEEDS)
//	SCORIA_SIM_SEEDS   how many seeds; without SEED: fresh ones
//	SCORIA_SIM_FOR     run seeds for this time
//	SCORIA_SIM_EVENTS  of the plan keep these events only, as "3,7"; "none"
//	SCORIA_SIM_OPS     of each client keep so many operations
//	SCORIA_SIM_SURVEY  look for no smaller plan of one that fails; end there ("first") or go on
//	SCORIA_SIM_LOG     log to standard error
const (
	envSeed   = "SCORIA_SIM_SEED"
	envSeeds  = "SCORIA_SIM_SEEDS"
	envFor    = "SCORIA_SIM_FOR"
	envEvents = "SCORIA_SIM_EVENTS"
	envOps    = "SCORIA_SIM_OPS"
	envSurvey = "SCORIA_SIM_SURVEY"
	envLog    = "SCORIA_SIM_LOG"
)

// fixedSeeds are run by every test run: seeds that are cheap, between them have all kinds of
// events, or found something.
var fixedSeeds = []uint64{2, 8, 12}

// shortRun bounds a run without settings, in real time: no fixed seed is begun after it.
const shortRun = 5 * time.Second

func number(t *testing.T, name string) (uint64, bool) {
	s := os.Getenv(name)
	if s == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: %v", name, s, err)
	}
	return n, true
}

// TestSim runs the whole system through fixed seeds and a fresh one, or as the environment says.
func TestSim(t *testing.T) {
	total := totals{counts: map[string]int{}, began: time.Now()}
	defer total.print(t)
	first, one := number(t, envSeed)
	n, many := number(t, envSeeds)
	until := time.Now().Add(24 * 365 * time.Hour)
	if s := os.Getenv(envFor); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("%s=%q: %v", envFor, s, err)
		}
		until, n, many = time.Now().Add(d), 1<<62, true
	}
	if !one {
		first = rand.Uint64() >> 16
		for _, seed := range fixedSeeds {
			if !many && time.Since(total.began) < shortRun && !total.run(t, seed) {
				return
			}
		}
	}
	if !many {
		n = 1
	}
	for i := range n {
		if time.Now().After(until) || !total.run(t, first+i) {
			return
		}
	}
}

// run runs a seed; false: it failed, and the end of a search for a smaller plan was told.
func (s *totals) run(t *testing.T, seed uint64) bool {
	t.Helper()
	p := newPlan(seed)
	p.keep(t)
	t.Logf("seed %d", seed)
	out := simulate(t, p)
	s.add(out)
	if out.err == nil {
		return true
	}
	t.Errorf("%v\n%s%s", out.err, p.describe(), p.replay())
	if s := os.Getenv(envSurvey); s != "" {
		return s != "first"
	}
	small, smallErr := shrink(t, p)
	t.Errorf("smallest plan that was found to fail: %v\n%sreplay: %s", smallErr, small.describe(), small.replay())
	return false
}

// keep takes away what the environment does not name.
func (p *plan) keep(t *testing.T) {
	if s := os.Getenv(envEvents); s != "" {
		p.Events = slices.DeleteFunc(p.Events, func(e event) bool { return !slices.Contains(strings.Split(s, ","), strconv.Itoa(e.N)) })
	}
	if n, ok := number(t, envOps); ok {
		p.limit(int(n))
	}
}

// limit lets clients do n operations at most.
func (p *plan) limit(n int) {
	p.Volumes = slices.Clone(p.Volumes)
	p.Most = n
	for i := range p.Volumes {
		p.Volumes[i].Ops = min(p.Volumes[i].Ops, n)
	}
}

// replay is the command that runs the plan again.
func (p *plan) replay() string {
	events := []string{}
	for _, e := range p.Events {
		events = append(events, strconv.Itoa(e.N))
	}
	list := strings.Join(events, ",")
	if list == "" {
		list = "none"
	}
	return fmt.Sprintf("%s=%d %s=%s %s=%d %s=1 go test -count=1 -run '^TestSim$' ./cmd/scoria/internal/sim", envSeed, p.Seed, envEvents, list, envOps, p.Most, envLog)
}

// shrinkFor bounds the search for a smaller plan, in real time.
const shrinkFor = 2 * time.Minute

// shrink looks for a smaller plan that fails too. Since the Go scheduler has a part in what
// happens, a plan counts as failing when one of three runs fails.
func shrink(t *testing.T, p plan) (plan, error) {
	end := time.Now().Add(shrinkFor)
	var why error
	fails := func(q plan) bool {
		for range 3 {
			if time.Now().After(end) {
				return false
			}
			if out := simulate(t, q); out.err != nil {
				why = out.err
				return true
			}
		}
		return false
	}
	for n := len(p.Events); n >= 1; n /= 2 { // without n events in a row
		for i := 0; i < len(p.Events); {
			q := p
			q.Events = slices.Delete(slices.Clone(p.Events), i, min(i+n, len(p.Events)))
			if fails(q) {
				p = q
			} else {
				i += n
			}
		}
	}
	for {
		q := p
		q.limit(p.Most / 2)
		if q.Most == 0 || !fails(q) {
			return p, why
		}
		p = q
	}
}

// totals add up runs.
type totals struct {
	seeds   int
	virtual time.Duration
	counts  map[string]int
	began   time.Time
}

func (s *totals) add(out outcome) {
	s.seeds++
	s.virtual += out.virtual
	for k, n := range out.counts {
		s.counts[k] += n
	}
}

func (s *totals) print(t *testing.T) {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		t.Fatal(err)
	}
	cpu := time.Duration(use.Utime.Nano() + use.Stime.Nano())
	t.Logf("%d seeds, %.1f virtual hours, %.2f virtual hours per CPU minute, %v real, %d MiB at most", s.seeds, s.virtual.Hours(),
		s.virtual.Hours()/max(cpu.Minutes(), 1e-3), time.Since(s.began).Round(time.Millisecond), use.Maxrss>>10)
	for _, k := range slices.Sorted(maps.Keys(s.counts)) {
		t.Logf("  %8d %s", s.counts[k], k)
	}
}
