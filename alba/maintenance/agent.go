// Package maintenance keeps an object store healthy: it tells the ABM how the disk servers
// are, works the delete queues off, removes deleted namespaces, repairs objects weakest first,
// collects what unfinished uploads left behind, and scrubs disks.
//
// Several Agents may run: a lease in the ABM per task keeps them from doing things twice. If
// two do all the same (a lease ran out), nothing breaks: manifests change by compare-and-set,
// deletes name fragments by version. All work is bounded per round and limited in bandwidth.
package maintenance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"scoria/alba"
	"scoria/metadata"
	"scoria/metadata/abm"
	"scoria/metadata/nsm"
)

// Options shape an Agent. Client and ABM are needed; zero means the default for the rest.
type Options struct {
	Client *alba.Client
	ABM    abm.API
	Name   string // of this agent, holder of leases; "agent"

	Interval      time.Duration // between rounds; 10 s
	Lease         time.Duration // of a task; 60 s
	GCInterval    time.Duration // between collections of a namespace; 15 min
	GCGrace       time.Duration // how long uploads of the epoch before the newest may go on; 2 min; < 0: none
	ScrubInterval time.Duration // between scrubs of an OSD; 7 days; < 0: never
	RepairAge     time.Duration // younger objects may still get their late fragments; 60 s; < 0: none
	// RepairAfter is how long an OSD may be silent before its fragments are made anew elsewhere,
	// as if it were lost; 15 min; < 0: never.
	RepairAfter    time.Duration
	BytesPerSecond int64 // of repair and of scrub, each; 64 MiB; < 0: no limit
	RoundObjects   int   // objects looked at by one task in one round; 2000

	Logger *slog.Logger // nil: quiet
}

func orDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// Task is a kind of work.
type Task string

// The tasks, in the order of a round.
const (
	TaskHeartbeat  Task = "heartbeat"  // OSDs' health into the ABM
	TaskDeletes    Task = "deletes"    // delete queues
	TaskNamespaces Task = "namespaces" // deleted namespaces
	TaskRepair     Task = "repair"
	TaskGC         Task = "gc"
	TaskScrub      Task = "scrub"
)

// Tasks are all tasks.
var tasks = []Task{TaskHeartbeat, TaskDeletes, TaskNamespaces, TaskRepair, TaskGC, TaskScrub}

// Tasks returns all tasks in the order of a round.
func Tasks() []Task { return append([]Task(nil), tasks...) }

// Agent does maintenance. Its methods are safe for concurrent use; one round runs at a time.
type Agent struct {
	opts  Options
	log   *slog.Logger
	limit map[Task]*limiter
	round chan struct{} // capacity 1: held by a round

	leases  map[Task]time.Time                // of the round's holder: when they were taken
	gc      map[metadata.NamespaceID]*gcState // of the round's holder
	scrubs  map[metadata.OSDID]*scrubState
	cursors map[cursorKey]metadata.ObjectID
	foreign map[metadata.OSDID]bool // another disk answers in its place

	looked     chan struct{} // closed by markLooked
	markLooked func()

	mu struct {
		sync.Mutex
		status Status
	}
}

// New returns an Agent that does nothing until Run or RunOnce.
func New(o Options) (*Agent, error) {
	if o.Client == nil || o.ABM == nil {
		return nil, fmt.Errorf("a maintenance agent needs a client and an ABM: %w", alba.ErrInvalid)
	}
	if o.Name == "" {
		o.Name = "agent"
	}
	orDefault(&o.Interval, 10*time.Second)
	orDefault(&o.Lease, time.Minute)
	orDefault(&o.GCInterval, 15*time.Minute)
	orDefault(&o.GCGrace, 2*time.Minute)
	orDefault(&o.ScrubInterval, 7*24*time.Hour)
	orDefault(&o.RepairAge, time.Minute)
	orDefault(&o.RepairAfter, 15*time.Minute)
	orDefault(&o.BytesPerSecond, 64<<20)
	orDefault(&o.RoundObjects, 2000)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Agent{
		opts: o, log: o.Logger, round: make(chan struct{}, 1),
		limit:   map[Task]*limiter{TaskRepair: newLimiter(o.BytesPerSecond), TaskScrub: newLimiter(o.BytesPerSecond)},
		leases:  map[Task]time.Time{},
		gc:      map[metadata.NamespaceID]*gcState{},
		scrubs:  map[metadata.OSDID]*scrubState{},
		cursors: map[cursorKey]metadata.ObjectID{},
		foreign: map[metadata.OSDID]bool{},
		looked:  make(chan struct{}),
	}
	a.markLooked = sync.OnceFunc(func() { close(a.looked) })
	a.mu.status.Tasks = map[Task]TaskStatus{}
	return a, nil
}

// Run does rounds until ctx ends, and returns nil then.
func (a *Agent) Run(ctx context.Context) error {
	t := time.NewTicker(a.opts.Interval)
	defer t.Stop()
	for {
		if err := a.RunOnce(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("maintenance round", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// Looked is closed when the agent has looked once for what needs repair, or knows that another
// agent does it. Until then Status cannot know of what was degraded before.
func (a *Agent) Looked() <-chan struct{} { return a.looked }

// RunOnce does one round of the tasks, all when none is named. A named task is done even if it
// is not due. An error of one task does not keep the others from running.
func (a *Agent) RunOnce(ctx context.Context, only ...Task) error {
	select {
	case a.round <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-a.round }()
	force := len(only) > 0
	if !force {
		only = tasks
	}
	w, err := a.look(ctx)
	if err != nil {
		return fmt.Errorf("maintenance: %w", err)
	}
	w.force = force
	var errs []error
	for _, t := range only {
		if ctx.Err() != nil {
			break
		}
		if err := a.task(ctx, w, t); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t, err))
		}
	}
	return errors.Join(errs...)
}

// world is what a round works on.
type world struct {
	force  bool
	osds   []metadata.OSD // claimed once
	spaces []metadata.Namespace
	hosts  map[string]nsm.API
}

// look takes stock.
func (a *Agent) look(ctx context.Context) (*world, error) {
	w := &world{hosts: map[string]nsm.API{}}
	osds, err := a.opts.ABM.ListOSDs(ctx)
	if err != nil {
		return nil, fmt.Errorf("list of OSDs: %w", err)
	}
	for _, o := range osds {
		if o.ID != 0 {
			w.osds = append(w.osds, o)
		}
	}
	if w.spaces, err = a.opts.ABM.ListNamespaces(ctx); err != nil {
		return nil, fmt.Errorf("list of namespaces: %w", err)
	}
	hosts, err := a.opts.ABM.NSMHosts(ctx)
	if err != nil {
		return nil, fmt.Errorf("list of NSM hosts: %w", err)
	}
	for _, h := range hosts {
		api, err := a.opts.Client.NSM(ctx, metadata.Namespace{NSM: h.ID})
		if err != nil {
			a.log.Warn("NSM host not reached", "host", h.ID, "err", err)
			continue
		}
		w.hosts[h.ID] = api
	}
	return w, a.opts.Client.RefreshOSDs(ctx)
}

// serving tells whether an OSD should answer.
func serving(o *metadata.OSD) bool {
	return o.State == metadata.OSDClaimed || o.State == metadata.OSDDecommissioning
}

// lease takes or renews the lease of a task; false when another agent has it. A lease that
// is not yet a third over is not renewed: each renewal is a commit of the ABM.
func (a *Agent) lease(ctx context.Context, t Task) bool {
	if taken, ok := a.leases[t]; ok && time.Since(taken) < a.opts.Lease/3 {
		return true
	}
	delete(a.leases, t)
	asked := time.Now()
	cur, err := a.opts.ABM.TakeLease(ctx, "maintenance/"+string(t), a.opts.Name, a.opts.Lease)
	if err != nil {
		a.log.Warn("lease not taken", "task", t, "err", err)
		return false
	}
	if cur == a.opts.Name {
		a.leases[t] = asked
	}
	return cur == a.opts.Name
}

func (a *Agent) task(ctx context.Context, w *world, t Task) error {
	if t == TaskRepair {
		defer a.markLooked()
	}
	if !a.lease(ctx, t) {
		a.update(t, func(s *TaskStatus) { s.Elsewhere = true })
		return nil
	}
	a.update(t, func(s *TaskStatus) { s.Running, s.Elsewhere, s.Started = true, false, time.Now() })
	var err error
	switch t {
	case TaskHeartbeat:
		err = a.heartbeat(ctx, w)
	case TaskDeletes:
		err = a.deletes(ctx, w)
	case TaskNamespaces:
		err = a.namespaces(ctx, w)
	case TaskRepair:
		err = a.repair(ctx, w)
	case TaskGC:
		err = a.collect(ctx, w)
	case TaskScrub:
		err = a.scrub(ctx, w)
	default:
		err = fmt.Errorf("unknown task %q: %w", t, alba.ErrInvalid)
	}
	a.update(t, func(s *TaskStatus) {
		s.Running, s.Finished, s.Runs = false, time.Now(), s.Runs+1
		s.LastError = ""
		if err != nil {
			s.LastError = err.Error()
			s.Errors++
		}
	})
	return err
}
