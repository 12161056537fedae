package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// modes are the sessions besides the comparison. All of them measure Scoria; steady and
// sequential take any target, so that a peer can be put beside it.
var modes = map[string]func(*session, context.Context, *options) error{
	"compare":    (*session).runCompare,
	"steady":     (*session).runSteady,
	"sequential": (*session).runSequential,
	"cold":       (*session).runCold,
	"idle":       (*session).runIdle,
	"restart":    (*session).runRestart,
	"multi":      (*session).runMulti,
	"fair":       (*session).runFair,
	"boot":       (*session).runBoot,
	"database":   (*session).runDatabase,
}

// with starts a target with its image prefilled, calls f and stops it.
func (s *session) with(ctx context.Context, name string, size int64, prefill bool, f func(*target) error) (err error) {
	s.env.size = size
	t, err := s.env.start(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	s.note(t)
	if prefill {
		if err := s.prefill(ctx, t); err != nil {
			return err
		}
	}
	return f(t)
}

func (s *session) runCompare(ctx context.Context, o *options) error {
	chosen, err := chosenRows(o.rows)
	if err != nil {
		return err
	}
	s.env.size = o.size
	defer s.cache(o.size)()
	return s.compare(ctx, o.targets, chosen)
}

// cachedTimes is how many times the used images the write buffer is where reads are to be cached.
const cachedTimes = 4

// cache gives Scoria a write buffer that keeps so many bytes on its own disk, as they fit into the
// page cache or the memory of other servers; overwritten data takes room there until its
// segment goes. It returns what undoes it. Arguments of the user's come later and win.
func (s *session) cache(bytes int64) (restore func()) {
	before := s.env.scoriaArgs
	s.env.scoriaArgs = append([]string{"--write-buffer", strconv.FormatInt(max(1<<30, cachedTimes*bytes), 10)}, before...)
	return func() { s.env.scoriaArgs = before }
}

// runSteady writes at random for long over an image much larger than the write buffer: is
// the rate level, and how long does the slowest request wait?
func (s *session) runSteady(ctx context.Context, o *options) error {
	for _, name := range o.scorias() {
		err := s.with(ctx, name, o.steadySize, true, func(t *target) error {
			for _, base := range []string{"rw4k-q32", "rw4k-q1-f1"} {
				if err := s.steadyRow(ctx, t, base, o.steadySecs); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *session) steadyRow(ctx context.Context, t *target, base string, secs int) error {
	r, err := rowByName(base)
	if err != nil {
		return err
	}
	r.name = "steady-" + base
	l := load{row: r, uris: []string{t.uri}, size: s.env.size, secs: secs, log: s.sub(t.name + "-" + base)}
	v, err := s.measure(ctx, t, l)
	if err != nil {
		s.fail(t, r.name, 0, err)
		return ctx.Err()
	}
	rates, err := readRates(l.log + "_iops.1.log")
	if err != nil {
		return err
	}
	steadiness(rates, v)
	s.keep(t, r.name, 0, v)
	s.result.Series = append(s.result.Series, series{r.name, t.name, rates})
	return nil
}

// runSequential writes an image larger than the write buffer once, until all of it is on
// the disk servers: drained_MBps is the figure.
func (s *session) runSequential(ctx context.Context, o *options) error {
	r, err := rowByName("sw1m-q4-end")
	if err != nil {
		return err
	}
	for _, name := range o.scorias() {
		err := s.with(ctx, name, o.sequentialSize, false, func(t *target) error {
			for round := range s.rounds {
				if err := s.once(ctx, t, r.named("sustained-sw1m", r.depth), round); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// runCold reads what is in no cache: everything is drained, the gateway's folder (with the
// data that the write buffer still holds) is deleted, the block cache is small and the page
// cache is emptied before each run. Then the same with a disk server down.
func (s *session) runCold(ctx context.Context, o *options) error {
	for _, remote := range []bool{false, true} {
		if err := s.cold(ctx, o, remote); err != nil {
			return err
		}
	}
	return nil
}

// cold does the cold rows of a system whose disk servers are in the gateway's process, or
// processes of their own.
func (s *session) cold(ctx context.Context, o *options, remote bool) (err error) {
	s.env.size = o.coldSize
	name := "scoria"
	if remote {
		name = "scoria-remote"
	}
	sys, err := s.system(ctx, "cold-"+name, remote)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.stop()) }()
	if err = sys.create(ctx, "bench", s.env.size); err != nil {
		return err
	}
	if err = s.prefill(ctx, sys.target("bench", false)); err != nil {
		return err
	}
	if err = sys.stopGateway(); err != nil {
		return err
	}
	if err = os.RemoveAll(filepath.Join(sys.dir, "data", "gateway")); err != nil {
		return err
	}
	if err = sys.start(ctx, "--block-cache", "1MiB"); err != nil {
		return err
	}
	t := sys.target("bench", false)
	t.name = name
	s.note(t)
	if err = s.coldRows(ctx, t, "cold-"); err != nil {
		return err
	}
	if remote {
		err = sys.osds[0].stop()
		sys.osds = sys.osds[1:]
	} else {
		err = sys.breakDisk(ctx, "--block-cache", "1MiB")
	}
	if err != nil {
		return err
	}
	t = sys.target("bench", false)
	t.name = name
	return s.coldRows(ctx, t, "degraded-")
}

// coldRows runs the read rows. A second of reads goes before, unmeasured: map and manifests
// are read once, and are no matter of data caches.
func (s *session) coldRows(ctx context.Context, t *target, prefix string) error {
	first, err := rowByName("rr4k-q32")
	if err != nil {
		return err
	}
	if _, err := (load{row: first, uris: []string{t.uri}, size: s.env.size, secs: 1}).run(ctx); err != nil {
		return err
	}
	for round := range s.rounds {
		for _, name := range []string{"rr4k-q1", "rr4k-q32", "sr1m-q4"} {
			r, err := rowByName(name)
			if err != nil {
				return err
			}
			if err := dropCaches(); err != nil {
				s.tell("%v: cold reads may be warm", err)
			}
			v, err := s.measure(ctx, t, load{row: r, uris: []string{t.uri}, size: s.env.size, secs: s.secs})
			if err != nil {
				s.fail(t, prefix+name, round, err)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				continue
			}
			s.keep(t, prefix+name, round, v)
		}
	}
	return nil
}

// system starts a Scoria in a folder of its own.
func (s *session) system(ctx context.Context, name string, remote bool) (*scoria, error) {
	dir := s.sub(name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	sys, err := s.env.newScoria(ctx, dir, remote)
	if err != nil {
		return nil, err
	}
	if err := sys.start(ctx); err != nil {
		return nil, errors.Join(err, sys.stop())
	}
	return sys, nil
}

// runIdle measures a system that nobody uses.
func (s *session) runIdle(ctx context.Context, o *options) error {
	for _, n := range o.idleVolumes {
		if err := s.idle(ctx, n, o.idleSecs); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) idle(ctx context.Context, volumes, secs int) (err error) {
	sys, err := s.system(ctx, fmt.Sprintf("idle-%d", volumes), false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.stop()) }()
	for i := range volumes {
		if err := sys.create(ctx, fmt.Sprintf("v%d", i), 1<<30); err != nil {
			return err
		}
	}
	// One volume has been written to, as in real life; its late work is over when we look.
	t := sys.target("v0", false)
	r, err := rowByName("rw4k-q32")
	if err != nil {
		return err
	}
	if _, err := s.measure(ctx, t, load{row: r, uris: []string{t.uri}, size: 1 << 30, secs: 1}); err != nil {
		return err
	}
	s.note(t)
	before, err := take(t.pids, s.device)
	if err != nil {
		return err
	}
	if err := pause(ctx, time.Duration(secs)*time.Second); err != nil {
		return err
	}
	after, err := take(t.pids, s.device)
	if err != nil {
		return err
	}
	s.keep(t, fmt.Sprintf("idle-%d", volumes), 0, values{
		"idle_percent": (after.cpu - before.cpu) / after.at.Sub(before.at).Seconds() * 100,
		"idle_written": float64(after.written-before.written) / after.at.Sub(before.at).Seconds(),
		"rss_MiB":      float64(after.rss) / (1 << 20),
	})
	return nil
}

// pause is part of what is measured: time in which nothing happens.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
