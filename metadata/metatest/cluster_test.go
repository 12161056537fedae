package metatest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scoria/metadata"
	abmstate "scoria/metadata/abm/state"
	"scoria/metadata/fsm"
	"scoria/metadata/nsm"
	nsmstate "scoria/metadata/nsm/state"
	"scoria/metadata/raftnode"
)

// history is what writers were told, to be compared with what the cluster has in the end.
type history struct {
	t     *testing.T
	api   nsm.API
	wg    sync.WaitGroup
	stop  chan struct{}
	count atomic.Uint64

	mu    sync.Mutex
	acked map[string]metadata.ObjectID
}

// startWriters runs writers, each putting objects of fresh names. Every put asserts that
// its name is absent: a retry that was applied twice would be refused.
func startWriters(t *testing.T, api nsm.API, writers int) *history {
	h := &history{t: t, api: api, stop: make(chan struct{}), acked: make(map[string]metadata.ObjectID)}
	for w := range writers {
		h.wg.Go(func() { h.write(w) })
	}
	return h
}

func (h *history) write(w int) {
	for i := 0; ; i++ {
		select {
		case <-h.stop:
			return
		default:
		}
		name, id := fmt.Sprintf("w%d/%06d", w, i), ObjectID(uint64(w)<<32+uint64(i)+1)
		m := Manifest(name, id, 2, 1, 1, 1, 2, 3)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := h.api.Apply(ctx, 1, nsm.Txn{Asserts: []nsm.Assert{{Name: name}}, Puts: []metadata.Manifest{m}})
		cancel()
		if err != nil {
			h.t.Errorf("put %s: %v", name, err)
			return
		}
		h.mu.Lock()
		h.acked[name] = id
		h.mu.Unlock()
		h.count.Add(1)
	}
}

// more waits until n more puts were acknowledged.
func (h *history) more(n uint64) {
	h.t.Helper()
	target, deadline := h.count.Load()+n, time.Now().Add(patience)
	for h.count.Load() < target {
		if h.t.Failed() || time.Now().After(deadline) {
			h.t.Fatalf("%d puts, waiting for %d", h.count.Load(), target)
		}
		pause()
	}
}

// check stops the writers and compares what the state of a node has with what was acknowledged.
func (h *history) check(nodes ...*raftnode.Node) {
	h.t.Helper()
	close(h.stop)
	h.wg.Wait()
	for name, id := range h.acked {
		got, err := h.api.Get(context.Background(), 1, []string{name})
		if err != nil || got[0] == nil || got[0].ObjectID != id {
			h.t.Fatalf("acknowledged %s is lost: %v, %v", name, got, err)
		}
	}
	infos, err := h.api.Namespaces(context.Background(), 1)
	if err != nil || infos[0].Objects != uint64(len(h.acked)) {
		h.t.Fatalf("%d acknowledged, the namespace has %+v, %v", len(h.acked), infos, err)
	}
	for _, n := range nodes {
		var objects uint64
		err := n.ReadStale(func(r fsm.Reader) error {
			if err := nsmstate.Audit(r); err != nil {
				return err
			}
			ns, err := nsmstate.Namespaces(r, []uint64{1})
			if err == nil {
				objects = ns[0].GetNamespace().GetObjects()
			}
			return err
		})
		if err != nil || objects != uint64(len(h.acked)) {
			h.t.Fatalf("node %s has %d objects of %d: %v", n.Stats().ID, objects, len(h.acked), err)
		}
	}
	h.t.Logf("%d acknowledged commands", len(h.acked))
}

func TestLeaderLossAndCatchUp(t *testing.T) {
	c := NewCluster(t, nsmstate.Machine{}, 3)
	api := c.NSMClient()
	want(t, api.CreateNamespace(t.Context(), 1, Preset("p")), nil)
	h := startWriters(t, api, 8)
	h.more(50)
	old := c.Leader()
	c.Stop(old) // in the middle of applies
	h.more(200)
	next := c.Leader()
	if next == old {
		t.Fatal("a stopped node leads")
	}
	c.Restart(old) // behind by more than the log holds or not: it catches up
	h.more(50)
	close(h.stop)
	h.wg.Wait()
	h.stop = make(chan struct{})
	for _, id := range c.IDs() {
		c.WaitApplied(id, c.Leader())
	}
	h.check(c.Node("n0"), c.Node("n1"), c.Node("n2"))
}

func TestSnapshotInstallWhileApplying(t *testing.T) {
	c := NewCluster(t, nsmstate.Machine{}, 3)
	api := c.NSMClient()
	want(t, api.CreateNamespace(t.Context(), 1, Preset("p")), nil)
	h := startWriters(t, api, 8)
	h.more(20)
	behind := "n0"
	if c.Leader() == behind {
		behind = "n1"
	}
	c.Stop(behind)
	h.more(300)                  // many more than TrailingLogs
	for _, id := range c.IDs() { // whoever leads later: its log begins behind what the stopped node has
		want(t, c.Node(id).Snapshot(t.Context()), nil)
	}
	h.more(10)
	c.Restart(behind)
	h.more(100)
	close(h.stop)
	h.wg.Wait()
	h.stop = make(chan struct{})
	c.WaitApplied(behind, c.Leader())
	h.check(c.Node(behind))
	if got := c.Node(behind).Stats().Commands; got > 350 {
		t.Fatalf("%d commands were applied one by one: no snapshot was installed", got)
	}
}

func TestReplaceNodeThatLostItsDisk(t *testing.T) {
	c := NewCluster(t, nsmstate.Machine{}, 3)
	api := c.NSMClient()
	want(t, api.CreateNamespace(t.Context(), 1, Preset("p")), nil)
	h := startWriters(t, api, 4)
	h.more(50)
	lost := "n2"
	if c.Leader() == lost {
		want(t, c.Node(lost).TransferLeadership(t.Context(), "n0"), nil)
	}
	c.Stop(lost)
	want(t, os.RemoveAll(c.dir+"/"+lost), nil)
	p := c.StartEmpty(lost)
	want(t, onLeader(c, func(n *raftnode.Node) error { return n.ReplaceVoter(t.Context(), p) }), nil)
	h.more(50)
	close(h.stop)
	h.wg.Wait()
	h.stop = make(chan struct{})
	c.WaitApplied(lost, c.Leader())
	h.check(c.Node(lost))
	peers, err := c.Node(c.Leader()).Peers()
	want(t, err, nil)
	equal(t, "peers", len(peers), 3)

	// The newcomer counts: with another node down, two of three go on.
	other := "n0"
	if c.Leader() == other {
		other = "n1"
	}
	c.Stop(other)
	want(t, api.Apply(t.Context(), 1, nsm.Txn{Puts: []metadata.Manifest{Inline("after", ObjectID(1<<60), "x")}}), nil)
}

// onLeader runs fn on the leader, again when leadership has just moved.
func onLeader(c *Cluster, fn func(*raftnode.Node) error) error {
	for {
		err := fn(c.Node(c.Leader()))
		if !errors.Is(err, metadata.ErrUnavailable) {
			return err
		}
	}
}

func TestRestartAll(t *testing.T) {
	c := NewCluster(t, abmstate.Machine{}, 3)
	api := c.ABMClient()
	abmVolumes(t, api)
	id, err := api.BackendID(t.Context())
	want(t, err, nil)
	for _, n := range []string{"n0", "n1", "n2"} {
		c.Stop(n)
	}
	for _, n := range []string{"n0", "n1", "n2"} {
		c.Restart(n)
	}
	again, err := api.BackendID(t.Context())
	want(t, err, nil)
	equal(t, "backend id", again, id)
	v, err := api.Volume(t.Context(), "renamed")
	want(t, err, nil)
	equal(t, "volume", v.Size, 1<<30)
}

func TestFollowersRefuseReads(t *testing.T) {
	c := NewCluster(t, abmstate.Machine{}, 3)
	leader := c.Leader()
	for _, id := range c.IDs() {
		if id == leader {
			continue
		}
		want(t, FollowerReads(t.Context(), c.Node(id)), nil)
		if addr := c.Node(id).LeaderAddr(); addr == "" {
			t.Errorf("%s does not know the leader", id)
		}
	}
	want(t, c.Node(leader).TransferLeadership(t.Context(), ""), nil)
	if next := c.Leader(); next == leader {
		t.Errorf("%s still leads", leader)
	}
}

func TestClientWithoutServer(t *testing.T) {
	c := NewCluster(t, abmstate.Machine{}, 1)
	api := c.ABMClient()
	c.Stop("n0")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := api.ListVolumes(ctx)
	want(t, err, metadata.ErrUnavailable)
	want(t, err, context.DeadlineExceeded)
	want(t, api.Close(), nil)
	want(t, api.Close(), nil)
	_, err = api.ListVolumes(t.Context())
	want(t, err, metadata.ErrUnavailable)
}
