package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"
)

// runRestart measures the time from the start of the process to the first answer, after a
// clean stop and after kill -9 in the middle of writes.
func (s *session) runRestart(ctx context.Context, o *options) error {
	s.env.size, s.compressible = o.restartSize, o.restartCompress != ""
	for _, name := range o.restartSystems {
		if err := s.restarts(ctx, name, o.restartCompress); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) restarts(ctx context.Context, name, compress string) (err error) {
	sys, err := s.system(ctx, name, name == "scoria-remote")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.stop()) }()
	if compress == "" {
		err = sys.create(ctx, "bench", s.env.size)
	} else if err = sys.run(ctx, "preset", "create", "packed", "--policy", "4,2,5,6", "--compression", compress); err == nil {
		err = sys.run(ctx, "volume", "create", "bench", "--size", strconv.FormatInt(s.env.size, 10), "--preset", "packed")
	}
	if err != nil {
		return err
	}
	t := sys.target("bench", false)
	t.name = name
	s.note(t)
	if err := s.prefill(ctx, t); err != nil {
		return err
	}
	for round := range s.rounds {
		if err := sys.stopGateway(); err != nil {
			return err
		}
		if err := s.restarted(ctx, sys, t, "restart-clean", round, 0); err != nil {
			return err
		}
		dirty, err := s.killUnderLoad(ctx, sys)
		if err != nil {
			return err
		}
		if err := s.restarted(ctx, sys, t, "restart-killed", round, dirty); err != nil {
			return err
		}
		if err := sys.run(ctx, "volume", "drain", "bench", "--wait"); err != nil {
			return err
		}
	}
	return nil
}

// killUnderLoad kills the gateway while a client writes, and returns how many bytes it had
// acknowledged that were not on the disk servers. Disk servers of their own stand still
// meanwhile (SIGSTOP), so that the write buffer gets full; those in the process go on.
func (s *session) killUnderLoad(ctx context.Context, sys *scoria) (dirty float64, err error) {
	r, err := rowByName("rw4k-q32")
	if err != nil {
		return 0, err
	}
	if err := sys.signalOSDs(syscall.SIGSTOP); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, sys.signalOSDs(syscall.SIGCONT)) }()
	loadCtx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// It fails by design: its server is killed.
		_, _ = load{row: r, uris: []string{sys.uri("bench", false)}, size: s.env.size, secs: 120}.run(loadCtx)
	}()
	defer func() { cancel(); <-ended }()
	dirty, err = s.fullest(ctx, sys)
	sys.gateway.kill()
	sys.gateway = nil
	return dirty, err
}

// fullest waits until the write buffer does not get fuller, or for a minute.
func (s *session) fullest(ctx context.Context, sys *scoria) (float64, error) {
	most, grown := 0.0, time.Now()
	for begin := time.Now(); time.Since(begin) < time.Minute && time.Since(grown) < 5*time.Second; {
		now, err := sys.counters(ctx)
		if err != nil {
			return most, err
		}
		dirty := now["scoria_write_buffer_dirty_bytes"]
		if dirty > most {
			most, grown = dirty, time.Now()
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return dirty, err
		}
	}
	now, err := sys.counters(ctx)
	return now["scoria_write_buffer_dirty_bytes"], err
}

func (s *scoria) signalOSDs(sig syscall.Signal) error {
	for _, c := range s.osds {
		if err := c.cmd.Process.Signal(sig); err != nil {
			return fmt.Errorf("signal %v to a disk server: %w", sig, err)
		}
	}
	return nil
}

// restarted starts the gateway and reads one block. The reading program's own start, some
// tens of milliseconds, is in the time.
func (s *session) restarted(ctx context.Context, sys *scoria, t *target, row string, round int, dirty float64) error {
	begin := time.Now()
	if err := sys.start(ctx); err != nil {
		return err
	}
	ready := time.Since(begin)
	if err := command(ctx, "qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", sys.uri("bench", false)); err != nil {
		return err
	}
	s.keep(t, row, round, values{"ready_s": ready.Seconds(), "first_io_s": time.Since(begin).Seconds(), "dirty_MiB": dirty / (1 << 20)})
	return nil
}
