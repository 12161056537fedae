//go:build linux && amd64

package raftnode

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"scoria/internal/vfs"
	"scoria/metadata/fsm"
)

const (
	powerDir      = "SCORIA_TEST_POWER_DIR" // tells a copy of the test binary to be the victim
	powerCommands = 48
)

// powerOptions make the victim snapshot and shorten its log all the time.
func powerOptions(dir, boot string) Options {
	o := soloOptions(dir)
	o.SnapshotBytes, o.TrailingLogs, o.bootID = 2<<10, 4, boot
	return o
}

// powerCommand is the i-th command, 1..: each adds one to a counter, so that the counter
// tells how many were applied, and how often.
func powerCommand(t testing.TB, i int) []byte {
	t.Helper()
	return command(t, 2, fsm.RequestID{Client: 9, Seq: uint64(i)}, "n", "x")
}

// TestPowerVictim is the process whose system calls TestPowerLossEverywhere records. It works,
// is closed and opened again, and ends without closing.
func TestPowerVictim(t *testing.T) {
	dir := os.Getenv(powerDir)
	if dir == "" {
		t.Skip("only run by TestPowerLossEverywhere")
	}
	n := open(t, powerOptions(dir, "first"))
	for i := 1; i <= powerCommands; i++ {
		if i == powerCommands/2 {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			n = open(t, powerOptions(dir, "first"))
		}
		if _, err := n.Apply(t.Context(), powerCommand(t, i)); err != nil {
			t.Fatal(err)
		}
		put(t, n, fmt.Sprint("k", i%5), strings.Repeat(fmt.Sprintf("%03d", i), 300))
		if i%12 == 0 {
			if err := n.Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		fmt.Fprintf(os.Stdout, "acked %d\n", i)
	}
	os.Exit(0)
}

// TestPowerLossEverywhere records everything that a node does to its directory, and takes the
// power away after each of these system calls: the Raft log and its stable store, the
// state file, snapshots, the marker. What comes back is the state after some
// number of commands, each applied once, and no fewer than were acknowledged.
//
// Fault model: vfs.Mem's. What was synced stays; of the rest any sectors, and of each directory some
// prefix of its changes. CrashKept is the death of the process alone.
func TestPowerLossEverywhere(t *testing.T) {
	dir := t.TempDir()
	actions, err := trace(dir, os.Args[0], []string{"-test.run=^TestPowerVictim$", "-test.v"}, append(os.Environ(), powerDir+"="+dir))
	if errors.Is(err, errNoTrace) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	stride := len(actions)/25 + 1
	if os.Getenv("SCORIA_STRESS") != "" {
		stride = 1
	}
	seed := rand.Uint64()
	t.Logf("seed %d, %d actions, every %d. is the last one", seed, len(actions), stride)
	r := rand.New(rand.NewPCG(seed, 1))
	next := r.IntN(stride)
	var disks []*vfs.Mem // with the two ways that directories work
	for _, journal := range []bool{false, true} {
		m := vfs.NewMem(vfs.MemOptions{Journal: journal})
		if err := errors.Join(m.MkdirAll(dir, 0o700), syncDirs(m, dir)); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, m)
	}
	acked, points, snaps := 0, 0, filepath.Join(dir, snapshotDir)
	for k := range actions {
		a := &actions[k]
		for _, m := range disks {
			if err := a.replay(m); err != nil {
				t.Fatalf("action %d %+v: %v", k, a.path, err)
			}
		}
		if a.kind == doOutput {
			if s, ok := strings.CutPrefix(string(a.data), "acked "); ok {
				if acked, err = strconv.Atoi(strings.TrimSpace(s)); err != nil {
					t.Fatal(err)
				}
			}
			continue
		}
		// Nothing is left out while the node is made, nor around its snapshots: what can go wrong there can go wrong at a few calls only.
		if next--; next >= 0 && k > 40 && !strings.HasPrefix(a.path, snaps) {
			continue
		}
		if next < 0 {
			next = stride - 1
		}
		for i, mode := range vfs.Modes() {
			if stride > 1 && r.IntN(2) == 0 {
				continue
			}
			points++
			after := disks[(k+i)%len(disks)].Crash(r, mode)
			if err := checkPower(t, after, dir, acked, mode); err != nil {
				t.Fatalf("seed %d, power lost after action %d (%d %s), %v: %v", seed, k, a.kind, a.path, mode, err)
			}
		}
	}
	if acked != powerCommands {
		t.Fatalf("%d of %d commands are recorded", acked, powerCommands)
	}
	t.Logf("%d power losses", points)
}

func syncDirs(m *vfs.Mem, dir string) error {
	var errs []error
	for ; dir != "/"; dir = filepath.Dir(dir) {
		errs = append(errs, m.SyncDir(filepath.Dir(dir)))
	}
	return errors.Join(errs...)
}

// checkPower opens a node on what a power loss has left.
func checkPower(t *testing.T, m *vfs.Mem, from string, acked int, mode vfs.CrashMode) (err error) {
	to, err := os.MkdirTemp("", "power")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(to)) }()
	if err := export(m, from, to); err != nil {
		return err
	}
	boot := "second"
	if mode == vfs.CrashKept {
		boot = "first" // the machine has not gone down
	}
	n, err := Open(powerOptions(to, boot))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // ends what would hang
	defer cancel()
	if err := n.WaitLeader(ctx); err != nil {
		return err
	}
	applied := 0
	if b := get(t, n, "n"); b != "" {
		applied = int(binary.BigEndian.Uint64([]byte(b)))
	}
	if applied < acked || applied > acked+1 {
		return fmt.Errorf("the counter is %d after %d acknowledged commands", applied, acked)
	}
	for i := max(acked-4, 1); i <= acked; i++ {
		want := strings.Repeat(fmt.Sprintf("%03d", i), 300)
		if newer := i + 5; newer <= acked+1 {
			continue // the command under way may have replaced it
		}
		if got := get(t, n, fmt.Sprint("k", i%5)); got != want {
			return fmt.Errorf("key %d is %.9q, want %.9q", i%5, got, want)
		}
	}
	if applied == 0 {
		return nil
	}
	sum, err := n.Apply(ctx, powerCommand(t, applied)) // a retry
	if err != nil || binary.BigEndian.Uint64(sum) != uint64(applied) {
		return fmt.Errorf("retry of command %d: %v, %w", applied, sum, err)
	}
	if sum, err = n.Apply(ctx, powerCommand(t, applied+1)); err != nil || binary.BigEndian.Uint64(sum) != uint64(applied+1) {
		return fmt.Errorf("next command: %v, %w", sum, err)
	}
	return nil
}

// export copies a directory in memory to the real file system, holes as holes.
func export(m *vfs.Mem, from, to string) error {
	entries, err := m.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if e.IsDir() {
			err = errors.Join(os.Mkdir(dst, 0o700), export(m, src, dst))
		} else {
			err = exportFile(m, src, dst)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func exportFile(m *vfs.Mem, src, dst string) error {
	in, err := m.OpenFile(src, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	out, err := os.Create(dst)
	if err != nil {
		return errors.Join(err, in.Close())
	}
	size, err := in.Size()
	if err == nil {
		err = out.Truncate(size)
	}
	var page, zeroes [4096]byte
	for off := int64(0); off < size && err == nil; off += int64(len(page)) {
		b := page[:min(int64(len(page)), size-off)]
		if _, err = in.ReadAt(b, off); err == nil && string(b) != string(zeroes[:len(b)]) {
			_, err = out.WriteAt(b, off)
		}
	}
	return errors.Join(err, in.Close(), out.Close())
}
