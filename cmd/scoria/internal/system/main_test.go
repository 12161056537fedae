package system

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// dirEnv tells the test binary to be a server, over the rig in that directory, until its
// standard input ends. It is killed by tests.
const (
	dirEnv   = "SCORIA_TEST_SERVE"
	delayEnv = "SCORIA_TEST_DRAIN_DELAY"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(dirEnv); dir != "" {
		if err := serveRig(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serveRig(dir string) error {
	delay, err := time.ParseDuration(os.Getenv(delayEnv))
	if err != nil {
		return err
	}
	s, err := Start(context.Background(), Config{
		Data: filepath.Join(dir, "data"), NBD: []string{"unix:" + filepath.Join(dir, "nbd")}, Admin: "127.0.0.1:0",
		WriteBuffer: 64 << 20, MapCache: 8 << 20, DrainDelay: delay,
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
	return s.Close(context.Background())
}

// spawn runs a server in a process of its own, over the rig, and returns how to kill it.
// It drains soon; spawnIdle's only when it must.
func (r *rig) spawn() (kill func())     { r.t.Helper(); return r.spawnDraining(50 * time.Millisecond) }
func (r *rig) spawnIdle() (kill func()) { r.t.Helper(); return r.spawnDraining(-1) }

func (r *rig) spawnDraining(delay time.Duration) (kill func()) {
	r.t.Helper()
	exe, err := os.Executable()
	must(r.t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), dirEnv+"="+r.dir, delayEnv+"="+delay.String())
	var errs strings.Builder
	cmd.Stderr = &errs
	in, err := cmd.StdinPipe()
	must(r.t, err)
	out, err := cmd.StdoutPipe()
	must(r.t, err)
	must(r.t, cmd.Start())
	killed := false
	kill = func() {
		if killed {
			return
		}
		killed = true
		if err := cmd.Process.Kill(); err != nil {
			r.t.Error(err)
		}
		_ = cmd.Wait() // says that it was killed
		_ = in.Close()
	}
	r.t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		kill()
		r.t.Fatalf("server says %q (%v): %s", line, err, &errs)
	}
	return kill
}
