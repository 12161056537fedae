package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func rng(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func read(t *testing.T, fsys FS, name string) []byte {
	t.Helper()
	b, err := ReadFile(fsys, name, 1<<30)
	must(t, err)
	return b
}

func exists(fsys FS, name string) bool {
	_, err := fsys.Stat(name)
	return err == nil
}

func TestCrashKeepsWhatWasSynced(t *testing.T) {
	for _, mode := range Modes() {
		t.Run(mode.String(), func(t *testing.T) {
			r := rng(t)
			m := NewMem(MemOptions{})
			f := create(t, m, "/f")
			must(t, m.SyncDir("/"))
			synced := bytes.Repeat([]byte("s"), 3*pageSize)
			write(t, f, 0, synced)
			must(t, f.Sync())
			for range 50 {
				c := m.Crash(r, mode)
				if got := read(t, c, "/f"); !bytes.Equal(got, synced) {
					t.Fatal("synced data changed")
				}
			}
		})
	}
}

func TestCrashLosesWhatWasNotSynced(t *testing.T) {
	m := NewMem(MemOptions{})
	f := create(t, m, "/f")
	must(t, m.SyncDir("/"))
	write(t, f, 0, []byte("first"))
	must(t, f.Sync())
	write(t, f, 0, []byte("SECOND and longer"))
	must(t, f.Truncate(1<<20))
	if got := read(t, m.Crash(nil, CrashLost), "/f"); string(got) != "first" {
		t.Fatalf("lost: %q", got)
	}
	if got := read(t, m.Crash(nil, CrashKept), "/f"); len(got) != 1<<20 || !bytes.HasPrefix(got, []byte("SECOND")) {
		t.Fatalf("kept: %d bytes, %q", len(got), got[:10])
	}
	if got := read(t, m, "/f"); len(got) != 1<<20 {
		t.Fatal("Crash changed the original")
	}
}

// TestCrashTorn wants every mixture of sectors to turn up, and nothing but old and new sectors.
func TestCrashTorn(t *testing.T) {
	r := rng(t)
	for mode, unit := range map[CrashMode]int{CrashTorn: sectorSize, CrashTornPages: pageSize} {
		m := NewMem(MemOptions{})
		f := create(t, m, "/f")
		must(t, m.SyncDir("/"))
		const size = 4 * pageSize
		write(t, f, 0, bytes.Repeat([]byte("o"), size))
		must(t, f.Sync())
		write(t, f, 0, bytes.Repeat([]byte("n"), size))
		seen := map[string]bool{}
		for range 300 {
			got := read(t, m.Crash(r, mode), "/f")
			if len(got) != size {
				t.Fatalf("%v: %d bytes", mode, len(got))
			}
			pattern := ""
			for at := 0; at < size; at += unit {
				if n := bytes.Count(got[at:at+unit], []byte{got[at]}); n != unit {
					t.Fatalf("%v: unit at %d is mixed", mode, at)
				}
				pattern += string(got[at])
			}
			seen[pattern] = true
		}
		all, none := strings.Repeat("n", size/unit), strings.Repeat("o", size/unit)
		if !seen[all] || !seen[none] || len(seen) < 10 {
			t.Fatalf("%v: %d patterns, all new %t, all old %t", mode, len(seen), seen[all], seen[none])
		}
	}
}

func TestCrashSameSeedSameFork(t *testing.T) {
	m := NewMem(MemOptions{})
	r := rng(t)
	for i := range 20 {
		f := create(t, m, fmt.Sprintf("/f%d", i))
		for range 5 {
			write(t, f, r.Int64N(2<<20), bytes.Repeat([]byte{byte(i)}, 5000))
		}
		if i == 10 {
			must(t, m.SyncDir("/"))
		}
	}
	for seed := range uint64(20) {
		a := m.Crash(rand.New(rand.NewPCG(seed, 1)), CrashTorn)
		b := m.Crash(rand.New(rand.NewPCG(seed, 1)), CrashTorn)
		al, err := a.ReadDir("/")
		must(t, err)
		bl, err := b.ReadDir("/")
		must(t, err)
		if len(al) != len(bl) {
			t.Fatalf("seed %d: %d and %d files", seed, len(al), len(bl))
		}
		for _, e := range al {
			if !bytes.Equal(read(t, a, "/"+e.Name()), read(t, b, "/"+e.Name())) {
				t.Fatalf("seed %d: %s differs", seed, e.Name())
			}
		}
	}
}

func TestNamesNeedSyncDir(t *testing.T) {
	m := NewMem(MemOptions{})
	must(t, m.MkdirAll("/d", 0o755))
	must(t, m.SyncDir("/"))
	f := create(t, m, "/d/f")
	write(t, f, 0, []byte("x"))
	must(t, f.Sync())
	if exists(m.Crash(nil, CrashLost), "/d/f") {
		t.Fatal("a creation survived without SyncDir")
	}
	must(t, m.SyncDir("/d"))
	if !exists(m.Crash(nil, CrashLost), "/d/f") {
		t.Fatal("a creation was lost after SyncDir")
	}
	must(t, m.Remove("/d/f"))
	must(t, f.Close())
	c := m.Crash(nil, CrashLost)
	if got := read(t, c, "/d/f"); string(got) != "x" {
		t.Fatalf("an unsynced removal: %q", got)
	}
	must(t, m.SyncDir("/d"))
	if exists(m.Crash(nil, CrashLost), "/d/f") {
		t.Fatal("a removal was lost after SyncDir")
	}
}

func TestJournalSyncsNames(t *testing.T) {
	m := NewMem(MemOptions{Journal: true})
	must(t, m.MkdirAll("/a/b", 0o755))
	f := create(t, m, "/a/b/f")
	create(t, m, "/later")
	must(t, f.Sync())
	c := m.Crash(nil, CrashLost)
	if !exists(c, "/a/b/f") || exists(c, "/later") {
		t.Fatalf("file %t, later one %t", exists(c, "/a/b/f"), exists(c, "/later"))
	}
}

// TestRenameIsAtomic crashes between renames: there is always exactly one of the contents.
func TestRenameIsAtomic(t *testing.T) {
	r := rng(t)
	m := NewMem(MemOptions{})
	must(t, m.MkdirAll("/d", 0o755))
	must(t, m.MkdirAll("/e", 0o755))
	must(t, m.SyncDir("/"))
	must(t, WriteFile(m, "/d/f", []byte("0"), 0o600))
	for i := 1; i < 40; i++ {
		from, to := "/d/f", "/e/f"
		if i%2 == 0 {
			from, to = to, from
		}
		must(t, m.Rename(from, to))
		if i%5 == 0 {
			must(t, m.SyncDir([]string{"/d", "/e"}[r.IntN(2)]))
		}
		for range 5 {
			c := m.Crash(r, []CrashMode{CrashLost, CrashTorn}[r.IntN(2)])
			if exists(c, "/d/f") == exists(c, "/e/f") {
				t.Fatalf("rename %d: both or none: %t", i, exists(c, "/d/f"))
			}
		}
	}
}

// TestNamesSurviveAsPrefix checks the promise per directory.
func TestNamesSurviveAsPrefix(t *testing.T) {
	r := rng(t)
	m := NewMem(MemOptions{})
	for i := range 10 {
		create(t, m, fmt.Sprintf("/%d", i))
	}
	seen := map[int]bool{}
	for range 300 {
		list, err := m.Crash(r, CrashTorn).ReadDir("/")
		must(t, err)
		for i, e := range list {
			if e.Name() != fmt.Sprint(i) {
				t.Fatalf("not a prefix: %v", list)
			}
		}
		seen[len(list)] = true
	}
	if !seen[0] || !seen[10] || len(seen) < 4 {
		t.Fatalf("prefixes seen: %v", slices.Sorted(maps.Keys(seen)))
	}
}

func TestWritebackKeepsOverwrittenData(t *testing.T) {
	m := NewMem(MemOptions{})
	f := create(t, m, "/f")
	must(t, m.SyncDir("/"))
	must(t, f.Truncate(sectorSize))
	must(t, f.Sync())
	r := rng(t)
	seen := map[byte]bool{}
	for range 100 {
		write(t, f, 0, []byte("A"))
		m.Writeback(r)
		write(t, f, 0, []byte("B"))
		seen[read(t, m.Crash(r, CrashTorn), "/f")[0]] = true
		write(t, f, 0, []byte{0})
		must(t, f.Sync())
	}
	if !seen['A'] || !seen['B'] || !seen[0] {
		t.Fatalf("seen %v, want old, overwritten and new", seen)
	}
}

func TestDsyncWritesAreDurable(t *testing.T) {
	m := NewMem(MemOptions{})
	f, err := m.OpenFile("/f", os.O_RDWR|os.O_CREATE|syscall.O_DSYNC, 0o600)
	must(t, err)
	must(t, m.SyncDir("/"))
	want := bytes.Repeat([]byte("d"), 3*chunkPages*pageSize)
	write(t, f, 0, want)
	must(t, f.Truncate(5)) // not synced
	if got := read(t, m.Crash(nil, CrashLost), "/f"); !bytes.Equal(got, want) {
		t.Fatalf("%d bytes left", len(got))
	}
}

func TestCapacity(t *testing.T) {
	m := NewMem(MemOptions{Capacity: 10 * pageSize})
	f := create(t, m, "/f")
	n, err := f.WriteAt(make([]byte, 12*pageSize), pageSize/2)
	wantErr(t, err, syscall.ENOSPC)
	if n != 10*pageSize-pageSize/2 {
		t.Fatalf("short write of %d bytes", n)
	}
	write(t, f, 0, make([]byte, 10*pageSize)) // overwriting needs no space
	n, err = f.WriteVAt([][]byte{make([]byte, pageSize), make([]byte, pageSize)}, 9*pageSize)
	wantErr(t, err, syscall.ENOSPC)
	if n != pageSize {
		t.Fatalf("short vectored write of %d bytes", n)
	}
	free := func() uint64 {
		_, free, err := m.Space("/")
		must(t, err)
		return free
	}
	if free() != 0 {
		t.Fatalf("%d bytes free on a full disk", free())
	}
	must(t, f.Punch(pageSize+1, 3*pageSize))
	if free() != 2*pageSize {
		t.Fatalf("Punch freed %d bytes", free())
	}
	g := create(t, m, "/g")
	wantErr(t, g.Allocate(0, 3*pageSize), syscall.ENOSPC)
	wantErr(t, g.Allocate(0, 1<<62), syscall.ENOSPC)
	must(t, g.Allocate(pageSize, 2*pageSize))
	if free() != 0 {
		t.Fatalf("Allocate left %d bytes", free())
	}
	must(t, m.Remove("/f"))
	if free() != 0 {
		t.Fatal("the space of an open file came back")
	}
	must(t, f.Close())
	if free() != 8*pageSize {
		t.Fatalf("removal left %d bytes", free())
	}
	must(t, m.Rename("/g", "/h"))
	must(t, g.Close())
	create(t, m, "/h") // truncates
	if free() != 10*pageSize {
		t.Fatalf("truncation left %d bytes", free())
	}
}

func TestDirectIsStrict(t *testing.T) {
	m := NewMem(MemOptions{})
	f, err := m.OpenFile("/f", os.O_RDWR|os.O_CREATE|ODirect, 0o600)
	must(t, err)
	buf := AlignedBuffer(2 * DirectAlign)
	for name, io := range map[string]func() (int, error){
		"offset": func() (int, error) { return f.WriteAt(buf, 512) },
		"length": func() (int, error) { return f.WriteAt(buf[:DirectAlign+1], 0) },
		"memory": func() (int, error) { return f.WriteAt(buf[512:512+DirectAlign], 0) },
		"read":   func() (int, error) { return f.ReadAt(buf[:100], 0) },
	} {
		if _, err := io(); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("unaligned %s: %v", name, err)
		}
	}
}

// TestConcurrent runs everything at once for the race detector and checks what every writer owns.
func TestConcurrent(t *testing.T) {
	m := NewMem(MemOptions{})
	shared := create(t, m, "/shared")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			own := fmt.Sprintf("/own%d", g)
			for i := range 100 {
				b := bytes.Repeat([]byte{byte(i)}, 6000)
				if _, err := shared.WriteAt(b, int64(g)*6000); err != nil {
					t.Error(err)
				}
				if err := errors.Join(WriteFile(m, own, b, 0o600), shared.Sync()); err != nil {
					t.Error(err)
				}
				got := make([]byte, 6000)
				if _, err := shared.ReadAt(got, int64(g)*6000); err != nil || !bytes.Equal(got, b) {
					t.Errorf("writer %d read something else (%v)", g, err)
				}
			}
		})
	}
	wg.Go(func() {
		for seed := range uint64(30) {
			c := m.Crash(rand.New(rand.NewPCG(seed, 0)), CrashTorn)
			if _, err := c.ReadDir("/"); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
}

// TestSparseGigabyte keeps the promise that a big file is cheap.
func TestSparseGigabyte(t *testing.T) {
	m := NewMem(MemOptions{})
	f := create(t, m, "/f")
	must(t, m.SyncDir("/"))
	must(t, f.Allocate(0, 1<<30))
	for off := int64(0); off < 1<<30; off += 16 << 20 {
		write(t, f, off, []byte("mark"))
	}
	must(t, f.Sync())
	c := m.Crash(nil, CrashLost)
	if total, free, err := c.Space("/"); err != nil || total-free != 1<<30 {
		t.Fatalf("used %d, %v", total-free, err)
	}
	got := make([]byte, 4)
	g, err := c.OpenFile("/f", os.O_RDONLY, 0)
	must(t, err)
	if _, err := g.ReadAt(got, 512<<20); err != nil || string(got) != "mark" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestWriteFileIsAtomic(t *testing.T) {
	r := rng(t)
	before, after := bytes.Repeat([]byte("old"), 3000), bytes.Repeat([]byte("NEWER"), 4000)
	points := 0
	for k := int64(1); ; k++ {
		fired := false
		for range 30 {
			m := NewMem(MemOptions{})
			must(t, WriteFile(m, "/f", before, 0o600))
			c := FailAtFunc(k, func(call Call) error { return &Torn{Keep: r.IntN(int(call.Length) + 1), Err: ErrCrashed} })
			disk := NewFaulty(m, c.Hook)
			err := WriteFile(disk, "/f", after, 0o600)
			disk.Crash()
			if fired = c.Fired(); fired {
				wantErr(t, err, ErrCrashed)
			} else {
				must(t, err)
			}
			for _, mode := range Modes() {
				got := read(t, m.Crash(r, mode), "/f")
				if isNew := bytes.Equal(got, after); !isNew && (err == nil || !bytes.Equal(got, before)) {
					t.Fatalf("crash at operation %d (%v), answer %v: %d bytes that are neither old nor new", k, mode, err, len(got))
				}
			}
		}
		if !fired {
			break
		}
		points++
	}
	if points != 5 { // create, write, sync, rename, syncdir
		t.Fatalf("%d points of failure tried, want 5", points)
	}
}

func TestCrashedForkHasNoLocks(t *testing.T) {
	m := NewMem(MemOptions{})
	l, err := Lock(m, "/LOCK")
	must(t, err)
	defer l.Close() //nolint:errcheck // a test
	l2, err := Lock(m.Crash(nil, CrashLost), "/LOCK")
	must(t, err)
	must(t, l2.Close())
}

func TestLockNeedsLocker(t *testing.T) {
	type plain struct{ FS }
	_, err := Lock(plain{OS}, "x")
	wantErr(t, err, errors.ErrUnsupported)
}

func TestMemErrorsNameTheFile(t *testing.T) {
	_, err := NewMem(MemOptions{}).OpenFile("/some/file", os.O_RDONLY, 0)
	var pe *fs.PathError
	if !errors.As(err, &pe) || pe.Path != "/some/file" {
		t.Fatalf("%v", err)
	}
}
