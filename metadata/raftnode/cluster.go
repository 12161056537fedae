package raftnode

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	"scoria/metadata"
)

// changeTimeout bounds how long a change of membership waits to be logged.
const changeTimeout = 10 * time.Second

func (n *Node) refuseSolo() error {
	if n.opts.Solo {
		return metadata.Errorf(metadata.KindState, "node %q runs alone: open it without Solo to change its cluster", n.opts.ID)
	}
	return nil
}

// AddVoter adds a node, which has been opened without Bootstrap in an empty directory, or
// changes a node's address. Only the leader can.
func (n *Node) AddVoter(ctx context.Context, p Peer) error {
	if err := n.refuseSolo(); err != nil {
		return err
	}
	return n.await(ctx, func() error {
		return n.raft.AddVoter(raft.ServerID(p.ID), raft.ServerAddress(p.Addr), 0, changeTimeout).Error()
	})
}

// RemoveServer removes a node from the cluster. Only the leader can.
func (n *Node) RemoveServer(ctx context.Context, id string) error {
	if err := n.refuseSolo(); err != nil {
		return err
	}
	return n.await(ctx, func() error { return n.raft.RemoveServer(raft.ServerID(id), 0, changeTimeout).Error() })
}

// ReplaceVoter lets a node that lost its disk come back empty, perhaps elsewhere: it is
// removed first, so that it cannot vote as if it remembered what it promised, and added anew.
func (n *Node) ReplaceVoter(ctx context.Context, p Peer) error {
	if err := n.RemoveServer(ctx, p.ID); err != nil {
		return err
	}
	return n.AddVoter(ctx, p)
}

// TransferLeadership hands leadership to another voter (to "": the most advanced one).
func (n *Node) TransferLeadership(ctx context.Context, to string) error {
	if err := n.refuseSolo(); err != nil {
		return err
	}
	if to == "" {
		return n.await(ctx, func() error { return n.raft.LeadershipTransfer().Error() })
	}
	peers, err := n.Peers()
	if err != nil {
		return err
	}
	for _, p := range peers {
		if p.ID == to {
			return n.await(ctx, func() error {
				return n.raft.LeadershipTransferToServer(raft.ServerID(p.ID), raft.ServerAddress(p.Addr)).Error()
			})
		}
	}
	return metadata.Errorf(metadata.KindNotFound, "no node %q in the cluster", to)
}

// Peers lists the servers of the newest configuration that this node knows.
func (n *Node) Peers() ([]Peer, error) {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, n.failure(err)
	}
	var peers []Peer
	for _, s := range f.Configuration().Servers {
		peers = append(peers, Peer{ID: string(s.ID), Addr: string(s.Address)})
	}
	return peers, nil
}

// Stats describes a node at a moment.
type Stats struct {
	ID, Role, Leader  string // Role: Leader, Follower, Candidate, Shutdown
	Term              uint64
	LastIndex         uint64 // of the log
	CommitIndex       uint64
	AppliedIndex      uint64 // of the state
	Commands, Batches uint64 // applied since the start
	Snapshots         uint64 // made since the start
	StateBytes        uint64
	Stalls            uint64 // commits of the state that failed and were tried again
	Problem           string // why it does not get on now, "" when it does
}

// Stats returns counters and the present standing.
func (n *Node) Stats() Stats {
	addr, _ := n.raft.LeaderWithID()
	s := Stats{
		ID: n.opts.ID, Role: n.raft.State().String(), Leader: string(addr), Term: n.raft.CurrentTerm(),
		LastIndex: n.raft.LastIndex(), CommitIndex: n.raft.CommitIndex(), AppliedIndex: n.store.applied.Load(),
		Commands: n.machine.commands.Load(), Batches: n.machine.batches.Load(), Snapshots: n.snapshots.Load(),
		StateBytes: n.store.size(), Stalls: n.machine.stalls.Load(),
	}
	n.machine.mu.Lock()
	s.Problem = n.machine.stall
	if n.machine.halted != nil {
		s.Problem = n.machine.halted.Error()
	}
	n.machine.mu.Unlock()
	return s
}
