package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"scoria/metadata"
	"scoria/metadata/fsm"
)

func listen(t *testing.T) *Mux {
	t.Helper()
	m, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

func TestMuxTellsConnectionsApart(t *testing.T) {
	m := listen(t)
	s := &stream{mux: m, kind: "abm"}
	dial := func(kind string) net.Conn {
		t.Helper()
		c, err := (&stream{mux: m, kind: kind}).Dial("", time.Second)
		if kind != "" && err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return c
	}
	m.dial = func(string, time.Duration) (net.Conn, error) { return net.Dial("tcp", m.Addr().String()) }

	c := dial("abm")
	if _, err := io.WriteString(c, "raft says"); err != nil {
		t.Fatal(err)
	}
	got, err := s.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	b := make([]byte, 9)
	if _, err := io.ReadFull(got, b); err != nil || string(b) != "raft says" {
		t.Fatalf("%q, %v", b, err)
	}

	wrong := dial("nsm")
	other, err := s.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := io.WriteString(wrong, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Read(b); !errors.Is(err, ErrForeign) {
		t.Fatalf("a node of another kind: %v", err)
	}

	g, err := net.Dial("tcp", m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := io.WriteString(g, "PRI * HTTP/2.0"); err != nil {
		t.Fatal(err)
	}
	h, err := m.Other().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	all := make([]byte, 14)
	if _, err := io.ReadFull(h, all); err != nil || string(all) != "PRI * HTTP/2.0" {
		t.Fatalf("%q, %v", all, err)
	}
}

func TestMuxClosesSilentConnections(t *testing.T) {
	m := listen(t)
	c, err := net.Dial("tcp", m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a silent connection outlives the listener: %v", err)
	}
	if _, err := m.Other().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("accept after close: %v", err)
	}
}

func TestWildcardAddressIsRefused(t *testing.T) {
	if m, err := Listen("0.0.0.0:0"); !errors.Is(err, metadata.ErrInvalid) {
		t.Fatalf("%v, %v", m, err)
	}
}

func TestOptionErrors(t *testing.T) {
	for name, o := range map[string]Options{
		"no id":        {Dir: t.TempDir(), Machine: kv{}, Solo: true},
		"no dir":       {ID: "n", Machine: kv{}, Solo: true},
		"no machine":   {ID: "n", Dir: t.TempDir(), Solo: true},
		"no transport": {ID: "n", Dir: t.TempDir(), Machine: kv{}},
		"peers":        {ID: "n", Dir: t.TempDir(), Machine: kv{}, Solo: true, Peers: []Peer{{"a", "b"}}},
	} {
		if _, err := Open(o); !errors.Is(err, metadata.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n := open(t, soloOptions(t.TempDir()))
	if err := n.AddVoter(t.Context(), Peer{"n2", "a:1"}); !errors.Is(err, metadata.ErrState) {
		t.Errorf("add a voter to a solo node: %v", err)
	}
}

// TestPartition cuts the leader off: it must not answer reads or commands any more, and
// what the majority then acknowledges must be there when it comes back.
func TestPartition(t *testing.T) {
	network := NewMemNetwork()
	var peers []Peer
	for i := range 3 {
		peers = append(peers, Peer{ID: fmt.Sprint("n", i), Addr: fmt.Sprint("mem", i)})
	}
	nodes := make([]*Node, 3)
	for i := range nodes {
		nodes[i] = open(t, Options{
			ID: peers[i].ID, Dir: t.TempDir(), Machine: kv{}, Mem: network, MemAddr: peers[i].Addr,
			Bootstrap: true, Peers: peers, Heartbeat: 200 * time.Millisecond,
		})
	}
	leader := anyLeader(t, nodes, -1)
	put(t, nodes[leader], "k", "old")
	network.Cut(peers[leader].Addr, true)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := nodes[leader].Apply(ctx, command(t, 1, fsm.RequestID{}, "k", "minority")); !errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("a command of the minority: %v", err)
	}
	next := anyLeader(t, nodes, leader)
	put(t, nodes[next], "k", "new")
	if err := nodes[leader].Read(ctx, func(fsm.Reader) error { return nil }); !errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("a read of the minority: %v", err)
	}
	network.Cut(peers[leader].Addr, false)
	deadline := time.Now().Add(30 * time.Second)
	for v := ""; v != "new"; <-time.After(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the node that was cut off has %q", v)
		}
		err := nodes[leader].ReadStale(func(r fsm.Reader) error {
			v = string(r.Get([]byte("k")))
			return nil
		})
		if err != nil || v == "minority" {
			t.Fatalf("%q, %v", v, err)
		}
	}
}

// anyLeader waits for a leader that is not the given node and can serve.
func anyLeader(t *testing.T, nodes []*Node, not int) int {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for ; time.Now().Before(deadline); <-time.After(2 * time.Millisecond) {
		for i, n := range nodes {
			if i != not && n.IsLeader() && n.Read(t.Context(), func(fsm.Reader) error { return nil }) == nil {
				return i
			}
		}
	}
	t.Fatal("no leader")
	return -1
}

// TestIsolatedLeaderDoesNotAnswer: a leader that has been cut off, and may not know it yet,
// answers no read once there may be another leader. Each read takes an answer of another node,
// so no more are answered than such answers were under way when it was cut off.
func TestIsolatedLeaderDoesNotAnswer(t *testing.T) {
	network := NewMemNetwork()
	var peers []Peer
	for i := range 3 {
		peers = append(peers, Peer{ID: fmt.Sprint("n", i), Addr: fmt.Sprint("mem", i)})
	}
	nodes := make([]*Node, 3)
	for i := range nodes {
		nodes[i] = open(t, Options{
			ID: peers[i].ID, Dir: t.TempDir(), Machine: kv{}, Mem: network, MemAddr: peers[i].Addr,
			Bootstrap: true, Peers: peers, Heartbeat: 2 * time.Second,
		})
	}
	leader := anyLeader(t, nodes, -1)
	put(t, nodes[leader], "k", "old")
	network.Cut(peers[leader].Addr, true)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for answered := 0; ; answered++ {
		var got string
		replaced := slices.ContainsFunc(nodes, func(n *Node) bool { return n != nodes[leader] && n.IsLeader() })
		err := nodes[leader].Read(ctx, func(r fsm.Reader) error { got = string(r.Get([]byte("k"))); return nil })
		if errors.Is(err, metadata.ErrUnavailable) {
			break
		}
		if err != nil || got != "old" || replaced || answered == 16 {
			t.Fatalf("read %d of a leader that nobody hears: %q, %v; another leader before it began: %v", answered, got, err, replaced)
		}
	}
	next := anyLeader(t, nodes, leader)
	put(t, nodes[next], "k", "new")
	if err := nodes[leader].Read(ctx, func(fsm.Reader) error { return nil }); !errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("a read of a leader that was replaced: %v", err)
	}
}
