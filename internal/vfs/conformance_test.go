package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// TestConformance holds OS, Mem and Faulty to one behaviour.
func TestConformance(t *testing.T) {
	kinds := map[string]func(t *testing.T) (FS, string){
		"OS": func(t *testing.T) (FS, string) { return OS, t.TempDir() },
		"Mem": func(t *testing.T) (FS, string) {
			m := NewMem(MemOptions{})
			must(t, m.MkdirAll("/d", 0o755))
			return m, "/d"
		},
		"Faulty": func(t *testing.T) (FS, string) { return NewFaulty(OS, nil), t.TempDir() },
	}
	cases := map[string]func(t *testing.T, fsys FS, dir string){
		"names": conformNames, "flags": conformFlags, "rename": conformRename, "read and write": conformReadWrite,
		"vectored": conformVectored, "sparse": conformSparse, "lock": conformLock, "write file": conformWriteFile,
		"direct": conformDirect, "closed": conformClosed, "random": conformRandom,
		"read many": conformReadMany,
	}
	for kind, open := range kinds {
		for name, run := range cases {
			t.Run(kind+"/"+name, func(t *testing.T) {
				fsys, dir := open(t)
				run(t, fsys, dir)
			})
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func create(t *testing.T, fsys FS, name string) File {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func write(t *testing.T, f File, off int64, b []byte) {
	t.Helper()
	n, err := f.WriteAt(b, off)
	must(t, err)
	if n != len(b) {
		t.Fatalf("wrote %d of %d bytes without an error", n, len(b))
	}
}

func readAll(t *testing.T, f File) []byte {
	t.Helper()
	size, err := f.Size()
	must(t, err)
	b := make([]byte, size)
	n, err := f.ReadAt(b, 0)
	if n != len(b) || err != nil && err != io.EOF {
		t.Fatalf("read %d of %d: %v", n, len(b), err)
	}
	return b
}

func conformNames(t *testing.T, fsys FS, dir string) {
	_, err := fsys.OpenFile(filepath.Join(dir, "no"), os.O_RDONLY, 0)
	wantErr(t, err, fs.ErrNotExist)
	wantErr(t, fsys.Remove(filepath.Join(dir, "no")), fs.ErrNotExist)
	wantErr(t, fsys.Rename(filepath.Join(dir, "no"), filepath.Join(dir, "x")), fs.ErrNotExist)
	wantErr(t, fsys.SyncDir(filepath.Join(dir, "no")), fs.ErrNotExist)
	_, err = fsys.Stat(filepath.Join(dir, "no"))
	wantErr(t, err, fs.ErrNotExist)
	_, err = fsys.ReadDir(filepath.Join(dir, "no"))
	wantErr(t, err, fs.ErrNotExist)
	_, _, err = fsys.Space(filepath.Join(dir, "no"))
	wantErr(t, err, fs.ErrNotExist)

	must(t, fsys.MkdirAll(filepath.Join(dir, "b", "c"), 0o755))
	must(t, fsys.MkdirAll(filepath.Join(dir, "b", "c"), 0o755))
	write(t, create(t, fsys, filepath.Join(dir, "a")), 0, []byte("hello"))
	wantErr(t, fsys.MkdirAll(filepath.Join(dir, "a", "x"), 0o755), syscall.ENOTDIR)
	_, err = fsys.OpenFile(filepath.Join(dir, "a", "x"), os.O_RDONLY, 0)
	wantErr(t, err, syscall.ENOTDIR)
	wantErr(t, fsys.Remove(filepath.Join(dir, "b")), syscall.ENOTEMPTY)
	list, err := fsys.ReadDir(dir)
	must(t, err)
	if len(list) != 2 || list[0].Name() != "a" || list[0].IsDir() || list[1].Name() != "b" || !list[1].IsDir() {
		t.Fatalf("ReadDir: %v", list)
	}
	info, err := fsys.Stat(filepath.Join(dir, "a"))
	must(t, err)
	if info.Size() != 5 || info.IsDir() || info.Name() != "a" {
		t.Fatalf("Stat: %+v", info)
	}
	must(t, fsys.Remove(filepath.Join(dir, "b", "c")))
	must(t, fsys.Remove(filepath.Join(dir, "b")))
	must(t, fsys.SyncDir(dir))
	total, free, err := fsys.Space(dir)
	must(t, err)
	if free == 0 || free > total {
		t.Fatalf("Space: %d free of %d", free, total)
	}
}

func conformFlags(t *testing.T, fsys FS, dir string) {
	name := filepath.Join(dir, "f")
	f := create(t, fsys, name)
	write(t, f, 0, []byte("0123456789"))
	_, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	wantErr(t, err, fs.ErrExist)
	ro, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	must(t, err)
	if _, err = ro.WriteAt([]byte("x"), 0); err == nil {
		t.Fatal("a file opened for reading took a write")
	}
	must(t, ro.Close())
	wo, err := fsys.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	if _, err = wo.ReadAt(make([]byte, 1), 0); err == nil {
		t.Fatal("a file opened for writing gave a read")
	}
	if size, err := wo.Size(); err != nil || size != 0 {
		t.Fatalf("after O_TRUNC: size %d, %v", size, err)
	}
	must(t, wo.Close())
}

func conformRename(t *testing.T, fsys FS, dir string) {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, create(t, fsys, a), 0, []byte("new"))
	old := create(t, fsys, b)
	write(t, old, 0, []byte("old"))
	must(t, fsys.Rename(a, b))
	got, err := ReadFile(fsys, b, 100)
	must(t, err)
	if string(got) != "new" {
		t.Fatalf("%q after rename", got)
	}
	if got := readAll(t, old); string(got) != "old" {
		t.Fatalf("the replaced file, still open, reads %q", got)
	}
	_, err = fsys.Stat(a)
	wantErr(t, err, fs.ErrNotExist)
	must(t, fsys.MkdirAll(filepath.Join(dir, "d", "e"), 0o755))
	wantErr(t, fsys.Rename(b, filepath.Join(dir, "d")), fs.ErrExist)
	wantErr(t, fsys.Rename(filepath.Join(dir, "d"), filepath.Join(dir, "d", "e", "f")), syscall.EINVAL)
	must(t, fsys.Rename(filepath.Join(dir, "d"), filepath.Join(dir, "g")))
	must(t, fsys.Rename(b, filepath.Join(dir, "g", "e", "b")))
	_, err = fsys.Stat(filepath.Join(dir, "g", "e", "b"))
	must(t, err)
}

func conformReadWrite(t *testing.T, fsys FS, dir string) {
	f := create(t, fsys, filepath.Join(dir, "f"))
	write(t, f, 4090, []byte("across the page"))
	b := make([]byte, 20)
	n, err := f.ReadAt(b, 4090)
	if n != 15 || err != io.EOF || string(b[:n]) != "across the page" {
		t.Fatalf("ReadAt over the end: %d, %v, %q", n, err, b[:n])
	}
	if n, err := f.ReadAt(b, 1<<40); n != 0 || err != io.EOF {
		t.Fatalf("ReadAt far behind the end: %d, %v", n, err)
	}
	if _, err := f.ReadAt(b, -1); err == nil || err == io.EOF {
		t.Fatalf("negative offset: %v", err)
	}
	if _, err := f.WriteAt(b, -1); err == nil {
		t.Fatal("write at a negative offset")
	}
	must(t, f.Truncate(4093))
	must(t, f.Truncate(4100))
	if got := readAll(t, f)[4090:]; string(got) != "acr\x00\x00\x00\x00\x00\x00\x00" {
		t.Fatalf("shrunk and grown again: %q", got)
	}
	must(t, f.Sync())
}

func conformVectored(t *testing.T, fsys FS, dir string) {
	f := create(t, fsys, filepath.Join(dir, "f"))
	r := rand.New(rand.NewPCG(1, 2))
	for _, count := range []int{0, 1, 2, 1023, 1024, 1025, 3000} {
		var bufs [][]byte
		var want []byte
		for range count {
			b := make([]byte, r.IntN(40)) // empty ones too
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			bufs = append(bufs, b)
			want = append(want, b...)
		}
		must(t, f.Truncate(0))
		n, err := f.WriteVAt(bufs, 7)
		must(t, err)
		if n != len(want) {
			t.Fatalf("%d buffers: wrote %d of %d", count, n, len(want))
		}
		if got := readAll(t, f); len(want) > 0 && !bytes.Equal(got[7:], want) {
			t.Fatalf("%d buffers: content differs", count)
		}
	}
}

func conformSparse(t *testing.T, fsys FS, dir string) {
	f := create(t, fsys, filepath.Join(dir, "f"))
	must(t, f.Allocate(0, 64<<10))
	if size, err := f.Size(); err != nil || size != 64<<10 {
		t.Fatalf("Allocate: size %d, %v", size, err)
	}
	b := bytes.Repeat([]byte{0xaa}, 64<<10)
	write(t, f, 0, b)
	if err := f.Punch(1000, 20000); errors.Is(err, syscall.EOPNOTSUPP) {
		t.Skip("the file system cannot punch holes")
	}
	must(t, f.Punch(50, 10))
	clear(b[1000:21000])
	clear(b[50:60])
	if !bytes.Equal(readAll(t, f), b) {
		t.Fatal("content after Punch differs")
	}
	must(t, f.Punch(32<<10, 1<<20)) // over the end: keeps the size
	clear(b[32<<10:])
	if !bytes.Equal(readAll(t, f), b) {
		t.Fatal("content after Punch over the end differs")
	}
	for _, r := range [][2]int64{{-1, 10}, {0, 0}, {0, -1}} {
		wantErr(t, f.Punch(r[0], r[1]), syscall.EINVAL)
		wantErr(t, f.Allocate(r[0], r[1]), syscall.EINVAL)
	}
}

func conformLock(t *testing.T, fsys FS, dir string) {
	name := filepath.Join(dir, "LOCK")
	l, err := Lock(fsys, name)
	must(t, err)
	_, err = Lock(fsys, name)
	wantErr(t, err, ErrLocked)
	must(t, l.Close())
	l, err = Lock(fsys, name)
	must(t, err)
	must(t, l.Close())
}

func conformWriteFile(t *testing.T, fsys FS, dir string) {
	name := filepath.Join(dir, "f")
	for _, want := range []string{"one", "", "a longer text"} {
		must(t, WriteFile(fsys, name, []byte(want), 0o600))
		got, err := ReadFile(fsys, name, 100)
		must(t, err)
		if string(got) != want {
			t.Fatalf("read %q, want %q", got, want)
		}
	}
	if _, err := ReadFile(fsys, name, 3); err == nil {
		t.Fatal("ReadFile took more than its limit")
	}
	if list, err := fsys.ReadDir(dir); err != nil || len(list) != 1 {
		t.Fatalf("left behind: %v, %v", list, err)
	}
}

func conformDirect(t *testing.T, fsys FS, dir string) {
	f, err := fsys.OpenFile(filepath.Join(dir, "f"), os.O_RDWR|os.O_CREATE|os.O_EXCL|ODirect|syscall.O_DSYNC, 0o600)
	must(t, err)
	defer f.Close() //nolint:errcheck // a test
	b := AlignedBuffer(3 * DirectAlign)
	for i := range b {
		b[i] = byte(i * 7)
	}
	write(t, f, DirectAlign, b)
	got := AlignedBuffer(4 * DirectAlign)
	if n, err := f.ReadAt(got, 0); n != len(got) || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
	if !bytes.Equal(got[DirectAlign:], b) {
		t.Fatal("content differs")
	}
	if n, err := f.ReadAt(got, 3*DirectAlign); n != DirectAlign || err != io.EOF {
		t.Fatalf("direct read over the end: %d, %v", n, err)
	}
}

func conformClosed(t *testing.T, fsys FS, dir string) {
	f := create(t, fsys, filepath.Join(dir, "f"))
	must(t, f.Close())
	_, err := f.ReadAt(make([]byte, 1), 0)
	wantErr(t, err, fs.ErrClosed)
	_, err = f.WriteAt(make([]byte, 1), 0)
	wantErr(t, err, fs.ErrClosed)
	wantErr(t, f.Close(), fs.ErrClosed)
	wantErr(t, f.Truncate(0), fs.ErrClosed)
	_, err = f.Size()
	wantErr(t, err, fs.ErrClosed)
	if err := f.Sync(); err == nil {
		t.Fatal("Sync of a closed file")
	}
}

// conformRandom compares random operations with a byte slice.
func conformRandom(t *testing.T, fsys FS, dir string) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	f := create(t, fsys, filepath.Join(dir, "f"))
	var model []byte
	grow := func(n int) {
		if n > len(model) {
			model = append(model, make([]byte, n-len(model))...)
		}
	}
	const span = 5 << 20 // over the chunk border of Mem
	for i := range 400 {
		off, n := r.IntN(span), 1+r.IntN(1<<r.IntN(18))
		switch r.IntN(10) {
		case 0:
			model = append(model, make([]byte, max(0, off-len(model)))...)[:off]
			must(t, f.Truncate(int64(off)))
		case 1:
			must(t, f.Punch(int64(off), int64(n)))
			if off < len(model) {
				clear(model[off:min(len(model), off+n)])
			}
		case 2:
			must(t, f.Allocate(int64(off), int64(n)))
			grow(off + n)
		case 3:
			must(t, f.Sync())
		default:
			b := bytes.Repeat([]byte{byte(i + 1)}, n)
			write(t, f, int64(off), b)
			grow(off + n)
			copy(model[off:], b)
		}
		if i%20 == 0 && !bytes.Equal(readAll(t, f), model) {
			t.Fatalf("seed %d: content differs after operation %d", seed, i)
		}
	}
	if !bytes.Equal(readAll(t, f), model) {
		t.Fatalf("seed %d: content differs at the end", seed)
	}
}

// conformReadMany: many reads at once give what each would give alone, also where some of
// them fail, more of them than the system takes at a time, from several callers.
func conformReadMany(t *testing.T, fsys FS, dir string) {
	const blocks = 300
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	direct, err := fsys.OpenFile(filepath.Join(dir, "direct"), os.O_RDWR|os.O_CREATE|ODirect, 0o600)
	must(t, err)
	closed := create(t, fsys, filepath.Join(dir, "closed"))
	must(t, closed.Close())
	data := AlignedBuffer(blocks * DirectAlign)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	write(t, direct, 0, data)
	plain := create(t, fsys, filepath.Join(dir, "plain"))
	write(t, plain, 0, data)
	var wg sync.WaitGroup
	for worker := range uint64(4) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, 1+worker))
			for range 20 {
				reqs := make([]ReadReq, 1+rnd.IntN(150))
				for i := range reqs {
					file := []File{direct, direct, direct, plain, closed}[rnd.IntN(5)]
					reqs[i] = ReadReq{File: file, Buf: AlignedBuffer(DirectAlign * (1 + rnd.IntN(3))), Off: DirectAlign * rnd.Int64N(blocks+2)}
				}
				ReadMany(reqs)
				for i := range reqs {
					checkReadMany(t, &reqs[i], data, reqs[i].File == closed)
				}
			}
		})
	}
	wg.Wait()
	must(t, direct.Close())
}

func checkReadMany(t *testing.T, r *ReadReq, data []byte, closed bool) {
	want := data[min(r.Off, int64(len(data))):min(r.Off+int64(len(r.Buf)), int64(len(data)))]
	switch {
	case closed:
		if r.Err == nil {
			t.Error("a read of a closed file succeeds")
		}
	case r.N != len(want) || !bytes.Equal(r.Buf[:r.N], want):
		t.Errorf("%d bytes at %d: %d bytes (%v), or wrong ones", len(r.Buf), r.Off, r.N, r.Err)
	case (r.Err == nil) != (r.N == len(r.Buf)) || r.Err != nil && r.Err != io.EOF:
		t.Errorf("%d bytes at %d: got %d, error %v", len(r.Buf), r.Off, r.N, r.Err)
	}
}
