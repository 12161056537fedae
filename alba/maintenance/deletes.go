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
	deletePage  = 500 // fragments deleted by one batch: two keys each
	deletePages = 20  // per OSD and round
	dropSteps   = 100 // steps of a namespace's removal at its NSM per round
	// creatingAge is how long a namespace may be in the making before it counts as abandoned.
	creatingAge = 10 * time.Minute
)

// deletes works the delete queues off: keys go on the OSD first, then from the queue.
func (a *Agent) deletes(ctx context.Context, w *world) error {
	var errs []error
	for host, api := range w.hosts {
		for i := range w.osds {
			if err := a.deleteQueue(ctx, api, &w.osds[i]); err != nil {
				errs = append(errs, fmt.Errorf("NSM %s, OSD %d: %w", host, w.osds[i].ID, err))
			}
			if !a.lease(ctx, TaskDeletes) {
				return errors.Join(errs...)
			}
		}
	}
	return errors.Join(errs...)
}

func (a *Agent) deleteQueue(ctx context.Context, api nsm.API, o *metadata.OSD) error {
	req := nsm.DeleteQueueRequest{OSD: o.ID, Limit: deletePage}
	for range deletePages {
		list, err := api.DeleteQueue(ctx, req)
		if err != nil {
			return fmt.Errorf("delete queue: %w", err)
		}
		if len(list) == 0 {
			return nil
		}
		if serving(o) { // what was on a lost disk needs no deletion; should it return, scrub removes it
			if err := a.deleteFragments(ctx, o.ID, list); err != nil {
				return err
			}
		}
		a.update(TaskDeletes, func(s *TaskStatus) { s.Done += uint64(len(list)) })
		req.Done = list
	}
	req.Limit = 0
	if _, err := api.DeleteQueue(ctx, req); err != nil {
		return fmt.Errorf("delete queue: %w", err)
	}
	return nil
}

func (a *Agent) deleteFragments(ctx context.Context, id metadata.OSDID, list []nsm.QueuedDelete) error {
	b := &osd.Batch{Background: true, Deletes: make([][]byte, 0, 2*len(list))}
	for _, q := range list {
		key := alba.FragmentKey{Namespace: q.Namespace, ObjectID: q.ObjectID, Chunk: q.Chunk, Fragment: q.Fragment, Version: q.Version}
		b.Deletes = append(b.Deletes, key.Bytes(alba.KeyData), key.Bytes(alba.KeyRecovery))
	}
	api, err := a.opts.Client.OSD(ctx, id)
	if err != nil {
		return err
	}
	if err := api.Apply(ctx, b); err != nil {
		return fmt.Errorf("delete of %d fragments: %w", len(list), err)
	}
	return nil
}

// namespaces ends deleted namespaces: manifests at the NSM, then keys on the OSDs, then the record.
func (a *Agent) namespaces(ctx context.Context, w *world) error {
	var errs []error
	left := uint64(0)
	for i := range w.spaces {
		ns := &w.spaces[i]
		if ns.State == metadata.NamespaceCreating && time.Since(ns.Created) > creatingAge {
			if err := a.opts.ABM.SetNamespaceState(ctx, ns.ID, metadata.NamespaceDeleting); err != nil {
				errs = append(errs, fmt.Errorf("namespace %d (%s), abandoned: %w", ns.ID, ns.Name, err))
				continue
			}
			ns.State = metadata.NamespaceDeleting
		}
		if ns.State != metadata.NamespaceDeleting {
			continue
		}
		done, err := a.removeNamespace(ctx, w, ns)
		if err != nil {
			errs = append(errs, fmt.Errorf("namespace %d (%s): %w", ns.ID, ns.Name, err))
		}
		if !done {
			left++
		}
	}
	a.update(TaskNamespaces, func(s *TaskStatus) { s.Left = left })
	return errors.Join(errs...)
}

func (a *Agent) removeNamespace(ctx context.Context, w *world, ns *metadata.Namespace) (bool, error) {
	api := w.hosts[ns.NSM]
	if api == nil {
		return false, fmt.Errorf("NSM %s is not reached", ns.NSM)
	}
	done := false
	for range dropSteps {
		var err error
		if done, err = api.DeleteNamespace(ctx, ns.ID); err != nil {
			return false, fmt.Errorf("remove manifests: %w", err)
		}
		if done {
			break
		}
	}
	if !done {
		return false, nil
	}
	for i := range w.osds {
		if !serving(&w.osds[i]) {
			continue
		}
		if err := a.wipeNamespace(ctx, w.osds[i].ID, ns.ID); err != nil {
			return false, err
		}
	}
	err := a.opts.ABM.RemoveNamespace(ctx, ns.ID)
	if errors.Is(err, metadata.ErrState) {
		return false, nil // its volume's record goes first
	}
	if err != nil && !errors.Is(err, metadata.ErrNotFound) {
		return false, fmt.Errorf("remove record: %w", err)
	}
	a.update(TaskNamespaces, func(s *TaskStatus) { s.Done++ })
	return true, nil
}

// wipeNamespace removes all of a namespace from an OSD.
func (a *Agent) wipeNamespace(ctx context.Context, id metadata.OSDID, ns metadata.NamespaceID) error {
	api, err := a.opts.Client.OSD(ctx, id)
	if err != nil {
		return err
	}
	for _, kind := range []alba.KeyKind{alba.KeyData, alba.KeyRecovery, alba.KeyTag} {
		from, to := alba.NamespaceRange(kind, ns)
		if err := api.DeleteRange(ctx, from, to); err != nil {
			return fmt.Errorf("OSD %d: %w", id, err)
		}
	}
	return nil
}
