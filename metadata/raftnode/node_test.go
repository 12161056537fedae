package raftnode

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"scoria/internal/frame"
	"scoria/internal/vfs"
	"scoria/metadata"
	"scoria/metadata/fsm"
)

// kv is a machine for tests: command 1 puts (key, value) and returns the old value,
// command 2 adds to a counter and returns its sum, command 3 fails after having written.
type kv struct{ unknown uint8 }

func (kv) Kind() string { return "kv" }

func (m kv) Apply(tx fsm.Tx, cmd fsm.Command) ([]byte, error) {
	if cmd.Type == m.unknown {
		return nil, fsm.ErrUnknownCommand
	}
	d := frame.NewDecoder(cmd.Body)
	k := d.Bytes(1 << 10)
	v := d.Bytes(1 << 20)
	switch cmd.Type {
	case 1:
		old := append([]byte(nil), tx.Get(k)...)
		tx.Put(k, v)
		return old, nil
	case 2:
		var n uint64
		if b := tx.Get(k); len(b) == 8 {
			n = binary.BigEndian.Uint64(b)
		}
		sum := binary.BigEndian.AppendUint64(nil, n+uint64(len(v)))
		tx.Put(k, sum)
		return sum, nil
	case 3:
		tx.Put(k, v)
		return nil, metadata.Errorf(metadata.KindState, "refused %s", k)
	}
	return nil, fsm.ErrUnknownCommand
}

func command(t testing.TB, typ uint8, id fsm.RequestID, k, v string) []byte {
	t.Helper()
	b, err := fsm.Seal(fsm.Command{Type: typ, Version: 1, Request: id, Now: 1, Body: frame.AppendString(frame.AppendString(nil, k), v)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func soloOptions(dir string) Options {
	return Options{ID: "n1", Dir: dir, Machine: kv{}, Solo: true, Bootstrap: true}
}

func open(t testing.TB, o Options) *Node {
	t.Helper()
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if o.Bootstrap && o.Solo {
		waitLeader(t, n)
	}
	return n
}

func waitLeader(t testing.TB, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := n.WaitLeader(ctx); err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, n *Node, k, v string) {
	t.Helper()
	if _, err := n.Apply(t.Context(), command(t, 1, fsm.RequestID{}, k, v)); err != nil {
		t.Fatalf("put %s: %v", k, err)
	}
}

func get(t testing.TB, n *Node, k string) (v string) {
	t.Helper()
	err := n.Read(t.Context(), func(r fsm.Reader) error {
		v = string(r.Get([]byte(k)))
		return nil
	})
	if err != nil {
		t.Fatalf("get %s: %v", k, err)
	}
	return v
}

func TestSoloKeepsItsState(t *testing.T) {
	dir := t.TempDir()
	n := open(t, soloOptions(dir))
	put(t, n, "a", "1")
	put(t, n, "b", "2")
	if _, err := n.Apply(t.Context(), command(t, 3, fsm.RequestID{}, "b", "spoiled")); !errors.Is(err, metadata.ErrState) {
		t.Fatalf("failing command: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatalf("closing again: %v", err)
	}
	if _, err := n.Apply(t.Context(), command(t, 1, fsm.RequestID{}, "a", "x")); !errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("apply after close: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, markerFile)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a clean close leaves the marker: %v", err)
	}
	n = open(t, soloOptions(dir))
	if a, b := get(t, n, "a"), get(t, n, "b"); a != "1" || b != "2" {
		t.Fatalf("after reopening: a=%q b=%q", a, b)
	}
	if s := n.Stats(); s.Commands != 0 {
		t.Fatalf("%d commands were applied again", s.Commands)
	}
}

func TestRetriedRequestIsAppliedOnce(t *testing.T) {
	dir := t.TempDir()
	n := open(t, soloOptions(dir))
	id := fsm.RequestID{Client: 9, Seq: 1}
	for range 3 {
		sum, err := n.Apply(t.Context(), command(t, 2, id, "n", "xxx"))
		if err != nil || binary.BigEndian.Uint64(sum) != 3 {
			t.Fatalf("sum %v, %v", sum, err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		n = open(t, soloOptions(dir))
	}
}

func TestConcurrentCommandsShareSyncs(t *testing.T) {
	n := open(t, soloOptions(t.TempDir()))
	const writers, each = 64, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := n.Apply(t.Context(), command(t, 2, fsm.RequestID{}, "n", "x")); err != nil {
					t.Errorf("writer %d command %d: %v", w, i, err)
				}
			}
		})
	}
	wg.Wait()
	sum := get(t, n, "n")
	if got := binary.BigEndian.Uint64([]byte(sum)); got != writers*each {
		t.Fatalf("sum %d, want %d", got, writers*each)
	}
	if s := n.Stats(); s.Batches*4 > s.Commands {
		t.Fatalf("%d commands took %d batches", s.Commands, s.Batches)
	}
}

func TestSnapshotWhileApplying(t *testing.T) {
	dir := t.TempDir()
	o := soloOptions(dir)
	o.SnapshotBytes = 64 << 10
	n := open(t, o)
	value := strings.Repeat("v", 1000)
	for i := range 1000 {
		put(t, n, fmt.Sprint("k", i), value)
	}
	if err := n.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := n.Stats(); s.Snapshots < 2 {
		t.Fatalf("%d snapshots after 1 MB at one per 64 KiB", s.Snapshots)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, stateFile)); err != nil {
		t.Fatal(err)
	}
	n = open(t, o) // the state comes back out of the snapshot and what is behind it
	for i := range 1000 {
		if get(t, n, fmt.Sprint("k", i)) != value {
			t.Fatalf("key %d is lost", i)
		}
	}
	if s := n.Stats(); s.Commands > 500 {
		t.Fatalf("%d commands were replayed: the log was not shortened", s.Commands)
	}
}

func TestPowerLossRebuildsState(t *testing.T) {
	dir := t.TempDir()
	o := soloOptions(dir)
	o.bootID = "first"
	n := open(t, o)
	put(t, n, "before", "1")
	if err := n.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, n, "after", "2")
	image := t.TempDir() // the directory as a power loss leaves it: synced files, and a torn state
	if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(image, stateFile), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Dir, o.bootID = image, "second"
	n = open(t, o)
	if a, b := get(t, n, "before"), get(t, n, "after"); a != "1" || b != "2" {
		t.Fatalf("after power loss: %q, %q", a, b)
	}
}

// TestTornStateIsNotTrusted: a sector of the state file is lost where nothing but the value of
// a key shows it. The node knows that the machine went down, and takes nothing of the file.
func TestTornStateIsNotTrusted(t *testing.T) {
	dir := t.TempDir()
	o := soloOptions(dir)
	o.bootID = "first"
	n := open(t, o)
	value := strings.Repeat("value!!!", 400)
	put(t, n, "k", value)
	image := t.TempDir()
	if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(image, stateFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(b, []byte(value)) + 1000
	if at < 1000 {
		t.Fatal("the value is not in the state file")
	}
	clear(b[at : at+512])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Dir, o.bootID = image, "second"
	if got := get(t, open(t, o), "k"); got != value {
		t.Fatal("the torn value is read")
	}
}

func TestDirectoryErrors(t *testing.T) {
	used := func(t *testing.T) string {
		dir := t.TempDir()
		n := open(t, soloOptions(dir))
		put(t, n, "a", "1")
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	write := func(name, content string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	node := encodeNode(nodeInfo{Kind: "kv", ID: "n1"})
	cases := map[string]struct {
		spoil func(*testing.T, string)
		want  error
	}{
		"foreign node file": {write(nodeFile, "something quite different"), ErrForeign},
		"rotten node file":  {write(nodeFile, string(node[:len(node)-1])+"x"), metadata.ErrCorrupt},
		"long node file":    {write(nodeFile, strings.Repeat(string(node), 1000)), metadata.ErrCorrupt},
		"short node file":   {write(nodeFile, string(node[:7])), metadata.ErrCorrupt},
		"newer node file":   {write(nodeFile, string(frame.Append(nil, nodeMagic, nodeType, nodeVersion+1, 0, nil))), ErrNewer},
		"other kind":        {write(nodeFile, string(encodeNode(nodeInfo{Kind: "abm", ID: "n1"}))), ErrForeign},
		"other id":          {write(nodeFile, string(encodeNode(nodeInfo{Kind: "kv", ID: "n2"}))), ErrForeign},
		"rotten log":        {write(logFile, strings.Repeat("rotten", 10000)), metadata.ErrCorrupt},
		"short log": {func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, logFile), 8192); err != nil {
				t.Fatal(err)
			}
		}, metadata.ErrCorrupt},
		"lost log and state": {func(t *testing.T, dir string) {
			for _, name := range []string{logFile, stateFile, markerFile} {
				if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
		}, metadata.ErrCorrupt},
		"lost log": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, logFile)); err != nil {
				t.Fatal(err)
			}
		}, metadata.ErrCorrupt},
		"no node file": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, nodeFile)); err != nil {
				t.Fatal(err)
			}
		}, ErrForeign},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir := used(t)
			c.spoil(t, dir)
			n, err := Open(soloOptions(dir))
			if err == nil {
				_ = n.Close()
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			t.Log(err)
		})
	}
	t.Run("in use", func(t *testing.T) {
		dir := t.TempDir()
		open(t, soloOptions(dir))
		_, err := Open(soloOptions(dir))
		if !errors.Is(err, vfs.ErrLocked) {
			t.Fatalf("second open: %v", err)
		}
	})
	t.Run("rotten state is rebuilt", func(t *testing.T) {
		dir := used(t)
		write(stateFile, strings.Repeat("rotten", 10000))(t, dir)
		n := open(t, soloOptions(dir))
		if v := get(t, n, "a"); v != "1" {
			t.Fatalf("a = %q", v)
		}
	})
	t.Run("truncated state is rebuilt", func(t *testing.T) {
		dir := used(t)
		if err := os.Truncate(filepath.Join(dir, stateFile), 8192); err != nil {
			t.Fatal(err)
		}
		n := open(t, soloOptions(dir))
		if v := get(t, n, "a"); v != "1" {
			t.Fatalf("a = %q", v)
		}
	})
}

func TestUnknownCommandHaltsTheNode(t *testing.T) {
	dir := t.TempDir()
	n := open(t, soloOptions(dir))
	put(t, n, "a", "1")
	o := soloOptions(dir)
	if _, err := n.Apply(t.Context(), command(t, 77, fsm.RequestID{}, "k", "v")); !errors.Is(err, metadata.ErrInternal) {
		t.Fatalf("unknown command: %v", err)
	}
	if _, err := n.Apply(t.Context(), command(t, 1, fsm.RequestID{}, "a", "2")); !errors.Is(err, metadata.ErrInternal) {
		t.Fatalf("after it: %v", err)
	}
	if s := n.Stats(); s.Problem == "" {
		t.Fatal("the halt is not shown")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	select {
	case <-n.halted: // it meets the command again
	case <-time.After(20 * time.Second):
		t.Fatal("a node that met an unknown command goes on")
	}
}
