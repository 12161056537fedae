package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
)

// session measures and collects.
type session struct {
	env    *environment
	device string // that holds the data
	secs   int
	rounds int
	out    io.Writer
	result *result
	path   string // of the result file

	compressible bool // prefilled data
}

// compare runs the rows on all targets. Each round runs each row on every target, the order
// of the targets rotating, so that drift of the machine falls on all alike.
func (s *session) compare(ctx context.Context, names []string, chosen []row) (err error) {
	var targets []*target
	defer func() {
		for _, t := range targets {
			err = errors.Join(err, t.stop())
		}
	}()
	for _, name := range names {
		t, err := s.env.start(ctx, name)
		if err != nil {
			return err
		}
		targets = append(targets, t)
		s.note(t)
		if err := s.prefill(ctx, t); err != nil {
			return err
		}
	}
	for round := range s.rounds {
		for _, r := range chosen {
			for _, t := range rotate(targets, round) {
				if err := s.once(ctx, t, r, round); err != nil {
					return err
				}
			}
		}
		if err := s.result.save(s.path); err != nil {
			return err
		}
		s.tell("round %d of %d done, load %.1f", round+1, s.rounds, loadAverage())
	}
	return nil
}

func rotate[T any](list []T, by int) []T {
	if len(list) == 0 {
		return nil
	}
	by %= len(list)
	return append(append([]T(nil), list[by:]...), list[:by]...)
}

// prefill writes the whole image, so that reads meet data.
func (s *session) prefill(ctx context.Context, t *target) error {
	r, err := rowByName("sw1m-q4-end")
	if err != nil {
		return err
	}
	l := load{row: r, uris: []string{t.uri}, size: s.env.size}
	if s.compressible {
		l.extra = []string{"--buffer_compress_percentage=95"}
	}
	v, err := s.measure(ctx, t, l)
	if err != nil {
		return fmt.Errorf("prefill %s: %w", t.name, err)
	}
	s.tell("prefilled %s: %.0f MB/s, %.0f MB/s until all was in its place", t.name, v["MBps"], v["drained_MBps"])
	return nil
}

// once runs a row once on the target's image and keeps the figures.
func (s *session) once(ctx context.Context, t *target, r row, round int) error {
	uris := []string{t.uri}
	return s.onceOn(ctx, t, r, round, load{uris: uris, size: s.env.size}, uris)
}

// onceOn runs a row once where l says; reads find the images in toWarm read. A failure is
// kept and told, and is an error only when the session was interrupted.
func (s *session) onceOn(ctx context.Context, t *target, r row, round int, l load, toWarm []string) error {
	if r.reads() && !r.writes() {
		if err := warm(ctx, toWarm, l.size); err != nil {
			s.fail(t, r.name, round, err)
			return ctx.Err()
		}
	}
	l.row, l.secs = r, s.secs
	v, err := s.measure(ctx, t, l)
	if err != nil {
		s.fail(t, r.name, round, err)
		return ctx.Err()
	}
	s.keep(t, r.name, round, v)
	return nil
}

// warm reads images once: a "cached" read must find the caches as full as they get. What was
// written past the page cache (O_DIRECT) is in none until it is read.
func warm(ctx context.Context, uris []string, size int64) error {
	l := load{row: row{name: "warm", rw: "read", block: "1m", depth: 1, once: true}, uris: uris, size: size}
	_, err := l.run(ctx)
	return err
}

// measure runs a load between two snapshots of the server. After writes it waits until all
// of it is in its place, so that late work is charged to whom it belongs and to nobody else.
func (s *session) measure(ctx context.Context, t *target, l load) (values, error) {
	counts, err := t.readCounters(ctx)
	if err != nil {
		return nil, err
	}
	before, err := take(t.pids, s.device)
	if err != nil {
		return nil, err
	}
	o, err := l.run(ctx)
	if err != nil {
		return nil, err
	}
	after, err := take(t.pids, s.device)
	if err != nil {
		return nil, fmt.Errorf("the server has gone: %w", err)
	}
	v := o.values
	wall := after.at.Sub(before.at).Seconds()
	v["other_cores"] = (after.busy - before.busy - (after.cpu - before.cpu) - o.cpu.Seconds()) / wall
	if len(t.pids) > 0 {
		v["cpu_us"] = (after.cpu - before.cpu) / float64(o.ios) * 1e6
		v["rss_MiB"], v["peak_rss_MiB"] = float64(after.rss)/(1<<20), float64(after.peak)/(1<<20)
	}
	if t.counts != nil {
		now, err := t.readCounters(ctx)
		if err != nil {
			return nil, err
		}
		const read = "scoria_alba_read_bytes_total"
		if o.bytes > o.wrote {
			v["backend_read"] = (now[read] - counts[read]) / float64(o.bytes-o.wrote)
		}
	}
	if o.wrote == 0 {
		return v, nil
	}
	return v, s.settle(ctx, t, o, before, after, v)
}

// settle waits for the late work of writes and adds what it cost.
func (s *session) settle(ctx context.Context, t *target, o *outcome, before, after snapshot, v values) error {
	if t.drain != nil {
		if err := t.drain(ctx); err != nil {
			return err
		}
	}
	if err := syncFS(s.env.dir); err != nil {
		return err
	}
	end, err := take(t.pids, s.device)
	if err != nil {
		return fmt.Errorf("the server has gone: %w", err)
	}
	wrote := float64(o.wrote)
	late := end.at.Sub(after.at).Seconds()
	v["drain_s"] = late
	v["drained_MBps"] = wrote / 1e6 / (o.runtime() + late)
	v["device_written"] = float64(after.disk-before.disk) / wrote
	v["drained_device_written"] = float64(end.disk-before.disk) / wrote
	if len(t.pids) > 0 {
		v["written"] = float64(after.written-before.written) / wrote
		v["drained_written"] = float64(end.written-before.written) / wrote
		v["drained_cpu_us"] = (end.cpu - before.cpu) / float64(o.ios) * 1e6
	}
	return nil
}

// runtime is how long the longest job took, in seconds.
func (o *outcome) runtime() float64 {
	longest := 0.0
	for _, j := range o.jobs {
		longest = max(longest, j.Runtime/1e3)
	}
	return longest
}

func (t *target) readCounters(ctx context.Context) (map[string]float64, error) {
	if t.counts == nil {
		return nil, nil
	}
	return t.counts(ctx)
}

func (s *session) note(t *target) {
	s.result.Kinds[t.name] = t.kind
	s.result.Order = append(s.result.Order, t.name)
}

func (s *session) keep(t *target, row string, round int, v values) {
	s.result.Runs = append(s.result.Runs, run{row, t.name, round, v})
	if _, ok := v["iops"]; !ok {
		s.tell("%-16s %-14s %v", row, t.name, v)
		return
	}
	s.tell("%-16s %-14s %9.0f /s %8.1f MB/s  p50 %7.0f p99 %8.0f us  other %.2f cores",
		row, t.name, v["iops"], v["MBps"], v["p50_us"], v["p99_us"], v["other_cores"])
}

// fail keeps and tells a failure; an interrupted run is none.
func (s *session) fail(t *target, row string, round int, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	s.result.Failures = append(s.result.Failures, failure{row, t.name, round, err.Error()})
	s.tell("%-16s %-14s FAILED: %v", row, t.name, err)
}

func (s *session) tell(format string, a ...any) {
	// Progress is for people who watch; a closed terminal does not end a measurement.
	_, _ = fmt.Fprintf(s.out, time.Now().Format("15:04:05 ")+strings.TrimSpace(format)+"\n", a...)
}

func (s *session) sub(name string) string { return filepath.Join(s.env.dir, name) }
