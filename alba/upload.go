package alba

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"scoria/alba/codec"
	"scoria/alba/osd"
	"scoria/alba/placement"
	"scoria/metadata"
)

// errUpload marks failures before the commit: nothing became visible, a put may be made anew.
var errUpload = errors.New("fragments not stored")

// Bounds of one round of an upload: plain bytes of its chunks, and of one OSD's batch.
const (
	groupBytes   = 32 << 20
	replacements = 2 // OSDs tried for a fragment after the first one failed
)

// upload is one object on its way: encoded in groups of chunks, each group sent as one
// batch per OSD. A slot is the OSD that takes one fragment of each chunk.
type upload struct {
	c      *Client
	sp     *space
	preset *metadata.Preset
	epoch  metadata.GCEpoch
	put    *PutObject
	sums   []uint32
	hold   *hold
	sealer *codec.Sealer

	ctx     context.Context // of the batches: late ones outlive the put
	cancel  context.CancelCauseFunc
	started time.Time
	m       metadata.Manifest
	policy  metadata.Policy
	slots   int

	mu struct {
		sync.Mutex
		frozen bool
		used   map[metadata.OSDID]bool // taken or tried, by any slot
		done   []stored
		late   []stored // done after the manifest was frozen
		failed int
	}
	pending sync.WaitGroup // batches
}

// stored is a batch that an OSD has confirmed.
type stored struct {
	osd   metadata.OSDID
	parts []part
	tag   []byte
}

// part is one fragment of a batch.
type part struct{ chunk, fragment int }

func (c *Client) newUpload(sp *space, preset *metadata.Preset, epoch metadata.GCEpoch, put *PutObject, sums []uint32, h *hold) *upload {
	u := &upload{c: c, sp: sp, preset: preset, epoch: epoch, put: put, sums: sums, hold: h, started: time.Now()}
	u.ctx, u.cancel = context.WithCancelCause(c.ctx)
	u.m = metadata.Manifest{
		Name: put.Name, ObjectID: newObjectID(), Size: uint64(len(put.Data)), Compression: preset.Compression, Encryption: preset.Encryption,
		GCEpoch: epoch, Created: u.started.UTC(), Checksum: c.codec.ObjectSum(put.Data, sums),
	}
	if preset.Encryption != metadata.EncryptNone {
		u.m.KeyID = sp.rec.KeyID
	}
	u.mu.used = map[metadata.OSDID]bool{}
	return u
}

// run stores the object so far that it may be committed: inline, or c fragments of each chunk.
func (u *upload) run(ctx context.Context) error {
	var err error
	if u.sealer, err = u.c.codec.Sealer(u.m.ObjectID, u.preset.Compression, u.preset.Encryption, u.sp.rec.Key); err != nil {
		return fmt.Errorf("put of %q: %w", u.put.Name, err)
	}
	if len(u.put.Data) == 0 || len(u.put.Data) <= int(min(u.preset.InlineLimit, metadata.MaxInlineLimit)) {
		return u.inline()
	}
	u.m.UnitSize = codec.UnitSize(u.preset.Compression, u.preset.Encryption)
	chosen, err := u.place(ctx)
	if err != nil {
		return fmt.Errorf("put of %q: %w", u.put.Name, err)
	}
	chunkSize := int(u.preset.ChunkSize)
	count := codec.Chunks(u.m.Size, u.preset.ChunkSize)
	if count > codec.MaxChunks {
		return fmt.Errorf("put of %q: %d chunks of %d bytes, limit %d: %w", u.put.Name, count, chunkSize, codec.MaxChunks, ErrInvalid)
	}
	u.m.Chunks = make([]metadata.Chunk, count)
	per := max(groupBytes/chunkSize, 1)
	for first := 0; first < count; first += per {
		if err := u.group(ctx, first, min(first+per, count), chosen); err != nil {
			return fmt.Errorf("put of %q: %w", u.put.Name, err)
		}
	}
	return nil
}

// inline puts the data in the manifest, as one unit.
func (u *upload) inline() error {
	if len(u.put.Data) == 0 || plainInline(&u.m) {
		u.m.Compression, u.m.Encryption, u.m.KeyID = metadata.CompressNone, metadata.EncryptNone, 0
		u.m.Inline = append([]byte{}, u.put.Data...)
		return nil
	}
	n := uint32(len(u.put.Data))
	packed, _, err := u.sealer.Pack(make([]byte, 0, codec.PackedBound(n, n)), u.put.Data, 0, n)
	if err != nil {
		return fmt.Errorf("put of %q: %w", u.put.Name, err)
	}
	u.m.Inline = packed
	return nil
}

// place chooses policy and OSDs.
func (u *upload) place(ctx context.Context) ([]metadata.OSDID, error) {
	age := u.c.opts.OSDRefresh
	for {
		if err := u.c.disks.fresh(ctx, age); err != nil {
			return nil, err
		}
		cands := u.c.disks.candidates(nil)
		p, n, ok := placement.Policy(u.preset.Policies, cands)
		if ok {
			u.policy, u.m.Policy = p, p
			chosen := placement.Choose(cands, n, p.X, nil, randomUint64())
			u.slots = len(chosen)
			for _, id := range chosen {
				u.mu.used[id] = true
			}
			return chosen, nil
		}
		if age <= time.Second {
			return nil, fmt.Errorf("no policy of preset %q is satisfied by the %d usable OSDs (%d are full): %w: %w",
				u.preset.Name, len(cands), u.c.disks.full(), errUpload, ErrUnavailable)
		}
		age = time.Second // once more with a new list
	}
}

// group encodes the chunks [first, end) and sends them, one batch per slot. It returns
// when enough batches are stored.
func (u *upload) group(ctx context.Context, first, end int, chosen []metadata.OSDID) error {
	g := &group{u: u}
	chunkSize := int(u.preset.ChunkSize)
	for i := first; i < end; i++ {
		g.bytes += codec.Bytes(uint32(min(chunkSize, len(u.put.Data)-i*chunkSize)), u.m.UnitSize, u.policy)
	}
	g.bytes = min(g.bytes, u.c.opts.UploadBytes)
	if err := u.c.uploads.Acquire(ctx, g.bytes); err != nil {
		return fmt.Errorf("waiting for memory: %w", err)
	}
	u.hold.add()
	g.left.Store(1)
	defer g.release() // our own share
	for i := first; i < end; i++ {
		lo, hi := i*chunkSize, min((i+1)*chunkSize, len(u.put.Data))
		sums := u.sums[lo/codec.BlockSize : (hi+codec.BlockSize-1)/codec.BlockSize]
		e, err := u.c.codec.Encode(u.put.Data[lo:hi], sums, i, u.m.UnitSize, u.sealer, u.policy)
		if err != nil {
			return err
		}
		g.chunks = append(g.chunks, e)
		u.m.Chunks[i] = e.Chunk
		rec, err := recovery(u.sp.id, &u.m, i)
		if err != nil {
			return err
		}
		g.recs = append(g.recs, rec)
	}
	batches := make([]*osd.Batch, len(chosen))
	places := make([]stored, len(chosen))
	for s := range chosen {
		batches[s], places[s] = g.batch(first, s, len(chosen))
	}
	results := make(chan error, len(chosen))
	for s := range chosen {
		g.left.Add(1)
		u.pending.Add(1)
		send := func(context.Context) {
			defer u.pending.Done()
			defer g.release()
			results <- u.send(chosen[s], batches[s], places[s])
		}
		if !u.c.spawn(send) {
			g.left.Add(-1)
			u.pending.Done()
			results <- ErrClosed
		}
	}
	return u.await(ctx, results, len(chosen))
}

// group is a run of chunks whose memory is shared by its batches.
type group struct {
	u      *upload
	chunks []*codec.Encoded
	recs   [][]byte // recovery information of each chunk
	bytes  int64
	left   atomic.Int32
}

func (g *group) release() {
	if g.left.Add(-1) > 0 {
		return
	}
	for _, e := range g.chunks {
		e.Free()
	}
	g.u.c.uploads.Release(g.bytes)
	g.u.hold.done()
}

// batch makes the batch of slot s: of chunk i it takes fragment (s+i) mod slots, so that
// data and parity spread over all OSDs.
func (g *group) batch(first, s, slots int) (*osd.Batch, stored) {
	b := &osd.Batch{Puts: make([]osd.Put, 0, 2*len(g.chunks)+1)}
	st := stored{}
	for j, e := range g.chunks {
		chunk, frag := first+j, (s+first+j)%slots
		key := FragmentKey{Namespace: g.u.sp.id, ObjectID: g.u.m.ObjectID, Chunk: uint16(chunk), Fragment: uint8(frag)}
		b.Puts = append(b.Puts,
			osd.Put{Key: key.Bytes(KeyData), Value: e.Values[frag], Sums: e.Sums[frag]},
			osd.Put{Key: key.Bytes(KeyRecovery), Value: g.recs[j]})
		st.parts = append(st.parts, part{chunk, frag})
	}
	st.tag = TagKey{Namespace: g.u.sp.id, Epoch: g.u.epoch, ObjectID: g.u.m.ObjectID, Nonce: uint32(randomUint64())}.Bytes()
	b.Puts = append(b.Puts, osd.Put{Key: st.tag, Value: tagValue(st.parts)})
	return b, st
}

// await waits for c batches, then a little for the rest.
func (u *upload) await(ctx context.Context, results <-chan error, n int) error {
	var errs []error
	var slack <-chan time.Time
	for ok := 0; ok+len(errs) < n; {
		select {
		case err := <-results:
			if err == nil {
				ok++
			} else {
				errs = append(errs, err)
			}
		case <-slack:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		if n-len(errs) < u.policy.C {
			return fmt.Errorf("%d of %d batches failed, policy %v needs %d: %w: %w: %w", len(errs), n, u.policy, u.policy.C, errUpload, ErrUnavailable, errors.Join(errs...))
		}
		if ok >= u.policy.C && slack == nil {
			t := time.NewTimer(u.c.opts.Slack + time.Since(u.started)/5)
			defer t.Stop()
			slack = t.C
		}
	}
	return nil
}

// send stores one batch on the chosen OSD, or on another one when that fails.
func (u *upload) send(id metadata.OSDID, b *osd.Batch, st stored) error {
	var errs []error
	for try := 0; ; try++ {
		ctx, cancel := context.WithTimeout(u.ctx, u.c.opts.WriteTimeout)
		err := u.c.applyBatch(ctx, id, b)
		cancel()
		if err == nil {
			st.osd = id
			u.mu.Lock()
			if u.mu.frozen {
				u.mu.late = append(u.mu.late, st)
			} else {
				u.mu.done = append(u.mu.done, st)
			}
			u.mu.Unlock()
			return nil
		}
		errs = append(errs, fmt.Errorf("OSD %d: %w", id, err))
		next := metadata.OSDID(0)
		if try < replacements && u.ctx.Err() == nil {
			next = u.replacement(id)
		}
		if next == 0 {
			u.mu.Lock()
			u.mu.failed++
			u.mu.Unlock()
			return errors.Join(errs...)
		}
		id = next
		u.c.stats.replaced.Add(1)
	}
}

// replacement chooses an OSD in place of one that failed.
func (u *upload) replacement(failed metadata.OSDID) metadata.OSDID {
	u.mu.Lock()
	defer u.mu.Unlock()
	nodes := map[string]int{}
	for id := range u.mu.used {
		if id != failed {
			nodes[u.c.disks.node(id)]++
		}
	}
	cands := u.c.disks.candidates(func(id metadata.OSDID) bool { return u.mu.used[id] })
	next := placement.Choose(cands, 1, u.policy.X, nodes, randomUint64())
	if len(next) == 0 {
		return 0
	}
	u.mu.used[next[0]] = true
	return next[0]
}

// applyBatch sends a batch to an OSD, with finished tags riding along.
func (c *Client) applyBatch(ctx context.Context, id metadata.OSDID, b *osd.Batch) error {
	k := c.disks.get(id)
	if k == nil {
		return fmt.Errorf("OSD %d is not known: %w", id, osd.ErrUnavailable)
	}
	api, err := c.handle(k)
	if err != nil {
		c.failed(k, err) // else the next put would choose it again, and all after that
		return err
	}
	tags := k.tags.take(ridingTags)
	b.Deletes = tags
	if k.batches.Add(1) == 1 {
		k.progress.Store(time.Now().UnixNano())
	}
	err = api.Apply(ctx, b)
	k.progress.Store(time.Now().UnixNano())
	k.batches.Add(-1)
	b.Deletes = nil
	if err != nil {
		k.tags.put(tags...)
		switch {
		case errors.Is(context.Cause(ctx), errLate):
			err = errLate
		case errors.Is(ctx.Err(), context.DeadlineExceeded) && c.ctx.Err() == nil:
			err = fmt.Errorf("%w: %w", osd.ErrUnavailable, err)
		}
		c.failed(k, err)
		return err
	}
	for i := range b.Puts {
		if KeyKind(b.Puts[i].Key[0]) == KeyData {
			c.stats.stored.Add(1)
			c.stats.storedBytes.Add(uint64(len(b.Puts[i].Value)))
		}
	}
	return nil
}

// freeze fixes the places that the manifest tells; what is stored later is added by an update.
func (u *upload) freeze() metadata.Manifest {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mu.frozen = true
	for _, st := range u.mu.done {
		for _, p := range st.parts {
			u.m.Chunks[p.chunk].Fragments[p.fragment].OSD = st.osd
		}
	}
	return u.m
}

// abandon ends an upload that is not committed. Its tags stay: garbage collection finds
// what it left.
func (u *upload) abandon() { u.cancel(nil) }

// committed ends an upload whose manifest is in place: tags may go, and what is still on
// its way is added when it arrives.
func (u *upload) committed() {
	u.mu.Lock()
	done, all := u.mu.done, len(u.mu.done)+u.mu.failed
	u.mu.Unlock()
	for _, st := range done {
		u.c.finishTag(st.osd, st.tag)
	}
	if len(u.m.Chunks) == 0 {
		u.cancel(nil)
		return
	}
	u.c.stats.holes.Add(uint64(u.policy.K + u.policy.M - u.slots))
	per := max(groupBytes/int(u.preset.ChunkSize), 1)
	groups := (len(u.m.Chunks) + per - 1) / per
	if all == groups*u.slots {
		u.cancel(nil)
		return
	}
	patience := max(u.c.opts.WriteTimeout/latePart, 4*time.Since(u.started))
	epilogue := func(ctx context.Context) {
		defer u.cancel(nil)
		timer := time.AfterFunc(patience, func() { u.cancel(errLate) })
		defer timer.Stop()
		u.pending.Wait()
		u.addLate(ctx)
	}
	if !u.c.spawn(epilogue) {
		u.cancel(nil)
	}
}

// addLate adds the fragments that were stored after the manifest went out. When the object
// has changed meanwhile, or the epoch has ended, their tags remain and they are removed.
func (u *upload) addLate(ctx context.Context) {
	u.mu.Lock()
	late := u.mu.late
	u.mu.Unlock()
	if len(late) == 0 {
		return
	}
	m := clonePlaces(&u.m)
	m.Version++
	for _, st := range late {
		for _, p := range st.parts {
			m.Chunks[p.chunk].Fragments[p.fragment].OSD = st.osd
		}
	}
	if err := u.sp.api.UpdateManifest(ctx, u.sp.id, m, u.epoch); err != nil {
		u.c.opts.Logger.Info("late fragments not added", "object", u.m.Name, "err", err)
		return
	}
	u.c.manifests.Forget(u.sp.id, m.Name)
	for _, st := range late {
		u.c.stats.late.Add(uint64(len(st.parts)))
		u.c.finishTag(st.osd, st.tag)
	}
}

// clonePlaces copies a manifest so far that its places may be changed.
func clonePlaces(m *metadata.Manifest) *metadata.Manifest {
	out := *m
	out.Chunks = append([]metadata.Chunk(nil), m.Chunks...)
	for i := range out.Chunks {
		out.Chunks[i].Fragments = append([]metadata.Fragment(nil), m.Chunks[i].Fragments...)
	}
	return &out
}
