package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Server is a server process under test.
type Server struct {
	Kind    string // "scoria", "nbdkit" (a file; loses nothing by kill -9) or "nbdkit-memory" (loses everything: the tests must notice)
	Binary  string // of scoria
	Dir     string // data and log
	Size    string // of the volume, as --size takes it
	Volume  string
	NBD     string // host:port, chosen by Start
	Admin   string // host:port, chosen by Start
	Extra   []string
	process *exec.Cmd
	ended   chan error
	log     *os.File
	created bool
}

// freePort returns a loopback address that nobody listens on.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// Start starts the server, waits until it is ready and makes the volume if it is new.
func (s *Server) Start(ctx context.Context) error {
	if s.NBD == "" {
		var err1, err2 error
		s.NBD, err1 = freePort()
		s.Admin, err2 = freePort()
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
	}
	if err := s.launch(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.wait(ctx); err != nil {
		return errors.Join(err, s.Kill())
	}
	if s.Kind != "scoria" || s.created {
		return nil
	}
	if err := s.Command("volume", "create", s.Volume, "--size", s.Size); err != nil {
		return errors.Join(err, s.Kill())
	}
	s.created = true
	return nil
}

// Command runs a command of the binary against this server, for at most two minutes.
func (s *Server) Command(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, s.Binary, append(args, "--admin", s.Admin)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func (s *Server) launch() (err error) {
	if s.log == nil {
		if s.log, err = os.Create(filepath.Join(s.Dir, "server.log")); err != nil {
			return err
		}
	}
	host, port, err := net.SplitHostPort(s.NBD)
	if err != nil {
		return err
	}
	switch s.Kind {
	case "scoria":
		args := []string{"serve", "--data", filepath.Join(s.Dir, "data"), "--nbd", s.NBD, "--admin", s.Admin}
		s.process = exec.Command(s.Binary, append(args, s.Extra...)...)
	case "nbdkit":
		f := filepath.Join(s.Dir, "disk.img")
		if _, err := os.Stat(f); err != nil {
			if out, err := exec.Command("truncate", "-s", strings.TrimSuffix(s.Size, "iB"), f).CombinedOutput(); err != nil {
				return fmt.Errorf("truncate: %w: %s", err, out)
			}
		}
		s.process = exec.Command("nbdkit", "-f", "-i", host, "-p", port, "file", f)
	case "nbdkit-memory":
		s.process = exec.Command("nbdkit", "-f", "-i", host, "-p", port, "memory", strings.TrimSuffix(s.Size, "iB"))
	default:
		return fmt.Errorf("unknown server %q (scoria, nbdkit or nbdkit-memory)", s.Kind)
	}
	s.process.Stdout, s.process.Stderr = s.log, s.log
	s.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.process.Start(); err != nil {
		return err
	}
	p := s.process
	s.ended = make(chan error, 1)
	go func(ended chan<- error) { ended <- p.Wait() }(s.ended) // Kill and Stop receive
	return nil
}

func (s *Server) wait(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("not tried")
	for {
		select {
		case err := <-s.ended:
			s.ended <- err // for Kill
			return fmt.Errorf("the server ended before it was ready: %v; see %s", err, s.log.Name())
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready: %w; see %s", last, s.log.Name())
		case <-tick.C:
		}
		if last = s.ready(ctx); last == nil {
			return nil
		}
	}
}

func (s *Server) ready(ctx context.Context) error {
	if s.Kind != "scoria" {
		c, err := net.DialTimeout("tcp", s.NBD, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Admin+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz says %s", resp.Status)
	}
	return nil
}

// Kill ends the server with SIGKILL and waits for its end.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL, 10*time.Second) }

// Stop ends the server with SIGTERM and waits for its end; a server that stays is an error.
func (s *Server) Stop() error { return s.end(syscall.SIGTERM, 30*time.Second) }

func (s *Server) end(sig syscall.Signal, patience time.Duration) error {
	if s.process == nil {
		return nil
	}
	if err := s.process.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	defer func() { s.process = nil }()
	select {
	case <-s.ended:
		return nil
	case <-time.After(patience):
	}
	err := errors.Join(fmt.Errorf("the server (pid %d) was still there %v after signal %v", s.process.Process.Pid, patience, sig), s.process.Process.Kill())
	select {
	case <-s.ended:
	case <-time.After(30 * time.Second): // stuck in the kernel: say so instead of hanging too
		err = errors.Join(err, errors.New("SIGKILL did not end it either (state D?)"))
	}
	return err
}

// Alive tells whether the process runs.
func (s *Server) Alive() bool {
	return s.process != nil && s.process.Process.Signal(syscall.Signal(0)) == nil && len(s.ended) == 0
}

// Memory returns the resident set now and its highest value, in bytes.
func (s *Server) Memory() (rss, peak uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.process.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) != 3 || f[0] != "VmRSS:" && f[0] != "VmHWM:" {
			continue
		}
		kib, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return 0, 0, err
		}
		if f[0] == "VmRSS:" {
			rss = kib << 10
		} else {
			peak = kib << 10
		}
	}
	return rss, peak, nil
}
