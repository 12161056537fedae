package main

import (
	"encoding/xml"
	"io"
	"math"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// sample is a result with two rounds of two servers.
func sample() *result {
	d := &result{Kinds: map[string]kind{"scoria": kinds["scoria"]}, Order: []string{"scoria", "nbdkit-mem", "scoria"}, Machine: machine{Commit: "<&>"}}
	for round, pair := range [][2]float64{{80, 100}, {120, 110}} {
		d.Runs = append(d.Runs,
			run{"rr4k-q1", "scoria", round, values{"iops": pair[0], "cpu_us": 13, "backend_read": 0.01, "other_cores": 0.1}},
			run{"rr4k-q1", "nbdkit-mem", round, values{"iops": pair[1], "cpu_us": 10, "other_cores": 0.9}})
	}
	return d
}

func TestMedianAndSpread(t *testing.T) {
	for _, c := range []struct {
		in            []float64
		median, width float64
	}{
		{[]float64{3}, 3, 0}, {[]float64{5, 1, 3}, 3, 4.0 / 3}, {[]float64{4, 1, 3, 2}, 2.5, 1.2}, {[]float64{0, 0}, 0, 0},
	} {
		if got := median(c.in); got != c.median {
			t.Errorf("median of %v is %v, want %v", c.in, got, c.median)
		}
		if got := spread(c.in); math.Abs(got-c.width) > 1e-9 {
			t.Errorf("spread of %v is %v, want %v", c.in, got, c.width)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("the median of nothing is a figure")
	}
	in := []float64{2, 1}
	if median(in); in[0] != 2 {
		t.Error("median sorts the caller's list")
	}
}

func TestPairedRatiosStayWithinRounds(t *testing.T) {
	lo, hi := sample().paired("rr4k-q1", "scoria", "nbdkit-mem", "iops")
	if lo != 0.8 || math.Abs(hi-120.0/110) > 1e-9 {
		t.Errorf("ratios %v to %v, want 0.8 to 1.09", lo, hi)
	}
}

func TestReportSaysWhatWasMeasured(t *testing.T) {
	text := sample().markdown()
	for _, want := range []string{"| rr4k-q1 | iops | 100 ±20 % | 105 ±5 % |", "0.95 (0.80–1.09)", "2 of 4 runs", "CRC32C per 4 KiB"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the report:\n%s", want, text)
		}
	}
	if strings.Contains(text, "NaN") {
		t.Error("NaN in the report")
	}
}

func TestResultsSurviveTheFileAndPool(t *testing.T) {
	d := sample()
	a, b := filepath.Join(t.TempDir(), "a.json"), filepath.Join(t.TempDir(), "b.json")
	if err := d.save(a); err != nil {
		t.Fatal(err)
	}
	other := &result{Kinds: map[string]kind{"ceph-ec": kinds["ceph-ec"]}, Order: []string{"ceph-ec"}, Runs: []run{{"rr4k-q1", "ceph-ec", 0, values{"iops": 1}}}}
	if err := other.save(b); err != nil {
		t.Fatal(err)
	}
	got, err := loadResults([]string{a, b})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Runs, append(d.Runs, other.Runs...)) {
		t.Errorf("runs changed: %v", got.Runs)
	}
	if got.servers()[2] != "ceph-ec" || got.kind("ceph-ec") != kinds["ceph-ec"] {
		t.Error("the second file's server is lost")
	}
	if _, err := loadResults(nil); err == nil {
		t.Error("no file is no error")
	}
}

func TestPlotIsXML(t *testing.T) {
	dec := xml.NewDecoder(strings.NewReader(sample().plot()))
	bars := 0
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "line" {
			bars++
		}
	}
	if bars != 2 {
		t.Errorf("%d bars, want 2", bars)
	}
}
