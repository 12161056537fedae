package main

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func TestGoalsJudge(t *testing.T) {
	d := &result{}
	add := func(row, target, figure string, v float64) {
		d.Runs = append(d.Runs, run{row, target, 0, values{figure: v}})
	}
	add("w", "scoria", "iops", 150)
	add("w", "a", "iops", 100)
	add("w", "b", "iops", 120)
	add("w1", "scoria", "iops", 160)
	add("c", "scoria", "cpu_us", 20)
	add("c", "a", "cpu_us", 10)
	for _, c := range []struct {
		name    string
		g       goal
		value   float64
		reached bool
	}{
		{"the better of two counts", goal{row: "w", figure: "iops", against: []string{"a", "b"}, bound: 1.3}, 1.25, false},
		{"order does not matter", goal{row: "w", figure: "iops", against: []string{"b", "a"}, bound: 1.25}, 1.25, true},
		{"upper bound", goal{row: "c", figure: "cpu_us", against: []string{"a"}, atMost: true, bound: 2}, 2, true},
		{"upper bound missed", goal{row: "c", figure: "cpu_us", against: []string{"a"}, atMost: true, bound: 1.9}, 2, false},
		{"absolute", goal{row: "c", figure: "cpu_us", atMost: true, bound: 19}, 20, false},
		{"own other row", goal{row: "w", figure: "iops", otherRow: "w1", bound: 0.9}, 150.0 / 160, true},
		{"one of two is missing", goal{row: "w", figure: "iops", against: []string{"a", "gone"}, bound: 1}, math.NaN(), false},
		{"nothing measured", goal{row: "x", figure: "iops", bound: 1}, math.NaN(), false},
	} {
		v := d.check(c.g)
		if v.reached != c.reached || !(v.value == c.value || math.IsNaN(v.value) && math.IsNaN(c.value)) {
			t.Errorf("%s: %v %t, want %v %t", c.name, v.value, v.reached, c.value, c.reached)
		}
	}
}

// TestGoalsAreMeasurable: a goal names rows, figures and servers that the modes produce.
func TestGoalsAreMeasurable(t *testing.T) {
	figures := []string{"iops", "MBps", "idle_percent", "first_io_s", "drained_MBps", "steady_iops", "max_ms", "rate_deviation", "peak_rss_MiB", "worst_p99_us", "boot_s", "tps"}
	for _, c := range columns {
		figures = append(figures, c.figure)
	}
	prefixes := []string{"steady-", "cold-", "degraded-", "idle-", "restart-", "connections", "volumes", "sustained-", "fair-", "boot", "database"}
	for _, g := range goals {
		if !slices.Contains(figures, g.figure) || g.otherFigure != "" && !slices.Contains(figures, g.otherFigure) {
			t.Errorf("%s: no figure is called %q", g.row, g.figure)
		}
		for _, a := range append(g.against, strings.TrimSuffix(g.owner(), "-remote")) {
			if kinds[a] == (kind{}) {
				t.Errorf("%s: no server is called %q", g.row, a)
			}
		}
		for _, name := range []string{g.row, or(g.otherRow, g.row)} {
			_, err := rowByName(name)
			if err != nil && !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
				t.Errorf("no mode makes a row %q", name)
			}
		}
		if g.bound <= 0 {
			t.Errorf("%s: bound %v", g.row, g.bound)
		}
	}
}

// TestUncachedReadsDoNotCount: a "cached" read that came from the disk servers, or of which
// nobody knows where it came from, reaches no goal.
func TestUncachedReadsDoNotCount(t *testing.T) {
	g := goal{row: "r", figure: "iops", cached: true, bound: 1}
	for read, want := range map[float64]bool{0: true, 0.02: true, 0.1: false, math.NaN(): false} {
		v := values{"iops": 5}
		if !math.IsNaN(read) {
			v["backend_read"] = read
		}
		d := &result{Runs: []run{{"r", "scoria", 0, v}}}
		if got := d.check(g); got.reached != want {
			t.Errorf("%v of the reads not cached: reached %t", read, got.reached)
		}
	}
}

func TestVerdictsCountWhatWasMissed(t *testing.T) {
	text, missed := sample().verdicts()
	if missed != 1 || !strings.Contains(text, "| rr4k-q1 | iops | scoria | ≥ 1 × nbdkit-mem | 0.95 | **not reached** |") {
		t.Errorf("%d missed:\n%s", missed, text)
	}
}
