package volumedriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"scoria/internal/vfs"
	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/sco"
	"scoria/volumedriver/tlog"
	"scoria/volumedriver/writebuffer"
)

// opening is the way from a record of the registry to an open volume.
//
// The order matters: ownership first, then the fence in the namespace, and only then the
// head is read, so that no earlier owner can change it any more. The local directory is
// used if this gateway wrote it during its present, unbroken run of ownership; otherwise the
// volume is what the head says.
type opening struct {
	d       *Driver
	v       *Volume
	rec     Record
	before  string // owner before this; "" when it had been released, which means: drained
	head    *Head  // nil: there is none yet
	ctx     context.Context
	record  []byte // the map checkpoint to go on from
	seq     uint64 // its sequence number
	salvage bool   // accept the loss of damaged local records
	buf     writebuffer.Options
}

// openVolume makes a volume ready. On an error nothing is left running.
func (d *Driver) openVolume(ctx context.Context, known Record, mode openMode) (*Volume, error) {
	rec, err := d.opts.Registry.Acquire(ctx, known.ID, d.opts.GatewayID, d.opts.Lease, mode.force)
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", known.Name, err)
	}
	o := &opening{d: d, rec: rec, before: known.Owner, salvage: mode.salvage}
	o.v = d.newVolume(rec)
	if err := o.open(ctx); err != nil {
		o.abandon()
		return nil, fmt.Errorf("open volume %s: %w", rec.Name, err)
	}
	return o.v, nil
}

// abandon cleans up after a failed opening. Ownership is kept if there is local data.
func (o *opening) abandon() {
	v := o.v
	v.cancel()
	if v.buf != nil {
		o.d.ignore(v.buf.Close())
	}
	if v.cmap != nil {
		o.d.ignore(v.cmap.Close())
	}
	if _, err := o.d.opts.FS.Stat(stateFile(v.dir)); errors.Is(err, fs.ErrNotExist) && o.before == "" {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		o.d.ignore(o.d.opts.Registry.Release(ctx, v.id, v.epoch))
	}
}

func (o *opening) open(ctx context.Context) error {
	o.ctx = ctx
	if err := o.d.opts.Store.Apply(ctx, o.rec.Namespace, Txn{Epoch: o.rec.Epoch}); err != nil {
		return fmt.Errorf("raise the fence of namespace %d to epoch %d: %w", o.rec.Namespace, o.rec.Epoch, err)
	}
	if err := o.readHead(ctx); err != nil {
		return err
	}
	o.buf = writebuffer.Options{
		FS: o.d.opts.FS, Dir: filepath.Join(o.v.dir, "log"), Pool: o.d.pool, Volume: o.v.id, Epoch: o.rec.Epoch,
		SCOClusters: o.d.opts.SCOClusters, Salvage: o.salvage,
		Direct:  -1, // what is to be uploaded soon is better in the page cache than on the disk alone
		Applied: o.v.applied, Closed: o.v.closedSCO, Pressure: o.v.pressure,
		SpaceWait: o.d.opts.SpaceWait, Logger: o.v.log,
	}
	local, why := o.localState()
	if local != nil {
		err := o.openLocal(ctx, local)
		if !errors.Is(err, errUnusable) {
			return err
		}
		why = err.Error()
	}
	return o.openRemote(ctx, why)
}

// errUnusable: the local directory cannot be used, though nothing durable that it alone
// has is known to be there.
var errUnusable = errors.New("the local directory is of no use")

// readHead reads and checks the head.
func (o *opening) readHead(ctx context.Context) error {
	b, err := o.d.opts.Store.Get(ctx, o.rec.Namespace, sco.HeadName, maxHeadBytes)
	if errors.Is(err, fs.ErrNotExist) {
		o.v.drain.head.Volume = o.v.id
		o.v.size.Store(o.rec.Size)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the head of namespace %d: %w", o.rec.Namespace, err)
	}
	h, err := DecodeHead(b)
	switch {
	case err != nil:
		return fmt.Errorf("namespace %d: %w", o.rec.Namespace, err)
	case h.Volume != o.v.id:
		return fmt.Errorf("the head in namespace %d is of volume %d, want %d: %w", o.rec.Namespace, h.Volume, o.v.id, ErrCorrupt)
	case h.Epoch > o.rec.Epoch:
		return fmt.Errorf("the head was written under epoch %d, ours is %d: %w", h.Epoch, o.rec.Epoch, ErrFenced)
	}
	o.head = h
	o.v.drain.head.Head, o.v.drain.head.exists = *h, true
	o.v.size.Store(max(o.rec.Size, h.Size))
	return nil
}

// localState reads the local state file, and decides whether it may be used: nil and the
// reason if not.
func (o *opening) localState() (*state, string) {
	b, err := vfs.ReadFile(o.d.opts.FS, stateFile(o.v.dir), maxHeadBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ""
	}
	if err != nil {
		return nil, err.Error()
	}
	s, err := decodeState(b)
	switch {
	case err != nil:
		return nil, err.Error()
	case s.Volume != o.v.id || s.Namespace != o.rec.Namespace:
		return nil, fmt.Sprintf("it is of volume %d, namespace %d", s.Volume, s.Namespace)
	case s.Epoch < o.rec.OwnerSince || s.Epoch > o.rec.Epoch:
		return nil, fmt.Sprintf("it is of epoch %d; others have owned the volume since (this gateway owns it from epoch %d on)", s.Epoch, o.rec.OwnerSince)
	}
	return s, ""
}

// replay applies a record of a TLog or of the log, if it is behind what the map has.
func (o *opening) replay(e *tlog.Entry) error {
	v := o.v
	if e.Seq <= v.apply.seq {
		return nil
	}
	v.applyLocked(e)
	if v.cmap.DirtyBytes() < o.d.opts.MapCacheBytes {
		return nil
	}
	// So much to replay that memory must be bounded now.
	c, err := v.cmap.BeginCheckpoint(e.Seq)
	if err != nil {
		return err
	}
	w, err := c.Write(o.ctx)
	if err != nil {
		return err
	}
	o.record, o.seq = w.Record, e.Seq
	return nil
}

// openLocal continues from the local directory: its map checkpoint, then what the TLogs of the
// head and the local log have behind it.
func (o *opening) openLocal(ctx context.Context, s *state) error {
	v := o.v
	base, err := recordSeq(s.Map)
	if err != nil {
		return fmt.Errorf("%w: its map checkpoint: %w", errUnusable, err)
	}
	if o.head != nil {
		published, err := recordSeq(o.head.Map)
		if err != nil {
			return fmt.Errorf("map checkpoint of the head: %w: %w", ErrCorrupt, err)
		}
		if base < published { // the directory is older than what this gateway published
			return fmt.Errorf("%w: its map is at record %d, the published one at %d", errUnusable, base, published)
		}
	}
	if err := o.openMap(s.Map); err != nil {
		return err
	}
	maxSCO := s.MaxSCO
	if o.head != nil {
		maxSCO = max(maxSCO, o.head.MaxSCO)
		if err := o.replayTLogs(ctx); err != nil {
			return err
		}
	}
	var orphans orphanList
	if !s.Drained {
		if orphans, err = o.orphans(ctx); err != nil {
			return err
		}
		maxSCO = max(maxSCO, orphans.maxSCO)
	}
	v.size.Store(max(v.size.Load(), s.Size))
	if err := o.openLog(ctx, s, base, maxSCO); err != nil {
		return err
	}
	v.cmap.ReservePacks(orphans.maxPack + 1)
	v.drain.head.TLog = max(v.drain.head.TLog, orphans.maxTLog)
	if v.garbage, err = o.garbage(orphans.names); err != nil {
		return err
	}
	return o.begin()
}

// openMap opens the map at a checkpoint record; an empty one is the empty map.
func (o *opening) openMap(record []byte) error {
	v := o.v
	var uploaded []uint32
	if o.head != nil {
		var err error
		if uploaded, err = recordPacks(o.head.Map); err != nil {
			return fmt.Errorf("map checkpoint of the head: %w: %w", ErrCorrupt, err)
		}
	}
	if err := v.packs.load(uploaded); err != nil {
		return err
	}
	clusters := v.size.Load() / ClusterSize
	o.record, o.seq = record, 0
	if len(record) == 0 {
		v.cmap = clustermap.New(o.d.mapCache, v.packs, clusters)
		return nil
	}
	m, err := clustermap.Open(o.d.mapCache, v.packs, record)
	if err != nil {
		return fmt.Errorf("map checkpoint: %w: %w", ErrCorrupt, err)
	}
	v.cmap = m
	v.cmap.Grow(clusters)
	seq, err := recordSeq(record)
	v.apply.seq, o.seq = seq, seq
	return err
}

// tlogsAtOnce is how many TLogs are read at a time.
const tlogsAtOnce = 4

// replayTLogs applies the TLogs of the head behind the map's sequence number.
func (o *opening) replayTLogs(ctx context.Context) error {
	refs := slices.Clone(o.head.TLogs)
	refs = slices.DeleteFunc(refs, func(t TLogRef) bool { return t.LastSeq <= o.v.apply.seq })
	type result struct {
		data []byte
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make([]chan result, len(refs))
	fetch := func(i int) {
		if i >= len(refs) {
			return
		}
		results[i] = make(chan result, 1)
		go func() { // ends with ctx at the latest; its channel takes the result without a reader
			data, err := o.d.opts.Store.Get(ctx, o.rec.Namespace, sco.TLogName(refs[i].Number), tlog.MaxObjectBytes)
			results[i] <- result{data, err}
		}()
	}
	for i := range min(tlogsAtOnce, len(refs)) {
		fetch(i)
	}
	defer func() { // wait for those that are still on their way
		cancel()
		for _, r := range results {
			if r != nil {
				<-r
			}
		}
	}()
	for i, ref := range refs {
		r := <-results[i]
		results[i] = nil
		fetch(i + tlogsAtOnce)
		if r.err != nil {
			return fmt.Errorf("TLog %d, named by the head: %w", ref.Number, r.err)
		}
		info, err := tlog.Decode(r.data, func(e *tlog.Entry) error { return o.replay(e) })
		if err != nil {
			return fmt.Errorf("TLog %d: %w: %w", ref.Number, ErrCorrupt, err)
		}
		if info.Number != ref.Number || info.FirstSeq != ref.FirstSeq || info.LastSeq != ref.LastSeq {
			return fmt.Errorf("TLog %d has records %d-%d, the head says %d-%d: %w", info.Number, info.FirstSeq, info.LastSeq, ref.FirstSeq, ref.LastSeq, ErrCorrupt)
		}
	}
	if o.v.apply.seq < o.head.Seq {
		return fmt.Errorf("the TLogs end at record %d, the head at %d: %w", o.v.apply.seq, o.head.Seq, ErrCorrupt)
	}
	return nil
}

// openRemote makes the volume what its head says, and nothing of the local directory.
func (o *opening) openRemote(ctx context.Context, why string) error {
	v := o.v
	if v.cmap != nil { // of an attempt to use the local directory
		o.d.ignore(v.cmap.Close())
		v.cmap, v.apply.seq = nil, 0
	}
	if err := o.d.setAside(v.dir, v.id, why); err != nil {
		return err
	}
	h := Head{Volume: v.id}
	if o.head != nil {
		h = *o.head
	}
	orphans, err := o.orphans(ctx)
	if err != nil {
		return err
	}
	v.packs = newPackStore(o.d.opts.FS, filepath.Join(v.dir, "map"), o.d.opts.Store, v.ns)
	if err := o.openMap(h.Map); err != nil {
		return err
	}
	v.cmap.ReservePacks(orphans.maxPack + 1)
	if o.head != nil {
		if err := o.replayTLogs(ctx); err != nil {
			return err
		}
	}
	h.MaxSCO = max(h.MaxSCO, orphans.maxSCO)
	h.TLog = max(h.TLog, orphans.maxTLog)
	o.buf.MinSCO, o.buf.FromSeq, o.buf.Disposable = h.MaxSCO+1, h.Seq, h.SCO
	if v.buf, err = o.freshLog(ctx, h.Seq+1); err != nil {
		return err
	}
	if o.before != "" {
		v.lost = fmt.Sprintf("recovered from the object store at record %d; what owner %s had not drained by then is lost", h.Seq, o.before)
		v.log.Warn("takeover without the local log", "what", v.lost, "reason", why)
	}
	if o.head != nil || len(orphans.names) > 0 {
		if err := o.claim(ctx, &h, orphans.names); err != nil {
			return err
		}
	}
	return o.begin()
}

// claim writes the head under the new epoch, which also keeps the numbers of orphans from
// being used again, and removes the orphans.
func (o *opening) claim(ctx context.Context, h *Head, orphans []string) error {
	h.Epoch, h.Size = o.rec.Epoch, o.v.size.Load()
	data, err := h.Encode()
	if err != nil {
		return err
	}
	err = o.d.opts.Store.Apply(ctx, o.v.ns, Txn{Epoch: o.v.epoch, Deletes: orphans, Puts: []Put{{Name: sco.HeadName, Data: aligned(data)}}})
	if err != nil {
		return fmt.Errorf("write the head of namespace %d: %w", o.v.ns, err)
	}
	o.v.drain.head.Head, o.v.drain.head.exists = *h, true
	return nil
}

// begin makes the local directory this epoch's, and lets the volume serve.
func (o *opening) begin() error {
	v := o.v
	published := uint64(0)
	if o.head != nil {
		var err error
		if published, err = recordSeq(o.head.Map); err != nil {
			return fmt.Errorf("map checkpoint of the head: %w: %w", ErrCorrupt, err)
		}
	}
	if o.seq > published {
		v.ckpt.mu.pending = []localCheckpoint{{o.seq, o.record}}
	}
	if o.seq > v.committed() { // the checkpoint may be of this opening, from records not synced
		if err := v.buf.Sync(o.ctx); err != nil {
			return fmt.Errorf("local log: %w", err)
		}
	}
	v.ckpt.mu.seq = o.seq
	if err := v.saveState(o.record, o.seq, false); err != nil {
		return err
	}
	// The names of the local directories must survive what the files in them survive.
	for _, dir := range []string{v.dir, filepath.Dir(v.dir)} {
		if err := o.d.opts.FS.SyncDir(dir); err != nil {
			return fmt.Errorf("volume %s: local directory: %w", v.Name(), err)
		}
	}
	if v.buf.LastSeq() > v.committed() {
		v.dirtySince.Store(time.Now().UnixNano())
	}
	v.touch(time.Now())
	if len(v.buf.ClosedSCOs(v.lastCommittedSCO())) > 0 {
		v.kick()
	}
	if v.cmap.DirtyBytes() > o.d.opts.CheckpointDirty {
		v.wantCheckpoint()
	}
	return nil
}
