package alba_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"scoria/alba"
	"scoria/alba/albatest"
	"scoria/alba/maintenance"
	"scoria/alba/osd"
)

// storeDir is where a real disk server of a test keeps its files.
type storeDirs struct {
	root   string
	stores []*osd.Store
}

func (s *storeDirs) dir(i int) string { return filepath.Join(s.root, fmt.Sprint("osd-", i)) }

func (s *storeDirs) open(t testing.TB, i int) *osd.Store {
	t.Helper()
	st, err := osd.Open(s.dir(i), osd.Options{UUID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i+1), Capacity: 1 << 30, SegmentSize: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

func realCluster(t *testing.T, n int) (*albatest.Cluster, *storeDirs) {
	t.Helper()
	s := &storeDirs{root: t.TempDir()}
	p := albatest.Preset()
	p.ChunkSize = 256 << 10
	cl := albatest.New(t, albatest.Config{OSDs: n, Preset: p, Client: alba.Options{BlockCacheBytes: -1, Slack: 5 * time.Second}, RealOSD: func(t testing.TB, i int) osd.API {
		st := s.open(t, i)
		s.stores = append(s.stores, st)
		return st
	}})
	return cl, s
}

// TestRealStoresLoseTwoDirectories: any two of six directories are deleted; all data reads back,
// and is repaired onto the disks when they return empty.
func TestRealStoresLoseTwoDirectories(t *testing.T) {
	cl, dirs := realCluster(t, 6)
	ns := cl.Namespace("v")
	all := map[string][]byte{}
	for i, n := range []int{1, 4096, 100_001, 1 << 20, 1<<20 + 77} {
		name := fmt.Sprint("o", i)
		all[name] = data(uint64(i), n)
		put(t, cl.Client, ns, name, all[name])
		checkAll(t, cl.Client, ns, name, all[name])
	}
	backend, err := cl.ABM.BackendID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lose := func(i int) {
		if err := dirs.stores[i].Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(dirs.dir(i)); err != nil {
			t.Fatal(err)
		}
		st := dirs.open(t, i)
		if err := st.Claim(t.Context(), backend, uint32(cl.OSD(i).Record.ID)); err != nil {
			t.Fatal(err)
		}
		dirs.stores[i], cl.OSD(i).API = st, st
	}
	for _, pair := range [][2]int{{0, 3}, {1, 5}} { // the second round leans on what the first repaired
		lose(pair[0])
		lose(pair[1])
		c := cl.NewClient(alba.Options{BlockCacheBytes: -1})
		for name, want := range all {
			got, err := c.Get(t.Context(), ns, name, len(want))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("without %v: %s: %v", pair, name, err)
			}
		}
		a, err := maintenance.New(maintenance.Options{Client: c, ABM: cl.ABM, GCGrace: -1, RepairAge: -1, BytesPerSecond: -1})
		if err != nil {
			t.Fatal(err)
		}
		albatest.Eventually(t, "repair of what was lost", func() bool {
			if err := a.RunOnce(t.Context(), maintenance.TaskScrub, maintenance.TaskGC, maintenance.TaskRepair, maintenance.TaskDeletes); err != nil {
				t.Fatal(err)
			}
			for name := range all {
				m, err := c.Stat(t.Context(), ns, name)
				if err != nil {
					t.Fatal(err)
				}
				if len(badFragments(t, cl, ns, m)) > 0 {
					return false
				}
			}
			return true
		})
	}
}

// TestRealStoresFlippedBytes flips random bytes in the files of two running disk servers: a reader
// gets the right bytes or an error, never others.
func TestRealStoresFlippedBytes(t *testing.T) {
	cl, dirs := realCluster(t, 6)
	ns := cl.Namespace("v")
	want := data(1, 1<<20)
	put(t, cl.Client, ns, "o", want)
	rng := rand.New(rand.NewPCG(1, 1))
	for _, i := range []int{2, 4} {
		flipped := 0
		err := filepath.WalkDir(dirs.dir(i), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil || info.Size() < 64<<10 {
				return err
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			for range 400 {
				var b [1]byte
				off := rng.Int64N(info.Size())
				if _, err := f.ReadAt(b[:], off); err != nil {
					return err
				}
				b[0] ^= 1 << rng.IntN(8)
				if _, err := f.WriteAt(b[:], off); err != nil {
					return err
				}
				flipped++
			}
			return f.Sync()
		})
		if err != nil || flipped == 0 {
			t.Fatalf("%d bytes flipped, %v", flipped, err)
		}
	}
	for i := range 256 {
		got, err := read(t, cl.Client, ns, "o", i*4096, 4096)
		if err != nil && !errors.Is(err, alba.ErrUnavailable) {
			t.Fatalf("block %d: %v", i, err)
		}
		if err == nil && !bytes.Equal(got, want[i*4096:][:4096]) {
			t.Fatalf("block %d: wrong data", i)
		}
	}
	checkAll(t, cl.Client, ns, "o", want)
}
