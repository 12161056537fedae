package clustermap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
)

var errInjected = errors.New("injected fault")

// memStore keeps packs in memory. Hooks inject faults and waits.
type memStore struct {
	mu     sync.Mutex
	packs  map[uint32][]byte
	reads  atomic.Int64
	onRead func(number, off, length uint32) error
	// onWrite is called with the pack when all of it has been written; an error fails
	// the write, after the pack is there or not as lose says.
	onWrite func(number uint32) (lose bool, err error)
}

func newMemStore() *memStore { return &memStore{packs: make(map[uint32][]byte)} }

func (s *memStore) WritePack(ctx context.Context, number uint32, write func(io.Writer) error) error {
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return err
	}
	var lose bool
	var err error
	if s.onWrite != nil {
		lose, err = s.onWrite(number)
	}
	if !lose {
		s.mu.Lock()
		s.packs[number] = b.Bytes()
		s.mu.Unlock()
	}
	return err
}

func (s *memStore) ReadPack(ctx context.Context, number, off, length uint32) ([]byte, error) {
	s.reads.Add(1)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.onRead != nil {
		if err := s.onRead(number, off, length); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.packs[number]
	if !ok {
		return nil, fmt.Errorf("pack %d: %w", number, fs.ErrNotExist)
	}
	if uint64(off)+uint64(length) > uint64(len(p)) {
		return nil, fmt.Errorf("pack %d: %w", number, io.ErrUnexpectedEOF)
	}
	return bytes.Clone(p[off : off+length]), nil
}

func (s *memStore) remove(numbers []uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range numbers {
		delete(s.packs, n)
	}
}

// fork returns a store with the same packs and no faults.
func (s *memStore) fork() *memStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &memStore{packs: maps.Clone(s.packs)}
}

func checkpoint(t testing.TB, m *Map, seq uint64) Written {
	t.Helper()
	c, err := m.BeginCheckpoint(seq)
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.Write(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// liveBytes counts, by pack, the bytes of all pages that a record's tree and its dropped
// subtrees refer to, by reading all inner pages.
func liveBytes(t testing.TB, s *memStore, encoded []byte) (live map[uint32]int64) {
	t.Helper()
	r, err := decodeRecord(encoded)
	if err != nil {
		t.Fatal(err)
	}
	m := &Map{lineage: r.lineage}
	live = make(map[uint32]int64)
	var walk func(w want)
	walk = func(w want) {
		live[w.ref.pack] += int64(w.ref.length)
		b, err := readExact(t.Context(), s, w.ref.pack, w.ref.off, w.ref.length)
		if err != nil {
			t.Fatal(err)
		}
		_, n, err := m.decode(w, b)
		if err != nil {
			t.Fatal(err)
		}
		if n == nil {
			return
		}
		for i := range n.kid {
			if r := n.kid[i].ref; r.real() {
				walk(want{r, w.level - 1, n.kidIndex(i)})
			}
		}
	}
	if r.root.real() {
		walk(want{r.root, r.height, 0})
	}
	for _, d := range r.dropped {
		walk(want(d))
	}
	return live
}

// checkAccounts compares the live bytes that a record claims with the truth.
func checkAccounts(t testing.TB, s *memStore, encoded []byte) {
	t.Helper()
	live := liveBytes(t, s, encoded)
	info, err := DecodeRecord(encoded)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range info.Packs {
		if live[p.Number] != p.Live {
			t.Errorf("seq %d: pack %d has %d live bytes, record says %d (of %d)", info.Seq, p.Number, live[p.Number], p.Live, p.Size)
		}
		delete(live, p.Number)
	}
	for n, b := range live {
		t.Errorf("seq %d: pack %d with %d live bytes is not in the record", info.Seq, n, b)
	}
}
