package system

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"scoria/nbd/nbdtest"
)

// TestKill: kill -9 in the middle of writes, while the first of them are being drained, loses
// nothing that was acknowledged (C1), several times over.
func TestKill(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create("v", 256<<20)
	r.stop()
	acked := uint64(0) // requests of requestBlocks
	for round := range uint64(3) {
		kill := r.spawn()
		c := r.dial("v")
		r.check(c, 1, 0, acked*requestBlocks)
		stopAt := acked + 20 + rand.Uint64N(80)
		var done atomic.Uint64
		done.Store(acked)
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			for done.Load() < stopAt {
				<-time.After(100 * time.Microsecond) // polling another process' progress
			}
			kill()
		}()
		p := make([]byte, requestBlocks*block)
		for n := acked; n < 256<<20/uint64(len(p)); n++ {
			fill(p, 1, n*requestBlocks)
			if err := c.WriteAt(p, n*requestBlocks*block, n%16 == 0); err != nil {
				break
			}
			done.Add(1)
		}
		<-killed
		acked = done.Load()
		if acked < stopAt {
			t.Fatalf("round %d: %d writes acknowledged, the server was to die after %d", round, acked, stopAt)
		}
	}
	r.start() // replaces the socket that the killed one left
	r.degraded(false)
	r.check(r.dial("v"), 1, 0, acked*requestBlocks)
}

// TestGatewayLost: the gateway's directory is gone, with a volume that was drained, and in the
// middle of a load. The first is identical, the second a prefix of its writes (C3).
func TestGatewayLost(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create("v", 256<<20)
	r.stop()
	kill := r.spawn()
	c := r.dial("v")
	p := make([]byte, requestBlocks*block)
	const writes = 300
	for n := range uint64(writes) {
		fill(p, 1, n*requestBlocks)
		must(t, c.WriteAt(p, n*requestBlocks*block, false))
	}
	kill()
	r.forget()
	r.start()
	c = r.dial("v")
	all := r.look(c, 1, 0, writes*requestBlocks)
	if all.wrong+all.failed > 0 {
		t.Errorf("no prefix: %+v", all)
	}
	if first := r.look(c, 1, 0, uint64(all.right)*requestBlocks); first.right != all.right {
		t.Errorf("no prefix: %+v of the first %d writes", first, all.right)
	}
	t.Logf("%d of %d writes are on the disk servers", all.right, writes)
	r.write(c, 2, 0, 2048) // it can be written on
	must(t, c.Flush())
	must(t, c.Disconnect())
	r.drain("v")
	r.stop()
	r.forget()
	r.start()
	r.check(r.dial("v"), 2, 0, 2048)
}

// TestFlippedSegments: damage in the local segments of a volume that is not drained. What is
// read is right, an error, or missing from the end with a report; never other bytes.
func TestFlippedSegments(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create("v", 64<<20)
	r.stop()
	kill := r.spawnIdle()
	c := r.dial("v")
	r.write(c, 1, 0, 3072)
	must(t, c.Flush()) // the records behind tell that those before are synced
	r.write(c, 1, 3072, 1024)
	must(t, c.Flush())
	kill()
	var segs []string
	must(t, filepath.WalkDir(r.path("gateway", "volumes"), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if st, err := d.Info(); err == nil && st.Size() > 1<<20 {
				segs = append(segs, p)
			}
		}
		return err
	}))
	if len(segs) == 0 {
		t.Fatal("no segments")
	}
	flip(t, segs[0], 1<<20, 1<<30) // one byte
	r.start()
	c, err := r.try("v", 20*time.Second)
	if err != nil {
		if !errors.As(err, new(*nbdtest.OptionError)) {
			t.Errorf("open: %v", err)
		}
		r.degraded(true)
		return
	}
	got := r.look(c, 1, 0, 4096)
	t.Logf("%+v, problems %q", got, r.status().Problems)
	if got.wrong > 0 || got.right == 64 {
		t.Errorf("one flipped byte: %+v", got)
	}
	if got.failed+got.zero > 0 && r.status().Health == "ok" {
		t.Errorf("%+v, and status says that all is well", got)
	}
}

// TestFullDiskServers: writes wait when the disk servers are full, reads go on, status tells;
// deleting another volume makes room, and the writes go on.
func TestFullDiskServers(t *testing.T) {
	r := newRig(t)
	r.cfg.OSDCapacity = 48 << 20
	r.start()
	r.create("big", 256<<20)
	r.create("v", 512<<20)
	c := r.dial("big")
	r.write(c, 1, 0, 20<<20/block)
	must(t, c.Flush())
	must(t, c.Disconnect())
	r.drain("big")
	c = r.dial("v")
	var written atomic.Uint64
	ended := make(chan error, 1)
	go func() {
		p := make([]byte, requestBlocks*block)
		for n := range uint64(512 << 20 / len(p)) {
			fill(p, 2, n*requestBlocks)
			if err := c.WriteAt(p, n*uint64(len(p)), false); err != nil {
				ended <- err
				return
			}
			written.Add(1)
		}
		ended <- nil
	}()
	r.until("status tells", func() bool { return r.status().Health != "ok" })
	stalled := r.standstill(&written, ended)
	if text := strings.Join(r.status().Problems, "\n"); !strings.Contains(text, "full") {
		t.Errorf("nothing is said of full disk servers: %s", text)
	}
	d := r.dial("v")
	r.check(d, 2, 0, stalled*requestBlocks)
	r.check(r.dial("big"), 1, 0, 20<<20/block)
	must(t, r.sys.DeleteVolume(t.Context(), "big", true))
	r.maintain("writes go on", func() bool { return written.Load() > stalled+4 || len(ended) > 0 })
	stalled = r.standstill(&written, ended)
	r.check(d, 2, 0, stalled*requestBlocks)
	must(t, c.Close())
	r.stop()
	r.start()
	r.check(r.dial("v"), 2, 0, stalled*requestBlocks)
}

// until polls a condition of another part of the system.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s: not after 20 s; status %+v", what, r.status())
		}
	}
}

// standstill waits until a counter has not moved for half a second or its owner has ended.
func (r *rig) standstill(n *atomic.Uint64, ended <-chan error) uint64 {
	r.t.Helper()
	last, since := n.Load(), time.Now()
	r.until("writes stand still", func() bool {
		if now := n.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 500*time.Millisecond || len(ended) > 0
	})
	return n.Load()
}

// TestFullFileSystem: the write buffer's file system is smaller than the write buffer. Writes
// go on at the pace of the drain; when something else fills it they fail with ENOSPC, and
// go on when there is room.
func TestFullFileSystem(t *testing.T) {
	r := newRig(t)
	small := filepath.Join(r.dir, "small")
	must(t, os.Mkdir(small, 0o700))
	if err := syscall.Mount("none", small, "tmpfs", 0, "size=40m"); err != nil {
		t.Skipf("no small file system without the right to mount: %v", err)
	}
	t.Cleanup(func() {
		r.stop()
		must(t, syscall.Unmount(small, 0))
	})
	r.cfg.Dirs = map[string]string{"gateway": filepath.Join(small, "gateway")}
	r.start()
	r.create("v", 256<<20)
	c := r.dial("v")
	r.write(c, 1, 0, 80<<20/block)
	must(t, c.Flush())
	r.check(c, 1, 0, 80<<20/block)
	r.drain("v")

	filler := filepath.Join(small, "filler")
	f, err := os.Create(filler)
	must(t, err)
	for {
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			break
		}
	}
	must(t, f.Close())
	failed := error(nil)
	p := make([]byte, requestBlocks*block)
	acked := uint64(0)
	for n := range uint64(400) {
		fill(p, 2, n*requestBlocks)
		if failed = c.WriteAt(p, n*uint64(len(p)), false); failed != nil {
			break
		}
		acked++
	}
	t.Logf("%d writes beside the filler, then %v", acked, failed)
	if failed != nil && nbdtest.ErrnoOf(failed) != 28 {
		t.Errorf("a full file system is told as %v", failed)
	}
	r.check(c, 2, 0, acked*requestBlocks) // reads go on
	must(t, os.Remove(filler))
	r.write(c, 3, 0, 1024)
	must(t, c.Flush())
	must(t, c.Disconnect())
	r.stop()
	r.start()
	c = r.dial("v")
	r.check(c, 3, 0, 1024)
	if acked*requestBlocks > 1024 {
		r.check(c, 2, 1024, acked*requestBlocks-1024)
	}
}
