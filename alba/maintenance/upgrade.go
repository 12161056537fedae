package maintenance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"scoria/alba"
	"scoria/alba/placement"
	"scoria/metadata"
	"scoria/metadata/nsm"
)

// maxUpgrade is the largest object that is made anew in memory, in bytes.
const maxUpgrade = 256 << 20

// usable are the disks that new objects may go to.
func usable(osds []metadata.OSD, leaving map[metadata.OSDID]bool) (cands []placement.Candidate) {
	for i := range osds {
		if o := &osds[i]; serving(o) && !leaving[o.ID] && !o.Full {
			cands = append(cands, placement.Candidate{ID: o.ID, Node: o.Node})
		}
	}
	return cands
}

// upgrade makes objects anew that were stored by a policy further down their preset's list
// than the one that the usable disks satisfy now: they have all their fragments, but bear
// less loss than they could. What is left is counted in the status.
func (r *repairRound) upgrade(ctx context.Context, infos []spaceInfo, cands []placement.Candidate) error {
	var errs []error
	left := uint64(0)
	for i := range infos {
		info := &infos[i]
		best, _, ok := placement.Policy(info.Preset.Policies, cands)
		if !ok {
			continue
		}
		rank := func(k, m int) int {
			return slices.IndexFunc(info.Preset.Policies, func(p metadata.Policy) bool { return p.K == k && p.M == m })
		}
		for _, b := range info.Buckets {
			if rank(b.K, b.M) <= rank(best.K, best.M) {
				continue
			}
			done, err := r.upgradeBucket(ctx, info, b)
			left += b.Objects - min(b.Objects, done)
			if err != nil {
				errs = append(errs, fmt.Errorf("namespace %d: %w", info.ID, err))
			}
		}
	}
	r.a.setFallback(left)
	return errors.Join(errs...)
}

// upgradeBucket makes objects of a bucket anew, within the round's budget.
func (r *repairRound) upgradeBucket(ctx context.Context, info *spaceInfo, b nsm.Bucket) (done uint64, err error) {
	if r.budget <= 0 {
		return 0, nil
	}
	page, err := info.api.Scan(ctx, nsm.ScanRequest{Namespace: info.ID, Bucket: &nsm.Bucket{K: b.K, M: b.M, Placed: b.Placed}, Limit: scanPage})
	if err != nil {
		return 0, fmt.Errorf("scan: %w", err)
	}
	for _, m := range page.Manifests {
		if r.budget <= 0 || !r.a.lease(ctx, TaskRepair) {
			return done, nil
		}
		if time.Since(m.Created) < r.a.opts.RepairAge {
			continue // its owner may still be at it
		}
		r.budget--
		switch err := r.rewrite(ctx, info, m); {
		case err == nil:
			done++
		case errors.Is(err, metadata.ErrAssertFailed), errors.Is(err, metadata.ErrFenced), errors.Is(err, metadata.ErrNotFound):
			// Replaced, deleted or of a new owner meanwhile: the next round looks again.
		default:
			return done, fmt.Errorf("object %q: %w", m.Name, err)
		}
	}
	return done, nil
}

// rewrite stores an object again under the policy of now, provided it is still the same.
func (r *repairRound) rewrite(ctx context.Context, info *spaceInfo, m *metadata.Manifest) error {
	client := r.a.opts.Client
	data, err := client.Get(ctx, info.ID, m.Name, maxUpgrade)
	if err != nil {
		return err
	}
	err = client.Apply(ctx, info.ID, alba.Txn{
		Fence:   info.Fence,
		Asserts: []nsm.Assert{{Name: m.Name, Exists: true, ObjectID: m.ObjectID}},
		Puts:    []alba.PutObject{{Name: m.Name, Data: data}},
	})
	if err != nil {
		return err
	}
	r.a.update(TaskRepair, func(s *TaskStatus) { s.Done++; s.Bytes += uint64(len(data)) })
	return r.a.limit[TaskRepair].wait(ctx, 2*int64(len(data)))
}
