package system

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"scoria/cmd/scoria/internal/admin"
	"scoria/nbd/nbdtest"
)

// TestLife goes once through all: make, write, drain, stop, start, read.
func TestLife(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create("v", 64<<20)
	c := r.dial("v")
	r.write(c, 1, 0, 2048)
	must(t, c.Flush())
	r.drain("v")
	r.write(c, 2, 1024, 512)
	must(t, c.Disconnect())
	r.stop()

	r.start()
	r.degraded(false)
	c = r.dial("v")
	r.check(c, 1, 0, 1024)
	r.check(c, 2, 1024, 512)
	r.check(c, 1, 1536, 512)
	v, err := r.sys.Volume(t.Context(), "v")
	must(t, err)
	for v.Clients > 1 && t.Context().Err() == nil { // what was left over is drained by one of the system's own
		r.drain("v")
		v, err = r.sys.Volume(t.Context(), "v")
		must(t, err)
	}
	if v.State != "open" || v.Mapped != 8<<20 || v.Clients != 1 {
		t.Errorf("volume %+v", v)
	}
	must(t, r.sys.Close(t.Context()))
	must(t, r.sys.Close(t.Context())) // again
	if err := c.ReadAt(make([]byte, block), 0); err == nil {
		t.Error("a closed system answers reads")
	}
}

func get(t *testing.T, s *System, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + s.AdminAddr() + path)
	must(t, err)
	defer resp.Body.Close() //nolint:errcheck // fully read
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(b)
}

func TestMetrics(t *testing.T) {
	r := newRig(t)
	s := r.start()
	if code, text := get(t, s, "/readyz"); code != http.StatusOK || text != "ready\n" {
		t.Errorf("readyz: %d %q", code, text)
	}
	r.create("v", 1<<20)
	c := r.dial("v")
	r.write(c, 1, 0, 64)
	must(t, c.Flush())
	_, text := get(t, s, "/metrics")
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	must(t, err)
	for _, m := range metrics {
		if families[m.name] == nil {
			t.Errorf("no %s", m.name)
		}
	}
	ours := 0
	for name, f := range families {
		if f.GetHelp() == "" || !model.LegacyValidation.IsValidMetricName(name) {
			t.Errorf("%s: help %q", name, f.GetHelp())
		}
		if !strings.HasPrefix(name, "scoria_") {
			continue
		}
		ours++
		if counter := f.GetType() == dto.MetricType_COUNTER; counter != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is a %v", name, f.GetType())
		}
	}
	if ours < len(metrics)+5 {
		t.Errorf("%d metrics of ours", ours)
	}
	value := func(name, label string) float64 {
		for _, m := range families[name].GetMetric() {
			if label == "" || len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
		t.Errorf("no %s{%s}", name, label)
		return 0
	}
	for _, w := range []struct {
		name, label string
		want        float64
	}{
		{"scoria_degraded", "", 0}, {"scoria_nbd_connections", "", 1}, {"scoria_volumes", "", 1}, {"scoria_volumes_open", "", 1},
		{"scoria_nbd_requests_total", "write", 1}, {"scoria_nbd_bytes_total", "write", 64 * block}, {"scoria_nbd_requests_total", "flush", 1},
		{"scoria_osd_up", "1", 1}, {"scoria_osd_up", "6", 1}, {"scoria_write_buffer_limit_bytes", "", 64 << 20},
	} {
		if got := value(w.name, w.label); got != w.want {
			t.Errorf("%s{%s} is %v, want %v", w.name, w.label, got, w.want)
		}
	}
	if got := value("scoria_write_buffer_dirty_bytes", ""); got < 64*block {
		t.Errorf("%v dirty bytes", got)
	}
	s.ready.Lock()
	s.ready.why = errors.New("stopping")
	s.ready.Unlock()
	if code, text := get(t, s, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "stopping") {
		t.Errorf("readyz: %d %q", code, text)
	}
}

// TestUnderClients: what is done to a volume that clients hold open.
func TestUnderClients(t *testing.T) {
	r := newRig(t)
	s := r.start()
	r.create("v", 1<<20)
	c := r.dial("v")
	r.write(c, 1, 0, 256)

	v, err := s.UpdateVolume(t.Context(), "v", admin.UpdateVolume{Name: "w", Size: 2 << 20})
	must(t, err)
	if v.Name != "w" || v.Size != 2<<20 || v.Clients != 1 {
		t.Errorf("updated: %+v", v)
	}
	r.check(c, 1, 0, 256) // the connection goes on
	r.write(c, 2, 0, 128)
	must(t, c.Flush())
	if _, err := r.try("v", 5*1e9); err == nil {
		t.Error("the old name is still served")
	}
	d := r.dial("w")
	if d.Size != 2<<20 {
		t.Errorf("a new client sees %d bytes", d.Size)
	}
	r.check(d, 2, 0, 128)
	r.write(d, 3, 256, 256)

	if err := s.DeleteVolume(t.Context(), "w", false); admin.AsError(err).Code != admin.CodeBusy {
		t.Errorf("deleted without force: %v", err)
	}
	must(t, s.DeleteVolume(t.Context(), "w", true))
	for _, c := range []*nbdtest.Client{c, d} {
		if err := c.ReadAt(make([]byte, block), 0); err == nil {
			t.Error("a deleted volume is read")
		}
	}
	if vs, err := s.Volumes(t.Context()); err != nil || len(vs) != 0 {
		t.Errorf("volumes %v, %v", vs, err)
	}
	r.maintain("the namespace goes", func() bool {
		ns, err := s.Namespaces(t.Context())
		must(t, err)
		return len(ns) == 0
	})
	r.create("w", 1<<20) // the name is free, and nothing of the old shows
	if got := r.look(r.dial("w"), 2, 0, 256); got.zero != 4 {
		t.Errorf("a new volume of an old name: %+v", got)
	}
}

// TestCutOffDeletes: deletes and creations that a crash has cut off are ended at the start.
func TestCutOffDeletes(t *testing.T) {
	r := newRig(t)
	s := r.start()
	r.create("keep", 1<<20)
	r.create("marked", 1<<20)
	c := r.dial("keep")
	r.write(c, 1, 0, 64)
	must(t, c.Disconnect())
	vs, err := s.abm.ListVolumes(t.Context())
	must(t, err)
	for _, v := range vs {
		if v.Name == "marked" {
			must(t, s.abm.MarkVolumeDeleting(t.Context(), v.ID)) // and no more
		}
	}
	_, err = s.client.CreateNamespace(t.Context(), namespacePrefix+"orphan", "default") // a creation, cut off
	must(t, err)
	r.stop()

	s = r.start()
	vs, err = s.abm.ListVolumes(t.Context())
	must(t, err)
	if len(vs) != 1 || vs[0].Name != "keep" {
		t.Errorf("volumes %+v", vs)
	}
	r.maintain("the namespaces go", func() bool {
		ns, err := s.Namespaces(t.Context())
		must(t, err)
		return len(ns) == 1
	})
	r.check(r.dial("keep"), 1, 0, 64)
}

// entries are the names in a directory.
func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

// TestForeignDataDir: what is not ours is refused with a clear error, and left as it is.
func TestForeignDataDir(t *testing.T) {
	good := `{"magic":"scoria","format":1,"gateway":"gw-1","osds":["a","b"]}`
	for name, c := range map[string]struct {
		file, text string
		want       string
		is         error
	}{
		"somebody's":    {"photo.jpg", "x", `holds "photo.jpg"`, ErrDataDir},
		"empty file":    {identityName, "", "damaged", ErrDataDir},
		"garbage":       {identityName, "\x00\x01\x02", "damaged", ErrDataDir},
		"cut":           {identityName, good[:40], "damaged", ErrDataDir},
		"other magic":   {identityName, strings.Replace(good, "scoria", "minio", 1), "damaged", ErrDataDir},
		"no gateway":    {identityName, strings.Replace(good, "gw-1", "", 1), "damaged", ErrDataDir},
		"same disks":    {identityName, strings.Replace(good, `"b"`, `"a"`, 1), "damaged", ErrDataDir},
		"format 0":      {identityName, strings.Replace(good, `"format":1`, `"format":0`, 1), "damaged", ErrDataDir},
		"newer":         {identityName, strings.Replace(good, `"format":1`, `"format":2`, 1), "run a newer scoria", ErrNewer},
		"too long":      {identityName, strings.Repeat(" ", maxIdentity+1), "", ErrDataDir},
		"first cut off": {identityName + ".tmp", "{", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, c.file), []byte(c.text), 0o600))
			before := entries(t, dir)
			d, err := openDataDir(dir)
			if c.is == nil {
				must(t, err)
				must(t, d.Close())
				return
			}
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if _, err := Start(t.Context(), Config{Data: dir, NBD: []string{"127.0.0.1:0"}, Admin: "127.0.0.1:0"}); !errors.Is(err, c.is) {
				t.Errorf("start: %v", err)
			}
			if after := entries(t, dir); !slices.Equal(before, after) {
				t.Errorf("the directory held %q, now %q", before, after)
			}
			if b, err := os.ReadFile(filepath.Join(dir, c.file)); err != nil || string(b) != c.text {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := openDataDir(file); !errors.Is(err, ErrDataDir) || !strings.Contains(err.Error(), "is a file") {
		t.Errorf("a file: %v", err)
	}
}

// TestSecondServer: one data directory has one server; the first does not notice the second.
func TestSecondServer(t *testing.T) {
	r := newRig(t)
	s := r.start()
	other := r.cfg
	other.NBD = []string{"127.0.0.1:0"}
	if _, err := Start(t.Context(), other); !errors.Is(err, ErrDataDir) || !strings.Contains(err.Error(), "another scoria") {
		t.Errorf("same directory: %v", err)
	}
	other.Data, other.Admin = filepath.Join(r.dir, "other"), s.AdminAddr()
	if _, err := Start(t.Context(), other); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), s.AdminAddr()) {
		t.Errorf("same admin port: %v", err)
	}
	other.Admin, other.NBD = "127.0.0.1:0", r.cfg.NBD
	if _, err := Start(t.Context(), other); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("same live socket: %v", err)
	}
	r.create("v", 1<<20)
	r.write(r.dial("v"), 1, 0, 64)
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	// A socket that a killed server left.
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	must(t, err)
	must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
	must(t, syscall.Close(fd))
	ln, err := listen("unix:" + path)
	must(t, err)
	if _, err := listen("unix:" + path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a live socket is replaced: %v", err)
	}
	must(t, ln.Close())
	must(t, os.WriteFile(path, []byte("mine"), 0o600))
	if _, err := listen("unix:" + path); err == nil {
		t.Error("a file is replaced")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("a file in the way: %q, %v", b, err)
	}
	for _, bad := range []string{"unix:", "unix:" + filepath.Join(dir, "absent", "s"), "nonsense", "127.0.0.1:99999"} {
		if ln, err := listen(bad); err == nil {
			t.Errorf("%q is listened on: %v", bad, ln.Close())
		}
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"disks": {OSDs: 65}, "no disks": {OSDs: -1}, "buffer": {WriteBuffer: 1}, "part": {Dirs: map[string]string{"osd-x": "/x"}},
		"far part": {Dirs: map[string]string{"osd-64": "/x"}}, "padded part": {Dirs: map[string]string{"osd-01": "/x"}}, "relative": {Dirs: map[string]string{"abm": "x"}},
	} {
		if _, err := Start(context.Background(), c); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
