package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// column is a figure in the table of details.
type column struct {
	figure, head string
	digits       int
}

var columns = []column{
	{"p50_us", "p50 µs", 0}, {"p99_us", "p99 µs", 0}, {"p999_us", "p99.9 µs", 0}, {"max_ms", "longest ms", 1},
	{"flush_p50_us", "FLUSH p50", 0}, {"flush_p99_us", "p99 µs", 0},
	{"cpu_us", "server CPU µs/io", 1}, {"drained_cpu_us", "with drain", 1}, {"client_cpu_us", "client", 1},
	{"rss_MiB", "RSS MiB", 0}, {"written", "written/byte", 2}, {"drained_written", "with drain", 2}, {"drained_device_written", "device", 2},
	{"drained_MBps", "MB/s with drain", 0}, {"backend_read", "read from disk servers", 2}, {"other_cores", "other cores", 2},
}

// quiet is the share of a core that may go to others in a run that counts as undisturbed.
const quiet = 0.35

// unit is the main figure of a row.
func unit(name string) string {
	for _, r := range append(rows, mixedSizes) {
		if strings.HasSuffix(name, r.name) && r.large {
			return "MBps"
		}
	}
	switch {
	case strings.HasPrefix(name, "idle-"):
		return "idle_percent"
	case strings.HasPrefix(name, "restart-"):
		return "first_io_s"
	case name == "sustained-sw1m":
		return "drained_MBps"
	case name == "boot":
		return "boot_s"
	case name == "database":
		return "tps"
	case strings.HasPrefix(name, "steady-"):
		return "steady_iops"
	}
	return "iops"
}

// markdown is the report on a result.
func (d *result) markdown() string {
	var b strings.Builder
	m := d.Machine
	fmt.Fprintf(&b, "# Measured %s\n\n%s, %d CPUs, Linux %s, %s, commit %s, device %s, load before %.1f. %v\n\n",
		d.Date.UTC().Format("2006-01-02 15:04"), m.CPU, m.CPUs, m.Kernel, m.Go, m.Commit, m.Device, m.Load, d.Config)
	if n, all := d.disturbed(); n > 0 {
		fmt.Fprintf(&b, "**%d of %d runs had more than %g cores taken by others**: their figures say more about the others.\n\n", n, all, quiet)
	}
	b.WriteString("| server | acknowledged means in | after FLUSH in | checksums |\n|---|---|---|---|\n")
	for _, t := range d.Order {
		k := d.kind(t)
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", t, or(k.Acknowledged, "?"), or(k.Flushed, "?"), or(k.Checksums, "?"))
	}
	d.overview(&b)
	d.ratios(&b)
	d.details(&b)
	for _, f := range d.Failures {
		fmt.Fprintf(&b, "\nFAILED: %s %s, round %d: %s\n", f.Row, f.Target, f.Round+1, strings.ReplaceAll(f.Error, "\n", " "))
	}
	return b.String()
}

// kind finds what a server promises; other transports and places do not change it.
func (d *result) kind(target string) kind {
	if k := d.Kinds[target]; k != (kind{}) {
		return k
	}
	return kinds[strings.TrimSuffix(target, "-tcp")]
}

func (d *result) disturbed() (n, all int) {
	for _, r := range d.Runs {
		if v, ok := r.Values["other_cores"]; ok {
			all++
			if v > quiet {
				n++
			}
		}
	}
	return n, all
}

// overview is rows by servers: median and half of the spread.
func (d *result) overview(b *strings.Builder) {
	fmt.Fprintf(b, "\n| row | unit | %s |\n|---|---|%s\n", strings.Join(d.servers(), " | "), strings.Repeat("---|", len(d.servers())))
	for _, row := range d.rowNames() {
		u := unit(row)
		fmt.Fprintf(b, "| %s | %s |", row, u)
		for _, t := range d.servers() {
			v := d.of(row, t, u)
			if len(v) == 0 {
				b.WriteString(" – |")
				continue
			}
			fmt.Fprintf(b, " %s ±%.0f %% |", number(median(v)), spread(v)*50)
		}
		b.WriteString("\n")
	}
}

// servers are the targets without repetition, in order.
func (d *result) servers() []string {
	var out []string
	for _, t := range d.Order {
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// ratios are those of the first server to each other one: of the medians, with the least
// and the largest of the single rounds.
func (d *result) ratios(b *strings.Builder) {
	s := d.servers()
	if len(s) < 2 {
		return
	}
	fmt.Fprintf(b, "\nRatios of %s (of medians; least–largest of the rounds)\n\n| row | × %s |\n|---|%s\n", s[0], strings.Join(s[1:], " | × "), strings.Repeat("---|", len(s)-1))
	for _, row := range d.rowNames() {
		u := unit(row)
		own := median(d.of(row, s[0], u))
		if math.IsNaN(own) {
			continue
		}
		fmt.Fprintf(b, "| %s |", row)
		for _, t := range s[1:] {
			other := median(d.of(row, t, u))
			if math.IsNaN(other) {
				b.WriteString(" – |")
				continue
			}
			lo, hi := d.paired(row, s[0], t, u)
			fmt.Fprintf(b, " %.2f (%.2f–%.2f) |", own/other, lo, hi)
		}
		b.WriteString("\n")
	}
}

// paired returns the least and largest ratio of two servers within a round.
func (d *result) paired(row, a, b, figure string) (lo, hi float64) {
	by := map[string]map[int]float64{a: {}, b: {}}
	for _, r := range d.Runs {
		if r.Row == row && by[r.Target] != nil {
			by[r.Target][r.Round] = r.Values[figure]
		}
	}
	lo, hi = math.Inf(1), 0
	for round, v := range by[a] {
		if other := by[b][round]; other > 0 {
			lo, hi = min(lo, v/other), max(hi, v/other)
		}
	}
	return lo, hi
}

func (d *result) details(b *strings.Builder) {
	b.WriteString("\n| row | server | n |")
	for _, c := range columns {
		b.WriteString(" " + c.head + " |")
	}
	b.WriteString("\n|---|---|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, row := range d.rowNames() {
		for _, t := range d.servers() {
			n := len(d.of(row, t, unit(row)))
			if n == 0 {
				continue
			}
			fmt.Fprintf(b, "| %s | %s | %d |", row, t, n)
			for _, c := range columns {
				v := median(d.of(row, t, c.figure))
				if math.IsNaN(v) {
					b.WriteString(" – |")
					continue
				}
				fmt.Fprintf(b, " %.*f |", c.digits, v)
			}
			b.WriteString("\n")
		}
	}
	d.others(b)
}

// others lists the figures that only some rows have.
func (d *result) others(b *strings.Builder) {
	extra := []string{"steady_iops", "worst_second_iops", "rate_deviation", "fairness", "worst_p99_us", "peak_rss_MiB", "idle_percent", "idle_written", "ready_s", "first_io_s", "dirty_MiB"}
	var lines []string
	for _, row := range d.rowNames() {
		for _, t := range d.servers() {
			for _, f := range extra {
				if v := d.of(row, t, f); len(v) > 0 {
					lines = append(lines, fmt.Sprintf("| %s | %s | %s | %s | %s–%s |\n", row, t, f, number(median(v)), number(v[0]), number(v[len(v)-1])))
				}
			}
		}
	}
	if len(lines) > 0 {
		b.WriteString("\n| row | server | figure | median | min–max |\n|---|---|---|---|---|\n" + strings.Join(lines, ""))
	}
}

// verdicts is the table of the goals, and how many were measured and missed.
func (d *result) verdicts() (string, int) {
	var b strings.Builder
	missed := 0
	b.WriteString("\n| row | figure | server | must be | is | |\n|---|---|---|---|---|---|\n")
	for _, g := range goals {
		v := d.check(g)
		is, word := number(v.value), "reached"
		switch {
		case math.IsNaN(v.value):
			is, word = "–", "not measured"
		case v.missed != 0:
			word = fmt.Sprintf("does not count: %.0f %% of the reads were not cached", v.missed*100)
		case !v.reached:
			missed++
			word = "**not reached**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", g.row, g.figure, g.owner(), g, is, word)
	}
	return b.String(), missed
}

// number prints three digits that mean something.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
