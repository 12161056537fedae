package system

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scoria/metadata"
	"scoria/nbd/nbdtest"
)

// stored makes a volume "v" of 8 MiB whose data is on the disk servers only, and stops.
func stored(r *rig) {
	r.t.Helper()
	r.start()
	r.create("v", 16<<20)
	c := r.dial("v")
	r.write(c, 1, 0, 2048)
	must(r.t, c.Flush())
	must(r.t, c.Disconnect())
	r.drain("v")
	r.maintain("late fragments", func() bool { return r.missing() == 0 })
	r.stop()
	r.forget()
}

// forget removes what the gateway keeps locally, so that reads need the disk servers.
func (r *rig) forget() {
	r.t.Helper()
	must(r.t, os.RemoveAll(r.path("gateway")))
}

func (r *rig) checkStored() {
	r.t.Helper()
	c := r.dial("v")
	r.check(c, 1, 0, 2048)
	if got := r.look(c, 1, 2048, 2048); got.zero != 32 {
		r.t.Errorf("what was never written: %+v", got)
	}
	must(r.t, c.Disconnect())
}

// TestDisksGone: up to two directories that are gone are made anew; their data is readable at
// once and repaired, so that then two others may be lost.
func TestDisksGone(t *testing.T) {
	r := newRig(t)
	stored(r)
	for round, gone := range [][]string{{"osd-0", "osd-3"}, {"osd-1", "osd-5"}} {
		must(t, os.RemoveAll(r.path(gone[0])))
		must(t, os.RemoveAll(r.path(gone[1])))
		must(t, os.Mkdir(r.path(gone[1]), 0o700)) // empty is as good as gone
		r.start()
		st := r.degraded(true)
		// Lost until the first look at what needs repair; then what lacks fragments, of which most is repaired at once.
		if text := strings.Join(st.Problems, "\n"); strings.Count(text, "lost") < 2 && !strings.Contains(text, "lack fragments") {
			t.Errorf("round %d: problems %s", round, text)
		}
		r.checkStored()
		r.maintain("repair", func() bool { return r.missing() == 0 })
		r.maintain("lost disk servers are done with", func() bool { return r.status().Health == "ok" })
		r.stop()
		r.forget()
	}
	r.start()
	r.checkStored()
}

// TestTooManyDisksGone: more than two are not replaced, nothing is declared lost, reads fail
// or are right, and all is back when the directories are.
func TestTooManyDisksGone(t *testing.T) {
	r := newRig(t)
	stored(r)
	away := filepath.Join(r.dir, "away")
	must(t, os.Mkdir(away, 0o700))
	gone := []string{"osd-0", "osd-2", "osd-4"}
	for _, d := range gone {
		must(t, os.Rename(r.path(d), filepath.Join(away, d)))
	}
	before, err := os.ReadFile(r.path(identityName))
	must(t, err)
	r.start()
	st := r.degraded(true)
	if text := strings.Join(st.Problems, "\n"); strings.Count(text, "is a disk not mounted") != 3 || strings.Contains(text, "made anew") {
		t.Errorf("problems: %s", text)
	}
	if c, err := r.try("v", 5*time.Second); err == nil {
		var got error
		p, want := make([]byte, block), make([]byte, block)
		for n := uint64(0); n < 256 && got == nil; n += 64 { // each may be on the three that are left
			if got = c.ReadAt(p, n*block); got == nil {
				if fill(want, 1, n); !bytes.Equal(p, want) {
					t.Errorf("block %d is wrong", n)
				}
			}
		}
		// It may also wait for a disk server to come back, longer than this client does.
		if got != nil && nbdtest.ErrnoOf(got) != 5 && !errors.Is(got, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", got)
		}
		must(t, c.Close())
	} else if !errors.As(err, new(*nbdtest.OptionError)) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("open: %v", err)
	}
	r.stop()
	if after, err := os.ReadFile(r.path(identityName)); err != nil || string(after) != string(before) {
		t.Errorf("identities were changed: %s (%v)", after, err)
	}
	for _, d := range gone {
		if _, err := os.Stat(r.path(d)); err == nil {
			t.Errorf("%s was made", d)
			must(t, os.RemoveAll(r.path(d)))
		}
		must(t, os.Rename(filepath.Join(away, d), r.path(d)))
	}
	r.start()
	r.degraded(false)
	r.checkStored()
}

// TestStrangeDisks: two directories changed places, one is a link to nothing. None is touched,
// the rest serves, and it is told.
func TestStrangeDisks(t *testing.T) {
	for name, c := range map[string]struct {
		do, undo func(r *rig)
		want     string
	}{
		"swapped": {swap, swap, "osd-1"},
		"dangling link": {
			func(r *rig) {
				must(r.t, os.Rename(r.path("osd-2"), filepath.Join(r.dir, "disk")))
				must(r.t, os.Symlink(filepath.Join(r.dir, "absent"), r.path("osd-2")))
			},
			func(r *rig) {
				must(r.t, os.Remove(r.path("osd-2")))
				must(r.t, os.Symlink(filepath.Join(r.dir, "disk"), r.path("osd-2"))) // now it leads somewhere
			}, "is a link to nothing",
		},
		"file": {
			func(r *rig) {
				must(r.t, os.Rename(r.path("osd-2"), filepath.Join(r.dir, "disk")))
				must(r.t, os.WriteFile(r.path("osd-2"), []byte("x"), 0o600))
			},
			func(r *rig) {
				must(r.t, os.Remove(r.path("osd-2")))
				must(r.t, os.Rename(filepath.Join(r.dir, "disk"), r.path("osd-2")))
			}, "not a directory",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			stored(r)
			c.do(r)
			r.start()
			st := r.degraded(true)
			if text := strings.Join(st.Problems, "\n"); !strings.Contains(text, c.want) {
				t.Errorf("problems: %s", text)
			}
			r.checkStored()
			cl := r.dial("v")
			r.write(cl, 2, 2048, 512) // and it takes writes
			must(t, cl.Flush())
			r.drain("v")
			must(t, cl.Disconnect())
			r.stop()
			c.undo(r)
			r.forget()
			r.start()
			r.maintain("all is well again", func() bool { return r.status().Health == "ok" })
			cl = r.dial("v")
			r.check(cl, 1, 0, 2048)
			r.check(cl, 2, 2048, 512)
		})
	}
}

func swap(r *rig) {
	tmp := r.path("tmp")
	must(r.t, os.Rename(r.path("osd-0"), tmp))
	must(r.t, os.Rename(r.path("osd-1"), r.path("osd-0")))
	must(r.t, os.Rename(tmp, r.path("osd-1")))
}

// TestMovedParts: each part may be elsewhere, by a link or by Dirs.
func TestMovedParts(t *testing.T) {
	r := newRig(t)
	stored(r)
	for _, part := range []string{"abm", "nsm-0", "osd-0"} {
		must(t, os.Rename(r.path(part), filepath.Join(r.dir, part)))
	}
	must(t, os.Symlink(filepath.Join(r.dir, "abm"), r.path("abm")))
	r.cfg.Dirs = map[string]string{"nsm-0": filepath.Join(r.dir, "nsm-0"), "osd-0": filepath.Join(r.dir, "osd-0"), "gateway": filepath.Join(r.dir, "gw")}
	r.start()
	r.degraded(false)
	r.checkStored()
}

// TestFlippedFragments: with damage on two disk servers everything is read; with damage on
// all, what is read is right or an error.
func TestFlippedFragments(t *testing.T) {
	r := newRig(t)
	stored(r)
	damage := func(osds ...string) {
		for _, d := range osds {
			segs, err := filepath.Glob(r.path(d, "seg-*"))
			must(t, err)
			if len(segs) == 0 {
				segs, err = filepath.Glob(r.path(d, "*", "seg-*"))
				must(t, err)
			}
			if len(segs) == 0 {
				t.Fatalf("%s has no segments: %q", d, entries(t, r.path(d)))
			}
			for _, s := range segs {
				flip(t, s, 5*block+77, 16<<10)
			}
		}
	}
	damage("osd-1", "osd-4")
	r.start()
	r.checkStored()
	r.stop()
	r.forget()
	damage("osd-0", "osd-2", "osd-3", "osd-5")
	r.start()
	c, err := r.try("v", 30*time.Second)
	if err != nil { // its head or map cannot be read: said, not made up
		if !errors.As(err, new(*nbdtest.OptionError)) {
			t.Errorf("open: %v", err)
		}
		return
	}
	if got := r.look(c, 1, 0, 2048); got.zero+got.wrong > 0 || got.failed == 0 {
		t.Errorf("damage everywhere: %+v", got)
	}
	r.degraded(true)
}

// TestHangingDiskServers: disk servers that take connections and never answer are told, each as
// itself; nothing else is made to look broken by the time that asking them takes.
func TestHangingDiskServers(t *testing.T) {
	r := newRig(t)
	s := r.start()
	hanging := make(map[string]bool)
	for i := range 2 {
		ln, err := net.Listen("tcp", "127.0.0.1:0") // the kernel takes the connections
		must(t, err)
		defer func() { must(t, ln.Close()) }()
		uuid := fmt.Sprintf("00000000-0000-4000-8000-00000000000%d", i)
		_, err = s.abm.SeenOSD(t.Context(), metadata.OSD{UUID: uuid, Node: "elsewhere", Addr: ln.Addr().String(), Capacity: 1 << 30})
		must(t, err)
		_, err = s.abm.ClaimOSD(t.Context(), uuid)
		must(t, err)
		hanging[uuid] = true
	}
	st := r.degraded(true)
	for _, o := range st.OSDs {
		if hanging[o.UUID] != (o.Problem != "") {
			t.Errorf("disk server %d at %s: problem %q", o.ID, o.Addr, o.Problem)
		}
	}
	for _, p := range st.Problems {
		if strings.Contains(p, "listed") {
			t.Errorf("blamed for what disk servers do: %s", p)
		}
	}
}
