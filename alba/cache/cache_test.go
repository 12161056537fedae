package cache

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"scoria/metadata"
)

func TestBlocks(t *testing.T) {
	b, err := NewBlocks(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	id := metadata.ObjectID{1}
	data := bytes.Repeat([]byte{9}, 4096)
	b.Add(&id, 3, data, 77)
	b.Wait()
	data[0] = 0 // the cache has a copy
	got := b.Get(&id, 3)
	if got == nil || got.Sum != 77 || got.Data[0] != 9 {
		t.Fatalf("%+v", got)
	}
	if b.Get(&id, 4) != nil || b.Get(&metadata.ObjectID{2}, 3) != nil {
		t.Fatal("a block that was never added")
	}
	if n := testing.AllocsPerRun(100, func() { b.Get(&id, 3) }); n > 0 {
		t.Errorf("Get allocates %v times", n)
	}
	none, err := NewBlocks(-1)
	if err != nil || none != nil {
		t.Fatal("a cache of no bytes")
	}
	none.Add(&id, 1, data, 1)
	if none.Get(&id, 1) != nil {
		t.Fatal("hit in no cache")
	}
	none.Wait()
	none.Close()
}

// TestScanDoesNotEvict: blocks in use survive a scan of a hundred times the cache's size. The policy
// is told of reads in batches that it drops while it is busy, so which blocks stay differs from run
// to run; as in the client, a block that was evicted is added again by its next reader.
func TestScanDoesNotEvict(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool forgets at random under the race detector, and with it the cache the reads it has seen")
	}
	b, err := NewBlocks(200 * blockCost)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	hot, cold := metadata.ObjectID{1}, metadata.ObjectID{2}
	data := make([]byte, 4096)
	left := 0
	for round := range 100 {
		left = 0
		for i := range uint32(100) {
			if b.Get(&hot, i) != nil {
				left++
			} else {
				b.Add(&hot, i, data, 0)
			}
		}
		for i := range uint32(200) {
			b.Add(&cold, uint32(round)*200+i, data, 0)
		}
		b.Wait()
	}
	if left < 20 { // least-recently-used would keep none
		t.Errorf("%d of 100 hot blocks survived the scan", left)
	}
}

func TestNames(t *testing.T) {
	n := NewNames[int](nameShards * 1000)
	if _, ok, _ := n.Get(1, "a"); ok {
		t.Fatal("hit in an empty cache")
	}
	n.Put(1, "a", 5, 100)
	if v, ok, _ := n.Get(1, "a"); !ok || v != 5 {
		t.Fatal(v, ok)
	}
	if _, ok, _ := n.Get(2, "a"); ok {
		t.Fatal("hit in another namespace")
	}
	n.Forget(1, "a")
	if _, ok, _ := n.Get(1, "a"); ok {
		t.Fatal("hit after Forget")
	}
	// A reader that was overtaken by a writer does not bring the old value back.
	_, _, old := n.Get(1, "b")
	n.Put(1, "b", 2, 10)
	n.Offer(1, "b", 1, 10, old)
	if v, _, _ := n.Get(1, "b"); v != 2 {
		t.Fatalf("stale value %d", v)
	}
	n.Forget(1, "b")
	n.Offer(1, "b", 1, 10, old)
	if _, ok, _ := n.Get(1, "b"); ok {
		t.Fatal("stale value after Forget")
	}
	for i := range 10_000 {
		n.Put(1, fmt.Sprint(i), i, 50)
	}
	if w := n.Weight(); w > nameShards*1000 || w < nameShards*500 {
		t.Errorf("weight %d of at most %d", w, nameShards*1000)
	}
	n.Put(1, "huge", 1, 1<<30)
	if _, ok, _ := n.Get(1, "huge"); ok {
		t.Error("an entry larger than the cache was taken")
	}
	if m := testing.AllocsPerRun(100, func() { n.Get(1, "9999") }); m > 0 {
		t.Errorf("Get allocates %v times", m)
	}
}

func TestNamesConcurrent(t *testing.T) {
	n := NewNames[int](1 << 16)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				name := fmt.Sprint(i % 50)
				switch (i + g) % 3 {
				case 0:
					n.Put(1, name, i, 10)
				case 1:
					_, _, tok := n.Get(1, name)
					n.Offer(1, name, i, 10, tok)
				case 2:
					n.Forget(1, name)
				}
			}
		})
	}
	wg.Wait()
}
