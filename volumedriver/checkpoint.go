package volumedriver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"scoria/internal/vfs"
	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/writebuffer"
)

// checkpointState is what a volume knows of its map checkpoints.
type checkpointState struct {
	wanted atomic.Bool // one is running or about to
	run    sync.Mutex  // held by who writes one: one at a time

	mu struct {
		sync.Mutex
		record []byte // newest durable local record; nil: the empty map
		seq    uint64
		// pending are the durable records that are newer than the published one, in order.
		// While the log runs ahead of the object store the newest cannot be published yet.
		pending []localCheckpoint
		state   state // as it is in the file
	}
}

type localCheckpoint struct {
	seq    uint64
	record []byte
}

// maxPending bounds the checkpoints that wait for publication.
const maxPending = 16

// wantCheckpoint starts a checkpoint in the background unless one is running.
func (v *Volume) wantCheckpoint() {
	if v.ckpt.wanted.Swap(true) {
		return
	}
	started := v.spawn(func() {
		err := v.checkpoint(v.ctx)
		v.ckpt.wanted.Store(false)
		if v.ctx.Err() == nil {
			v.trouble.set("write a map checkpoint", err)
			if err != nil {
				v.log.Warn("map checkpoint failed; it will be tried again", "error", err)
			}
		}
		v.drain.news.tell()
	})
	if !started {
		v.ckpt.wanted.Store(false)
	}
}

// checkpoint writes what the map is now to local files: pages as a pack, then a state file
// that names it. The log is synced in between, so that the checkpoint is never ahead of
// what survives.
func (v *Volume) checkpoint(ctx context.Context) error {
	v.ckpt.run.Lock()
	defer v.ckpt.run.Unlock()
	v.apply.Lock()
	seq := v.apply.seq
	c, err := v.cmap.BeginCheckpoint(seq)
	v.apply.Unlock()
	if err != nil {
		return err
	}
	defer c.Abort() // does nothing after Write
	// What the head covers is safe without the log.
	if !v.awaitCommit(ctx, seq) {
		if err := v.buf.Sync(ctx); err != nil {
			return fmt.Errorf("map checkpoint: %w", err)
		}
	}
	w, err := c.Write(ctx)
	if err != nil {
		return err
	}
	v.stats.checkpoints.Add(1)
	v.stats.checkpointBytes.Add(uint64(w.PackBytes))
	if err := v.saveState(w.Record, seq, false); err != nil {
		return err
	}
	return v.prunePacks()
}

// commitPatience is how long a checkpoint waits for the head to reach it.
const commitPatience = 5 * time.Second

// awaitCommit tells whether the head covers record seq. While the volume drains as fast as
// it can, the head gets there soon: waiting for it saves the log, of which most is about to
// be removed, from being written to the disk. The map goes on meanwhile, as far as it may.
func (v *Volume) awaitCommit(ctx context.Context, seq uint64) bool {
	limit := time.NewTimer(commitPatience)
	defer limit.Stop()
	for {
		news := v.drain.news.wait()
		if seq <= v.committed() {
			return true
		}
		if !v.draining() || v.d.pool.Fill() != writebuffer.FillHigh || v.cmap.DirtyBytes() > v.d.opts.CheckpointDirty/2 || v.trouble.cause() != nil {
			return false
		}
		select {
		case <-news: // of each upload and commit, and of trouble
		case <-limit.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

const stateName = "state"

// stateFile is the name of the state file of a volume's local directory.
func stateFile(dir string) string { return filepath.Join(dir, stateName) }

// saveState replaces the state file. The caller holds ckpt.run, or the volume is not open.
func (v *Volume) saveState(record []byte, seq uint64, drained bool) error {
	h, _ := v.headCopy()
	s := state{Volume: v.id, Namespace: v.ns, Epoch: v.epoch, Size: v.size.Load(), HeadSeq: h.Seq, HeadSCO: h.SCO,
		MaxSCO: max(h.MaxSCO, h.SCO), Drained: drained, Map: record}
	if err := vfs.WriteFile(v.d.opts.FS, stateFile(v.dir), s.encode(), 0o600); err != nil {
		return fmt.Errorf("volume %s: local state: %w", v.Name(), err)
	}
	v.ckpt.mu.Lock()
	defer v.ckpt.mu.Unlock()
	if seq > v.ckpt.mu.seq {
		if n := len(v.ckpt.mu.pending); n == maxPending {
			v.ckpt.mu.pending = v.ckpt.mu.pending[:n-1] // the oldest gets its turn first
		}
		v.ckpt.mu.pending = append(v.ckpt.mu.pending, localCheckpoint{seq, record})
	}
	v.ckpt.mu.record, v.ckpt.mu.seq, v.ckpt.mu.state = record, seq, s
	return nil
}

// checkpointUpTo returns the newest pending checkpoint that a head up to seq covers; a nil
// record if there is none.
func (v *Volume) checkpointUpTo(seq uint64) (found localCheckpoint) {
	v.ckpt.mu.Lock()
	defer v.ckpt.mu.Unlock()
	for _, c := range v.ckpt.mu.pending {
		if c.seq <= seq {
			found = c
		}
	}
	return found
}

// published forgets checkpoints that are not newer than the published one.
func (v *Volume) published(seq uint64) {
	v.ckpt.mu.Lock()
	defer v.ckpt.mu.Unlock()
	v.ckpt.mu.pending = slices.DeleteFunc(v.ckpt.mu.pending, func(c localCheckpoint) bool { return c.seq <= seq })
}

// prunePacks removes local packs that nothing needs. The caller holds ckpt.run, so that no
// pack is being written.
func (v *Volume) prunePacks() error {
	h, _ := v.headCopy()
	v.ckpt.mu.Lock()
	records := [][]byte{h.Map, v.ckpt.mu.record}
	for _, c := range v.ckpt.mu.pending {
		records = append(records, c.record)
	}
	v.ckpt.mu.Unlock()
	keep := make(map[uint32]bool)
	for _, r := range records {
		packs, err := recordPacks(r)
		if err != nil {
			return v.badRecord(err)
		}
		for _, number := range packs {
			keep[number] = true
		}
	}
	return v.packs.prune(keep, v.d.opts.MapDiskBytes)
}

// finalCheckpoint is the checkpoint of a clean end. A failure costs only time at the next
// start.
func (v *Volume) finalCheckpoint(ctx context.Context) error {
	drained := v.buf.LastSeq() <= v.committed()
	v.apply.Lock()
	seq := v.apply.seq
	v.apply.Unlock()
	v.ckpt.mu.Lock()
	record, at, saved := v.ckpt.mu.record, v.ckpt.mu.seq, v.ckpt.mu.state
	v.ckpt.mu.Unlock()
	var err error
	if at < seq {
		err = v.checkpoint(ctx)
		v.ckpt.mu.Lock()
		record, at = v.ckpt.mu.record, v.ckpt.mu.seq
		v.ckpt.mu.Unlock()
	}
	if drained && !saved.Drained || at < seq {
		v.ckpt.run.Lock()
		defer v.ckpt.run.Unlock()
		err = errors.Join(err, v.saveState(record, at, drained))
	}
	return err
}

var _ clustermap.PackStore = (*packStore)(nil)
