package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/backend"

	"scoria/nbd"
	"scoria/nbd/nbdtest"
)

func fromBackend(t testing.TB, b backend.Backend) nbd.Device {
	t.Helper()
	d, err := nbd.FromBackend(b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestGoNBDBackends(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		nbdtest.TestDevice(t, func(t *testing.T) nbd.Device { return fromBackend(t, backend.NewMemoryBackend(make([]byte, 1<<20))) })
	})
	t.Run("file", func(t *testing.T) {
		nbdtest.TestDevice(t, func(t *testing.T) nbd.Device {
			f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
			if err == nil {
				err = f.Truncate(1 << 20)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return fromBackend(t, backend.NewFileBackend(f))
		})
	})
	t.Run("a device as a backend as a device", func(t *testing.T) {
		nbdtest.TestDevice(t, func(t *testing.T) nbd.Device {
			return fromBackend(t, hidden{nbd.ToBackend(nbdtest.NewMemory(1 << 20)).(everything)})
		})
		m := nbdtest.NewMemory(4096)
		if fromBackend(t, nbd.ToBackend(m)) != nbd.Device(m) {
			t.Error("a device does not come back as it was")
		}
	})
}

type everything interface {
	backend.Backend
	nbd.Flusher
	nbd.Trimmer
	nbd.ZeroWriter
	nbd.Extenter
	nbd.ContextReaderAt
	nbd.ContextWriterAt
}

// hidden keeps FromBackend from taking the device out again.
type hidden struct{ everything }

// go-nbd's own memory backend keeps its mutex for ever after one read at its end, and its
// file backend grows on a write past it. Served here, neither happens.
func TestGoNBDBackendIsGuarded(t *testing.T) {
	w := disk(t, fromBackend(t, backend.NewMemoryBackend(make([]byte, 8192))), nil)
	c := w.attach()
	errno(t, "READ at the end", c.ReadAt(make([]byte, 512), 8192), 22)
	errno(t, "READ far off", c.ReadAt(make([]byte, 512), 1<<63+5), 22)
	errno(t, "READ of nothing at the end", c.ReadAt(nil, 8192), 0)
	errno(t, "WRITE past the end", c.WriteAt(make([]byte, 512), 8000, false), 28)
	w.must(c.WriteAt(pattern(512, 4), 7680, true))
	w.must(c.WriteZeroes(0, 8192, false, true))
	w.must(c.Trim(0, 8192, true))
	w.must(c.Flush())
	w.stillServes()
}

func TestToBackendKeepsIOContracts(t *testing.T) {
	b := nbd.ToBackend(nbdtest.NewDurable(1000))
	if n, err := b.Size(); n != 1000 || err != nil {
		t.Fatalf("size %d, %v", n, err)
	}
	if n, err := b.WriteAt(pattern(100, 1), 950); n != 50 || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("write past the end: %d, %v", n, err)
	}
	got := make([]byte, 100)
	if n, err := b.ReadAt(got, 950); n != 50 || err != io.EOF || !bytes.Equal(got[:50], pattern(100, 1)[:50]) {
		t.Errorf("read past the end: %d, %v", n, err)
	}
	if n, err := b.ReadAt(got, 1000); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	if _, err := b.ReadAt(got, -1); err == nil || err == io.EOF {
		t.Errorf("negative offset: %v", err)
	}
	if err := b.Sync(); err != nil {
		t.Error(err)
	}
	all, err := io.ReadAll(io.NewSectionReader(b, 0, 1000))
	if err != nil || len(all) != 1000 {
		t.Errorf("%d bytes, %v", len(all), err)
	}
}

// plain is a backend without anything optional that counts its syncs and can fail.
type plain struct {
	backend.Backend
	mu    sync.Mutex
	syncs int
	short bool
}

func (p *plain) Sync() error { p.mu.Lock(); defer p.mu.Unlock(); p.syncs++; return nil }

func (p *plain) WriteAt(b []byte, off int64) (int, error) {
	if p.short {
		return len(b) / 2, nil
	}
	return p.Backend.WriteAt(b, off)
}

func TestFromBackendSyncsForFlushAndFUA(t *testing.T) {
	p := &plain{Backend: backend.NewMemoryBackend(make([]byte, 1<<20))}
	d := fromBackend(t, p)
	ctx := t.Context()
	for i, err := range []error{d.WriteAt(ctx, []byte{1}, 0, true), d.WriteZeroes(ctx, 0, 1<<20, false, true), d.Trim(ctx, 0, 1, true), d.Flush(ctx)} {
		if err != nil || p.syncs != 4 {
			t.Errorf("call %d: %v, %d syncs", i, err, p.syncs)
		}
	}
	p.short = true
	if err := d.WriteAt(ctx, make([]byte, 10), 0, false); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("short write: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := d.WriteZeroes(cancelled, 0, 1<<20, false, false); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
