package maintenance

import (
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
	tagPage  = 500 // tags looked at in one go
	tagPages = 20  // per namespace, OSD and round
)

// gcState is where the collection of a namespace is: an epoch was opened, its
// predecessors are closed when uploads have had their time.
type gcState struct {
	epoch  metadata.GCEpoch // opened; 0: none
	opened time.Time
	swept  time.Time
	closed bool // tags below epoch are being swept
}

// collect finds what uploads left behind that never became an object.
func (a *Agent) collect(ctx context.Context, w *world) error {
	var errs []error
	known := map[metadata.NamespaceID]bool{}
	for i := range w.spaces {
		ns := &w.spaces[i]
		api := w.hosts[ns.NSM]
		if ns.State != metadata.NamespaceActive || api == nil {
			continue
		}
		known[ns.ID] = true
		if err := a.collectNamespace(ctx, w, api, ns.ID); err != nil {
			errs = append(errs, fmt.Errorf("namespace %d (%s): %w", ns.ID, ns.Name, err))
		}
		if ctx.Err() != nil || !a.lease(ctx, TaskGC) {
			break
		}
	}
	for id := range a.gc {
		if !known[id] {
			delete(a.gc, id)
		}
	}
	return errors.Join(errs...)
}

func (a *Agent) collectNamespace(ctx context.Context, w *world, api nsm.API, ns metadata.NamespaceID) error {
	st := a.gc[ns]
	if st == nil {
		st = &gcState{swept: time.Now()}
		a.gc[ns] = st
	}
	if st.epoch == 0 {
		if !w.force && time.Since(st.swept) < a.opts.GCInterval {
			return nil
		}
		if found, err := a.anyTag(ctx, w, ns); err != nil || !found {
			if err == nil { // nothing to find: an idle namespace costs no commits
				st.swept = time.Now()
			}
			return err
		}
		_, next, err := api.GCEpochs(ctx, ns, nsm.GCOp{Open: true})
		if err != nil {
			return fmt.Errorf("open a GC epoch: %w", err)
		}
		st.epoch, st.opened, st.closed = next-1, time.Now(), false
	}
	if time.Since(st.opened) < a.opts.GCGrace {
		return nil
	}
	if !st.closed {
		if _, _, err := api.GCEpochs(ctx, ns, nsm.GCOp{CloseBelow: st.epoch}); err != nil {
			return fmt.Errorf("close GC epochs below %d: %w", st.epoch, err)
		}
		st.closed = true
	}
	// From here on no manifest can come to refer to a fragment with an older tag.
	all := true
	var errs []error
	for i := range w.osds {
		o := &w.osds[i]
		if !serving(o) || a.suspect(o) {
			continue
		}
		done, err := a.sweep(ctx, api, ns, o.ID, st.epoch)
		if err != nil {
			errs = append(errs, fmt.Errorf("OSD %d: %w", o.ID, err))
		}
		all = all && (done || err != nil) // an OSD that does not answer is swept another time
	}
	if all {
		st.epoch, st.swept = 0, time.Now()
	}
	return errors.Join(errs...)
}

// anyTag tells whether any OSD that answers has a tag of the namespace.
func (a *Agent) anyTag(ctx context.Context, w *world, ns metadata.NamespaceID) (bool, error) {
	from, to := alba.NamespaceRange(alba.KeyTag, ns)
	var errs []error
	for i := range w.osds {
		o := &w.osds[i]
		if !serving(o) || a.suspect(o) {
			continue
		}
		disk, err := a.opts.Client.OSD(ctx, o.ID)
		if err == nil {
			var items []osd.Item
			if items, err = disk.List(ctx, from, to, 1); len(items) > 0 {
				return true, nil
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("OSD %d: %w", o.ID, err))
		}
	}
	return false, errors.Join(errs...)
}

// sweep looks at the tags of an OSD with epochs below before.
func (a *Agent) sweep(ctx context.Context, api nsm.API, ns metadata.NamespaceID, id metadata.OSDID, before metadata.GCEpoch) (done bool, err error) {
	disk, err := a.opts.Client.OSD(ctx, id)
	if err != nil {
		return false, err
	}
	from, to := alba.TagRange(ns, before)
	for range tagPages {
		items, err := disk.List(ctx, from, to, tagPage)
		if err != nil {
			return false, fmt.Errorf("list of tags: %w", err)
		}
		if len(items) == 0 {
			return true, nil
		}
		if err := a.sweepPage(ctx, api, ns, id, disk, items); err != nil {
			return false, err
		}
		last := items[len(items)-1].Key
		from = append(append([]byte(nil), last...), 0)
	}
	return false, nil
}

func (a *Agent) sweepPage(ctx context.Context, api nsm.API, ns metadata.NamespaceID, id metadata.OSDID, disk osd.API, items []osd.Item) error {
	tags := make([]alba.TagKey, 0, len(items))
	reads := make([]osd.Read, 0, len(items))
	for _, it := range items {
		k, err := alba.ParseTagKey(it.Key)
		if err != nil || it.Size > alba.MaxTagValue {
			a.log.Warn("strange GC tag", "osd", id, "key", fmt.Sprintf("%x", it.Key), "size", it.Size)
			continue
		}
		tags = append(tags, k)
		reads = append(reads, osd.Read{Key: it.Key, Buf: make([]byte, it.Size)})
	}
	if err := disk.Read(ctx, reads); err != nil {
		return fmt.Errorf("tags: %w", err)
	}
	live, err := manifests(ctx, api, ns, tags, func(t alba.TagKey) metadata.ObjectID { return t.ObjectID })
	if err != nil {
		return err
	}
	var errs []error
	for i, t := range tags {
		if reads[i].Err != nil {
			if !errors.Is(reads[i].Err, osd.ErrNotFound) { // its client was quicker
				errs = append(errs, fmt.Errorf("tag of %v: %w", t.ObjectID, reads[i].Err))
			}
			continue
		}
		if err := a.sweepTag(ctx, id, disk, t, reads[i], live[t.ObjectID]); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sweepTag removes a tag, and those of its fragments that no manifest refers to.
func (a *Agent) sweepTag(ctx context.Context, id metadata.OSDID, disk osd.API, t alba.TagKey, r osd.Read, m *metadata.Manifest) error {
	parts, err := alba.ParseTagValue(r.Buf)
	if err != nil {
		return fmt.Errorf("tag of %v: %w", t.ObjectID, err)
	}
	b := &osd.Batch{Background: true, Asserts: []osd.Assert{{Key: r.Key, Exists: true, Value: r.Buf}}, Deletes: [][]byte{r.Key}}
	orphans := uint64(0)
	for _, p := range parts {
		if refers(m, id, int(p.Chunk), int(p.Fragment), t.Version) {
			continue
		}
		key := alba.FragmentKey{Namespace: t.Namespace, ObjectID: t.ObjectID, Chunk: p.Chunk, Fragment: p.Fragment, Version: t.Version}
		b.Deletes = append(b.Deletes, key.Bytes(alba.KeyData), key.Bytes(alba.KeyRecovery))
		orphans++
	}
	if err := disk.Apply(ctx, b); err != nil && !errors.Is(err, osd.ErrAssertFailed) {
		return fmt.Errorf("sweep of %v: %w", t.ObjectID, err)
	}
	a.update(TaskGC, func(s *TaskStatus) { s.Done += orphans })
	return nil
}

// refers tells whether a manifest says that the OSD has the fragment in this version.
func refers(m *metadata.Manifest, id metadata.OSDID, chunk, fragment int, version uint32) bool {
	if m == nil || chunk >= len(m.Chunks) || fragment >= len(m.Chunks[chunk].Fragments) {
		return false
	}
	f := m.Chunks[chunk].Fragments[fragment]
	return f.OSD == id && f.Version == version
}

// manifests looks up the objects of things by id; those that do not exist are left out.
func manifests[T any](ctx context.Context, api nsm.API, ns metadata.NamespaceID, things []T, id func(T) metadata.ObjectID) (map[metadata.ObjectID]*metadata.Manifest, error) {
	out := map[metadata.ObjectID]*metadata.Manifest{}
	var ids []metadata.ObjectID
	seen := map[metadata.ObjectID]bool{}
	flush := func() error {
		if len(ids) == 0 {
			return nil
		}
		reply, err := api.Scan(ctx, nsm.ScanRequest{Namespace: ns, IDs: ids})
		if err != nil {
			return fmt.Errorf("manifests by id: %w", err)
		}
		for _, m := range reply.Manifests {
			out[m.ObjectID] = m
		}
		ids = ids[:0]
		return nil
	}
	for _, t := range things {
		if i := id(t); !seen[i] {
			seen[i] = true
			if ids = append(ids, i); len(ids) == 100 {
				if err := flush(); err != nil {
					return nil, err
				}
			}
		}
	}
	return out, flush()
}
