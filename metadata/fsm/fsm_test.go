package fsm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"scoria/metadata"
	"scoria/metadata/fsm"
)

// adder adds the length of the body to a counter and returns the sum; command 2 writes and fails.
type adder struct{}

func (adder) Kind() string { return "adder" }
func (adder) Apply(tx fsm.Tx, cmd fsm.Command) ([]byte, error) {
	switch cmd.Type {
	case 1:
		var n uint64
		if b := tx.Get([]byte("n")); b != nil {
			n = binary.BigEndian.Uint64(b)
		}
		sum := binary.BigEndian.AppendUint64(nil, n+uint64(len(cmd.Body)))
		tx.Put([]byte("n"), sum)
		return sum, nil
	case 2:
		tx.Put([]byte("n"), []byte("spoiled!"))
		tx.Put([]byte("new"), nil)
		tx.Delete([]byte("n"))
		return nil, metadata.Errorf(metadata.KindState, "no")
	}
	return nil, fsm.ErrUnknownCommand
}

func seal(t testing.TB, c fsm.Command) []byte {
	t.Helper()
	c.Version = max(c.Version, 1)
	b, err := fsm.Seal(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestExecute(t *testing.T) {
	mem := fsm.NewMem()
	index := uint64(0)
	run := func(c fsm.Command) (fsm.Result, error) {
		index++
		return fsm.Execute(adder{}, mem, index, seal(t, c))
	}
	sum := func(c fsm.Command, want uint64) {
		t.Helper()
		r, err := run(c)
		if err != nil || r.Err() != nil || binary.BigEndian.Uint64(r.Body) != want {
			t.Fatalf("%+v: %+v, %v; want %d", c, r, err, want)
		}
	}
	sum(fsm.Command{Type: 1, Body: []byte("abc")}, 3)
	sum(fsm.Command{Type: 1, Body: []byte("abc")}, 6)
	id := fsm.RequestID{Client: 1, Seq: 1}
	sum(fsm.Command{Type: 1, Request: id, Body: []byte("x")}, 7)
	sum(fsm.Command{Type: 1, Request: id, Body: []byte("x")}, 7) // a retry
	sum(fsm.Command{Type: 1, Request: fsm.RequestID{Client: 2, Seq: 1}, Body: []byte("x")}, 8)

	failing := fsm.Command{Type: 2, Request: fsm.RequestID{Client: 1, Seq: 2}}
	for range 2 { // also the failure is remembered
		r, err := run(failing)
		if err != nil || !errors.Is(r.Err(), metadata.ErrState) {
			t.Fatalf("failing command: %+v, %v", r, err)
		}
	}
	if mem.Get([]byte("new")) != nil {
		t.Fatal("a failed command left a key")
	}
	sum(fsm.Command{Type: 1}, 8)

	before := mem.Len()
	if _, err := run(fsm.Command{Type: 9, Request: fsm.RequestID{Client: 5, Seq: 1}}); !errors.Is(err, fsm.ErrUnknownCommand) {
		t.Fatalf("unknown command: %v", err)
	}
	if mem.Len() != before {
		t.Fatal("an unknown command left keys")
	}
	r, err := run(fsm.Command{Type: 9, Skippable: true})
	if err != nil || !errors.Is(r.Err(), metadata.ErrInvalid) {
		t.Fatalf("skippable unknown command: %+v, %v", r, err)
	}
}

func TestWindow(t *testing.T) {
	mem := fsm.NewMem()
	exec := func(client, seq uint64) fsm.Result {
		t.Helper()
		r, err := fsm.Execute(adder{}, mem, seq, seal(t, fsm.Command{Type: 1, Request: fsm.RequestID{Client: client, Seq: seq}, Body: []byte("x")}))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for seq := uint64(1); seq <= 1000; seq++ {
		if got := binary.BigEndian.Uint64(exec(1, seq).Body); got != seq {
			t.Fatalf("seq %d: sum %d", seq, got)
		}
	}
	for seq := uint64(1000); seq > 1000-fsm.WindowSize; seq-- {
		if got := binary.BigEndian.Uint64(exec(1, seq).Body); got != seq {
			t.Fatalf("retry of %d: %d", seq, got)
		}
	}
	if r := exec(1, 1000-fsm.WindowSize); !errors.Is(r.Err(), metadata.ErrState) {
		t.Fatalf("a request out of the window was applied: %+v", r)
	}
	// Clients are bounded; the one longest silent is forgotten.
	keys := mem.Len()
	for c := uint64(2); c <= fsm.MaxClients+50; c++ {
		exec(c, c+2000)
	}
	if grown := mem.Len() - keys; grown >= fsm.MaxClients {
		t.Fatalf("%d clients are remembered", grown)
	}
	if got := binary.BigEndian.Uint64(exec(fsm.MaxClients+50, fsm.MaxClients+2050).Body); got != 1000+fsm.MaxClients+49 {
		t.Fatalf("the newest client was forgotten: %d", got)
	}
}

func TestMem(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	mem, model := fsm.NewMem(), map[string]string{}
	for range 5000 {
		k := fmt.Sprint(rnd.IntN(300))
		if rnd.IntN(3) == 0 {
			mem.Delete([]byte(k))
			delete(model, k)
		} else {
			v := fmt.Sprint(rnd.Uint64())
			mem.Put([]byte(k), []byte(v))
			model[k] = v
		}
	}
	from, to := "12", "25"
	var got, want []string
	mem.Scan([]byte(from), []byte(to), func(k, v []byte) bool {
		got = append(got, string(k)+"="+string(v))
		return true
	})
	for _, k := range slices.Sorted(maps.Keys(model)) {
		if k >= from && k < to {
			want = append(want, k+"="+model[k])
		}
	}
	if !slices.Equal(got, want) || mem.Len() != len(model) {
		t.Fatalf("scan %v\nwant %v", got, want)
	}
}

func TestPrefixEnd(t *testing.T) {
	for in, want := range map[string]string{"a": "b", "a\xff": "b", "\xff\xff": "", "": ""} {
		if got := fsm.PrefixEnd([]byte(in)); string(got) != want {
			t.Errorf("PrefixEnd(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSealLimits(t *testing.T) {
	if _, err := fsm.Seal(fsm.Command{Type: 1, Version: 1, Body: make([]byte, fsm.MaxCommand+1)}); !errors.Is(err, metadata.ErrLimit) {
		t.Fatalf("too long: %v", err)
	}
	if _, err := fsm.Seal(fsm.Command{Version: 1}); !errors.Is(err, metadata.ErrInternal) {
		t.Fatalf("no type: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(seal(f, fsm.Command{Type: 1, Body: []byte("body"), Now: 5, Request: fsm.RequestID{Client: 1, Seq: 2}}))
	f.Add(seal(f, fsm.Command{Type: 200, Skippable: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		cmd, err := fsm.Open(b)
		if err != nil {
			if !errors.Is(err, metadata.ErrCorrupt) {
				t.Fatalf("not marked as corrupt: %v", err)
			}
			return
		}
		again, err := fsm.Seal(cmd)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
	})
}
