package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"scoria/scripts/e2e/internal/history"
)

// result is what one round showed.
type result struct {
	Fault        string                   `json:"fault"`
	Kind         string                   `json:"disk_servers"`
	Note         string                   `json:"note,omitempty"`
	Skipped      bool                     `json:"skipped,omitempty"`
	Acknowledged uint64                   `json:"acknowledged"`
	Wrong        int                      `json:"wrong"`
	Held         time.Duration            `json:"held_ns"`          // how long the fault was in force
	Stall        time.Duration            `json:"stall_ns"`         // longest time without an answer, of any volume
	Slowest      map[string]time.Duration `json:"slowest_ns"`       // request, by kind
	Back         time.Duration            `json:"back_ns"`          // from the end of the fault until all volumes acknowledge
	OK           time.Duration            `json:"ok_ns"`            // from then until status is ok
	Told         []string                 `json:"told,omitempty"`   // by status while the fault was in force
	Left         []string                 `json:"left,omitempty"`   // by status last before it was ok
	Errors       map[string]int           `json:"errors,omitempty"` // answers that were errors
}

// report is what a drill showed.
type report struct {
	Seed   uint64        `json:"seed"`
	Begin  time.Time     `json:"begin"`
	Took   time.Duration `json:"took_ns"`
	Count  history.Count `json:"count"`
	Lacks  []string      `json:"lacks,omitempty"`
	Rounds []result      `json:"rounds"`
}

func newReport(o options) *report { return &report{Seed: o.seed, Begin: time.Now()} }

func (r *report) add(res result) {
	r.Rounds = append(r.Rounds, res)
	if res.Skipped {
		fmt.Printf("drill: %-36s SKIPPED\n", res.Fault)
		return
	}
	line := fmt.Sprintf("drill: %-36s %6d acked, held %v, stall %v, back %v, ok %v", res.Fault, res.Acknowledged, ms(res.Held), ms(res.Stall), ms(res.Back), ms(res.OK))
	if res.Note != "" {
		line += "; " + res.Note
	}
	if res.Stall > 2*time.Second {
		for kind, d := range res.Slowest {
			line += fmt.Sprintf("; slowest %s %v", kind, ms(d))
		}
	}
	if len(res.Errors) > 0 {
		line += fmt.Sprintf("; errors %v", res.Errors)
	}
	fmt.Println(line)
	for _, t := range res.Told[:min(len(res.Told), 2)] {
		fmt.Println("drill:     told:", t)
	}
	if res.OK > 10*time.Second {
		fmt.Println("drill:     last:", strings.Join(res.Left, "; "))
	}
}

func (r *report) sent(g *rig) {
	c := g.sent()
	r.Count.Sent, r.Count.Acknowledged, r.Count.Flushes = r.Count.Sent+c.Sent, r.Count.Acknowledged+c.Acknowledged, r.Count.Flushes+c.Flushes
	for _, l := range g.host.lacks {
		if !slices.Contains(r.Lacks, l) {
			r.Lacks = append(r.Lacks, l)
		}
	}
}

func (r *report) lack(what string, err error) { r.Lacks = append(r.Lacks, what+": "+err.Error()) }

func (r *report) end() *report {
	r.Took = time.Since(r.Begin)
	return r
}

// text is the report for people: a line per fault, then the sum.
func (r *report) text() string {
	type sum struct {
		rounds, skipped, wrong int
		acked                  uint64
		stall, back, ok        time.Duration
	}
	sums, wrong, rounds := make(map[string]*sum), 0, 0
	var names []string
	for _, x := range r.Rounds {
		s := sums[x.Fault]
		if s == nil {
			s = new(sum)
			sums[x.Fault] = s
			names = append(names, x.Fault)
		}
		if x.Skipped {
			s.skipped++
			continue
		}
		s.rounds++
		rounds++
		s.wrong += x.Wrong
		wrong += x.Wrong
		s.acked += x.Acknowledged
		s.stall, s.back, s.ok = max(s.stall, x.Stall), max(s.back, x.Back), max(s.ok, x.OK)
	}
	slices.Sort(names)
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-36s %6s %9s %10s %10s %10s\n", "fault", "rounds", "acked", "stall", "back", "ok after")
	for _, n := range names {
		s := sums[n]
		if s.rounds == 0 {
			fmt.Fprintf(&b, "%-36s SKIPPED\n", n)
			continue
		}
		fmt.Fprintf(&b, "%-36s %6d %9d %10v %10v %10v\n", n, s.rounds, s.acked, ms(s.stall), ms(s.back), ms(s.ok))
	}
	for _, l := range r.Lacks {
		fmt.Fprintf(&b, "not here: %s\n", l)
	}
	fmt.Fprintf(&b, "drill: %d rounds of %d faults in %v; %d writes sent, %d acknowledged, %d flushes; lost or wrong: %d (seed %d)\n",
		rounds, len(names), r.Took.Round(time.Second), r.Count.Sent, r.Count.Acknowledged, r.Count.Flushes, wrong, r.Seed)
	return b.String()
}

func (r *report) write(name string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// summary returns the different texts of a list, in the order of their first appearance.
func summary(list []string) (out []string) {
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out[:min(len(out), 10)]
}
