package maintenance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"scoria/alba"
	"scoria/metadata"
	"scoria/metadata/nsm"
)

const (
	scanPage     = 100
	bucketRange  = 1000 // buckets beyond are left to the next round
	cursorOfOSD  = 1
	cursorOfWeak = 2

	parallelRepairs = 4
)

// cursorKey names a walk that goes on in the next round.
type cursorKey struct {
	kind   uint8
	ns     metadata.NamespaceID
	osd    metadata.OSDID
	bucket nsm.Bucket // without its count
}

// repair makes missing fragments anew: first the objects with holes, weakest bucket of all
// namespaces first, then what lies on disks that are lost, silent or leaving. That gives also
// objects that were written while disks were away their full number of fragments.
func (a *Agent) repair(ctx context.Context, w *world) error {
	leaving, suspects := map[metadata.OSDID]bool{}, map[metadata.OSDID]bool{}
	for i := range w.osds {
		o := &w.osds[i]
		if a.suspect(o) {
			suspects[o.ID] = true
		}
		if suspects[o.ID] || (!serving(o) && o.State != metadata.OSDAvailable) || o.State == metadata.OSDDecommissioning {
			leaving[o.ID] = true
		}
	}
	infos, errs := a.infos(ctx, w)
	r := &repairRound{a: a, budget: a.opts.RoundObjects, opts: alba.RepairOptions{
		Background: true, Leave: func(id metadata.OSDID) bool { return suspects[id] },
	}}
	if err := r.leaving(ctx, infos, leaving, suspects); err != nil {
		errs = append(errs, err)
	}
	if err := r.weak(ctx, infos); err != nil {
		errs = append(errs, err)
	}
	if err := r.upgrade(ctx, infos, usable(w.osds, leaving)); err != nil {
		errs = append(errs, err)
	}
	a.reconsider(ctx)
	a.update(TaskRepair, func(s *TaskStatus) { s.Left = weakObjects(infos) + r.left })
	if err := a.retire(ctx, w, infos); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// spaceInfo is a namespace and where it is managed.
type spaceInfo struct {
	nsm.NamespaceInfo
	api nsm.API
}

// infos describes all active namespaces.
func (a *Agent) infos(ctx context.Context, w *world) (out []spaceInfo, errs []error) {
	active := map[metadata.NamespaceID]bool{}
	for i := range w.spaces {
		active[w.spaces[i].ID] = w.spaces[i].State == metadata.NamespaceActive
	}
	for host, api := range w.hosts {
		list, err := api.Namespaces(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("namespaces of NSM %s: %w", host, err))
			continue
		}
		for _, info := range list {
			if active[info.ID] {
				out = append(out, spaceInfo{info, api})
			}
		}
	}
	slices.SortFunc(out, func(x, y spaceInfo) int { return cmp.Compare(x.ID, y.ID) })
	return out, errs
}

func weakObjects(infos []spaceInfo) (n uint64) {
	for i := range infos {
		for _, b := range infos[i].Buckets {
			if b.Placed < b.K+b.M {
				n += b.Objects
			}
		}
	}
	return n
}

// repairRound is one round of repair.
type repairRound struct {
	a      *Agent
	opts   alba.RepairOptions
	budget int // objects
	left   uint64
}

// weak repairs objects with holes.
func (r *repairRound) weak(ctx context.Context, infos []spaceInfo) error {
	type weak struct {
		info *spaceInfo
		b    nsm.Bucket
	}
	var list []weak
	for i := range infos {
		for _, b := range infos[i].Buckets {
			if b.Placed < b.K+b.M && len(list) < bucketRange {
				list = append(list, weak{&infos[i], b})
			}
		}
	}
	slices.SortStableFunc(list, func(x, y weak) int { return cmp.Compare(x.b.Placed-x.b.K, y.b.Placed-y.b.K) })
	var errs []error
	for _, l := range list {
		b := nsm.Bucket{K: l.b.K, M: l.b.M, Placed: l.b.Placed}
		key := cursorKey{kind: cursorOfWeak, ns: l.info.ID, bucket: b}
		req := nsm.ScanRequest{Namespace: l.info.ID, Bucket: &b}
		if err := r.walk(ctx, l.info.api, key, req); err != nil {
			errs = append(errs, err)
		}
		if r.budget <= 0 || ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// leaving moves fragments off disks. Those that nobody can read come first.
func (r *repairRound) leaving(ctx context.Context, infos []spaceInfo, leaving, suspects map[metadata.OSDID]bool) error {
	var errs []error
	for id := range leaving {
		for i := range infos {
			n := infos[i].PerOSD[id].Fragments
			if n == 0 {
				continue
			}
			r.left += n
			if err := r.walk(ctx, infos[i].api, cursorKey{kind: cursorOfOSD, ns: infos[i].ID, osd: id}, nsm.ScanRequest{Namespace: infos[i].ID, OSD: id}); err != nil {
				errs = append(errs, err)
			}
			if r.budget <= 0 || ctx.Err() != nil {
				return errors.Join(errs...)
			}
		}
	}
	return errors.Join(errs...)
}

// walk repairs the objects of a scan, from where the last round ended.
func (r *repairRound) walk(ctx context.Context, api nsm.API, key cursorKey, req nsm.ScanRequest) error {
	req.Limit, req.After = scanPage, r.a.cursors[key]
	var errs []error
	for r.budget > 0 {
		page, err := api.Scan(ctx, req)
		if err != nil {
			return fmt.Errorf("scan of namespace %d: %w", req.Namespace, err)
		}
		r.budget -= len(page.Manifests)
		errs = append(errs, r.page(ctx, req.Namespace, page.Manifests))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !page.More {
			delete(r.a.cursors, key)
			break
		}
		req.After = page.Next
		r.a.cursors[key] = page.Next
		if !r.a.lease(ctx, TaskRepair) {
			break
		}
	}
	return errors.Join(errs...)
}

// page repairs some objects at a time, and returns the first error.
func (r *repairRound) page(ctx context.Context, ns metadata.NamespaceID, list []*metadata.Manifest) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	errs := make(chan error, len(list))
	turns := make(chan struct{}, parallelRepairs)
	for _, m := range list {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		wg.Go(func() {
			defer func() { <-turns }()
			if err := r.object(ctx, ns, m); err != nil {
				errs <- err
			}
		})
	}
	wg.Wait()
	if n := len(errs); n > 0 {
		return fmt.Errorf("%d objects not repaired, the first: %w", n, <-errs)
	}
	return nil
}

// object repairs one object.
func (r *repairRound) object(ctx context.Context, ns metadata.NamespaceID, m *metadata.Manifest) error {
	a := r.a
	if m.Version == 0 && time.Since(m.Created) < a.opts.RepairAge {
		return nil // late fragments may be on their way
	}
	res, err := a.opts.Client.Repair(ctx, ns, m, r.opts)
	switch {
	case err == nil:
		a.update(TaskRepair, func(s *TaskStatus) { s.Done += uint64(res.Written); s.Bytes += res.Bytes })
		if res.Written > 0 {
			a.readableAgain(m.ObjectID)
		}
		return a.limit[TaskRepair].wait(ctx, int64(res.Bytes)*int64(1+m.Policy.K))
	case errors.Is(err, metadata.ErrAssertFailed):
		return nil // changed meanwhile: the next round sees it
	case errors.Is(err, alba.ErrUnreadable):
		a.unreadable(UnreadableObject{ns, m.Name, m.ObjectID, err.Error()})
	}
	a.update(TaskRepair, func(s *TaskStatus) { s.Failed++ })
	return err
}

// reconsidered is how many of the objects that are listed as unreadable are looked at again in a round.
const reconsidered = 4

// reconsider looks again at objects that are listed as unreadable: disks come back (it was the
// cable), objects are deleted or replaced. The list shall tell what is, not what has been.
func (a *Agent) reconsider(ctx context.Context) {
	list := a.Status().Unreadable
	for _, u := range list[:min(len(list), reconsidered)] {
		m, err := a.opts.Client.Stat(ctx, u.Namespace, u.Name)
		if err == nil && m.ObjectID == u.ObjectID {
			_, err = a.opts.Client.Get(ctx, u.Namespace, u.Name, int(m.Size))
		}
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, metadata.ErrNotFound):
			a.readableAgain(u.ObjectID)
		case errors.Is(err, alba.ErrUnreadable): // to the end of the list: others get their turn
			a.readableAgain(u.ObjectID)
			a.unreadable(u)
		}
		if m != nil && a.limit[TaskRepair].wait(ctx, int64(m.Size)) != nil {
			return
		}
	}
}

// retire ends the life of disks that are leaving or lost once they hold nothing any more.
func (a *Agent) retire(ctx context.Context, w *world, infos []spaceInfo) error {
	var errs []error
	for i := range w.osds {
		o := &w.osds[i]
		if o.State != metadata.OSDDecommissioning && o.State != metadata.OSDLost {
			continue
		}
		empty := len(infos) > 0 || len(w.spaces) == 0
		for j := range infos {
			u := infos[j].PerOSD[o.ID]
			empty = empty && u.Fragments == 0 && u.QueuedDeletes == 0
		}
		for j := range w.spaces { // one that is being deleted still needs the disk
			empty = empty && w.spaces[j].State == metadata.NamespaceActive
		}
		if !empty || len(infos) != len(w.spaces) {
			continue
		}
		if err := a.opts.ABM.SetOSDState(ctx, o.ID, metadata.OSDGone); err != nil {
			errs = append(errs, fmt.Errorf("retire OSD %d: %w", o.ID, err))
			continue
		}
		a.log.Info("OSD holds nothing any more and is gone", "osd", o.ID)
	}
	return errors.Join(errs...)
}
