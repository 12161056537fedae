package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestSnapshotOfOurselves(t *testing.T) {
	device, err := deviceOf(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cat") // a child, which must count
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	tree, err := withChildren([]int{os.Getpid()})
	if err != nil || len(tree) < 2 {
		t.Errorf("%v, %v: the child is missing", tree, err)
	}
	s, err := take([]int{os.Getpid()}, device)
	if err != nil {
		t.Fatal(err)
	}
	if s.rss < 1<<20 || s.busy <= 0 || s.cpu < 0 {
		t.Errorf("%+v", s)
	}
	if _, err := take([]int{1 << 30}, device); err == nil {
		t.Error("a process that does not exist is no error: a crash would go unnoticed")
	}
}

func TestExternalTarget(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	if err := os.WriteFile(pids, []byte("12\n34\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	x, err := external("ceph-ec=nbd+unix:///?socket=/x@" + pids)
	if err != nil || x.name != "ceph-ec" || x.uri != "nbd+unix:///?socket=/x" || len(x.pids) != 2 || x.kind != kinds["ceph-ec"] {
		t.Errorf("%+v, %v", x, err)
	}
	if x, err := external("a=nbd://h/"); err != nil || x.uri != "nbd://h/" {
		t.Errorf("%+v, %v", x, err)
	}
	if _, err := external("a=nbd://h/@/nonexistent"); err == nil {
		t.Error("a missing pid file is no error")
	}
}

func TestOptions(t *testing.T) {
	o, err := parse([]string{"-targets", "scoria,nbdkit-mem ceph-ec=nbd://h/", "-multi-volumes", "1,3", "-size", "64MiB"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.size != 64<<20 || len(o.multiVolumes) != 2 || strings.Join(o.scorias(), " ") != "scoria ceph-ec=nbd://h/" {
		t.Errorf("%+v", o)
	}
	for _, bad := range []string{"-modes=nonsense", "-size=1", "-size=x", "-rounds=0", "-idle-volumes=0", "-rows=nonsense", "-targets=", "-multi-volumes="} {
		if _, err := parse([]string{bad}, io.Discard); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

// TestInterruptedRunIsNoFailure: what was measured stays, what was broken off is no result.
func TestInterruptedRunIsNoFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &session{out: io.Discard, result: &result{}}
	_, err := load{row: rows[0], uris: []string{"nbd://127.0.0.1:1/"}, size: 1 << 20, secs: 1}.run(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the interruption", err)
	}
	s.fail(&target{}, "rr4k-q1", 0, err)
	s.fail(&target{}, "rr4k-q32", 0, io.ErrUnexpectedEOF)
	if f := s.result.Failures; len(f) != 1 || f[0].Row != "rr4k-q32" {
		t.Errorf("failures: %v", f)
	}
}

// TestChildThatEndsIsAnError: a server that dies early says why, and one that is asked to end ends.
func TestChildThatEndsIsAnError(t *testing.T) {
	dead, err := spawn(t.TempDir(), "sh", "-c", "echo reason >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.waitReady(t.Context()); err == nil || !strings.Contains(err.Error(), "reason") {
		t.Errorf("%v: the reason is missing", err)
	}
	if err := dead.stop(); err == nil {
		t.Error("a server that had ended by itself stopped well")
	}
	live, err := spawn(t.TempDir(), "sh", "-c", "echo starting; echo ready; exec cat /dev/zero >/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if err := live.waitReady(t.Context()); err != nil {
		t.Error(err)
	}
	if err := live.stop(); err != nil {
		t.Error(err)
	}
}

// TestCompareForReal runs two of Debian's servers for a second each.
func TestCompareForReal(t *testing.T) {
	if testing.Short() {
		t.Skip("drives real servers for seconds")
	}
	for _, tool := range []string{"fio", "nbdkit", "qemu-nbd", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool)
		}
	}
	dir := t.TempDir()
	var out, progress bytes.Buffer
	err := bench(t.Context(), []string{"-targets", "nbdkit-mem-tcp,nbdkit-file", "-rows", "rw4k-q32", "-rounds", "1", "-secs", "1",
		"-size", "8MiB", "-dir", filepath.Join(dir, "data"), "-out", filepath.Join(dir, "r")}, &out, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	d, err := loadResults([]string{filepath.Join(dir, "r.json")})
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Runs) != 2 || len(d.Failures) != 0 {
		t.Fatalf("%d runs, failures %v", len(d.Runs), d.Failures)
	}
	for _, r := range d.Runs {
		for _, f := range []string{"iops", "MBps", "p50_us", "rss_MiB", "cpu_us", "client_cpu_us"} {
			if r.Values[f] <= 0 {
				t.Errorf("%s of %s is %v", f, r.Target, r.Values[f])
			}
		}
	}
	if w := d.of("rw4k-q32", "nbdkit-file", "drained_written"); len(w) != 1 || w[0] <= 0 {
		t.Errorf("a server with a file wrote %v bytes per byte", w)
	}
	left, err := os.ReadDir(filepath.Join(dir, "data"))
	if err != nil || len(left) != 0 {
		t.Errorf("data is left: %v, %v", left, err)
	}
}
