package metatest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"scoria/metadata"
	"scoria/metadata/abm"
	abmstate "scoria/metadata/abm/state"
	"scoria/metadata/fsm"
	"scoria/metadata/nsm"
	nsmstate "scoria/metadata/nsm/state"
	"scoria/metadata/raftnode"
	"scoria/metadata/rpc"
)

// patience bounds what a test waits for on a busy machine.
const patience = 60 * time.Second

// Cluster is a metadata cluster in this process: nodes with real directories, on TCP
// loopback, each serving gRPC beside Raft.
type Cluster struct {
	t       testing.TB
	machine fsm.Machine
	dir     string

	mu    sync.Mutex
	nodes map[string]*clusterNode
	peers []raftnode.Peer
}

type clusterNode struct {
	*raftnode.Node
	addr   string
	server *grpc.Server
	served chan error
}

// NewCluster starts nodes n0, n1, … of a machine (abm or nsm) and waits for a leader.
// They are closed when the test ends.
func NewCluster(t testing.TB, m fsm.Machine, nodes int) *Cluster {
	t.Helper()
	c := &Cluster{t: t, machine: m, dir: t.TempDir(), nodes: make(map[string]*clusterNode)}
	var muxes []*raftnode.Mux
	for i := range nodes {
		mux, err := raftnode.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		muxes = append(muxes, mux)
		c.peers = append(c.peers, raftnode.Peer{ID: fmt.Sprint("n", i), Addr: mux.Addr().String()})
	}
	t.Cleanup(c.stopAll)
	for i, p := range c.peers {
		c.start(p.ID, muxes[i], true)
	}
	c.Leader()
	return c
}

// Addrs lists the addresses of the first nodes.
func (c *Cluster) Addrs() (addrs []string) {
	for _, p := range c.peers {
		addrs = append(addrs, p.Addr)
	}
	return addrs
}

func (c *Cluster) start(id string, mux *raftnode.Mux, bootstrap bool) {
	c.t.Helper()
	o := raftnode.Options{
		ID: id, Dir: filepath.Join(c.dir, id), Machine: c.machine, Mux: mux,
		Heartbeat: 250 * time.Millisecond, SnapshotBytes: 256 << 10, TrailingLogs: 64,
	}
	if bootstrap {
		o.Bootstrap, o.Peers = true, c.peers
	}
	n, err := raftnode.Open(o)
	if err != nil {
		c.t.Fatal(err)
	}
	cn := &clusterNode{Node: n, addr: mux.Addr().String(), server: rpc.NewServer(n.LeaderAddr), served: make(chan error, 1)}
	if c.machine.Kind() == "abm" {
		abm.Register(cn.server, abm.NewService(n))
	} else {
		nsm.Register(cn.server, nsm.NewService(n))
	}
	go func() { cn.served <- cn.server.Serve(mux.Other()) }() // stop waits for it
	c.mu.Lock()
	c.nodes[id] = cn
	c.mu.Unlock()
}

// Stop stops a node.
func (c *Cluster) Stop(id string) {
	c.t.Helper()
	c.mu.Lock()
	n := c.nodes[id]
	delete(c.nodes, id)
	c.mu.Unlock()
	n.server.Stop()
	if err := <-n.served; err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
		c.t.Errorf("serve %s: %v", id, err)
	}
	if err := n.Close(); err != nil {
		c.t.Errorf("close %s: %v", id, err)
	}
}

// Restart starts a stopped node again at its address.
func (c *Cluster) Restart(id string) {
	c.t.Helper()
	for _, p := range c.peers {
		if p.ID == id {
			c.start(id, c.listen(p.Addr), false)
			return
		}
	}
	c.t.Fatalf("no node %s", id)
}

// listen listens at an address that was just given up.
func (c *Cluster) listen(addr string) *raftnode.Mux {
	c.t.Helper()
	mux, err := raftnode.Listen(addr)
	if err != nil {
		c.t.Fatal(err)
	}
	return mux
}

// StartEmpty starts a node in a new directory, waiting to be added; it returns its peer entry.
func (c *Cluster) StartEmpty(id string) raftnode.Peer {
	c.t.Helper()
	mux := c.listen("127.0.0.1:0")
	p := raftnode.Peer{ID: id, Addr: mux.Addr().String()}
	c.dir = c.t.TempDir()
	c.start(id, mux, false)
	return p
}

func (c *Cluster) stopAll() {
	for _, id := range c.IDs() {
		c.Stop(id)
	}
}

// IDs lists the running nodes.
func (c *Cluster) IDs() (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.nodes {
		ids = append(ids, id)
	}
	return ids
}

// Node returns a running node.
func (c *Cluster) Node(id string) *raftnode.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id].Node
}

// Leader waits for a leader that can serve reads, and returns its id.
func (c *Cluster) Leader() string {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		for _, id := range c.IDs() {
			n := c.Node(id)
			if !n.IsLeader() {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			err := n.Read(ctx, func(fsm.Reader) error { return nil })
			cancel()
			if err == nil {
				return id
			}
		}
		pause()
	}
	c.t.Fatal("no leader")
	return ""
}

// WaitApplied waits until a node has applied what another has now.
func (c *Cluster) WaitApplied(id, like string) {
	c.t.Helper()
	target := c.Node(like).Stats().AppliedIndex
	deadline := time.Now().Add(patience)
	for c.Node(id).Stats().AppliedIndex < target {
		if time.Now().After(deadline) {
			c.t.Fatalf("%s is at %d, not at %d", id, c.Node(id).Stats().AppliedIndex, target)
		}
		pause()
	}
}

// pause waits a little between two looks at something without a channel to wait on.
func pause() {
	timer := time.NewTimer(2 * time.Millisecond)
	<-timer.C
}

// ABMClient returns a client of an ABM cluster.
func (c *Cluster) ABMClient() *abm.Client {
	c.t.Helper()
	cl, err := abm.NewClient(rpc.Options{Addrs: c.Addrs(), RetryFor: patience})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cl.Close() })
	return cl
}

// NSMClient returns a client of an NSM cluster.
func (c *Cluster) NSMClient() *nsm.Client {
	c.t.Helper()
	cl, err := nsm.NewClient(rpc.Options{Addrs: c.Addrs(), RetryFor: patience})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cl.Close() })
	return cl
}

// Solo opens a node that is alone, and closes it when the test ends.
func Solo(t testing.TB, dir string, m fsm.Machine) *raftnode.Node {
	t.Helper()
	n, err := raftnode.Open(raftnode.Options{ID: "n0", Dir: dir, Machine: m, Solo: true, Bootstrap: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.WaitLeader(ctx); err != nil {
		t.Fatal(err)
	}
	return n
}

// SoloABM is an ALBA manager on a node that is alone.
func SoloABM(t testing.TB, dir string) *abm.Service {
	return abm.NewService(Solo(t, dir, abmstate.Machine{}))
}

// SoloNSM is a namespace manager on a node that is alone.
func SoloNSM(t testing.TB, dir string) *nsm.Service {
	return nsm.NewService(Solo(t, dir, nsmstate.Machine{}))
}

// FollowerReads checks that a follower refuses to read rather than answering stale.
func FollowerReads(ctx context.Context, n *raftnode.Node) error {
	err := n.Read(ctx, func(fsm.Reader) error { return nil })
	if !errors.Is(err, metadata.ErrUnavailable) {
		return fmt.Errorf("a follower's read: %v", err)
	}
	return nil
}
