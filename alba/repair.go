package alba

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"scoria/alba/codec"
	"scoria/alba/osd"
	"scoria/alba/placement"
	"scoria/internal/blocksum"
	"scoria/metadata"
)

// RepairOptions say what is wrong with an object.
type RepairOptions struct {
	// Bad tells fragments that their OSD does not have, or has damaged.
	Bad []BadFragment
	// Leave tells OSDs whose fragments shall be elsewhere, and which may not answer. Those
	// that are lost, gone or decommissioning are left anyway.
	Leave func(metadata.OSDID) bool
	// Background lets disk servers do it behind other work.
	Background bool
}

// BadFragment is a fragment of an object.
type BadFragment struct{ Chunk, Fragment int }

// RepairResult is what a repair has done.
type RepairResult struct {
	Written int    // fragments
	Bytes   uint64 // of them
	Holes   int    // fragments that have no place still: no OSD could take them
	Changed bool   // the manifest was changed
}

// Repair gives an object the fragments that it lacks, on OSDs that can take them, and
// tells the NSM. ErrUnreadable when too much is lost; metadata.ErrAssertFailed when the object
// was changed meanwhile (look again). What could not be placed becomes or stays a hole.
func (c *Client) Repair(ctx context.Context, ns metadata.NamespaceID, m *metadata.Manifest, opts RepairOptions) (RepairResult, error) {
	var res RepairResult
	if err := c.checkOpen(); err != nil {
		return res, err
	}
	sp, err := c.spaces.get(ctx, ns)
	if err != nil {
		return res, border(err)
	}
	o, err := c.newObject(sp, m)
	if err != nil {
		return res, border(err)
	}
	if err := c.disks.fresh(ctx, c.opts.OSDRefresh); err != nil {
		return res, border(err)
	}
	if !c.repairs.begin(o.ObjectID) {
		return res, metadata.Errorf(metadata.KindAssertFailed, "object %q (%v) is being repaired already", o.Name, o.ObjectID)
	}
	defer c.repairs.end(o.ObjectID)
	opts.Bad = slices.Clone(opts.Bad) // more may be found
	j := &repair{c: c, sp: sp, o: o, opts: opts, next: clonePlaces(m)}
	j.next.Version++
	for i := range o.Chunks {
		if err := j.chunk(ctx, i, &res); err != nil {
			return res, border(fmt.Errorf("repair of %q (%v), chunk %d: %w", o.Name, o.ObjectID, i, err))
		}
	}
	if !j.changed {
		return res, nil
	}
	err = sp.api.UpdateManifest(ctx, ns, j.next, j.epoch)
	if errors.Is(err, metadata.ErrStaleGCEpoch) {
		sp.expire()
	}
	c.manifests.Forget(ns, o.Name)
	if err != nil {
		return res, border(fmt.Errorf("repair of %q: %w", o.Name, err))
	}
	for _, t := range j.tags {
		c.finishTag(t.osd, t.tag)
	}
	res.Changed = true
	c.stats.repairFragments.Add(uint64(res.Written))
	return res, nil
}

// expire makes the next use look for the GC epoch.
func (sp *space) expire() {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.mu.fetched = sp.mu.fetched.AddDate(-1, 0, 0)
}

type repair struct {
	c       *Client
	sp      *space
	o       *object
	opts    RepairOptions
	epoch   metadata.GCEpoch // 0 until something is written
	next    *metadata.Manifest
	changed bool
	tags    []stored
}

// verdict is why a fragment has to be written anew, the most urgent first.
type verdict uint8

const (
	lost   verdict = 1 // not there, or not to be trusted
	absent verdict = 2 // on an OSD that may come back; not readable now
	moving verdict = 3 // readable where it is, but shall be elsewhere
	keep   verdict = 4
)

func (j *repair) judge(chunk, frag int) verdict {
	id := j.o.Chunks[chunk].Fragments[frag].OSD
	if id == 0 || slices.Contains(j.opts.Bad, BadFragment{chunk, frag}) {
		return lost
	}
	k := j.c.disks.get(id)
	leave := j.opts.Leave != nil && j.opts.Leave(id)
	switch {
	case k == nil && leave:
		return absent
	case k == nil:
		return keep
	case k.gone():
		return lost
	case leave:
		return absent
	case k.rec.Load().State == metadata.OSDDecommissioning:
		return moving
	}
	return keep
}

// attempt repairs one chunk with what is known of it.
func (j *repair) attempt(ctx context.Context, chunk int, res *RepairResult) error {
	frags := j.o.Chunks[chunk].Fragments
	verdicts := make([]verdict, len(frags))
	var need []int
	kept := map[metadata.OSDID]bool{}
	nodes := map[string]int{}
	for i := range frags {
		if verdicts[i] = j.judge(chunk, i); verdicts[i] == keep {
			kept[frags[i].OSD] = true
			nodes[j.c.disks.node(frags[i].OSD)]++
		} else {
			need = append(need, i)
		}
	}
	if len(need) == 0 {
		return nil
	}
	// Places may be fewer than needed: those that nobody can read come first.
	slices.SortStableFunc(need, func(a, b int) int { return int(verdicts[a]) - int(verdicts[b]) })
	cands := j.c.disks.candidates(func(id metadata.OSDID) bool {
		return kept[id] || (j.opts.Leave != nil && j.opts.Leave(id))
	})
	targets := placement.Choose(cands, len(need), j.o.Policy.X, nodes, randomUint64())
	for _, i := range need[len(targets):] {
		if verdicts[i] != lost {
			continue
		}
		res.Holes++
		if frags[i].OSD != 0 { // the truth must be known: safety is counted from it
			j.next.Chunks[chunk].Fragments[i].OSD, j.next.Chunks[chunk].Fragments[i].Version = 0, 0
			j.changed = true
		}
	}
	need = need[:len(targets)]
	if len(need) == 0 {
		return j.assertReadable(verdicts)
	}
	return j.write(ctx, chunk, need, targets, verdicts, res)
}

// wrongSources is the error of a repair that would have computed from fragments which are not
// what was stored. Nothing has been written then.
type wrongSources struct{ frags []int }

func (w *wrongSources) Error() string {
	return fmt.Sprintf("fragments %v are not what was stored, though their checksums fit: %v", w.frags, ErrUnreadable)
}

// Is makes it an ErrUnreadable, should it be the last word.
func (w *wrongSources) Is(target error) bool { return target == ErrUnreadable }

// chunk repairs one chunk. Fragments that turn out to be wrong on the way are made anew too, from
// the others: each attempt knows of one more at least, and when more than m are wrong it fails.
func (j *repair) chunk(ctx context.Context, chunk int, res *RepairResult) error {
	for {
		was := *res
		err := j.attempt(ctx, chunk, res)
		var w *wrongSources
		if !errors.As(err, &w) {
			return err
		}
		*res = was
		for _, i := range w.frags {
			j.opts.Bad = append(j.opts.Bad, BadFragment{chunk, i})
		}
	}
}

// assertReadable reports objects that nobody can repair.
func (j *repair) assertReadable(verdicts []verdict) error {
	n := 0
	for _, v := range verdicts {
		if v != lost {
			n++
		}
	}
	if n < j.o.Policy.K {
		j.changed = false // what is left of it stays where it is
		return fmt.Errorf("%d of %d fragments are left, %d needed: %w", n, len(verdicts), j.o.Policy.K, ErrUnreadable)
	}
	return nil
}

// write rebuilds the needed fragments and stores them on the targets.
func (j *repair) write(ctx context.Context, chunk int, need []int, targets []metadata.OSDID, verdicts []verdict, res *RepairResult) error {
	if j.epoch == 0 {
		// The newest one: what is written under an epoch that closes meanwhile is in the way until it is collected.
		var err error
		if _, j.epoch, err = j.c.terms(ctx, j.sp, 0); err != nil {
			return err
		}
	}
	ch := &j.o.Chunks[chunk]
	mem := min(int64(len(need))*int64(ch.FragmentLen), j.c.opts.UploadBytes)
	if err := j.c.uploads.Acquire(ctx, mem); err != nil {
		return fmt.Errorf("waiting for memory: %w", err)
	}
	defer j.c.uploads.Release(mem)
	bufs := make([][]byte, len(ch.Fragments))
	for _, i := range need {
		b := j.c.codec.Buffers().Get(int(ch.FragmentLen))
		defer b.Free()
		bufs[i] = b.B
	}
	sums, err := j.rebuild(ctx, chunk, need, bufs, verdicts)
	if err != nil {
		return err
	}
	rec, err := recovery(j.sp.id, j.o.Manifest, chunk)
	if err != nil {
		return err
	}
	errs := make([]error, len(need))
	tags := make([]stored, len(need))
	var wg sync.WaitGroup
	for n, i := range need {
		key := FragmentKey{j.sp.id, j.o.ObjectID, uint16(chunk), uint8(i), j.next.Version}
		tags[n] = stored{osd: targets[n], tag: TagKey{j.sp.id, j.epoch, j.o.ObjectID, j.next.Version, uint32(randomUint64())}.Bytes()}
		b := &osd.Batch{Background: j.opts.Background, Puts: []osd.Put{
			{Key: key.Bytes(KeyData), Value: bufs[i], Sums: sums[i]},
			{Key: key.Bytes(KeyRecovery), Value: rec},
			{Key: tags[n].tag, Value: tagValue([]part{{chunk, i}})},
		}, Asserts: []osd.Assert{{Key: key.Bytes(KeyData)}}} // what another attempt left is that one's tag's to remove
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, j.c.opts.WriteTimeout)
			defer cancel()
			errs[n] = j.c.applyBatch(ctx, targets[n], b)
		})
	}
	wg.Wait()
	before := len(j.tags)
	for n, i := range need {
		f := &j.next.Chunks[chunk].Fragments[i]
		if errs[n] != nil {
			res.Holes++
			j.c.opts.Logger.Warn("repaired fragment not stored", "osd", targets[n], "object", j.o.Name, "err", errs[n])
			if verdicts[i] == lost && f.OSD != 0 {
				f.OSD, f.Version, j.changed = 0, 0, true
			}
			continue
		}
		f.OSD, f.Version, j.changed = targets[n], j.next.Version, true
		j.tags = append(j.tags, tags[n])
		res.Written++
		res.Bytes += uint64(ch.FragmentLen)
	}
	if len(j.tags) == before && allAsserts(errs) {
		// Another repair is at it, or has died at it: then garbage collection clears the way.
		return metadata.Errorf(metadata.KindAssertFailed, "fragments of version %d are there already: another repair is under way or has left them", j.next.Version)
	}
	if len(j.tags) == before {
		return fmt.Errorf("no fragment could be stored: %w: %w", ErrUnavailable, errors.Join(errs...))
	}
	return nil
}

func allAsserts(errs []error) bool {
	for _, err := range errs {
		if !errors.Is(err, osd.ErrAssertFailed) {
			return false
		}
	}
	return true
}

// rebuild fills the buffers of the needed fragments: read from where they are when that
// works, otherwise computed from k others.
func (j *repair) rebuild(ctx context.Context, chunk int, need []int, bufs [][]byte, verdicts []verdict) ([][]uint32, error) {
	ch := &j.o.Chunks[chunk]
	sums := make([][]uint32, len(ch.Fragments))
	g := &gather{c: j.c, p: piece{sp: j.sp, o: j.o, chunk: chunk, frag: -1}, dst: make([][]byte, len(ch.Fragments)), skip: make([]bool, len(ch.Fragments))}
	left := 0
	for i, v := range verdicts {
		g.skip[i] = v == lost
	}
	for _, i := range need {
		if verdicts[i] == moving && j.readWhole(ctx, chunk, i, bufs[i]) == nil {
			if s := blocksum.Sums(nil, bufs[i]); codec.Digest(s) == ch.Fragments[i].Digest {
				sums[i] = s
				continue
			}
			return nil, j.wrong(chunk, i)
		}
		g.skip[i] = true
		g.dst[i] = bufs[i]
		left++
	}
	if left > 0 {
		if err := g.rebuild(ctx, int(ch.FragmentLen)); err != nil {
			return nil, err
		}
	}
	for _, i := range need {
		if sums[i] != nil {
			continue
		}
		sums[i] = blocksum.Sums(make([]uint32, 0, len(bufs[i])/codec.BlockSize), bufs[i])
		if d := codec.Digest(sums[i]); d != ch.Fragments[i].Digest {
			err := fmt.Errorf("fragment %d: rebuilt with digest %08x, manifest says %08x: %w", i, d, ch.Fragments[i].Digest, ErrUnreadable)
			return nil, j.suspect(ctx, chunk, verdicts, err)
		}
	}
	return sums, nil
}

// wrong notes a fragment that is not what was stored.
func (j *repair) wrong(chunk, frag int) error {
	j.c.noteWrong(&piece{sp: j.sp, o: j.o, chunk: chunk, frag: frag})
	return &wrongSources{[]int{frag}}
}

// suspect looks at all sources of a chunk after what was computed from some of them is not what
// was stored, for those that are wrong.
func (j *repair) suspect(ctx context.Context, chunk int, verdicts []verdict, cause error) error {
	wrong, err := j.c.liars(ctx, piece{sp: j.sp, o: j.o, chunk: chunk, frag: -1}, false)
	if err != nil {
		return fmt.Errorf("%w (%w)", cause, err)
	}
	wrong = slices.DeleteFunc(wrong, func(i int) bool { return verdicts[i] == lost }) // known already
	if len(wrong) == 0 {
		return cause
	}
	return &wrongSources{wrong}
}

// readWhole reads a fragment from its OSD.
func (j *repair) readWhole(ctx context.Context, chunk, frag int, buf []byte) error {
	return j.c.readFragment(ctx, piece{sp: j.sp, o: j.o, chunk: chunk}, frag, func(off int, b []byte) { copy(buf[off:], b) })
}
