package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const fioOutput = `fio: a warning
{"fio version": "fio-3.33", "jobs": [
 {"error": 0, "job_runtime": 2000, "usr_cpu": 10, "sys_cpu": 20,
  "read": {"total_ios": 1000, "io_bytes": 4096000, "iops": 500, "bw_bytes": 2048000,
   "clat_ns": {"max": 3000000, "percentile": {"50.000000": 60000, "99.000000": 200000, "99.900000": 900000}}},
  "write": {"total_ios": 10, "io_bytes": 40960, "iops": 5, "bw_bytes": 20480, "clat_ns": {"max": 7000000}},
  "sync": {"total_ios": 3, "lat_ns": {"percentile": {"50.000000": 100000, "99.000000": 300000}}}},
 {"error": 0, "job_runtime": 2000, "usr_cpu": 10, "sys_cpu": 20,
  "read": {"total_ios": 2020, "io_bytes": 8273920, "iops": 1010, "bw_bytes": 4136960,
   "clat_ns": {"max": 1000000, "percentile": {"50.000000": 80000, "99.000000": 400000, "99.900000": 500000}}},
  "write": {"total_ios": 0}, "sync": {"total_ios": 0}}]}`

func TestParseFio(t *testing.T) {
	o, err := parseFio([]byte(fioOutput))
	if err != nil {
		t.Fatal(err)
	}
	if o.ios != 3030 || o.bytes != 4096000+40960+8273920 || o.wrote != 40960 || o.runtime() != 2 {
		t.Errorf("totals: %+v, runtime %v", o, o.runtime())
	}
	for name, want := range map[string]float64{"iops": 1515, "MBps": 6.20544, "p50_us": 70, "p99_us": 300, "p999_us": 700,
		"max_ms": 7, "flush_p50_us": 100, "flush_p99_us": 300, "fairness": 0.5, "client_cpu_us": 1.2e6 / 3030} {
		if got := o.values[name]; got < want*0.9999 || got > want*1.0001 {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestParseFioRefuses(t *testing.T) {
	for name, out := range map[string]string{
		"nothing": "", "no JSON": "fio: bad option", "cut": fioOutput[:300], "no job": `{"jobs": []}`,
		"an error": `{"jobs": [{"error": 5, "read": {"total_ios": 1}}]}`, "no request": `{"jobs": [{"error": 0}]}`,
	} {
		if o, err := parseFio([]byte(out)); err == nil {
			t.Errorf("%s: %+v, want an error", name, o)
		}
	}
}

func FuzzParseFio(f *testing.F) {
	f.Add([]byte(fioOutput))
	f.Add([]byte(`{"jobs": [{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := parseFio(b); err == nil && o.ios == 0 {
			t.Error("a run without requests is a result")
		}
	})
}

func TestArguments(t *testing.T) {
	flush, err := rowByName("rw4k-q16-f32")
	if err != nil {
		t.Fatal(err)
	}
	a := load{row: flush, uris: []string{"nbd://a/", "nbd://b/"}, size: 1 << 30, secs: 7}.args()
	for _, want := range []string{"--rw=randwrite", "--bs=4k", "--iodepth=16", "--fsync=32", "--refill_buffers", "--runtime=7", "--uri=nbd://a/", "--uri=nbd://b/", "--size=1073741824"} {
		if !slices.Contains(a, want) {
			t.Errorf("no %s in %v", want, a)
		}
	}
	whole, err := rowByName("sw1m-q4-end")
	if err != nil {
		t.Fatal(err)
	}
	a = load{row: whole, uris: []string{"nbd://a/"}, size: 1}.args()
	if !slices.Contains(a, "--end_fsync=1") || slices.Contains(a, "--time_based") {
		t.Errorf("a row that runs once: %v", a)
	}
}

func TestChosenRows(t *testing.T) {
	got, err := chosenRows("sr1m-q4, rr4k-q1")
	if err != nil || len(got) != 2 || got[0].name != "sr1m-q4" || !got[0].reads() || got[0].writes() {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := chosenRows("rr4k-q1,nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("an unknown row: %v", err)
	}
	if all, err := chosenRows(""); err != nil || len(all) != len(rows) {
		t.Errorf("%d rows, %v", len(all), err)
	}
}

func TestRates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("1000, 10, 1, 0, 0\n2001, 20, 1, 0, 0\n5002, 30, 1, 0, 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readRates(path)
	if err != nil || !slices.Equal(got, []float64{10, 20, 0, 0, 30}) {
		t.Errorf("%v, %v: seconds without a line are stalls", got, err)
	}
	for _, bad := range []string{"x, 1, 1\n", "1\n", "1, x, 1\n", "-5, 1, 1\n"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readRates(path); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

func TestSteadiness(t *testing.T) {
	var rates []float64
	for range 60 { // the first minute does not count
		rates = append(rates, 1)
	}
	for range 30 {
		rates = append(rates, 100)
	}
	for range 10 {
		rates = append(rates, 80)
	}
	for range 140 {
		rates = append(rates, 100)
	}
	rates[150] = 5
	v := values{}
	steadiness(rates, v)
	if v["steady_iops"] != 100 || v["worst_second_iops"] != 5 || v["rate_deviation"] != 0.2 {
		t.Errorf("%v", v)
	}
	short := values{}
	if steadiness(rates[:20], short); len(short) != 2 {
		t.Errorf("a short run has a deviation: %v", short)
	}
	steadiness(nil, v) // a run that broke off has no rates
}

func TestRotate(t *testing.T) {
	if got := rotate([]int{1, 2, 3}, 4); !slices.Equal(got, []int{2, 3, 1}) {
		t.Errorf("%v", got)
	}
	if got := rotate([]int(nil), 4); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
