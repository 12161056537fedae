package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// series is a rate by time: requests per second, one figure a second.
type series struct {
	Row    string    `json:"row"`
	Target string    `json:"target"`
	Rates  []float64 `json:"rates"`
}

// readRates reads a log of fio (--write_iops_log): lines "msec, value, direction, ...".
func readRates(path string) ([]float64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []float64
	for line := range strings.Lines(string(b)) {
		f := strings.Split(line, ",")
		if len(f) < 3 {
			return nil, fmt.Errorf("%s: line %d: %q", path, len(out)+1, line)
		}
		at, err1 := strconv.Atoi(strings.TrimSpace(f[0]))
		n, err2 := strconv.ParseFloat(strings.TrimSpace(f[1]), 64)
		if err1 != nil || err2 != nil || at < 0 {
			return nil, fmt.Errorf("%s: line %d: %q", path, len(out)+1, line)
		}
		// A second in which nothing was completed has no line.
		for sec := (at - 500) / 1000; len(out) < sec && len(out) < 1<<20; {
			out = append(out, 0)
		}
		out = append(out, n)
	}
	return out, nil
}

// window is the time over which a rate is told to be level: a second has the noise of one
// flush of the disk in it.
const window = 10

// steadiness adds how level a rate is after its first minute (or quarter, of a short run):
// the largest deviation of a window from the median of the windows, and the worst second.
func steadiness(rates []float64, v values) {
	rest := rates[min(60, len(rates)/4):]
	if len(rest) == 0 {
		return
	}
	var windows []float64
	for i := 0; i+window <= len(rest); i += window {
		windows = append(windows, mean(rest[i:i+window]))
	}
	if len(windows) == 0 {
		windows = []float64{mean(rest)}
	}
	m := median(windows)
	worst := rest[0]
	for _, r := range rest {
		worst = min(worst, r)
	}
	v["steady_iops"], v["worst_second_iops"] = m, worst
	if m > 0 && len(windows) > 1 { // one window deviates from nothing
		for _, w := range windows {
			v["rate_deviation"] = max(v["rate_deviation"], max(w-m, m-w)/m)
		}
	}
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}
