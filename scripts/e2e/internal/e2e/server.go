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
	process Process
	created bool
}

// FreePort returns a loopback address that nobody listens on.
func FreePort() (string, error) {
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
		s.NBD, err1 = FreePort()
		s.Admin, err2 = FreePort()
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
	}
	if err := s.launch(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.process.Until(ctx, s.ready); err != nil {
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

func (s *Server) launch() error {
	host, port, err := net.SplitHostPort(s.NBD)
	if err != nil {
		return err
	}
	s.process.Log = filepath.Join(s.Dir, "server.log")
	switch s.Kind {
	case "scoria":
		args := []string{s.Binary, "serve", "--data", filepath.Join(s.Dir, "data"), "--nbd", s.NBD, "--admin", s.Admin}
		s.process.Args = append(args, s.Extra...)
	case "nbdkit":
		f := filepath.Join(s.Dir, "disk.img")
		if _, err := os.Stat(f); err != nil {
			if out, err := exec.Command("truncate", "-s", strings.TrimSuffix(s.Size, "iB"), f).CombinedOutput(); err != nil {
				return fmt.Errorf("truncate: %w: %s", err, out)
			}
		}
		s.process.Args = []string{"nbdkit", "-f", "-i", host, "-p", port, "file", f}
	case "nbdkit-memory":
		s.process.Args = []string{"nbdkit", "-f", "-i", host, "-p", port, "memory", strings.TrimSuffix(s.Size, "iB")}
	default:
		return fmt.Errorf("unknown server %q (scoria, nbdkit or nbdkit-memory)", s.Kind)
	}
	return s.process.Start()
}

func (s *Server) ready(ctx context.Context) error {
	if s.Kind != "scoria" {
		c, err := net.DialTimeout("tcp", s.NBD, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}
	return AskReady(ctx, s.Admin)
}

// AskReady asks the admin port of a Scoria server whether it is ready.
func AskReady(ctx context.Context, admin string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // there may be nobody behind the port
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/readyz", nil)
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
func (s *Server) Kill() error { return s.process.End(syscall.SIGKILL, 10*time.Second) }

// Stop ends the server with SIGTERM and waits for its end; a server that stays is an error.
func (s *Server) Stop() error { return s.process.End(syscall.SIGTERM, 30*time.Second) }

// Alive tells whether the process runs.
func (s *Server) Alive() bool { return s.process.Alive() }

// Memory returns the resident set now and its highest value, in bytes.
func (s *Server) Memory() (rss, peak uint64, err error) { return memory(s.process.Pid()) }

// Resident returns the resident set of a process, in bytes.
func Resident(pid int) (uint64, error) {
	rss, _, err := memory(pid)
	return rss, err
}

func memory(pid int) (rss, peak uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
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
