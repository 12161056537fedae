package vfs

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
)

func TestFaultyEveryOperation(t *testing.T) {
	m := NewMem(MemOptions{})
	must(t, m.MkdirAll("/d", 0o755))
	var fail Op
	var last Call
	disk := NewFaulty(m, func(c Call) error {
		last = c
		if c.Op == fail {
			return ErrInjected
		}
		return nil
	})
	f := create(t, disk, "/d/f")
	buf := make([]byte, 8)
	second := func(_ any, err error) error { return err }
	ops := map[Op]struct {
		run  func() error
		call Call
	}{
		OpOpen:       {func() error { return second(disk.OpenFile("/d/f", os.O_RDONLY, 0)) }, Call{Path: "/d/f"}},
		OpCreate:     {func() error { return second(disk.OpenFile("/d/g", os.O_RDWR|os.O_CREATE, 0)) }, Call{Path: "/d/g"}},
		OpReadDir:    {func() error { return second(disk.ReadDir("/d")) }, Call{Path: "/d"}},
		OpStat:       {func() error { return second(disk.Stat("/d/f")) }, Call{Path: "/d/f"}},
		OpSpace:      {func() error { _, _, err := disk.Space("/d"); return err }, Call{Path: "/d"}},
		OpStartWrite: {func() error { return f.StartWrite(5, 6) }, Call{Path: "/d/f", Off: 5, Length: 6}},
		OpLock:       {func() error { return second(disk.Lock("/d/l")) }, Call{Path: "/d/l"}},
		OpRead:       {func() error { return second(f.ReadAt(buf, 3)) }, Call{Path: "/d/f", Off: 3, Length: 8}},
		OpSize:       {func() error { return second(f.Size()) }, Call{Path: "/d/f"}},
		OpRemove:     {func() error { return disk.Remove("/d/g") }, Call{Path: "/d/g"}},
		OpRename:     {func() error { return disk.Rename("/d/f", "/d/h") }, Call{Path: "/d/f", To: "/d/h"}},
		OpMkdir:      {func() error { return disk.MkdirAll("/e", 0o755) }, Call{Path: "/e"}},
		OpSyncDir:    {func() error { return disk.SyncDir("/d") }, Call{Path: "/d"}},
		OpWrite:      {func() error { return second(f.WriteAt(buf, 5)) }, Call{Path: "/d/f", Off: 5, Length: 8}},
		OpSync:       {f.Sync, Call{Path: "/d/f"}},
		OpTruncate:   {func() error { return f.Truncate(9) }, Call{Path: "/d/f", Off: 9}},
		OpAllocate:   {func() error { return f.Allocate(1, 2) }, Call{Path: "/d/f", Off: 1, Length: 2}},
		OpPunch:      {func() error { return f.Punch(1, 2) }, Call{Path: "/d/f", Off: 1, Length: 2}},
		OpClose:      {f.Close, Call{Path: "/d/f"}},
	}
	for op, o := range ops {
		if op == OpClose {
			continue
		}
		fail = op
		wantErr(t, o.run(), ErrInjected)
		o.call.Op = op
		if last != o.call {
			t.Errorf("%v: the hook saw %+v, want %+v", op, last, o.call)
		}
	}
	fail = OpClose
	wantErr(t, f.Close(), ErrInjected)
	if n, err := m.Stat("/d/f"); err != nil || n.Size() != 0 {
		t.Fatalf("a refused operation left its mark: %v, %v", n, err)
	}
	disk.Crash()
	for op, o := range ops {
		if op != OpClose {
			wantErr(t, o.run(), ErrCrashed)
		}
	}
}

func TestFaultyTornWrite(t *testing.T) {
	for name, write := range map[string]func(f File) (int, error){
		"plain":    func(f File) (int, error) { return f.WriteAt([]byte("0123456789"), 0) },
		"vectored": func(f File) (int, error) { return f.WriteVAt([][]byte{[]byte("012"), {}, []byte("3456789")}, 0) },
	} {
		for keep, want := range map[int]string{0: "", 2: "01", 5: "01234", 10: "0123456789", 99: "0123456789", -1: "0123456789"} {
			m := NewMem(MemOptions{})
			disk := NewFaulty(m, func(c Call) error {
				if c.Op == OpWrite {
					return &Torn{Keep: keep, Err: syscall.EIO}
				}
				return nil
			})
			n, err := write(create(t, disk, "/f"))
			wantErr(t, err, syscall.EIO)
			if got := string(read(t, m, "/f")); got != want || n != len(want) {
				t.Errorf("%s, keep %d: %q is left, %d reported, want %q", name, keep, got, n, want)
			}
			if disk.Crashed() {
				t.Error("crashed by a plain error")
			}
		}
	}
}

func TestFaultyLostAnswer(t *testing.T) {
	m := NewMem(MemOptions{})
	disk := NewFaulty(m, func(c Call) error {
		if c.Op == OpRename || c.Op == OpCreate && c.Path == "/g" {
			return &Torn{Keep: -1, Err: ErrInjected}
		}
		return nil
	})
	create(t, disk, "/f")
	wantErr(t, disk.Rename("/f", "/h"), ErrInjected)
	_, err := disk.OpenFile("/g", os.O_RDWR|os.O_CREATE, 0)
	wantErr(t, err, ErrInjected)
	if !exists(m, "/h") || !exists(m, "/g") {
		t.Fatal("the deed was not done")
	}
}

func TestFaultyCrashAt(t *testing.T) {
	for k := int64(1); k <= 5; k++ {
		m := NewMem(MemOptions{})
		c := FailAt(k, ErrCrashed)
		disk := NewFaulty(m, c.Hook)
		done := 0
		for i := range 4 {
			f, err := disk.OpenFile("/f"+string(rune('0'+i)), os.O_RDWR|os.O_CREATE, 0)
			if err != nil {
				wantErr(t, err, ErrCrashed)
				continue
			}
			done++
			must(t, f.Close())
		}
		if want := int(min(k-1, 4)); done != want || c.Fired() != (k <= 4) || disk.Crashed() != (k <= 4) {
			t.Fatalf("k = %d: %d done, fired %t, crashed %t, seen %d", k, done, c.Fired(), disk.Crashed(), c.Seen())
		}
	}
}

// TestFaultyCrashIsABarrier: what was answered with success before or during Crash is below.
func TestFaultyCrashIsABarrier(t *testing.T) {
	for range 50 {
		m := NewMem(MemOptions{})
		disk := NewFaulty(m, nil)
		f := create(t, disk, "/f")
		acked := make([]byte, 4)
		var wg sync.WaitGroup
		started := make(chan struct{}, 4)
		for g := range 4 {
			wg.Go(func() {
				started <- struct{}{}
				for v := byte(1); v < 200; v++ {
					if _, err := f.WriteAt(bytes.Repeat([]byte{v}, 16), int64(g)*16); err != nil {
						if !errors.Is(err, ErrCrashed) {
							t.Error(err)
						}
						return
					}
					acked[g] = v
				}
			})
		}
		<-started
		disk.Crash()
		got := make([]byte, 64)
		fork := m.Crash(nil, CrashKept)
		wg.Wait()
		g, err := fork.OpenFile("/f", os.O_RDONLY, 0)
		must(t, err)
		_, _ = g.ReadAt(got, 0) // a short file reads as zeroes here
		for i, want := range acked {
			if got[i*16] < want {
				t.Fatalf("writer %d: %d was acknowledged, the disk has %d", i, want, got[i*16])
			}
		}
	}
}

func TestSetHook(t *testing.T) {
	disk := NewFaulty(NewMem(MemOptions{}), func(Call) error { return ErrInjected })
	wantErr(t, disk.SyncDir("/"), ErrInjected)
	disk.SetHook(nil)
	must(t, disk.SyncDir("/"))
}
