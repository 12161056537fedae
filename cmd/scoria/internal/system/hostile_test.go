package system

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"scoria/cmd/scoria/internal/admin"
	"scoria/nbd/nbdtest"
)

// TestExportNames: what clients are told about names that are no volumes', and that none of
// it fills the log.
func TestExportNames(t *testing.T) {
	r := newRig(t)
	s := r.start()
	for _, e := range []struct{ name, want string }{{"", "there is none yet"}, {"v", "no such export"}} {
		refusedWith(t, r, e.name, e.want)
	}
	r.create("v", 1<<20)
	for _, e := range []struct{ name, want string }{
		{"", "nbd://HOST/VOLUME; there are: v"}, // the only one is no default
		{"V", "no such export"},
		{"v@s", `"v" has no snapshot "s"`},
		{"@", "has no snapshot"},
		{"../v", "is not allowed at place 1"},
		{"v/", "is not allowed at place 2"},
		{"%s%n\n", "is not allowed"},
		{strings.Repeat("x", 4096), "at most 128"},
		{strings.Repeat("ü", 2048), "at most 128"},
	} {
		refusedWith(t, r, e.name, e.want)
	}
	for i := range 11 {
		r.create("more"+string(rune('a'+i)), 1<<20)
	}
	refusedWith(t, r, "", "and 4 more")
	if why := s.failures.of(""); why != "" {
		t.Errorf("counted as a failure: %s", why)
	}
}

// refusedWith fails the test unless a GO for name is refused with a text that contains want.
func refusedWith(t *testing.T, r *rig, name, want string) {
	t.Helper()
	c, err := nbdtest.Dial("unix", r.dir+"/nbd")
	must(t, err)
	defer c.Close()
	e, ok := errors.AsType[*nbdtest.OptionError](c.Go(name))
	if !ok || e.Type != 1<<31|6 || !strings.Contains(e.Message, want) {
		t.Errorf("GO %.20q: %+v, want ERR_UNKNOWN with %q", name, e, want)
	}
}

// TestWholeVolume: with extended headers one request does something to all of 64 TiB, at once.
func TestWholeVolume(t *testing.T) {
	r := newRig(t)
	r.start()
	const size = 64 << 40
	r.create("vast", size)
	c, err := nbdtest.Dial("unix", r.dir+"/nbd")
	must(t, err)
	defer c.Close()
	_, err = c.NegotiateExtended("vast", "base:allocation")
	must(t, err)
	must(t, c.Go("vast"))
	data := []byte(strings.Repeat("scoria", 1000))
	offs := []uint64{0, 1<<40 + 4095, 33 << 40, size - uint64(len(data))}
	status := func() (data uint64, extents int) {
		reply, err := c.Do(7, 0, 0, size, nil)
		must(t, err)
		sum := uint64(0)
		for _, e := range reply.Status[1] {
			if sum += e.Length; e.Flags == 0 {
				data += e.Length
			}
		}
		if sum != size {
			t.Errorf("extents cover %d bytes", sum)
		}
		return data, len(reply.Status[1])
	}
	for name, clear := range map[string]func() error{
		"TRIM":         func() error { return c.Trim(0, size, false) },
		"WRITE_ZEROES": func() error { return c.WriteZeroes(0, size, false, true) },
	} {
		for _, off := range offs {
			must(t, c.WriteAt(data, off, false))
		}
		if d, n := status(); d != 9*4096 || n != 7 {
			t.Errorf("%d bytes in %d extents", d, n)
		}
		must(t, clear())
		if d, n := status(); d != 0 || n != 1 {
			t.Errorf("after %s of all: %d bytes in %d extents", name, d, n)
		}
		for _, off := range offs {
			got := make([]byte, len(data))
			must(t, c.ReadAt(got, off))
			if slices.Max(got) != 0 {
				t.Errorf("after %s of all, there is data at %d", name, off)
			}
		}
	}
	_, err = c.Do(5, 0, 0, size, nil) // CACHE
	must(t, err)
	must(t, c.Disconnect())
}

// TestAdminStorm: many at once create, grow, rename and delete the same few volumes. Each gets
// success or an answer that says what stood in the way, and what is left can be used.
func TestAdminStorm(t *testing.T) {
	r := newRig(t)
	s := r.start()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for i := range uint64(6) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, i))
			for range 12 {
				name, other := string(rune('a'+rnd.IntN(2))), string(rune('a'+rnd.IntN(2)))
				var err error
				switch rnd.IntN(5) {
				case 0, 1:
					_, err = s.CreateVolume(t.Context(), admin.CreateVolume{Name: name, Size: 1 << 20})
				case 2:
					_, err = s.UpdateVolume(t.Context(), name, admin.UpdateVolume{Size: 1<<20 + 4096*rnd.Uint64N(100)})
				case 3:
					_, err = s.UpdateVolume(t.Context(), name, admin.UpdateVolume{Name: other})
				case 4:
					err = s.DeleteVolume(t.Context(), name, rnd.IntN(2) == 0)
				}
				if err == nil {
					continue
				}
				if code := admin.AsError(err).Code; !slices.Contains([]string{admin.CodeNotFound, admin.CodeExists, admin.CodeBusy, admin.CodeInvalid}, code) {
					t.Errorf("%s: %v", code, err)
				}
			}
		})
	}
	wg.Wait()
	vs, err := s.Volumes(t.Context())
	must(t, err)
	for _, v := range vs {
		c := r.dial(v.Name)
		if c.Size != v.Size {
			t.Errorf("volume %s has %d bytes, listed with %d", v.Name, c.Size, v.Size)
		}
		r.write(c, 1, 0, 8)
		r.check(c, 1, 0, 8)
		must(t, c.Disconnect())
	}
}

// FuzzIdentity: the file that makes a directory Scoria's is refused or has all that it needs.
func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"magic":"scoria","format":1,"gateway":"g","osds":["a","b"]}`))
	f.Add([]byte(`{"magic":"scoria","format":99}`))
	f.Add([]byte(`{"magic":"scoria","format":1,"gateway":"g","osds":["a","a"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := parseIdentity(b)
		if err == nil && (id.Gateway == "" || id.Format != identityFormat || len(id.OSDs) > maxOSDs || slices.Contains(id.OSDs, "")) {
			t.Fatalf("accepted %+v", id)
		}
	})
}
