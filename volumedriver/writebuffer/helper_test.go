package writebuffer

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"scoria/internal/blocksum"
	"scoria/internal/vfs"
	"scoria/volumedriver/tlog"
)

// journal is what a test's owner was told: all records in order.
type journal struct {
	mu      sync.Mutex
	entries []Entry
}

func (j *journal) applied(entries []Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range entries {
		if n := len(j.entries); n > 0 && e.Seq != j.entries[n-1].Seq+1 {
			panic(fmt.Sprintf("record %d applied after %d", e.Seq, j.entries[n-1].Seq))
		}
		e.Sums = slices.Clone(e.Sums)
		j.entries = append(j.entries, e)
	}
}

func (j *journal) replay(e *Entry) error {
	j.applied([]Entry{*e})
	return nil
}

// list returns the records so far.
func (j *journal) list() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.entries)
}

func equal(a, b Entry) bool {
	return a.Seq == b.Seq && a.Kind == b.Kind && a.Addr == b.Addr && a.Count == b.Count && a.SCO == b.SCO && a.Index == b.Index && slices.Equal(a.Sums, b.Sums)
}

// write returns a write op with content that no other has.
func write(r *rand.Rand, addr, count uint64) Op {
	op := Op{Kind: tlog.Write, Addr: addr, Count: count, Data: vfs.AlignedBuffer(int(count) * ClusterSize)}
	for i := range count {
		c := op.Data[i*ClusterSize : (i+1)*ClusterSize]
		for j := 0; j < ClusterSize; j += 512 { // each sector differs
			binary.LittleEndian.PutUint64(c[j:], r.Uint64())
		}
		op.Sums = append(op.Sums, blocksum.Seal(blocksum.Of(c), addr+i))
	}
	return op
}

func clearOp(addr, count uint64) Op { return Op{Kind: tlog.Clear, Addr: addr, Count: count} }

// randomOps returns 1..n ops for one Append.
func randomOps(r *rand.Rand, n int, maxCount uint64) []Op {
	ops := make([]Op, r.IntN(n)+1)
	for i := range ops {
		if addr := r.Uint64N(1 << 20); r.IntN(6) == 0 {
			ops[i] = clearOp(addr, r.Uint64N(1<<30)+1)
		} else {
			ops[i] = write(r, addr, r.Uint64N(maxCount)+1)
		}
	}
	return ops
}

// testOptions are of a small log: SCOs of 16 clusters, O_DIRECT from 2 clusters on, space
// ahead of the end from the second sync on.
func testOptions(fsys vfs.FS, pool *Pool, j *journal) Options {
	return Options{FS: fsys, Dir: "/log", Pool: pool, Volume: 7, Epoch: 1, SCOClusters: 16, Direct: 2 * ClusterSize, SpaceWait: -1, Applied: j.applied,
		oftenSyncs: 2, aheadAfter: 1}
}

func newTestPool(t testing.TB, opts PoolOptions) *Pool {
	t.Helper()
	p := NewPool(opts)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func create(t testing.TB, opts Options) *Buffer {
	t.Helper()
	b, err := Create(context.Background(), opts, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeBuffer(t, b) })
	return b
}

func closeBuffer(t testing.TB, b *Buffer) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// reopen opens the log and checks what it is told against want, the records that were
// acknowledged or more; it returns the journal of the recovered records.
func reopen(t testing.TB, opts Options) (*Buffer, Recovery, *journal) {
	t.Helper()
	b, rec, j, err := tryOpen(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeBuffer(t, b) })
	return b, rec, j
}

func tryOpen(opts Options) (*Buffer, Recovery, *journal, error) {
	j := new(journal)
	opts.Applied = j.applied
	b, rec, err := Open(context.Background(), opts, j.replay)
	return b, rec, j, err
}

// checkPrefix fails unless got is exactly the first records of want (from a number on), and
// at least up to record least.
func checkPrefix(t testing.TB, got, want []Entry, from, least uint64) {
	t.Helper()
	want = want[min(from, uint64(len(want))):]
	if len(got) > len(want) {
		t.Fatalf("%d records came back, %d were written", len(got), len(want))
	}
	for i := range got {
		if !equal(got[i], want[i]) {
			t.Fatalf("record %d came back as %+v, was %+v", want[i].Seq, got[i], want[i])
		}
	}
	if last := from + uint64(len(got)); last < least {
		t.Fatalf("records up to %d came back, %d was promised", last, least)
	}
}

// checkData reads every cluster that entries mention, and verifies it.
func checkData(t testing.TB, b *Buffer, entries []Entry) {
	t.Helper()
	for _, e := range entries {
		if e.Kind != tlog.Write {
			continue
		}
		p := make([]byte, e.Count*ClusterSize)
		ok, err := b.ReadAt(e.SCO, e.Index, p)
		if err != nil || !ok {
			t.Fatalf("read record %d, SCO %x[%d]+%d: ok %v, err %v", e.Seq, e.SCO, e.Index, e.Count, ok, err)
		}
		for i := range e.Count {
			if got := blocksum.Seal(blocksum.Of(p[i*ClusterSize:(i+1)*ClusterSize]), e.Addr+i); got != e.Sums[i] {
				t.Fatalf("record %d, cluster %d: wrong data", e.Seq, i)
			}
		}
	}
}

// checkClosed loads all closed SCOs and checks them and their sections against entries.
func checkClosed(t testing.TB, b *Buffer, entries []Entry) {
	t.Helper()
	for _, c := range b.ClosedSCOs(0) {
		data, sums := make([]byte, c.Clusters*ClusterSize), make([]uint32, c.Clusters)
		if err := b.Load(context.Background(), c.Number, data, sums); err != nil {
			t.Fatal(err)
		}
		info, err := tlog.DecodeSection(c.Entries, func(e *Entry) error {
			if want := entries[e.Seq-entries[0].Seq]; !equal(*e, want) {
				return fmt.Errorf("section says %+v, was %+v", *e, want)
			}
			for i, sum := range e.Sums {
				at := int(e.Index) + i
				if plain := blocksum.Of(data[at*ClusterSize : (at+1)*ClusterSize]); plain != sums[at] || blocksum.Seal(plain, e.Addr+uint64(i)) != sum {
					return fmt.Errorf("SCO %x[%d]: wrong data or sum", c.Number, at)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if info.FirstSeq != c.FirstSeq || info.LastSeq != c.LastSeq || info.Clusters != uint64(c.Clusters) {
			t.Fatalf("%+v, section %+v", c, info)
		}
	}
}
