package osd_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"scoria/alba/osd"
	"scoria/alba/osd/osdtest"
	"scoria/internal/vfs"
)

func put(s osd.API, t *testing.T, key string, v []byte) error {
	t.Helper()
	return s.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: []byte(key), Value: v}}})
}

func readAll(s osd.API, t *testing.T, key string, n int) error {
	t.Helper()
	r := []osd.Read{{Key: []byte(key), Buf: make([]byte, n)}}
	if err := s.Read(t.Context(), r); err != nil {
		return err
	}
	return r[0].Err
}

// eventually polls until ok, for what background work does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// TestFull: a full store refuses sets, reads and deletes, and recovers by itself; for a set
// capacity and for a full disk.
func TestFull(t *testing.T) {
	for name, o := range map[string]osd.Options{
		"capacity": {FS: vfs.NewMem(vfs.MemOptions{}), Capacity: 8 << 20, SegmentSize: 1 << 20},
		"disk":     {FS: vfs.NewMem(vfs.MemOptions{Capacity: 12 << 20}), SegmentSize: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, "/osd", o)
			v := osdtest.Fill(1, 100_000)
			n := 0
			var err error
			for ; n < 1000; n++ {
				if err = put(s, t, fmt.Sprint("k", n), v); err != nil {
					break
				}
			}
			if !errors.Is(err, osd.ErrFull) || n < 20 {
				t.Fatalf("after %d puts: %v, want ErrFull", n, err)
			}
			for i := range n {
				if err := readAll(s, t, fmt.Sprint("k", i), len(v)); err != nil {
					t.Fatalf("read when full: %v", err)
				}
			}
			for i := range n {
				if err := s.Apply(t.Context(), &osd.Batch{Deletes: [][]byte{fmt.Append(nil, "k", i)}}); err != nil {
					t.Fatalf("delete when full: %v", err)
				}
			}
			eventually(t, "sets are taken again", func() bool { return put(s, t, "again", v) == nil })
			if in, err := s.Info(t.Context()); err != nil || in.Full || in.Failed != "" {
				t.Errorf("info: %+v %v", in, err)
			}
		})
	}
}

// TestSpaceComesBack: overwriting one key for ever takes bounded space.
func TestSpaceComesBack(t *testing.T) {
	s := open(t, "/osd", osd.Options{FS: vfs.NewMem(vfs.MemOptions{Capacity: 64 << 20}), SegmentSize: 1 << 20, ReapBytes: 1 << 20, FlushBytes: 2 << 20})
	v := osdtest.Fill(1, 300_000)
	for i := range 400 { // 120 MB through a disk of 64 MB
		eventually(t, fmt.Sprint("put ", i), func() bool {
			err := put(s, t, "k", v)
			if err != nil && !errors.Is(err, osd.ErrFull) {
				t.Fatal(err)
			}
			return err == nil
		})
	}
}

// TestFailedDisk: after a failed sync or write nothing is acknowledged any more, and reads go on.
func TestFailedDisk(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpSync, vfs.OpWrite} {
		t.Run(op.String(), func(t *testing.T) {
			var broken atomic.Bool
			f := vfs.NewFaulty(vfs.NewMem(vfs.MemOptions{}), func(c vfs.Call) error {
				if broken.Load() && c.Op == op && strings.Contains(c.Path, "seg-") {
					return syscall.EIO
				}
				return nil
			})
			s := open(t, "/osd", osd.Options{FS: f})
			if err := put(s, t, "k", osdtest.Fill(1, 5000)); err != nil {
				t.Fatal(err)
			}
			broken.Store(true)
			if err := put(s, t, "lost", []byte("v")); !errors.Is(err, osd.ErrUnavailable) {
				t.Errorf("put on a broken disk: %v", err)
			}
			broken.Store(false) // it does not matter: the kernel reports an error once
			if err := put(s, t, "later", []byte("v")); !errors.Is(err, osd.ErrUnavailable) {
				t.Errorf("put after that: %v", err)
			}
			if err := readAll(s, t, "k", 5000); err != nil {
				t.Errorf("read: %v", err)
			}
			if in, err := s.Info(t.Context()); err != nil || in.Failed == "" {
				t.Errorf("info: %+v %v", in, err)
			}
		})
	}
}

// TestRot: a flipped bit is never returned, and the scrub finds it.
func TestRot(t *testing.T) {
	mem := vfs.NewMem(vfs.MemOptions{})
	s := open(t, "/osd", osd.Options{FS: mem})
	v := osdtest.Fill(1, 20_000)
	for _, k := range []string{"a", "b"} {
		if err := put(s, t, k, v); err != nil {
			t.Fatal(err)
		}
	}
	f, err := mem.OpenFile("/osd/seg-00000001", 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Segment header, record header, then the value of "a": its third block.
	if _, err := f.WriteAt([]byte{^v[2*osd.BlockSize]}, 4*osd.BlockSize); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := readAll(s, t, "a", len(v)); !errors.Is(err, osd.ErrCorrupt) {
		t.Errorf("read of a rotten value: %v", err)
	}
	if err := readAll(s, t, "b", len(v)); err != nil {
		t.Errorf("read of the other: %v", err)
	}
	bad, _, _, err := s.Verify(t.Context(), nil, nil)
	if err != nil || len(bad) != 1 || string(bad[0].Key) != "a" || bad[0].Block != 2 {
		t.Errorf("verify: %+v %v", bad, err)
	}
}

func TestSecondOpenerAndStrangers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, osd.Options{})
	if _, err := osd.Open(dir, osd.Options{}); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("second opener: %v, want ErrLocked", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := osd.Open(dir, osd.Options{UUID: "00000000-0000-4000-8000-000000000009"}); !errors.Is(err, osd.ErrWrongOSD) {
		t.Errorf("other identity: %v, want ErrWrongOSD", err)
	}
	mem := vfs.NewMem(vfs.MemOptions{})
	if err := mem.MkdirAll("/x/photos", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := osd.Open("/x", osd.Options{FS: mem}); !errors.Is(err, osd.ErrCorrupt) {
		t.Errorf("somebody else's directory: %v", err)
	}
}

// TestLostRecordIsTold: a damaged record that a later one says was durable is no torn end.
// The store opens and reads, removes nothing, and takes no more writes.
func TestLostRecordIsTold(t *testing.T) {
	mem := vfs.NewMem(vfs.MemOptions{})
	s := open(t, "/osd", osd.Options{FS: mem, SegmentSize: 1 << 20})
	for _, k := range []string{"a", "b", "c"} { // one after the other: each knows that the one before is durable
		if err := put(s, t, k, []byte(k)); err != nil {
			t.Fatal(err)
		}
	}
	after := mem.Crash(nil, vfs.CrashKept) // the index has nothing of it yet: all is replayed
	const segment = "/osd/seg-00000001"
	before, err := vfs.ReadFile(after, segment, 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	f, err := after.OpenFile(segment, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	const second = 2 * osd.BlockSize // behind the segment's header and the first record
	if _, err := f.WriteAt([]byte{^before[second+20]}, second+20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, "/osd", osd.Options{FS: after, SegmentSize: 1 << 20})
	if in, err := s.Info(t.Context()); err != nil || !strings.Contains(in.Failed, "damaged") {
		t.Errorf("info: %+v %v", in, err)
	}
	if err := readAll(s, t, "a", 1); err != nil {
		t.Errorf("what is before the damage: %v", err)
	}
	if err := put(s, t, "d", []byte("d")); !errors.Is(err, osd.ErrUnavailable) {
		t.Errorf("put: %v", err)
	}
	now, err := vfs.ReadFile(after, segment, 2<<20)
	if err != nil || len(now) != len(before) {
		t.Errorf("the log was cut from %d to %d bytes: %v", len(before), len(now), err)
	}
}
