package vfs

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
)

func put(t *testing.T, f File, off int64, text string) {
	t.Helper()
	if _, err := f.WriteAt([]byte(text), off); err != nil {
		t.Fatal(err)
	}
}

func content4(t *testing.T, m *Mem, name string, off int64) string {
	t.Helper()
	f, err := m.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	_, err = f.ReadAt(b, off)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestFailSync: what a failed sync has given up is read, is not made durable by later syncs, and
// is when it is written again.
func TestFailSync(t *testing.T) {
	m := NewMem(MemOptions{Journal: true})
	f, err := m.OpenFile("/a", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	put(t, f, 0, strings.Repeat("old.", 2048)) // two pages
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	put(t, f, 0, "new1")
	if err := m.FailSync("/a"); err != nil {
		t.Fatal(err)
	}
	put(t, f, 4096, "new2")
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	after := func(first string) {
		t.Helper()
		if got := content4(t, m, "/a", 0) + content4(t, m, "/a", 4096); got != "new1new2" {
			t.Errorf("now: %s", got)
		}
		lost := m.Crash(nil, CrashLost)
		if got := content4(t, lost, "/a", 0) + content4(t, lost, "/a", 4096); got != first+"new2" {
			t.Errorf("after a power loss: %s, want %s", got, first+"new2")
		}
	}
	after("old.")
	put(t, f, 0, "new1")
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	after("new1")
	if err := m.FailSync("/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
}

// TestKill: the end of a process takes its locks and open files, and makes nothing durable.
func TestKill(t *testing.T) {
	m := NewMem(MemOptions{Capacity: 1 << 20})
	lock, err := m.Lock("/lock")
	if err != nil {
		t.Fatal(err)
	}
	f, err := m.OpenFile("/gone", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	put(t, f, 0, "abcd")
	g, err := m.OpenFile("/kept", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	put(t, g, 0, "efgh")
	if err := m.Remove("/gone"); err != nil { // its space is taken as long as it is open
		t.Fatal(err)
	}
	_, before, err := m.Space("/")
	if err != nil {
		t.Fatal(err)
	}
	m.Kill()
	if _, free, err := m.Space("/"); err != nil || free != before+4096 {
		t.Errorf("free: %d, was %d, %v", free, before, err)
	}
	if got := content4(t, m, "/kept", 0); got != "efgh" {
		t.Errorf("content %q", got)
	}
	again, err := m.Lock("/lock")
	if err != nil {
		t.Fatalf("the lock of the dead process: %v", err)
	}
	if err := errors.Join(f.Close(), g.Close(), lock.Close()); err != nil { // what is left of it
		t.Fatal(err)
	}
	if _, err := m.Lock("/lock"); !errors.Is(err, ErrLocked) {
		t.Errorf("the lock of the living process: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Crash(nil, CrashLost).Stat("/kept"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a name that was never synced, after a power loss: %v", err)
	}
}
