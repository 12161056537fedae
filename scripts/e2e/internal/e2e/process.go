package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Process is a program under test that may be ended and started again.
type Process struct {
	Args  []string // program and arguments
	Log   string   // file to which it says what it has to say, of all its lives
	cmd   *exec.Cmd
	ended chan error
}

// Start starts it. It dies with this program.
func (p *Process) Start() error {
	if p.cmd != nil {
		return fmt.Errorf("%s runs already", p.Args[0])
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // End receives
	p.cmd, p.ended = cmd, ended
	return nil
}

// Until polls until ready returns nil, for as long as ctx and the process live.
func (p *Process) Until(ctx context.Context, ready func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("not tried")
	for {
		select {
		case err := <-p.ended:
			p.ended <- err // for End
			return fmt.Errorf("%s ended before it was ready: %v; see %s", p.Args[0], err, p.Log)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; see %s", p.Args[0], last, p.Log)
		case <-tick.C:
		}
		if last = ready(ctx); last == nil {
			return nil
		}
	}
}

// Signal sends a signal.
func (p *Process) Signal(sig syscall.Signal) error {
	if p.cmd == nil {
		return os.ErrProcessDone
	}
	return p.cmd.Process.Signal(sig)
}

// End sends a signal and waits for the end; a process that stays is killed, and an error.
func (p *Process) End(sig syscall.Signal, patience time.Duration) error {
	if p.cmd == nil {
		return nil
	}
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	pid := p.cmd.Process.Pid
	defer func() { p.cmd = nil }()
	select {
	case <-p.ended:
		return nil
	case <-time.After(patience):
	}
	err := errors.Join(fmt.Errorf("%s (pid %d) was still there %v after signal %v", p.Args[0], pid, patience, sig), p.cmd.Process.Kill())
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second): // stuck in the kernel: say so instead of hanging too
		err = errors.Join(err, errors.New("SIGKILL did not end it either (state D?)"))
	}
	return err
}

// Alive tells whether it runs.
func (p *Process) Alive() bool { return p.cmd != nil && len(p.ended) == 0 }

// Pid returns the process id, 0 if it does not run.
func (p *Process) Pid() int {
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}
