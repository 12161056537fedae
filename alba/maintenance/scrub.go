package maintenance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"scoria/alba"
	"scoria/alba/osd"
	"scoria/metadata"
	"scoria/metadata/nsm"
)

const (
	verifySteps = 64 // steps of an OSD's verification per round
	maxBadKeys  = 10_000
	listPage    = 1000
)

// scrubState is how far the scrub of an OSD has come. A scrub has two parts: the disk
// checks all it has against its checksums, and what it has is compared with what the NSMs say.
type scrubState struct {
	started, finished time.Time
	from              []byte // where verification goes on; nil: it is done
	running           bool
}

// scrub works on the OSDs whose scrub is due.
func (a *Agent) scrub(ctx context.Context, w *world) error {
	if a.opts.ScrubInterval < 0 && !w.force {
		return nil
	}
	var due []*metadata.OSD
	for i := range w.osds {
		o := &w.osds[i]
		if serving(o) && !a.suspect(o) && a.scrubDue(w, o) {
			due = append(due, o)
		}
	}
	if len(due) == 0 {
		return nil
	}
	infos, errs := a.infos(ctx, w)
	left := uint64(0)
	for _, o := range due {
		st := a.scrubs[o.ID]
		if err := a.scrubOSD(ctx, w, infos, o, st); err != nil {
			errs = append(errs, fmt.Errorf("OSD %d: %w", o.ID, err))
		}
		if st.running {
			left++
		}
		if ctx.Err() != nil || !a.lease(ctx, TaskScrub) {
			break
		}
	}
	a.update(TaskScrub, func(s *TaskStatus) { s.Left = left })
	return errors.Join(errs...)
}

// scrubDue tells whether an OSD is being scrubbed, and starts what is due.
func (a *Agent) scrubDue(w *world, o *metadata.OSD) bool {
	st := a.scrubs[o.ID]
	if st == nil {
		// The first scrub after a start comes at a time of its own within the interval.
		st = &scrubState{finished: time.Now().Add(-a.opts.ScrubInterval / 16 * time.Duration(o.ID%16))}
		a.scrubs[o.ID] = st
	}
	if !st.running {
		if !w.force && time.Since(st.finished) < a.opts.ScrubInterval {
			return false
		}
		st.running, st.started, st.from = true, time.Now(), []byte{byte(alba.KeyData)}
	}
	return true
}

func (a *Agent) scrubOSD(ctx context.Context, w *world, infos []spaceInfo, o *metadata.OSD, st *scrubState) error {
	disk, err := a.opts.Client.OSD(ctx, o.ID)
	if err != nil {
		return err
	}
	if st.from != nil {
		if err := a.verify(ctx, infos, o.ID, disk, st); err != nil || st.from != nil {
			return err
		}
	}
	var errs []error
	for i := range infos {
		if err := a.compare(ctx, &infos[i], o.ID, disk); err != nil {
			errs = append(errs, fmt.Errorf("namespace %d: %w", infos[i].ID, err))
		}
	}
	if err := a.strangers(ctx, w, o.ID, disk); err != nil {
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		st.running, st.finished = false, time.Now()
		a.update(TaskScrub, func(s *TaskStatus) { s.Done++ })
	}
	return errors.Join(errs...)
}

// verify has the disk check its values, a step at a time, and repairs what is bad.
func (a *Agent) verify(ctx context.Context, infos []spaceInfo, id metadata.OSDID, disk osd.API, st *scrubState) error {
	end := []byte{byte(alba.KeyData) + 1}
	for range verifySteps {
		bad, checked, next, err := disk.Verify(ctx, st.from, end)
		if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		a.update(TaskScrub, func(s *TaskStatus) { s.Bytes += checked })
		if err := a.repairBad(ctx, infos, id, bad); err != nil {
			return err
		}
		if next != nil && bytes.Compare(next, st.from) <= 0 {
			return fmt.Errorf("verify goes back from %x to %x", st.from, next)
		}
		if st.from = next; next == nil {
			return nil
		}
		if err := a.limit[TaskScrub].wait(ctx, int64(checked)); err != nil {
			return err
		}
	}
	return nil
}

// repairBad repairs the objects of damaged fragments.
func (a *Agent) repairBad(ctx context.Context, infos []spaceInfo, id metadata.OSDID, bad []osd.Bad) error {
	byNS := map[metadata.NamespaceID][]alba.FragmentKey{}
	for _, b := range bad[:min(len(bad), maxBadKeys)] {
		k, kind, err := alba.ParseFragmentKey(b.Key)
		if err != nil || kind != alba.KeyData {
			a.log.Warn("scrub: damaged value under a strange key", "osd", id, "key", fmt.Sprintf("%x", b.Key))
			continue
		}
		a.log.Warn("scrub: damaged fragment", "osd", id, "key", k.String(), "block", b.Block, "text", b.Text)
		byNS[k.Namespace] = append(byNS[k.Namespace], k)
	}
	var errs []error
	for ns, keys := range byNS {
		for i := range infos {
			if infos[i].ID == ns {
				errs = append(errs, a.repairKeys(ctx, &infos[i], id, keys))
			}
		}
	}
	return errors.Join(errs...)
}

// repairKeys makes fragments anew that an OSD does not have, or has damaged.
func (a *Agent) repairKeys(ctx context.Context, info *spaceInfo, id metadata.OSDID, keys []alba.FragmentKey) error {
	live, err := manifests(ctx, info.api, info.ID, keys, func(k alba.FragmentKey) metadata.ObjectID { return k.ObjectID })
	if err != nil {
		return err
	}
	bad := map[metadata.ObjectID][]alba.BadFragment{}
	for _, k := range keys {
		if refers(live[k.ObjectID], id, int(k.Chunk), int(k.Fragment), k.Version) {
			bad[k.ObjectID] = append(bad[k.ObjectID], alba.BadFragment{Chunk: int(k.Chunk), Fragment: int(k.Fragment)})
		}
	}
	var errs []error
	for oid, list := range bad {
		res, err := a.opts.Client.Repair(ctx, info.ID, live[oid], alba.RepairOptions{Bad: list, Background: true})
		switch {
		case err == nil:
			a.update(TaskRepair, func(s *TaskStatus) { s.Done += uint64(res.Written); s.Bytes += res.Bytes })
			err = a.limit[TaskRepair].wait(ctx, int64(res.Bytes)*int64(1+live[oid].Policy.K))
		case errors.Is(err, metadata.ErrAssertFailed):
			err = nil
		case errors.Is(err, alba.ErrUnreadable):
			// It is listed, and no error of the scrub, which would begin anew in each round and
			// never get behind it.
			a.unreadable(UnreadableObject{info.ID, live[oid].Name, oid, err.Error()})
			err = nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// compare walks what the NSM says the OSD has, and what the OSD lists, side by side by
// object id: fragments that it lacks are made anew, those that nothing refers to are deleted.
func (a *Agent) compare(ctx context.Context, info *spaceInfo, id metadata.OSDID, disk osd.API) error {
	req := nsm.ScanRequest{Namespace: info.ID, OSD: id, Limit: scanPage}
	from, end := alba.NamespaceRange(alba.KeyData, info.ID)
	for {
		// What changes between the two lists is looked up again before anything is done about it.
		page, err := info.api.Scan(ctx, req)
		if err != nil {
			return fmt.Errorf("scan: %w", err)
		}
		to := end
		if page.More {
			_, to = alba.ObjectRange(alba.KeyData, info.ID, page.Next)
		}
		have, err := listFragments(ctx, disk, from, to)
		if err != nil {
			return err
		}
		if err := a.comparePage(ctx, info, id, disk, page.Manifests, have); err != nil {
			return err
		}
		if !page.More {
			return nil
		}
		req.After, from = page.Next, to
		if err := a.limit[TaskScrub].wait(ctx, int64(len(have))*256); err != nil {
			return err
		}
	}
}

func (a *Agent) comparePage(ctx context.Context, info *spaceInfo, id metadata.OSDID, disk osd.API, page []*metadata.Manifest, have map[alba.FragmentKey]bool) error {
	var missing []alba.FragmentKey
	for _, m := range page {
		for c := range m.Chunks {
			for f, frag := range m.Chunks[c].Fragments {
				if frag.OSD != id {
					continue
				}
				key := alba.FragmentKey{Namespace: info.ID, ObjectID: m.ObjectID, Chunk: uint16(c), Fragment: uint8(f), Version: frag.Version}
				if have[key] {
					delete(have, key)
				} else {
					missing = append(missing, key)
				}
			}
		}
	}
	var errs []error
	if len(missing) > 0 {
		a.log.Warn("scrub: fragments are missing", "osd", id, "namespace", info.ID, "fragments", len(missing))
		errs = append(errs, a.repairKeys(ctx, info, id, missing))
	}
	if len(have) > 0 {
		errs = append(errs, a.dropOrphans(ctx, info, id, disk, have))
	}
	return errors.Join(errs...)
}

// dropOrphans deletes fragments that no manifest refers to. Those with a tag are in the hands
// of an upload or of garbage collection. The order makes it safe: a fragment that was listed and
// has no tag now was committed before, if at all, so a manifest looked up after that tells.
func (a *Agent) dropOrphans(ctx context.Context, info *spaceInfo, id metadata.OSDID, disk osd.API, have map[alba.FragmentKey]bool) error {
	tagged := map[metadata.ObjectID]bool{}
	from, to := alba.NamespaceRange(alba.KeyTag, info.ID)
	for {
		items, err := disk.List(ctx, from, to, listPage)
		if err != nil {
			return fmt.Errorf("list of tags: %w", err)
		}
		for _, it := range items {
			if t, err := alba.ParseTagKey(it.Key); err == nil {
				tagged[t.ObjectID] = true
			}
		}
		if len(items) < listPage {
			break
		}
		from = append(append([]byte(nil), items[len(items)-1].Key...), 0)
	}
	var keys []alba.FragmentKey
	for k := range have {
		if !tagged[k.ObjectID] {
			keys = append(keys, k)
		}
	}
	live, err := manifests(ctx, info.api, info.ID, keys, func(k alba.FragmentKey) metadata.ObjectID { return k.ObjectID })
	if err != nil {
		return err
	}
	b := &osd.Batch{Background: true}
	flush := func() error {
		if len(b.Deletes) == 0 {
			return nil
		}
		if err := disk.Apply(ctx, b); err != nil {
			return fmt.Errorf("delete of orphans: %w", err)
		}
		a.update(TaskGC, func(s *TaskStatus) { s.Done += uint64(len(b.Deletes) / 2) })
		b.Deletes = nil
		return nil
	}
	for _, k := range keys {
		if refers(live[k.ObjectID], id, int(k.Chunk), int(k.Fragment), k.Version) {
			continue
		}
		b.Deletes = append(b.Deletes, k.Bytes(alba.KeyData), k.Bytes(alba.KeyRecovery))
		if len(b.Deletes) >= 2*deletePage {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// listFragments returns the fragments an OSD has in [from, to).
func listFragments(ctx context.Context, disk osd.API, from, to []byte) (map[alba.FragmentKey]bool, error) {
	have := map[alba.FragmentKey]bool{}
	for {
		items, err := disk.List(ctx, from, to, listPage)
		if err != nil {
			return nil, fmt.Errorf("list of fragments: %w", err)
		}
		for _, it := range items {
			if k, _, err := alba.ParseFragmentKey(it.Key); err == nil {
				have[k] = true
			}
		}
		if len(items) < listPage {
			return have, nil
		}
		from = append(append([]byte(nil), items[len(items)-1].Key...), 0)
	}
}

// strangers removes what an OSD has of namespaces that do not exist any more: uploads that
// were under way when their namespace was removed.
func (a *Agent) strangers(ctx context.Context, w *world, id metadata.OSDID, disk osd.API) error {
	known := map[metadata.NamespaceID]bool{}
	for i := range w.spaces {
		known[w.spaces[i].ID] = true
	}
	for _, kind := range []alba.KeyKind{alba.KeyData, alba.KeyTag} {
		from, end := []byte{byte(kind)}, []byte{byte(kind) + 1}
		for {
			items, err := disk.List(ctx, from, end, 1)
			if err != nil {
				return fmt.Errorf("list of namespaces: %w", err)
			}
			if len(items) == 0 {
				break
			}
			ns, ok := alba.KeyNamespace(items[0].Key)
			if !ok {
				return fmt.Errorf("strange key %x", items[0].Key)
			}
			_, from = alba.NamespaceRange(kind, ns)
			if known[ns] {
				continue
			}
			// It may be younger than the list we have.
			if _, err := a.opts.ABM.NamespaceByID(ctx, ns); !errors.Is(err, metadata.ErrNotFound) {
				if err != nil {
					return fmt.Errorf("namespace %d: %w", ns, err)
				}
				continue
			}
			a.log.Info("scrub: removing fragments of a namespace that is gone", "osd", id, "namespace", ns)
			if err := a.wipeNamespace(ctx, id, ns); err != nil {
				return err
			}
		}
	}
	return nil
}
