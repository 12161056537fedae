package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"time"
)

// load is one run of fio.
type load struct {
	row  row
	uris []string // one connection each; the same URI may come more than once
	size int64    // bytes of each image that are used
	secs int      // ignored by a row that runs once
	log  string   // where fio logs requests per second; "": nowhere

	extra []string // more arguments for all connections
}

// side is what fio says of reads, writes or syncs.
type side struct {
	IOs     int64   `json:"total_ios"`
	Bytes   int64   `json:"io_bytes"`
	IOPS    float64 `json:"iops"`
	Rate    float64 `json:"bw_bytes"`
	Latency struct {
		Max         float64            `json:"max"` // ns
		Percentiles map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
	Sync struct { // the side "sync" has no completion latency of its own
		Percentiles map[string]float64 `json:"percentile"`
	} `json:"lat_ns"`
}

type fioJob struct {
	Error   int     `json:"error"`
	Runtime float64 `json:"job_runtime"` // ms
	User    float64 `json:"usr_cpu"`     // percent of the run time
	System  float64 `json:"sys_cpu"`
	Read    side    `json:"read"`
	Write   side    `json:"write"`
	Sync    side    `json:"sync"`
}

// outcome is what the client saw.
type outcome struct {
	jobs   []fioJob
	cpu    time.Duration // of the whole fio process
	ios    int64
	bytes  int64
	wrote  int64 // bytes
	values values
}

// args is the command line of fio. Data is fresh and incompressible in every request
// (refill_buffers), places are random without a map of those already used.
func (l load) args() []string {
	r := l.row
	a := []string{"--output-format=json", "--name=global", "--ioengine=nbd", "--thread", "--size=" + strconv.FormatInt(l.size, 10),
		"--rw=" + r.rw, "--iodepth=" + strconv.Itoa(r.depth), "--randrepeat=0", "--norandommap", "--refill_buffers"}
	if r.block == "4k-1m" {
		a = append(a, "--bsrange=4k-1m", "--blockalign=4k")
	} else {
		a = append(a, "--bs="+r.block)
	}
	if r.once {
		a = append(a, "--end_fsync=1")
	} else {
		a = append(a, "--time_based", "--runtime="+strconv.Itoa(l.secs))
	}
	if r.fsync > 0 {
		a = append(a, "--fsync="+strconv.Itoa(r.fsync))
	}
	if r.mixRead > 0 {
		a = append(a, "--rwmixread="+strconv.Itoa(r.mixRead))
	}
	a = append(a, l.extra...)
	if l.log != "" {
		a = append(a, "--write_iops_log="+l.log, "--log_avg_msec=1000")
	}
	for i, u := range l.uris {
		a = append(a, fmt.Sprintf("--name=%s.%d", r.name, i), "--uri="+u)
	}
	return a
}

// run runs fio to its end. A server that does not answer is given up after a while.
func (l load) run(ctx context.Context) (*outcome, error) {
	limit := time.Duration(l.secs)*3*time.Second + 2*time.Minute
	if l.row.once {
		limit += time.Duration(l.size/(2<<20)) * time.Second // 2 MiB/s
	}
	interrupted := ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "fio", l.args()...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	o, perr := parseFio(stdout.Bytes())
	switch {
	case interrupted.Err() != nil:
		return nil, interrupted.Err()
	case ctx.Err() != nil:
		return nil, fmt.Errorf("fio %s: not finished within %v: %w", l.row.name, limit, ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("fio %s: %w: %s", l.row.name, err, tail(stderr.String()+stdout.String()))
	case perr != nil:
		return nil, fmt.Errorf("fio %s: %w: %s", l.row.name, perr, tail(stderr.String()))
	}
	o.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return o, nil
}

// parseFio reads fio's JSON, before which it may print warnings.
func parseFio(out []byte) (*outcome, error) {
	i := bytes.IndexByte(out, '{')
	if i < 0 {
		return nil, fmt.Errorf("fio printed no result")
	}
	var doc struct {
		Jobs []fioJob `json:"jobs"`
	}
	if err := json.Unmarshal(out[i:], &doc); err != nil {
		return nil, fmt.Errorf("fio's result: %w", err)
	}
	if len(doc.Jobs) == 0 {
		return nil, fmt.Errorf("fio ran no job")
	}
	o := &outcome{jobs: doc.Jobs}
	for _, j := range doc.Jobs {
		if j.Error != 0 {
			return nil, fmt.Errorf("fio met error %d", j.Error)
		}
		o.ios += j.Read.IOs + j.Write.IOs
		o.bytes += j.Read.Bytes + j.Write.Bytes
		o.wrote += j.Write.Bytes
	}
	if o.ios == 0 {
		return nil, fmt.Errorf("fio completed no request")
	}
	o.values = summarize(doc.Jobs)
	return o, nil
}

// summarize adds the jobs up. Of several connections the latencies are those of the
// median connection, the longest that of all; fairness is the slowest over the fastest.
func summarize(jobs []fioJob) values {
	v := values{}
	lat := map[string][]float64{}
	var each []float64
	ios := 0.0
	for _, j := range jobs {
		iops := j.Read.IOPS + j.Write.IOPS
		each = append(each, iops)
		v["iops"] += iops
		v["MBps"] += (j.Read.Rate + j.Write.Rate) / 1e6
		v["client_cpu_us"] += (j.User + j.System) / 100 * j.Runtime * 1e3
		ios += float64(j.Read.IOs + j.Write.IOs)
		main := j.Write
		if j.Read.IOs >= j.Write.IOs {
			main = j.Read
		}
		for name, key := range map[string]string{"p50_us": "50.000000", "p99_us": "99.000000", "p999_us": "99.900000"} {
			lat[name] = append(lat[name], main.Latency.Percentiles[key]/1e3)
		}
		v["max_ms"] = max(v["max_ms"], j.Read.Latency.Max/1e6, j.Write.Latency.Max/1e6)
		if j.Sync.IOs > 0 {
			lat["flush_p50_us"] = append(lat["flush_p50_us"], j.Sync.Sync.Percentiles["50.000000"]/1e3)
			lat["flush_p99_us"] = append(lat["flush_p99_us"], j.Sync.Sync.Percentiles["99.000000"]/1e3)
		}
	}
	for name, l := range lat {
		v[name] = median(l)
	}
	if ios > 0 {
		v["client_cpu_us"] /= ios
	}
	if len(each) > 1 && slices.Max(each) > 0 {
		v["worst_p99_us"] = slices.Max(lat["p99_us"])
		v["fairness"] = slices.Min(each) / slices.Max(each)
	}
	return v
}

func tail(s string) string {
	if len(s) > 500 {
		s = "..." + s[len(s)-500:]
	}
	return s
}
