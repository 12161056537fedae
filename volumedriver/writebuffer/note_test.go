package writebuffer

import (
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"scoria/internal/frame"
	"scoria/internal/vfs"
)

// atRest makes a log of n synced records, the last of them with nothing behind it.
func atRest(t *testing.T, n int) (*vfs.Mem, Options, *Buffer) {
	t.Helper()
	ctx := t.Context()
	mem := vfs.NewMem(vfs.MemOptions{})
	opts := testOptions(mem, newTestPool(t, PoolOptions{MemoryBytes: -1}), new(journal))
	b := create(t, opts)
	r := rand.New(rand.NewPCG(3, 3))
	for range n {
		if err := b.Append(ctx, []Op{write(r, r.Uint64N(1000), 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	return mem, opts, b
}

// rot flips a byte at off from the end of what counts of the last segment.
func rot(t *testing.T, mem *vfs.Mem, b *Buffer, back int64) {
	t.Helper()
	segs := *b.segs.Load()
	seg := segs[len(segs)-1]
	f, err := mem.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var c [1]byte
	_, rerr := f.ReadAt(c[:], seg.size-back)
	c[0] ^= 0x10
	_, werr := f.WriteAt(c[:], seg.size-back)
	if err := errors.Join(rerr, werr, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestNote damages the last synced record of a log at rest, header and data. It is no torn tail.
func TestNote(t *testing.T) {
	for name, how := range map[string]func(t *testing.T, b *Buffer){
		"idle": func(t *testing.T, b *Buffer) {
			if !b.WantsNote() {
				t.Error("wants no note")
			}
			for range 2 {
				if err := b.NoteSynced(); err != nil {
					t.Fatal(err)
				}
			}
			if b.WantsNote() {
				t.Error("wants another note")
			}
		},
		"closed": closeBuffer0,
	} {
		for _, back := range []int64{100, ClusterSize + 10, ClusterSize + headerSize} {
			mem, opts, b := atRest(t, 5)
			segs := *b.segs.Load()
			how(t, b)
			b.segs.Store(&segs) // Close has forgotten them
			rot(t, mem, b, back)
			opts.FS = mem.Crash(nil, vfs.CrashKept)
			if _, _, _, err := tryOpen(opts); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s, %d bytes before the end: %v", name, back, err)
				continue
			}
			opts.Salvage = true
			b2, rec, _, err := tryOpen(opts)
			if err != nil || !rec.LostSynced || rec.LastSeq != 4 {
				t.Fatalf("salvage: %+v %v", rec, err)
			}
			closeBuffer(t, b2)
			opts.Salvage = false // the loss has been accepted
			b2, rec, _, err = tryOpen(opts)
			if err != nil || rec.LastSeq != 4 {
				t.Fatalf("after the salvage: %+v %v", rec, err)
			}
			closeBuffer(t, b2)
		}
	}
}

func closeBuffer0(t *testing.T, b *Buffer) { closeBuffer(t, b) }

// TestNoteOnlyAtRest: a log that goes on writes no notes, and one with unsynced records neither.
func TestNoteOnlyAtRest(t *testing.T) {
	ctx := t.Context()
	mem, opts, b := atRest(t, 3)
	r := rand.New(rand.NewPCG(4, 4))
	absent := func(when string) {
		t.Helper()
		if err := b.NoteSynced(); err != nil {
			t.Fatal(err)
		}
		if _, err := mem.Stat(opts.Dir + "/" + noteName); err == nil {
			t.Errorf("a note %s", when)
		}
	}
	absent("at the first look")
	if err := b.Append(ctx, []Op{write(r, 1, 1)}); err != nil {
		t.Fatal(err)
	}
	absent("with unsynced records")
	if err := b.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	absent("right after a sync")
}

// TestNoteOfOthers: notes that are damaged, of another volume, or about a segment that is not here
// any more, say nothing; without them the lost record is taken for a torn tail.
func TestNoteOfOthers(t *testing.T) {
	mem, opts, b := atRest(t, 5)
	seg := (*b.segs.Load())[0]
	right := note{volume: opts.Volume, number: seg.number, seq: 5, head: seg.head}
	volume, number, head := right, right, right
	volume.volume++
	number.number += 7
	head.head++
	damaged := right.encode()
	damaged[20] ^= 1
	rot(t, mem, b, 100)
	for name, c := range map[string]struct {
		note []byte
		lost bool
	}{
		"right": {right.encode(), true}, "volume": {volume.encode(), false}, "number": {number.encode(), false}, "header": {head.encode(), false},
		"damaged": {damaged, false}, "empty": {nil, false}, "long": {append(right.encode(), 1), false},
	} {
		fork := mem.Crash(nil, vfs.CrashKept)
		opts.FS = fork
		if err := vfs.WriteFile(fork, opts.Dir+"/"+noteName, c.note, 0o600); err != nil {
			t.Fatal(err)
		}
		b2, rec, _, err := tryOpen(opts)
		if c.lost != errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %+v, %v", name, rec, err)
		}
		if err == nil {
			closeBuffer(t, b2)
		}
	}
}

func TestNoteGolden(t *testing.T) {
	const want = "SCWN\x01\x01\x00\x00\x1c\x00\x00\x00"
	n := note{volume: 1, number: 2, seq: 3, head: 4}
	b := n.encode()
	if string(b[:12]) != want {
		t.Errorf("begins with %q, want %q", b[:12], want)
	}
	if got, err := parseNote(b); err != nil || got != n {
		t.Errorf("%+v, %v", got, err)
	}
	b = frame.Append(nil, noteMagic, noteType, noteVersion+1, 0, b[frame.HeaderSize:])
	if _, err := parseNote(b); !errors.Is(err, frame.ErrVersion) {
		t.Errorf("the next version: %v", err)
	}
}

func FuzzParseNote(f *testing.F) {
	f.Add((&note{volume: 1, number: 2, seq: 3, head: 4}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseNote(b)
		if err != nil {
			return
		}
		if again, err := parseNote(n.encode()); err != nil || again != n {
			t.Fatalf("%+v came back as %+v, %v", n, again, err)
		}
	})
}
