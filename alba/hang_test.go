package alba_test

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"scoria/alba"
	"scoria/alba/albatest"
	"scoria/alba/osd/osdtest"
)

// TestSilentDiskIsNotFelt: readers, many and with no budget for hedges, never wait longer than
// for a short silence when one disk answers nothing, from the first read on; and it is
// soon out of use. (Virtual time.)
func TestSilentDiskIsNotFelt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cl := albatest.New(t, albatest.Config{Client: alba.Options{BlockCacheBytes: -1}})
		ns := cl.Namespace("v")
		want := data(1, 4<<20)
		put(t, cl.Client, ns, "o", want)
		id := cl.Manifest(ns, "o").Chunks[0].Fragments[0].OSD
		cl.ByID(id).SetHang(osdtest.OpRead, true)
		begin := time.Now()
		var longest, last atomic.Int64
		var wg sync.WaitGroup
		for r := range 40 { // more than hedges in the budget
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(r), 1))
				for time.Since(begin) < 4*time.Second {
					off, sent := rng.IntN(len(want)/4096)*4096, time.Now()
					got, err := read(t, cl.Client, ns, "o", off, 4096)
					if err != nil || !bytes.Equal(got, want[off:off+4096]) {
						t.Errorf("read at %d: %v", off, err)
						return
					}
					took := time.Since(sent)
					raise(&longest, int64(took))
					if took > time.Millisecond {
						raise(&last, int64(time.Since(begin)))
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		wg.Wait()
		if d := time.Duration(longest.Load()); d > 150*time.Millisecond {
			t.Errorf("a read took %v", d)
		}
		if d := time.Duration(last.Load()); d > 3*time.Second {
			t.Errorf("reads waited for the silent disk until %v after it fell silent", d)
		}
		cl.ByID(id).SetHang(osdtest.OpRead, false)
	})
}

func raise(v *atomic.Int64, to int64) {
	for old := v.Load(); to > old && !v.CompareAndSwap(old, to); old = v.Load() {
	}
}

// TestLateBatchEnds: the data of an object that is committed is not held much longer by one
// disk that hangs; the disk goes out of use.
func TestLateBatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cl := albatest.New(t, albatest.Config{})
		ns := cl.Namespace("v")
		cl.OSD(1).SetHang(osdtest.OpApply, true)
		for i := range 3 {
			sent, released := time.Now(), make(chan struct{})
			err := cl.Client.Apply(t.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: "o", Data: data(1, 1<<20), Release: func() { close(released) }}}})
			if err != nil {
				t.Fatal(err)
			}
			if d := time.Since(sent); d > 100*time.Millisecond {
				t.Errorf("put %d took %v", i, d)
			}
			<-released
			if d := time.Since(sent); d > 1500*time.Millisecond {
				t.Errorf("the data of put %d was held for %v", i, d)
			}
		}
		if n := cl.OSD(1).Calls(osdtest.OpApply); n > 4 {
			t.Errorf("%d batches and probes for a disk that hangs", n)
		}
		cl.OSD(1).SetHang(osdtest.OpApply, false)
	})
}
