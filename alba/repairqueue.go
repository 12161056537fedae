package alba

import (
	"context"
	"errors"
	"sync"

	"scoria/metadata"
)

// repairQueue holds objects in which reads have found bad fragments.
type repairQueue struct {
	ids chan metadata.ObjectID
	mu  struct {
		sync.Mutex
		jobs   map[metadata.ObjectID]*repairJob
		active map[metadata.ObjectID]bool // being repaired by anybody in this process
	}
}

// begin claims an object for a repair; false when it is being repaired.
func (q *repairQueue) begin(id metadata.ObjectID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.active[id] {
		return false
	}
	q.mu.active[id] = true
	return true
}

func (q *repairQueue) end(id metadata.ObjectID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.mu.active, id)
}

type repairJob struct {
	ns   metadata.NamespaceID
	name string
	bad  map[BadFragment]uint32 // and the version that was bad
}

func (q *repairQueue) init(limit int) {
	q.ids = make(chan metadata.ObjectID, limit)
	q.mu.jobs = map[metadata.ObjectID]*repairJob{}
	q.mu.active = map[metadata.ObjectID]bool{}
}

// queueRepair notes a fragment that a read has found missing or damaged.
func (c *Client) queueRepair(p *piece) {
	q := &c.repairs
	q.mu.Lock()
	defer q.mu.Unlock()
	job := q.mu.jobs[p.o.ObjectID]
	if job == nil {
		job = &repairJob{ns: p.sp.id, name: p.o.Name, bad: map[BadFragment]uint32{}}
		select {
		case q.ids <- p.o.ObjectID:
			q.mu.jobs[p.o.ObjectID] = job
			c.stats.repairsQueued.Add(1)
		default:
			c.stats.repairsDropped.Add(1) // scrub will find it again
			return
		}
	}
	job.bad[BadFragment{p.chunk, p.frag}] = p.o.Chunks[p.chunk].Fragments[p.frag].Version
}

// repairLoop repairs behind reads.
func (c *Client) repairLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-c.repairs.ids:
			c.repairs.mu.Lock()
			job := c.repairs.mu.jobs[id]
			delete(c.repairs.mu.jobs, id)
			c.repairs.mu.Unlock()
			if err := c.repairNow(ctx, id, job); err != nil && ctx.Err() == nil && !errors.Is(err, metadata.ErrAssertFailed) {
				c.opts.Logger.Warn("repair after a bad read failed", "object", job.name, "err", err)
			}
		}
	}
}

func (c *Client) repairNow(ctx context.Context, id metadata.ObjectID, job *repairJob) error {
	_, o, err := c.newest(ctx, job.ns, job.name)
	if err != nil {
		return err
	}
	if o.ObjectID != id {
		return nil
	}
	var bad []BadFragment
	for b, version := range job.bad {
		if f := o.Chunks[b.Chunk].Fragments[b.Fragment]; f.Version == version && f.OSD != 0 {
			bad = append(bad, b)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	res, err := c.Repair(ctx, job.ns, o.Manifest, RepairOptions{Bad: bad, Background: true})
	if err == nil && res.Changed {
		c.opts.Logger.Info("repaired after a bad read", "object", job.name, "fragments", res.Written)
	}
	return err
}
