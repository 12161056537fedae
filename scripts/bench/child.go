package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 60 * time.Second
)

// child is a server process of ours. Its output goes to a log file.
type child struct {
	name  string
	log   string
	cmd   *exec.Cmd
	ready chan struct{} // closed when it has printed the line "ready"
	done  chan struct{} // closed when it has ended
	err   error         // how it ended, valid after done
}

// spawn starts a server; it gets signals from us only, not from the terminal.
func spawn(dir, program string, args ...string) (*child, error) {
	c := &child{name: filepath.Base(program), ready: make(chan struct{}), done: make(chan struct{})}
	c.log = filepath.Join(dir, c.name+".log")
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	c.cmd = exec.Command(program, args...)
	c.cmd.Stderr = log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := c.cmd.StdoutPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", program, err), log.Close())
	}
	go func() {
		defer close(c.done)
		copied := c.watch(out, log)
		c.err = errors.Join(c.cmd.Wait(), copied, log.Close())
	}()
	return c, nil
}

// watch copies the output and notices the line that says that the server serves.
func (c *child) watch(out io.Reader, log io.Writer) error {
	sc := bufio.NewScanner(out)
	seen := false
	for sc.Scan() {
		if _, err := fmt.Fprintln(log, sc.Text()); err != nil {
			return err
		}
		if sc.Text() == "ready" && !seen {
			seen = true
			close(c.ready)
		}
	}
	return sc.Err()
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// waitReady waits for the line "ready".
func (c *child) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-c.ready:
		return nil
	case <-c.done:
		return c.gone()
	case <-ctx.Done():
		return fmt.Errorf("%s was not ready within %v; its log is %s: %w", c.name, startTimeout, c.log, ctx.Err())
	}
}

// waitListening waits until something accepts at an address.
func (c *child) waitListening(ctx context.Context, network, address string) error {
	deadline := time.Now().Add(startTimeout)
	for {
		conn, err := net.DialTimeout(network, address, time.Second)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-c.done:
			return c.gone()
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond): // an external process cannot signal us
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not listen on %s: %w", c.name, address, err)
		}
	}
}

func (c *child) gone() error {
	b, err := os.ReadFile(c.log)
	if err != nil {
		b = []byte(err.Error())
	}
	return fmt.Errorf("%s ended (%v): %s", c.name, c.err, tail(string(b)))
}

// stop ends the process by SIGTERM, after a while by SIGKILL, and waits.
func (c *child) stop() error {
	select {
	case <-c.done:
		return c.gone()
	default:
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", c.name, err)
	}
	select {
	case <-c.done:
		return nil // qemu-nbd and nbdkit report the signal as their exit; what matters is that they are gone
	case <-time.After(stopTimeout):
		c.kill()
		return fmt.Errorf("%s did not stop within %v and was killed; its log is %s", c.name, stopTimeout, c.log)
	}
}

// kill ends the process as a crash does, and waits.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it fails only when the process has ended already
	<-c.done
}

// freePort asks the kernel for a port of loopback that nobody uses.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
