package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// values are the figures of one run by their name; the unit is in the name.
type values map[string]float64

// run is one measured run.
type run struct {
	Row    string `json:"row"`
	Target string `json:"target"`
	Round  int    `json:"round"`
	Values values `json:"values"`
}

// failure is a run that gave no figures: a result too.
type failure struct {
	Row    string `json:"row"`
	Target string `json:"target"`
	Round  int    `json:"round"`
	Error  string `json:"error"`
}

// result is the file that a session writes.
type result struct {
	Date     time.Time       `json:"date"`
	Machine  machine         `json:"machine"`
	Config   map[string]any  `json:"config"`
	Kinds    map[string]kind `json:"targets"`
	Order    []string        `json:"order"` // of the targets
	Runs     []run           `json:"runs"`
	Series   []series        `json:"series,omitempty"`
	Failures []failure       `json:"failures,omitempty"`
}

// machine is what figures depend on.
type machine struct {
	CPU    string  `json:"cpu"`
	CPUs   int     `json:"cpus"`
	Kernel string  `json:"kernel"`
	Go     string  `json:"go"`
	Commit string  `json:"commit"`
	Device string  `json:"device"`
	Load   float64 `json:"load_before"` // load average of the minute before
}

func thisMachine(device string) machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Device: device, Load: loadAverage()}
	// What cannot be found out stays empty; it only describes.
	_ = eachLine("/proc/cpuinfo", func(f []string) {
		if len(f) > 3 && f[0] == "model" && f[1] == "name" {
			m.CPU = strings.Join(f[3:], " ")
		}
	})
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		m.Commit = strings.TrimSpace(string(b))
	}
	return m
}

// of returns a figure of all rounds, sorted.
func (d *result) of(row, target, figure string) []float64 {
	var out []float64
	for _, r := range d.Runs {
		if v, ok := r.Values[figure]; ok && r.Row == row && r.Target == target {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}

// rowNames returns the rows in the order in which they were first run.
func (d *result) rowNames() []string {
	var out []string
	for _, r := range d.Runs {
		if !slices.Contains(out, r.Row) {
			out = append(out, r.Row)
		}
	}
	return out
}

// median of an empty list is NaN: no figure.
func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// spread is (max - min) / median.
func spread(v []float64) float64 {
	m := median(v)
	if math.IsNaN(m) || m == 0 {
		return 0
	}
	return (slices.Max(v) - slices.Min(v)) / m
}

func (d *result) save(path string) error {
	b, err := json.MarshalIndent(d, "", " ")
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// load reads result files and pools their runs.
func loadResults(paths []string) (*result, error) {
	var all *result
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		var d result
		if err := json.Unmarshal(b, &d); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		if all == nil {
			all = &d
			continue
		}
		all.Runs = append(all.Runs, d.Runs...)
		all.Failures = append(all.Failures, d.Failures...)
		for _, name := range d.Order {
			if !slices.Contains(all.Order, name) {
				all.Order = append(all.Order, name)
				all.Kinds[name] = d.Kinds[name]
			}
		}
	}
	if all == nil {
		return nil, fmt.Errorf("no result file given")
	}
	return all, nil
}
