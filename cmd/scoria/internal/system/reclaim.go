package system

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"scoria/alba/osd"
	"scoria/metadata"
	"scoria/metadata/abm"
)

// answer is what the disk server at an address of its own says of itself.
type answer struct {
	addr string
	info osd.Info
	err  error
}

// verdict is what follows for it.
type verdict struct {
	join   bool           // tell the ABM of it and claim it
	lost   []metadata.OSD // first these are declared lost: it stands where they were, and is empty
	refuse error          // it is not used
	hold   bool           // nor shall it take another's place later
}

// judge decides about disk servers with addresses of their own. One with an identity that
// nobody knows and no owner is new: its directory was empty. It takes the place of the one that
// was last seen at its address, if that answers nowhere, whose data then is lost there. But
// when more of those that hold data (holds: fragments) are away or lost than the default preset can lose,
// disks are more likely not mounted or not started yet, and nothing is declared lost; nor later, for one
// that was met so (held), since disks are mounted one by one. One that has another owner, or that was
// declared lost before, is never used.
func judge(recs []metadata.OSD, answers []answer, backend string, holds map[metadata.OSDID]uint64, held map[string]bool) []verdict {
	present := make(map[string]int)
	for _, a := range answers {
		if a.err == nil {
			present[a.info.UUID]++
		}
	}
	away := 0
	for _, r := range recs {
		if present[r.UUID] == 0 && holds[r.ID] > 0 || r.State == metadata.OSDLost && holds[r.ID] > 0 {
			away++
		}
	}
	out := make([]verdict, len(answers))
	for i, a := range answers {
		v := &out[i]
		if a.err != nil {
			continue
		}
		var known metadata.OSD // State 0: not known
		if at := slices.IndexFunc(recs, func(r metadata.OSD) bool { return r.UUID == a.info.UUID }); at >= 0 {
			known = recs[at]
		}
		switch {
		case present[a.info.UUID] > 1:
			v.refuse = fmt.Errorf("disk server %s answers at several addresses, %s is one of them: was its directory copied?", a.info.UUID, a.addr)
		case a.info.Backend != "" && a.info.Backend != backend:
			v.refuse = fmt.Errorf("disk server at %s is of another system (%s); it is not used", a.addr, a.info.Backend)
		case known.State == 0 || known.State == metadata.OSDAvailable:
			v.join = true
			if a.info.Backend == "" {
				v.lost = replacedBy(recs, a.addr, present)
			}
		case known.State != metadata.OSDClaimed:
			if known.State != metadata.OSDDecommissioning {
				v.refuse = fmt.Errorf("disk server at %s was declared lost, and is back: what is on it is old; empty its directory to use it again", a.addr)
			}
		default: // of which the answer may be missing, or which has moved
			v.join = known.Addr != a.addr || a.info.Backend == ""
		}
	}
	for i := range out {
		v, a := &out[i], answers[i]
		if len(v.lost) > 0 && (away > maxReplaced || held[a.info.UUID]) {
			*v = verdict{hold: true, refuse: fmt.Errorf("disk server at %s is empty and stands where %s was, when more than %d with data were away or lost: is a disk not mounted? If it is to be a new one, empty its directory again and restart it when the others are back",
				a.addr, v.lost[0].UUID, maxReplaced)}
		}
	}
	return out
}

// replacedBy lists the disk servers in use that were last seen at addr and answer nowhere.
func replacedBy(recs []metadata.OSD, addr string, present map[string]int) (out []metadata.OSD) {
	for _, r := range recs {
		inUse := r.State == metadata.OSDClaimed || r.State == metadata.OSDDecommissioning
		if inUse && r.Addr == addr && present[r.UUID] == 0 {
			out = append(out, r)
		}
	}
	return out
}

// tend looks at all disk servers with addresses of their own, and claims those that are new: at
// the start, and from then on, since any of them may come later, or come back with an empty disk.
// changed tells that the ABM's list is another one now.
func (s *System) tend(ctx context.Context) (changed bool, err error) {
	ds := s.disks
	recs, err := s.abm.ListOSDs(ctx)
	if err != nil {
		return false, fmt.Errorf("list disk servers: %w", err)
	}
	holds, err := s.fragments(ctx)
	if err != nil {
		return false, fmt.Errorf("fragments of disk servers: %w", err)
	}
	answers := ds.ask(ctx)
	for i, v := range judge(recs, answers, s.backend, holds, ds.held) {
		k, a := ds.list[i], answers[i]
		if v.hold {
			ds.held[a.info.UUID] = true
		}
		err := errors.Join(a.err, v.refuse)
		if v.join {
			changed = true
			if err = s.join(ctx, a, v); err != nil && !errors.Is(err, errNotClaimed) {
				return changed, err
			}
		}
		ds.note(k, a, err)
	}
	return changed, nil
}

// errNotClaimed: a disk server does not accept its owner, or does not answer any more.
var errNotClaimed = errors.New("not claimed")

// join takes a disk server in. Those that it replaces are declared lost first: a crash in between
// leaves one that is still new.
func (s *System) join(ctx context.Context, a answer, v verdict) error {
	for _, o := range v.lost {
		s.cfg.Logger.Warn("a disk server is empty and new where another one was; what that held is made anew", "osd", o.ID, "uuid", o.UUID, "addr", a.addr, "new uuid", a.info.UUID)
		if err := s.abm.SetOSDState(ctx, o.ID, metadata.OSDLost); err != nil {
			return fmt.Errorf("declare disk server %d lost: %w", o.ID, err)
		}
	}
	api, err := s.disks.dial(a.addr, a.info.UUID)
	if err != nil {
		return err
	}
	k := &disk{name: a.addr, addr: a.addr, api: api}
	return registerDisk(ctx, s.abm, k, a.info, s.backend, s.node)
}

// registerDisk tells the ABM of a disk server and claims it.
func registerDisk(ctx context.Context, reg abm.API, k *disk, info osd.Info, backend, node string) error {
	o := metadata.OSD{UUID: info.UUID, Node: node, Addr: k.addr, Capacity: info.Capacity, Used: info.Used, Full: info.Full}
	if _, err := reg.SeenOSD(ctx, o); err != nil {
		return fmt.Errorf("register disk server %s: %w", k.name, err)
	}
	rec, err := reg.ClaimOSD(ctx, info.UUID)
	if err != nil {
		return fmt.Errorf("claim disk server %s: %w", k.name, err)
	}
	if err := k.api.Claim(ctx, backend, uint32(rec.ID)); err != nil {
		return fmt.Errorf("%s: %w: %w", k.name, errNotClaimed, err)
	}
	return nil
}

// ask asks all disk servers with addresses of their own who they are.
func (ds *disks) ask(ctx context.Context) []answer {
	out := make([]answer, len(ds.list))
	var wg sync.WaitGroup
	for i, k := range ds.list {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, infoTimeout)
			defer cancel()
			out[i] = ds.askOne(ctx, k)
		})
	}
	wg.Wait()
	return out
}

// askOne asks the one that was there last, over the connection that there is; only when another one
// answers, that one.
func (ds *disks) askOne(ctx context.Context, k *disk) answer {
	a := answer{addr: k.addr}
	if _, uuid, _ := ds.view(k); uuid != "" {
		var api osd.API
		if api, a.err = ds.dial(k.addr, uuid); a.err != nil {
			return a
		}
		if a.info, a.err = api.Info(ctx); !errors.Is(a.err, osd.ErrWrongOSD) {
			return a
		}
	}
	probe := osd.Dial(k.addr, "", osd.ClientOptions{Connections: 1})
	a.info, a.err = probe.Info(ctx)
	a.err = errors.Join(a.err, probe.Close())
	return a
}

// note keeps what was found out about a disk server.
func (ds *disks) note(k *disk, a answer, err error) {
	ds.mu.Lock()
	was := k.err
	if a.err == nil {
		k.uuid = a.info.UUID
	}
	k.err, k.strange = err, err != nil && a.err == nil
	ds.mu.Unlock()
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		ds.log.Error("disk server is not in use", "osd", k.name, "err", err)
	case err == nil && was != nil:
		ds.log.Info("disk server is in use", "osd", k.name, "uuid", a.info.UUID)
	}
}

// view returns what is known of a disk server.
func (ds *disks) view(k *disk) (strange bool, uuid string, err error) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return k.strange, k.uuid, k.err
}

// tendDisks goes on looking at disk servers until run ends.
func (s *System) tendDisks(run context.Context) error {
	tick := time.NewTicker(s.cfg.DiskCheck)
	defer tick.Stop()
	for {
		select {
		case <-run.Done():
			return run.Err()
		case <-tick.C:
		}
		changed, err := s.tend(run)
		if err == nil && changed {
			err = s.client.RefreshOSDs(run)
		}
		if err != nil && run.Err() == nil {
			s.cfg.Logger.Warn("disk servers are not looked at; it is tried again", "err", err)
		}
	}
}
