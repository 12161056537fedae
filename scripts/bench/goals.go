package main

import (
	"fmt"
	"math"
	"strings"
)

// goal is one thing that must be shown: a figure of Scoria, relative to the better of some
// others in the same session (ratio), or by itself.
type goal struct {
	row, figure string
	target      string   // whose figure; "" means scoria
	against     []string // other targets; none: the bound is absolute, or against another row
	otherRow    string   // of the other side, when it is not the same
	otherFigure string   // likewise
	atMost      bool     // the bound is an upper one
	cached      bool     // counts only when the reads did not go to the disk servers
	bound       float64
}

// goals are the targets of the performance work, as data.
var goals = []goal{
	{row: "rr4k-q1", figure: "iops", against: []string{"nbdkit-mem"}, cached: true, bound: 1.0},
	{row: "rr4k-q32", figure: "iops", against: []string{"nbdkit-mem"}, cached: true, bound: 0.9},
	{row: "rw4k-q1", figure: "iops", against: []string{"nbdkit-mem"}, bound: 1.0},
	{row: "rw4k-q32", figure: "iops", against: []string{"nbdkit-mem"}, bound: 0.65},
	{row: "rw4k-q1", figure: "iops", against: []string{"nbdkit-file"}, bound: 1.0},
	{row: "rw4k-q32", figure: "iops", against: []string{"nbdkit-file"}, bound: 1.3},
	{row: "rw4k-q1-f1", figure: "iops", against: []string{"qemu-raw", "nbdkit-file"}, bound: 1.5},
	{row: "rw4k-q16-f32", figure: "iops", against: []string{"qemu-raw", "nbdkit-file"}, bound: 1.7},
	{row: "mix4k-q16", figure: "iops", against: []string{"nbdkit-mem"}, bound: 0.8},
	{row: "sw1m-q4", figure: "MBps", against: []string{"nbdkit-file"}, bound: 0.9},
	{row: "sw1m-q4-end", figure: "MBps", against: []string{"qemu-raw"}, bound: 1.2},
	{row: "sr1m-q4", figure: "MBps", against: []string{"nbdkit-file"}, cached: true, bound: 0.9},
	{row: "sustained-sw1m", figure: "drained_MBps", target: "scoria-remote", against: []string{"ceph-ec"}, otherRow: "sw1m-q4-end", otherFigure: "MBps", bound: 4},
	{row: "steady-rw4k-q32", figure: "steady_iops", target: "scoria-remote", against: []string{"ceph-ec"}, otherRow: "rw4k-q32", otherFigure: "iops", bound: 150},
	{row: "steady-rw4k-q32", figure: "max_ms", target: "scoria-remote", atMost: true, bound: 250},
	{row: "steady-rw4k-q32", figure: "rate_deviation", target: "scoria-remote", atMost: true, bound: 0.15},
	{row: "steady-rw4k-q1-f1", figure: "steady_iops", target: "scoria-remote", against: []string{"ceph-ec"}, otherRow: "rw4k-q1-f1", otherFigure: "iops", bound: 40},
	{row: "cold-rr4k-q1", figure: "iops", against: []string{"ceph-ec"}, otherRow: "rr4k-q1", bound: 7},
	{row: "cold-rr4k-q1", figure: "iops", target: "scoria-remote", against: []string{"ceph-ec"}, otherRow: "rr4k-q1", bound: 7},
	{row: "cold-rr4k-q32", figure: "iops", against: []string{"ceph-ec"}, otherRow: "rr4k-q32", bound: 20},
	{row: "cold-rr4k-q32", figure: "iops", target: "scoria-remote", against: []string{"ceph-ec"}, otherRow: "rr4k-q32", bound: 20},
	{row: "degraded-rr4k-q1", figure: "iops", against: []string{"ceph-ec"}, otherRow: "rr4k-q1", bound: 2.5},
	{row: "degraded-rr4k-q1", figure: "iops", target: "scoria-remote", against: []string{"ceph-ec"}, otherRow: "rr4k-q1", bound: 2.5},
	{row: "degraded-rr4k-q32", figure: "iops", against: []string{"ceph-ec"}, otherRow: "rr4k-q32", bound: 6},
	{row: "degraded-rr4k-q32", figure: "iops", target: "scoria-remote", against: []string{"ceph-ec"}, otherRow: "rr4k-q32", bound: 6},
	{row: "cold-sr1m-q4", figure: "MBps", against: []string{"ceph-ec"}, otherRow: "sr1m-q4", bound: 1.5},
	{row: "cold-sr1m-q4", figure: "MBps", target: "scoria-remote", against: []string{"ceph-ec"}, otherRow: "sr1m-q4", bound: 1.5},
	{row: "rr4k-q32", figure: "cpu_us", against: []string{"nbdkit-mem"}, atMost: true, cached: true, bound: 1.3},
	{row: "rw4k-q32", figure: "cpu_us", against: []string{"nbdkit-mem"}, atMost: true, bound: 2},
	{row: "rw4k-q32", figure: "drained_cpu_us", atMost: true, bound: 35},
	{row: "rw4k-q32", figure: "drained_written", atMost: true, bound: 2.8},
	{row: "connections16-rr4k", figure: "iops", otherRow: "connections1-rr4k", bound: 0.9},
	{row: "connections16-rw4k", figure: "iops", otherRow: "connections1-rw4k", bound: 0.9},
	{row: "volumes64-rr4k", figure: "iops", otherRow: "volumes1-rr4k", bound: 0.9},
	{row: "volumes64-rw4k", figure: "iops", otherRow: "volumes1-rw4k", bound: 0.9},
	{row: "idle-1", figure: "idle_percent", atMost: true, bound: 0.5},
	{row: "idle-1000", figure: "idle_percent", atMost: true, bound: 2},
	{row: "idle-1", figure: "rss_MiB", atMost: true, bound: 150},
	{row: "idle-1000", figure: "rss_MiB", atMost: true, bound: 600},
	{row: "rw4k-q32", figure: "rss_MiB", atMost: true, bound: 700},
	{row: "steady-rw4k-q32", figure: "peak_rss_MiB", atMost: true, bound: 700},
	{row: "fair-rw4k-q1-greedy", figure: "worst_p99_us", atMost: true, bound: 10_000},
	{row: "fair-rr4k-q1-greedy", figure: "worst_p99_us", atMost: true, bound: 10_000},
	{row: "boot", figure: "boot_s", against: []string{"qemu-raw"}, atMost: true, bound: 1.1},
	{row: "database", figure: "tps", against: []string{"qemu-raw", "nbdkit-file"}, bound: 1},
	{row: "restart-clean", figure: "first_io_s", atMost: true, bound: 1},
	{row: "restart-killed", target: "scoria-remote", figure: "first_io_s", atMost: true, bound: 3},
}

// verdict is what a result says of a goal.
type verdict struct {
	goal    goal
	value   float64 // ratio or figure; NaN: not measured
	reached bool
	missed  float64 // share of the reads that should have been cached and were not
}

// missTolerance is the share of "cached" reads that may go to the disk servers.
const missTolerance = 0.02

// check judges a goal by the medians. Of several others the better one counts.
func (d *result) check(g goal) verdict {
	v := d.compare(g)
	if g.cached {
		if m := median(d.of(g.row, g.owner(), "backend_read")); !(m <= missTolerance) {
			v.missed, v.reached = m, false
		}
	}
	return v
}

func (d *result) compare(g goal) verdict {
	own := median(d.of(g.row, g.owner(), g.figure))
	if !g.relative() {
		return g.judge(own)
	}
	row, figure := or(g.otherRow, g.row), or(g.otherFigure, g.figure)
	against := g.against
	if len(against) == 0 {
		against = []string{g.owner()}
	}
	best := math.NaN()
	for _, a := range against {
		m := median(d.of(row, a, figure))
		if math.IsNaN(m) {
			return g.judge(math.NaN()) // "the better of two" needs both
		}
		if math.IsNaN(best) || (m > best) != g.atMost {
			best = m
		}
	}
	return g.judge(own / best)
}

func (g goal) judge(v float64) verdict {
	ok := v >= g.bound
	if g.atMost {
		ok = v <= g.bound
	}
	return verdict{goal: g, value: v, reached: ok && !math.IsInf(v, 0)}
}

func (g goal) owner() string  { return or(g.target, "scoria") }
func (g goal) relative() bool { return len(g.against) > 0 || g.otherRow != "" }

// String says the goal in words.
func (g goal) String() string {
	sign := "≥"
	if g.atMost {
		sign = "≤"
	}
	switch {
	case len(g.against) > 0:
		return fmt.Sprintf("%s %g × %s", sign, g.bound, strings.Join(g.against, ", "))
	case g.otherRow != "":
		return fmt.Sprintf("%s %g × %s", sign, g.bound, g.otherRow)
	}
	return fmt.Sprintf("%s %g", sign, g.bound)
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
