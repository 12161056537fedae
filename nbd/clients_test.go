package nbd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scoria/nbd"
	"scoria/nbd/nbdtest"
)

// tool skips the test when a program of the Debian packages nbdkit, libnbd-bin, qemu-utils,
// fio or nbd-client is missing.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed, so this client is not tried", name)
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool(t, name), args...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (w *world) uri() string { return "nbd+unix:///disk?socket=" + w.addr }

// eachDevice serves a device with fast paths and one without to a real client.
func eachDevice(t *testing.T, f func(t *testing.T, w *world)) {
	for name, decline := range map[string]bool{"inline": false, "workers": true} {
		t.Run(name, func(t *testing.T) {
			m := nbdtest.NewMemory(64 << 20)
			m.Decline(decline)
			f(t, disk(t, m, nil))
		})
	}
}

func TestClientNbdinfo(t *testing.T) {
	w := disk(t, nbdtest.NewMemory(64<<20), nil)
	out := run(t, "nbdinfo", w.uri())
	for _, want := range []string{"export-size: 67108864", "base:allocation", "can_fast_zero: true", "can_multi_conn: true", "can_df: true", "block_size_preferred: 4096", "description: a disk"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if out := run(t, "nbdinfo", "--map", "--totals", w.uri()); !strings.Contains(out, "100.0%   3 hole,zero") {
		t.Errorf("map:\n%s", out)
	}
	if out := run(t, "nbdinfo", "--list", "nbd+unix:///?socket="+w.addr); !strings.Contains(out, `export="disk"`) {
		t.Errorf("list:\n%s", out)
	}
}

func TestClientNbdcopy(t *testing.T) {
	eachDevice(t, func(t *testing.T, w *world) {
		dir := t.TempDir()
		src, dst := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		data := make([]byte, 64<<20)
		copy(data[1<<20:], pattern(5<<20, 1))
		copy(data[50<<20+777:], pattern(3<<20, 2))
		w.must(os.WriteFile(src, data, 0o600))
		run(t, "nbdcopy", "--flush", src, w.uri())
		run(t, "nbdcopy", w.uri(), dst)
		run(t, "cmp", src, dst)
	})
}

func TestClientQemu(t *testing.T) {
	eachDevice(t, func(t *testing.T, w *world) {
		out := run(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 4k 64k", "-c", "write -z 8k 4k", "-c", "discard 32k 8k", "-c", "write -f -P 1 0 512",
			"-c", "flush", "-c", "read -P 1 0 512", "-c", "read -P 0x5a 4k 4k", "-c", "read -P 0 8k 4k", "-c", "write -P 7 1000001 33", "-c", "read -P 7 1000001 33", w.uri())
		if strings.Contains(out, "failed") {
			t.Error(out)
		}
		dir := t.TempDir()
		img := filepath.Join(dir, "img")
		w.must(os.WriteFile(img, append(pattern(8<<20, 6), make([]byte, 56<<20)...), 0o600))
		run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", img, w.uri())
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", img, w.uri())
		run(t, "qemu-img", "bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096", "-w", "--flush-interval=100", w.uri())
	})
}

func TestClientFio(t *testing.T) {
	eachDevice(t, func(t *testing.T, w *world) {
		run(t, "fio", "--name=x", "--thread", "--ioengine=nbd", "--uri="+w.uri(), "--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned", "--iodepth=32",
			"--size=32m", "--verify=crc32c", "--fsync=64", "--output-format=terse")
	})
}

func TestClientLibnbdPython(t *testing.T) {
	const python = "/usr/bin/python3" // the one that Debian's python3-libnbd belongs to
	if exec.Command(python, "-c", "import nbd").Run() != nil {
		t.Skip("python3-libnbd is not installed, so this client is not tried")
	}
	eachDevice(t, func(t *testing.T, w *world) {
		script := `
import nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
assert h.get_size() == 64 << 20
h.pwrite(b"x" * 5000, 123, nbd.CMD_FLAG_FUA)
assert h.pread(5000, 123) == b"x" * 5000
ext = []
h.block_status(64 << 20, 0, lambda ctx, off, e, err: ext.extend(e))
assert sum(ext[0::2]) == 64 << 20 and ext[1] == 0 and ext[3] == 3, ext
chunks = []
h.pread_structured(1 << 20, 4096, lambda buf, off, st, err: chunks.append((off, len(buf), st)), nbd.CMD_FLAG_DF)
assert chunks == [(4096, 1 << 20, nbd.READ_DATA)], chunks
h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
h.trim(64 << 20, 0)
h.cache(1 << 20, 0)
h.flush()
h.set_strict_mode(0)
for f in (lambda: h.pread(512, 64 << 20), lambda: h.pwrite(b"y" * 512, (64 << 20) - 1), lambda: h.zero(1 << 20, 64 << 20), lambda: h.trim(1, 1 << 62)):
    try:
        f()
        assert False
    except nbd.Error as e:
        assert e.errno in ("EINVAL", "ENOSPC"), e
bufs = [nbd.Buffer(65536) for _ in range(200)]
cookies = [h.aio_pread(b, i * 4096) for i, b in enumerate(bufs)]
done = 0
while done < len(cookies):
    h.poll(-1)
    while done < len(cookies):
        c = h.aio_peek_command_completed()
        if c <= 0:
            break
        assert h.aio_command_completed(c)
        done += 1
h.shutdown()
`
		run(t, python, "-c", script, w.uri())
	})
}

// nbd-client can list without a kernel device.
func TestClientNbdClientList(t *testing.T) {
	w := serve(t, nbd.ExportMap{"one": {Device: memory()}, "two": {Device: memory()}}, nil)
	out := run(t, "nbd-client", "-l", "-unix", w.addr)
	if !strings.Contains(out, "one") || !strings.Contains(out, "two") {
		t.Error(out)
	}
}
