package maintenance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"scoria/alba/osd"
	"scoria/metadata"
)

// infoTimeout is how long an OSD may take to tell how it is.
const infoTimeout = 5 * time.Second

// heartbeat asks each OSD how it is and tells the ABM. An OSD in whose place another disk
// answers (its directory was lost and made anew) is not seen, and is repaired elsewhere at once.
func (a *Agent) heartbeat(ctx context.Context, w *world) error {
	errs := make([]error, len(w.osds))
	foreign := make([]bool, len(w.osds))
	var wg sync.WaitGroup
	turns := make(chan struct{}, 16)
	for i := range w.osds {
		o := &w.osds[i]
		if !serving(o) && o.State != metadata.OSDLost {
			continue
		}
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			errs[i], foreign[i] = a.beat(ctx, o)
		})
	}
	wg.Wait()
	clear(a.foreign)
	for i, f := range foreign {
		if f {
			a.foreign[w.osds[i].ID] = true
		}
	}
	return errors.Join(errs...)
}

func (a *Agent) beat(ctx context.Context, o *metadata.OSD) (err error, foreign bool) {
	ictx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	api, err := a.opts.Client.OSD(ictx, o.ID)
	if err != nil {
		return a.silent(o, err), false
	}
	info, err := api.Info(ictx)
	if err != nil {
		return a.silent(o, err), false
	}
	if info.UUID != o.UUID {
		a.update(TaskHeartbeat, func(s *TaskStatus) { s.Failed++ })
		a.log.Warn("another disk answers for an OSD", "osd", o.ID, "want", o.UUID, "got", info.UUID)
		return nil, true
	}
	now := time.Now().UTC()
	if info.Failed == "" && !a.worthTelling(o, info, now) {
		return nil, false
	}
	seen := metadata.OSD{UUID: o.UUID, Node: o.Node, Addr: o.Addr, Capacity: info.Capacity, Used: info.Used, Full: info.Full, LastSeen: now}
	if info.Failed != "" {
		seen.LastError, seen.ErrorText, seen.Full = now, info.Failed[:min(len(info.Failed), 200)], true
	}
	if _, err := a.opts.ABM.SeenOSD(ctx, seen); err != nil {
		return fmt.Errorf("report of OSD %d: %w", o.ID, err), false
	}
	o.LastSeen = now
	a.update(TaskHeartbeat, func(s *TaskStatus) { s.Done++ })
	return nil, false
}

// reportEvery is how old the ABM's word of a healthy OSD may get. Each report is a commit.
const reportEvery = time.Minute

// worthTelling tells whether an OSD's record is old, or wrong by more than a little.
func (a *Agent) worthTelling(o *metadata.OSD, info osd.Info, now time.Time) bool {
	every := reportEvery
	if a.opts.RepairAfter > 0 {
		every = min(every, a.opts.RepairAfter/3)
	}
	diff := max(o.Used, info.Used) - min(o.Used, info.Used)
	return now.Sub(o.LastSeen) > every || o.Full != info.Full || o.Capacity != info.Capacity || diff > info.Capacity/256
}

// silent notes an OSD that does not answer. That is not an error of the task: repair acts
// on it when it lasts.
func (a *Agent) silent(o *metadata.OSD, err error) error {
	a.log.Info("OSD does not answer", "osd", o.ID, "last seen", o.LastSeen, "err", err)
	a.update(TaskHeartbeat, func(s *TaskStatus) { s.Failed++ })
	return nil
}

// suspect tells whether an OSD is to be repaired as if it were lost.
func (a *Agent) suspect(o *metadata.OSD) bool {
	if !serving(o) {
		return false
	}
	return a.foreign[o.ID] || (a.opts.RepairAfter >= 0 && time.Since(o.LastSeen) > a.opts.RepairAfter)
}
