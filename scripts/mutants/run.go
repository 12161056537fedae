package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Result is what became of a mutant.
type Result struct {
	Mutant
	Killed  bool
	By      string  // the first test that failed
	Problem string  // why it was not killed: it survived, or the check itself went wrong
	Seconds float64 // building and running, without the run that shows that the tests pass
}

// runner holds what a check of mutants needs.
type runner struct {
	root    string        // top of the module
	tmp     string        // for binaries and overlays
	timeout time.Duration // of one run of tests
	passes  map[string]error
}

// check shows that the tests pass without the mutant and that one of them fails with it.
func (r *runner) check(ctx context.Context, m *Mutant) Result {
	res := Result{Mutant: *m}
	changed, err := m.apply(r.root)
	if err == nil {
		err = r.baseline(ctx, m)
	}
	if err != nil {
		res.Problem = err.Error()
		return res
	}
	began := time.Now()
	res.By, err = r.mutate(ctx, m, changed)
	res.Seconds = time.Since(began).Seconds()
	if res.Killed = err == nil; err != nil {
		res.Problem = err.Error()
	}
	return res
}

// baseline shows once for each set of tests that they pass on the sources as they are.
func (r *runner) baseline(ctx context.Context, m *Mutant) error {
	key := m.Package + " " + m.Tests
	if err, known := r.passes[key]; known {
		return err
	}
	err := func() error {
		binary := filepath.Join(r.tmp, strings.ReplaceAll(m.Package, "/", "_")+".test")
		if _, err := os.Stat(binary); err != nil {
			if err := r.build(ctx, m.Package, binary, ""); err != nil {
				return err
			}
		}
		out, err := r.test(ctx, m, binary)
		if err != nil {
			return fmt.Errorf("the tests fail without the mutant: %w\n%s", err, tail(out))
		}
		if !bytes.Contains(out, []byte("--- PASS: ")) {
			return fmt.Errorf("no test of %s that matches %s passes (are they skipped?)", m.Package, m.Tests)
		}
		return nil
	}()
	r.passes[key] = err
	return err
}

var errSurvived = errors.New("SURVIVED: the tests pass with it")

// mutate builds and runs the tests with the changed file, and returns the test that failed.
func (r *runner) mutate(ctx context.Context, m *Mutant, changed []byte) (by string, err error) {
	dir, err := os.MkdirTemp(r.tmp, m.Name)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // the whole of tmp is removed at the end
	source, overlay, binary := filepath.Join(dir, "source.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "mutant.test")
	spec, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(r.root, m.File): source}})
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.WriteFile(source, changed, 0o600), os.WriteFile(overlay, spec, 0o600)); err != nil {
		return "", err
	}
	if err := r.build(ctx, m.Package, binary, overlay); err != nil {
		return "", err
	}
	out, err := r.test(ctx, m, binary)
	if err == nil {
		return "", errSurvived
	}
	return verdict(out, err)
}

// build makes the test binary of a package. A mutant that does not compile proves nothing.
func (r *runner) build(ctx context.Context, pkg, binary, overlay string) error {
	args := []string{"test", "-c", "-ldflags=-s -w", "-o", binary}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./"+pkg)...)
	cmd.Dir = r.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go test -c ./%s: %w\n%s", pkg, err, tail(out))
	}
	return nil
}

// test runs a test binary where `go test` would, in a process group of its own: tests start
// processes, and none may be left when the time is up.
func (r *runner) test(ctx context.Context, m *Mutant, binary string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout+10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.run="+m.Tests, "-test.v", "-test.failfast", "-test.timeout="+r.timeout.String())
	cmd.Dir = filepath.Join(r.root, m.Package)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd.CombinedOutput()
}

var (
	failed  = regexp.MustCompile(`(?m)^--- FAIL: (Test\S+)`)
	started = regexp.MustCompile(`(?m)^=== RUN +(Test[^/\s]+)`)
)

// verdict names the test that failed. A panic ends the binary without a word of the test
// that was running, so the last one that began it was. A time-out is no verdict: a test
// that hangs has not said what is wrong.
func verdict(out []byte, cause error) (string, error) {
	if bytes.Contains(out, []byte("panic: test timed out")) {
		return "", fmt.Errorf("no verdict, the tests ran out of time\n%s", tail(out))
	}
	if m := failed.FindSubmatch(out); m != nil {
		return string(m[1]), nil
	}
	if runs := started.FindAllSubmatch(out, -1); runs != nil && bytes.Contains(out, []byte("\npanic: ")) {
		return string(runs[len(runs)-1][1]) + " (panic)", nil
	}
	return "", fmt.Errorf("no verdict: %w\n%s", cause, tail(out))
}

// tail is the end of an output, for messages.
func tail(out []byte) string {
	const limit = 2000
	if len(out) > limit {
		out = out[len(out)-limit:]
	}
	return string(out)
}
