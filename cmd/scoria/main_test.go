package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"scoria/cmd/scoria/internal/admin"
	"scoria/cmd/scoria/internal/system"
	"scoria/nbd/nbdtest"
)

// startSystem starts a small system with one unix socket, and returns it and the socket's path.
func startSystem(t *testing.T) (*system.System, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "scoria") // t.TempDir() may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	sock := filepath.Join(dir, "nbd")
	s, err := system.Start(t.Context(), system.Config{
		Data: filepath.Join(dir, "data"), NBD: []string{"unix:" + sock}, Admin: "127.0.0.1:0",
		WriteBuffer: 64 << 20, MapCache: 8 << 20, BlockCache: 1 << 20, Version: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s, sock
}

func connect(t *testing.T, sock, volume string) *nbdtest.Client {
	t.Helper()
	c, err := nbdtest.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // closed before, mostly
	if err := c.Go(volume); err != nil {
		t.Fatal(err)
	}
	return c
}

// command runs one command line and returns what it printed.
func command(t *testing.T, line ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), line, &out, &errs)
	return code, out.String(), errs.String()
}

// expect runs one command line, which must end with a code and whose output and errors must
// contain the texts.
func expect(t *testing.T, code int, line string, texts ...string) string {
	t.Helper()
	got, stdout, stderr := command(t, strings.Fields(line)...)
	if got != code {
		t.Errorf("scoria %s: exit code %d, want %d\n%s%s", line, got, code, stdout, stderr)
	}
	if (stderr == "") != (code == exitOK) && !strings.Contains(line, "--wait") {
		t.Errorf("scoria %s: exit code %d and these errors: %q", line, got, stderr)
	}
	for _, text := range texts {
		if !strings.Contains(stdout+stderr, text) {
			t.Errorf("scoria %s: no %q in\n%s%s", line, text, stdout, stderr)
		}
	}
	return stdout
}

// parse decodes what a command printed with -o json or yaml.
func parse[T any](t *testing.T, format, text string) (v T) {
	t.Helper()
	var err error
	if format == "yaml" {
		err = yaml.UnmarshalStrict([]byte(text), &v)
	} else {
		err = json.Unmarshal([]byte(text), &v)
	}
	if err != nil {
		t.Errorf("%s: %v\n%s", format, err, text)
	}
	return v
}

func TestCommands(t *testing.T) {
	s, sock := startSystem(t)
	t.Setenv("SCORIA_ADMIN", s.AdminAddr())
	t.Run("volumes", func(t *testing.T) { testVolumeCommands(t, sock) })
	t.Run("object store", testStoreCommands)
	t.Run("errors", func(t *testing.T) { testErrors(t, sock) })
	t.Run("dump", func(t *testing.T) {
		expect(t, exitOK, "dump "+filepath.Join(s.Data(), "scoria.json"), "data directory of format 1", "osd-5")
		expect(t, exitFailure, "dump "+filepath.Join(s.Data(), "abm", "state.db"), "stop the server first")
	})
}

func testVolumeCommands(t *testing.T, sock string) {
	expect(t, exitOK, "volume create v1 --size 1000000", "v1", "1003520 bytes", "nbd+unix:///v1?socket="+sock)
	for _, format := range []string{"json", "yaml"} {
		v := parse[admin.Volume](t, format, expect(t, exitOK, "volume create "+format+" --size 64MiB -o "+format))
		if v.Name != format || v.Size != 64<<20 || v.State != "closed" || v.Durability != "local" || v.Preset != "default" || v.Created.IsZero() {
			t.Errorf("created: %+v", v)
		}
		if got := parse[admin.Volume](t, format, expect(t, exitOK, "volume show "+format+" -o "+format)); got.ID != v.ID || len(got.URIs) != 1 {
			t.Errorf("shown: %+v", got)
		}
		if l := parse[[]admin.Volume](t, format, expect(t, exitOK, "volume list -o "+format)); len(l) < 2 {
			t.Errorf("listed: %+v", l)
		}
	}
	expect(t, exitOK, "volume ls", "NAME", "STATE", "v1", "json", "yaml")
	expect(t, exitOK, "volume resize v1 --size 2MiB", "2097152 bytes")
	expect(t, exitOK, "volume rename v1 v2", "v2")
	expect(t, exitNotFound, "volume show v1", `"v1"`)

	c := connect(t, sock, "v2")
	if err := c.WriteAt(bytes.Repeat([]byte("scoria"), 1<<15), 4096, true); err != nil {
		t.Fatal(err)
	}
	expect(t, exitOK, "volume show v2", "open", "clients", "holds data", "192KiB")
	expect(t, exitOK, "volume drain v2", "started")
	expect(t, exitOK, "volume drain v2 --wait", "v2 is drained")
	if got := parse[map[string]any](t, "json", expect(t, exitOK, "volume drain v2 --wait -o json")); got["drained"] != true {
		t.Errorf("drain: %v", got)
	}
	if v := parse[admin.Volume](t, "json", expect(t, exitOK, "volume show v2 -o json")); v.DirtyBytes != 0 || v.DrainedSeq != v.LastSeq || v.Clients != 1 {
		t.Errorf("drained: %+v", v)
	}
	expect(t, exitConflict, "volume delete v2", "use --force")
	expect(t, exitOK, "volume delete v2 --force")
	if err := c.ReadAt(make([]byte, 4096), 4096); err == nil {
		t.Error("a deleted volume is read")
	}
	expect(t, exitNotFound, "volume delete v2")
	expect(t, exitOK, "volume rm yaml")
}

func testStoreCommands(t *testing.T) {
	expect(t, exitOK, "preset list", "default", "(4,2,5,6)", "8MiB")
	expect(t, exitOK, "preset create safe --policy 2,2,3,4 --policy (1,1,2,2) --compression zstd --encryption aes-256-gcm --chunk-size 1MiB --inline-limit 4k")
	expect(t, exitOK, "preset show safe", "(2,2,3,4) (1,1,2,2)", "zstd", "aes-256-gcm")
	expect(t, exitOK, "volume create sv --size 1MiB --preset safe", "safe")
	for _, format := range []string{"json", "yaml"} {
		if p := parse[admin.Preset](t, format, expect(t, exitOK, "preset show safe -o "+format)); len(p.Policies) != 2 || p.ChunkSize != 1<<20 || p.InlineLimit != 4096 {
			t.Errorf("preset: %+v", p)
		}
		if l := parse[[]admin.Preset](t, format, expect(t, exitOK, "preset list -o "+format)); len(l) != 2 {
			t.Errorf("presets: %+v", l)
		}
		ns := parse[admin.Namespace](t, format, expect(t, exitOK, "namespace show sv -o "+format))
		if ns.State != "active" || ns.Preset != "safe" || ns.NSM != "nsm-0" {
			t.Errorf("namespace: %+v", ns)
		}
		if l := parse[[]admin.Namespace](t, format, expect(t, exitOK, "namespace list -o "+format)); len(l) == 0 {
			t.Error("no namespaces")
		}
		if l := parse[[]admin.OSD](t, format, expect(t, exitOK, "osd list -o "+format)); len(l) != 6 || l[0].State != "claimed" {
			t.Errorf("disk servers: %+v", l)
		}
		if st := parse[admin.Status](t, format, expect(t, exitOK, "status -o "+format)); st.Health != "ok" || !st.Ready || st.Version != "test" || len(st.OSDs) != 6 {
			t.Errorf("status: %+v", st)
		}
		if v := parse[map[string]string](t, format, expect(t, exitOK, "version -o "+format)); v["version"] == "" || v["go"] == "" {
			t.Errorf("version: %v", v)
		}
	}
	expect(t, exitOK, "namespace list", "LOGICAL", "safe")
	expect(t, exitOK, "namespace show sv", "owner epoch")
	expect(t, exitOK, "osd list", "claimed", "CAPACITY")
	expect(t, exitOK, "osd show 1", "uuid", "batches")
	expect(t, exitOK, "status", "health", "ok", "write buffer", "osd 6")
	expect(t, exitOK, "version", "scoria ")

	expect(t, exitOK, "volume drain sv --wait") // an empty one has nothing to store
	expect(t, exitOK, "object list sv", "NAME", "POLICY")
	objects := parse[[]admin.Object](t, "json", expect(t, exitOK, "object list sv --prefix head --limit 1 -o json"))
	for _, o := range objects {
		expect(t, exitOK, "object show sv "+o.Name, "object id", o.ObjectID)
	}
	expect(t, exitNotFound, "object show sv sco/absent", "scoria object list sv")
}

func testErrors(t *testing.T, sock string) {
	expect(t, exitOK, "volume create taken --size 1MiB")
	for _, e := range []struct {
		code int
		line string
		text string
	}{
		{exitUsage, "nonsense", `unknown command "nonsense"`},
		{exitUsage, "volume nonsense", `unknown command "nonsense" for "scoria volume"`},
		{exitUsage, "status extra", ""},
		{exitUsage, "status --nonsense", "unknown flag"},
		{exitUsage, "status -o xml", "want table, json or yaml"},
		{exitUsage, "volume list -o xml", "want table, json or yaml"},
		{exitUsage, "version -o xml", "want table, json or yaml"},
		{exitUsage, "volume create a", "--size is missing"},
		{exitUsage, "volume create --size 1G", "arg(s)"},
		{exitUsage, "volume create a --size 10Q", "size"},
		{exitUsage, "volume create a --size -1", "size"},
		{exitUsage, "volume create a --size 0", "size"},
		{exitUsage, "volume create a --size 65TiB", "size"},
		{exitUsage, "volume create a/b --size 1M", "not allowed"},
		{exitUsage, "volume create " + strings.Repeat("a", 129) + " --size 1M", "at most 128"},
		{exitConflict, "volume create taken --size 1M", `"taken" already exists`},
		{exitNotFound, "volume create a --size 1M --preset absent", "absent"},
		{exitNotFound, "volume show absent", "scoria volume list"},
		{exitNotFound, "volume drain absent", "absent"},
		{exitNotFound, "volume drain absent --wait", "absent"},
		{exitNotFound, "volume rename absent b", "absent"},
		{exitNotFound, "volume resize absent --size 1M", "absent"},
		{exitUsage, "volume resize taken", "--size is missing"},
		{exitUsage, "volume resize taken --size 64k", "shrink"},
		{exitUsage, "volume rename taken a/b", "not allowed"},
		{exitConflict, "volume rename taken json", "json"},
		{exitNotFound, "preset show absent", "scoria preset list"},
		{exitUsage, "preset create p", "--policy is missing"},
		{exitUsage, "preset create p --policy 4,2", "four numbers"},
		{exitUsage, "preset create p --policy 4,2,x,6", `"x" is not a number`},
		{exitUsage, "preset create p --policy 4,2,7,6", "polic"},
		{exitUsage, "preset create p --policy 0,2,1,6", "polic"},
		{exitUsage, "preset create p --policy 2,1,3,3 --compression lzma", "want none, s2 or zstd"},
		{exitUsage, "preset create p --policy 2,1,3,3 --encryption rot13", "aes-256-gcm"},
		{exitUsage, "preset create p --policy 2,1,3,3 --chunk-size 2GiB", "at most 1GiB"},
		{exitUsage, "preset create p --policy 2,1,3,3 --chunk-size 1", "chunk"},
		{exitConflict, "preset create default --policy 2,1,3,3", "default"},
		{exitNotFound, "namespace show absent", "scoria namespace list"},
		{exitNotFound, "object list absent", "scoria namespace list"},
		{exitUsage, "object list taken --limit 0", "1 to 1000"},
		{exitNotFound, "osd show 99", "scoria osd list"},
		{exitUnavailable, "status --admin 127.0.0.1:1", "is `scoria serve` running"},
		{exitUsage, "status --admin not:an:address", "HOST:PORT"},
		{exitUsage, "attach", "arg(s)"},
		{exitUsage, "attach http://x/y", "nbd://"},
		{exitUsage, "attach taken /dev/sda", "/dev/nbdN"},
		{exitUsage, "attach taken --connections 17", "1 to 16"},
		{exitUsage, "attach taken --dead-timeout 1ms", "at least 1s"},
		{exitFailure, "attach absent --nbd unix:" + sock, "absent"},
		{exitFailure, "attach taken --nbd unix:/nowhere", "connect to the NBD server"},
		{exitUsage, "detach sda", "/dev/nbdN"},
		{exitNotFound, "dump /nowhere/file", "no such file"},
		{exitUsage, "dump main.go", "not a file of Scoria"},
		{exitUsage, "serve --osds 65", "1 to 64"},
		{exitUsage, "serve --write-buffer 1MiB", "at least 64 MiB"},
		{exitUsage, "serve --write-buffer lots", "--write-buffer"},
		{exitUsage, "serve --dir osd-0", "PART=PATH"},
		{exitUsage, "serve --dir cellar=/tmp", "no part"},
		{exitUsage, "serve --log-level loud", "want debug, info, warn or error"},
		{exitUsage, "osd serve", "--dir is missing"},
	} {
		expect(t, e.code, e.line, e.text)
	}
}

// TestServe runs the whole command: its start-up lines, and a stop in good order.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ended := make(chan int, 1)
	var errs bytes.Buffer
	go func() {
		ended <- run(ctx, []string{"serve", "--data", filepath.Join(dir, "d"), "--nbd", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--osds", "2", "--write-buffer", "64MiB"}, w, &errs)
		_ = w.Close()
	}()
	var lines []string
	buf := make([]byte, 0, 4096)
	for !bytes.HasSuffix(buf, []byte("ready\n")) {
		var b [512]byte
		n, err := r.Read(b[:])
		if err != nil {
			t.Fatalf("start-up lines end: %v\n%s%s", err, buf, &errs)
		}
		buf = append(buf, b[:n]...)
	}
	lines = strings.Split(string(buf), "\n")
	var addr string
	for _, l := range lines {
		if a, ok := strings.CutPrefix(strings.TrimSpace(l), "admin"); ok {
			addr = strings.TrimPrefix(strings.TrimSpace(a), "http://")
		}
	}
	expect(t, exitOK, "status --admin "+addr, "ok", "osd 2")
	stop()
	if code := <-ended; code != exitOK {
		t.Errorf("serve ends with %d: %s", code, &errs)
	}
	expect(t, exitUnavailable, "status --admin "+addr, "running")
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		expect(t, exitOK, "completion "+shell, "scoria")
	}
	if code, out, errs := command(t, "__completeNoDesc", "volume", "cr"); code != exitOK || !strings.HasPrefix(out, "create\n") {
		t.Errorf("completion: %d %q %q", code, out, errs)
	}
}

func TestHelp(t *testing.T) {
	expect(t, exitOK, "", "Exit codes", "serve")
	expect(t, exitOK, "--help", "Exit codes")
	var walk func(path string)
	root := newRootCommand()
	walk = func(path string) {
		cmd, _, err := root.Find(strings.Fields(path))
		if err != nil {
			t.Fatal(err)
		}
		if cmd.Short == "" {
			t.Errorf("scoria %s has no description", path)
		}
		expect(t, exitOK, path+" --help", "Usage:")
		for _, c := range cmd.Commands() {
			walk(path + " " + c.Name())
		}
	}
	walk("")
}
