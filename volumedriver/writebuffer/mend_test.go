package writebuffer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"scoria/internal/vfs"
)

// unsyncable lets every sync of a segment fail while on says so, as Linux does: what was not
// written is given up.
func unsyncable(m *vfs.Mem, on *bool) vfs.Hook {
	return func(c vfs.Call) error {
		if !*on || c.Op != vfs.OpSync || strings.HasSuffix(c.Path, failedName) {
			return nil
		}
		return errors.Join(syscall.EIO, m.FailSync(c.Path))
	}
}

// TestFailedSyncOfAnEarlierProcess: a sync fails, the process dies or closes the log, and the
// machine lives. The next one finds all records, and once its sync has succeeded, all are on the
// disk: it must not take the word of the kernel, which has forgotten that it could not write them.
func TestFailedSyncOfAnEarlierProcess(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			mem := vfs.NewMem(vfs.MemOptions{Journal: true})
			bad := false
			fsys := vfs.NewFaulty(mem, unsyncable(mem, &bad))
			j := new(journal)
			opts := testOptions(fsys, newTestPool(t, PoolOptions{}), j)
			b, err := Create(t.Context(), opts, 1)
			if err != nil {
				t.Fatal(err)
			}
			appendSome(t, b, r)
			if err := b.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			appendSome(t, b, r)
			bad = true
			if err := b.Sync(t.Context()); !errors.Is(err, ErrFailed) {
				t.Fatalf("a sync that failed: %v", err)
			}
			appendMaybe(b, r)
			want := j.list()
			for round := range 1 + r.IntN(3) { // processes that come and go meanwhile
				bad = round > 0 && r.IntN(2) == 0 // the disk is still bad
				if r.IntN(2) == 0 {
					_ = b.Close() // it has failed
				}
				fsys.Crash()
				mem.Kill()
				fsys = vfs.NewFaulty(mem, unsyncable(mem, &bad))
				opts.FS, opts.Pool = fsys, newTestPool(t, PoolOptions{})
				var got *journal
				if b, _, got, err = tryOpen(opts); err != nil {
					t.Fatal(err)
				}
				checkPrefix(t, got.list(), want, 0, uint64(len(want)))
				if r.IntN(2) == 0 { // writing back fails behind everybody's back, again
					giveUpAll(t, mem, opts.Dir)
					continue
				}
				if bad {
					if err := b.Sync(t.Context()); !errors.Is(err, ErrFailed) {
						t.Fatalf("a sync that failed again: %v", err)
					}
				}
			}
			bad = false
			fsys.Crash()
			mem.Kill()
			opts.FS, opts.Pool = vfs.NewFaulty(mem, nil), newTestPool(t, PoolOptions{})
			b, _, last := reopen(t, opts)
			checkPrefix(t, last.list(), want, 0, uint64(len(want)))
			if err := b.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := opts.FS.Stat(opts.Dir + "/" + failedName); err == nil {
				t.Error("the mark of the failed sync is still there")
			}
			opts.FS, opts.Pool = mem.Crash(nil, vfs.CrashLost), newTestPool(t, PoolOptions{})
			_, _, got := reopen(t, opts)
			checkPrefix(t, got.list(), want, 0, uint64(len(want)))
		})
	}
}

// giveUpAll lets the kernel give up all of the log that is not on the disk.
func giveUpAll(t *testing.T, mem *vfs.Mem, dir string) {
	t.Helper()
	files, err := listSegments(mem, dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := mem.FailSync(f.path); err != nil {
			t.Fatal(err)
		}
	}
}

func appendSome(t *testing.T, b *Buffer, r *rand.Rand) {
	t.Helper()
	for range 1 + r.IntN(12) {
		if err := b.Append(context.Background(), randomOps(r, 3, 6)); err != nil {
			t.Fatal(err)
		}
	}
}

// appendMaybe appends to a log that may have failed.
func appendMaybe(b *Buffer, r *rand.Rand) {
	_ = b.Append(context.Background(), randomOps(r, 3, 6))
}
