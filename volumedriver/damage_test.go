package volumedriver_test

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scoria/internal/frame"
	"scoria/internal/vfs"
	"scoria/volumedriver"
	"scoria/volumedriver/volumetest"
)

// damageLog flips a bit in the middle of every cluster-sized stretch of the local logs.
func damageLog(t *testing.T, fsys vfs.FS, dir string) {
	t.Helper()
	list, err := fsys.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range list {
		if !strings.HasSuffix(e.Name(), ".log") {
			continue
		}
		f, err := fsys.OpenFile(filepath.Join(dir, e.Name()), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		size, err := f.Size()
		if err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		for off := int64(3000); off < size; off += cluster {
			if _, err := f.ReadAt(b[:], off); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 4
			if _, err := f.WriteAt(b[:], off); err != nil {
				t.Fatal(err)
			}
			n++
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n == 0 {
		t.Fatal("nothing to damage")
	}
}

func TestDamagedLog(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	p := pattern(1, 0, 32*cluster)
	r.must(h.WriteAt(r.ctx, p, 0, true))
	r.must(h.Drain(r.ctx, nil))
	damageLog(t, r.fs, "/gw/volumes/0000000000000001/log")
	got := make([]byte, len(p))
	if done, err := h.TryReadAt(got, 0); done && err == nil && !bytes.Equal(got, p) {
		t.Fatal("wrong bytes")
	}
	r.check(h, 0, p) // from the object store
	if s := r.status(h); s.Stats.LocalDamage == 0 || s.Stats.Corrupt != 0 {
		t.Errorf("%+v", s.Stats)
	}

	// Not in the object store: an error, never wrong bytes; and the rest of the volume lives.
	q := pattern(2, 0, 4*cluster)
	r.must(h.WriteAt(r.ctx, q, 64*cluster, true))
	damageLog(t, r.fs, "/gw/volumes/0000000000000001/log")
	r.want(h.ReadAt(r.ctx, got[:cluster], 64*cluster), volumedriver.ErrCorrupt)
	r.want(h.WriteAt(r.ctx, []byte{1}, 64*cluster+5, false), volumedriver.ErrCorrupt)
	r.must(h.WriteAt(r.ctx, q, 65*cluster, false))
	r.check(h, 65*cluster, q)
	r.check(h, 0, p)
	r.must(h.Drain(r.ctx, nil)) // the damaged SCO does not block the way
	r.check(h, 65*cluster, q)
	r.want(h.ReadAt(r.ctx, got[:cluster], 64*cluster), volumedriver.ErrCorrupt)
	if s := r.status(h); s.Stats.Corrupt == 0 || s.Stats.DamagedSCOs == 0 {
		t.Errorf("%+v", s.Stats)
	}
}

// TestLyingStore: an object store that returns other data as good must not get through.
func TestLyingStore(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	p := pattern(1, 0, 32*cluster)
	r.must(h.WriteAt(r.ctx, p, 0, false))
	r.must(h.Drain(r.ctx, nil))
	r.restart(true)
	h = r.open("v")
	r.store.SetLie(true)
	r.want(h.ReadAt(r.ctx, make([]byte, len(p)), 0), volumedriver.ErrCorrupt)
	r.store.SetCached(true)
	got := make([]byte, cluster)
	if done, err := h.TryReadAt(got, 0); done && err == nil {
		t.Error("wrong bytes by the fast path")
	}
	r.store.SetLie(false)
	r.check(h, 0, p)
	if done, err := h.TryReadAt(got, 0); !done || err != nil || !bytes.Equal(got, p[:cluster]) {
		t.Errorf("the fast path does not use the store's cache: %v, %v", done, err)
	}
}

func TestMissingAndDamagedObjects(t *testing.T) {
	setup := func(t *testing.T) (*rig, []byte) {
		r := newRig(t)
		h := r.volume("v", 1<<20)
		p := pattern(1, 0, 64*cluster)
		r.must(h.WriteAt(r.ctx, p, 0, false))
		r.must(h.Drain(r.ctx, nil))
		r.must(h.Close())
		r.must(r.d.Close(r.ctx))
		r.fs = vfs.NewMem(vfs.MemOptions{})
		return r, p
	}
	first := func(r *rig, prefix string) string { return r.store.Names(1001, prefix)[0] }
	t.Run("SCO missing", func(t *testing.T) {
		r, p := setup(t)
		r.store.Remove(1001, first(r, "sco/"))
		r.d = r.start(r.opts)
		h := r.open("v")
		r.want(h.ReadAt(r.ctx, make([]byte, cluster), 0), volumedriver.ErrCorrupt)
		r.check(h, 16*cluster, p[16*cluster:])
	})
	t.Run("SCO damaged", func(t *testing.T) {
		r, p := setup(t)
		r.must(r.store.Damage(1001, first(r, "sco/"), func(b []byte) { b[cluster+7] ^= 1 }))
		r.d = r.start(r.opts)
		h := r.open("v")
		r.want(h.ReadAt(r.ctx, make([]byte, cluster), cluster), volumedriver.ErrCorrupt)
		r.check(h, 0, p[:cluster])
		r.check(h, 2*cluster, p[2*cluster:])
	})
	for name, f := range map[string]struct {
		do   func(r *rig)
		want error
	}{
		"head damaged": {func(r *rig) { r.store.Replace(1001, "head", []byte("SCVH and then some garbage, long enough")) }, volumedriver.ErrCorrupt},
		"head foreign": {func(r *rig) { r.store.Replace(1001, "head", bytes.Repeat([]byte("x"), 100)) }, frame.ErrMagic},
		"head newer": {func(r *rig) {
			r.store.Replace(1001, "head", frame.Append(nil, 'S'|'C'<<8|'V'<<16|'H'<<24, 1, 2, 0, []byte("of the future")))
		}, frame.ErrVersion},
		"TLog missing": {func(r *rig) { r.store.Remove(1001, first(r, "tlog/")) }, fs.ErrNotExist},
		"TLog damaged": {func(r *rig) {
			r.store.Replace(1001, first(r, "tlog/"), []byte("nothing like a TLog, but long enough to be one"))
		}, volumedriver.ErrCorrupt},
		"head unreachable": {func(r *rig) {
			r.store.SetHook(func(_ context.Context, c volumetest.StoreCall) error {
				if c.Op == volumetest.OpGet {
					return volumedriver.ErrUnavailable
				}
				return nil
			})
		}, volumedriver.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			r, p := setup(t)
			good := r.store.Clone()
			f.do(r)
			r.d = r.start(r.opts)
			_, err := r.d.OpenVolume(r.ctx, "v")
			r.want(err, f.want)
			// It changed nothing: with the object as it was, all is there.
			r.must(r.d.Close(r.ctx))
			r.opts.Store = good
			r.d = r.start(r.opts)
			r.check(r.open("v"), 0, p)
		})
	}
}

func TestBadStateFile(t *testing.T) {
	for name, b := range map[string][]byte{
		"garbage": []byte("garbage"), "empty": nil,
		"newer": frame.Append(nil, 'S'|'C'<<8|'V'<<16|'S'<<24, 2, 9, 0, []byte("of the future")),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			h := r.volume("v", 1<<20)
			p := pattern(1, 0, 4*cluster)
			r.must(h.WriteAt(r.ctx, p, 0, false))
			r.must(h.Drain(r.ctx, nil))
			r.must(h.Close())
			r.must(r.d.Close(r.ctx))
			r.must(vfs.WriteFile(r.fs, "/gw/volumes/0000000000000001/state", b, 0o600))
			r.d = r.start(r.opts)
			r.check(r.open("v"), 0, p)
			if list, err := r.fs.ReadDir("/gw/aside"); err != nil || len(list) != 1 {
				t.Errorf("set aside: %v, %v", list, err)
			}
		})
	}
}

// TestSalvage: flushed records that only the local log has are damaged. The volume does not
// open by itself; salvaged, it goes on with what is before the damage, and says so.
func TestSalvage(t *testing.T) {
	r := newRig(t)
	h := r.volume("v", 1<<20)
	p := pattern(1, 0, 8*cluster)
	r.must(h.WriteAt(r.ctx, p, 0, false))
	r.must(h.Drain(r.ctx, nil))
	r.must(h.WriteAt(r.ctx, pattern(2, 0, cluster), 0, true))
	r.must(h.WriteAt(r.ctx, pattern(3, 0, cluster), 4*cluster, true))
	r.must(h.WriteAt(r.ctx, pattern(4, 0, cluster), 8*cluster, true))
	disk := r.fs.(*vfs.Mem).Crash(nil, vfs.CrashLost) // power loss: the map checkpoint of a clean end is not there
	r.must(h.Close())
	_ = r.d.Close(r.ctx)
	r.fs = disk

	const dir = "/gw/volumes/0000000000000001/log"
	list, err := r.fs.ReadDir(dir)
	r.must(err)
	f, err := r.fs.OpenFile(filepath.Join(dir, list[len(list)-1].Name()), os.O_RDWR, 0)
	r.must(err)
	size, err := f.Size()
	r.must(err)
	_, err = f.WriteAt([]byte("rot"), size/2) // the second of three records
	r.must(err)
	r.must(f.Close())

	r.d = r.start(r.opts)
	_, err = r.d.OpenVolume(r.ctx, "v")
	r.want(err, volumedriver.ErrCorrupt)
	if !strings.Contains(err.Error(), "salvage") {
		t.Errorf("the error does not say what to do: %v", err)
	}
	h, err = r.d.Salvage(r.ctx, "v")
	r.must(err)
	copy(p, pattern(2, 0, cluster))
	r.check(h, 0, append(p, make([]byte, cluster)...))
	if s := r.status(h); s.Lost == "" {
		t.Error("the loss is not told")
	}
	r.must(h.WriteAt(r.ctx, pattern(5, 0, cluster), 8*cluster, true))
	r.must(h.Drain(r.ctx, nil))
	r.must(h.Close())
	r.restart(true)
	r.check(r.open("v"), 8*cluster, pattern(5, 0, cluster))
}

// TestDamagedHeader: the header of the oldest segment that is needed is damaged. Whether the log may
// begin anew behind the published head depends on what the segments behind it say was flushed.
func TestDamagedHeader(t *testing.T) {
	const dir = "/gw/volumes/0000000000000001/log"
	for name, flushed := range map[string]bool{"flushed": true, "not flushed": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			h := r.volume("v", 1<<20)
			p := pattern(1, 0, 64*cluster)
			r.must(h.WriteAt(r.ctx, p, 0, true))
			r.must(h.Drain(r.ctx, nil))
			old, err := r.fs.ReadDir(dir)
			r.must(err)
			for i := range uint64(3) { // an SCO each
				r.must(h.WriteAt(r.ctx, pattern(2+i, 0, 16*cluster), 16*i*cluster, flushed))
			}
			disk := r.fs.(*vfs.Mem).Crash(nil, vfs.CrashKept)
			r.must(h.Close())
			_ = r.d.Close(r.ctx)
			r.fs = disk
			for _, e := range old { // as if room had been needed
				r.must(r.fs.Remove(filepath.Join(dir, e.Name())))
			}
			list, err := r.fs.ReadDir(dir)
			r.must(err)
			if len(list) < 2 {
				t.Fatalf("%d segments: nobody is left to tell", len(list))
			}
			f, err := r.fs.OpenFile(filepath.Join(dir, list[0].Name()), os.O_RDWR, 0)
			r.must(err)
			_, err = f.WriteAt([]byte("rot"), 40)
			r.must(err)
			r.must(f.Close())
			r.d = r.start(r.opts)
			h, err = r.d.OpenVolume(r.ctx, "v")
			if flushed {
				r.want(err, volumedriver.ErrCorrupt)
				return
			}
			r.must(err)
			r.check(h, 0, p)
		})
	}
}
