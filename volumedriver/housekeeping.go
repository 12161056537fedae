package volumedriver

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// housekeeping is the one timer of the driver: leases, aging of dirty data, idle volumes, and
// what has to be balanced between volumes.
func (d *Driver) housekeeping() {
	tick := time.NewTicker(d.opts.Tick)
	defer tick.Stop()
	var renewed, relieved time.Time
	for {
		select {
		case now := <-tick.C:
			if now.Sub(renewed) >= d.opts.Lease/3 {
				renewed = now
				d.renew()
			}
			d.tickVolumes(now)
		case <-d.relief:
			if time.Since(relieved) > reliefPause {
				d.drainSome()
				relieved = time.Now()
			}
		case <-d.ctx.Done():
			return
		}
	}
}

// reliefPause is the least time between two looks at who should drain.
const reliefPause = 50 * time.Millisecond

// relieve asks for a look at which volumes should drain to make room. It does not wait.
func (d *Driver) relieve() {
	select {
	case d.relief <- struct{}{}:
	default:
	}
}

// drainSome has the volumes that hold the most undrained bytes drain, together half of all,
// but for those that are at it anyway. Those that are drained give up their read cache.
func (d *Driver) drainSome() {
	type dirty struct {
		v *Volume
		n int64
	}
	var list []dirty
	var total int64
	for _, v := range d.volumes() {
		if n := v.buf.DirtyBytes(); n > 0 && !v.draining() {
			list = append(list, dirty{v, n})
			total += n
		}
		v.settleLog()
	}
	slices.SortFunc(list, func(a, b dirty) int { return cmp.Compare(b.n, a.n) })
	for left := total / 2; len(list) > 0 && left >= 0; list = list[1:] {
		list[0].v.request()
		left -= list[0].n
	}
}

// draining tells whether the volume's loop runs, and goes on.
func (v *Volume) draining() bool {
	v.drain.mu.Lock()
	defer v.drain.mu.Unlock()
	return v.drain.mu.running && !v.drain.mu.stopped
}

// renew extends the leases. For safety nobody relies on them.
func (d *Driver) renew() {
	if len(d.volumes()) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(d.ctx, d.opts.Lease/3)
	defer cancel()
	err := d.opts.Registry.Renew(ctx, d.opts.GatewayID, d.opts.Lease)
	if d.renewErr.set("renew leases", err) {
		d.opts.Logger.Warn("renewal of leases changed", "error", err)
	}
	d.findNewOwners(ctx)
}

// findNewOwners stops volumes that others own by now. Whatever such a volume tried to
// change would be refused; but it should not go on answering reads either.
func (d *Driver) findNewOwners(ctx context.Context) {
	open := d.volumes() // before the list: what is opened meanwhile may be newer than it
	list, err := d.opts.Registry.List(ctx)
	if err != nil {
		return
	}
	epochs := make(map[uint64]uint64, len(list))
	for _, rec := range list {
		epochs[rec.ID] = rec.Epoch
	}
	for _, v := range open {
		if epoch, ok := epochs[v.id]; !ok {
			v.fail(fmt.Errorf("the registry does not have the volume any more: %w", ErrFenced))
		} else if epoch > v.epoch {
			v.fail(fmt.Errorf("owner epoch %d, ours is %d: %w", epoch, v.epoch, ErrFenced))
		}
	}
}

func (d *Driver) tickVolumes(now time.Time) {
	var idle []*entry
	d.mu.Lock()
	for _, e := range d.mu.entries {
		v := e.v
		if v == nil || e.going || e.err != nil {
			continue
		}
		if v.used.Swap(false) || v.lastUse.Load() == 0 {
			v.touch(now)
		}
		if e.refs == 0 && d.opts.IdleDelay >= 0 && now.UnixNano()-v.lastUse.Load() > int64(d.opts.IdleDelay) &&
			v.dirtySince.Load() == 0 && v.lost == "" { // a loss is told for as long as this gateway runs
			e.going = true
			idle = append(idle, e)
		}
	}
	d.mu.Unlock()
	if s := d.pool.Stats(); s.DirtyBytes > s.SoftBytes {
		d.relieve()
	}
	for _, v := range d.volumes() {
		if v.starved.Load() > 0 {
			d.relieve()
		}
		since := v.dirtySince.Load()
		if since != 0 && d.opts.DrainDelay >= 0 && now.UnixNano()-since > int64(d.opts.DrainDelay) {
			v.age()
		}
		if v.buf.WantsNote() {
			v.noteSynced()
		}
		if now.UnixNano()-v.lastUse.Load() > int64(readAheadIdle) {
			v.ahead.dropAll()
		}
	}
	d.balanceMaps()
	for _, e := range idle {
		d.tasks.Go(func() { d.ignore(d.shut(context.WithoutCancel(d.ctx), e)) })
	}
}

// noteSynced has the log note what is durable, if it has come to rest. Not here: the disk may be slow.
func (v *Volume) noteSynced() {
	if v.noting.Swap(true) {
		return
	}
	started := v.spawn(func() {
		defer v.noting.Store(false)
		if err := v.buf.NoteSynced(); err != nil && v.ctx.Err() == nil {
			v.log.Warn("the local log could not note what is durable", "error", err)
		}
	})
	if !started {
		v.noting.Store(false)
	}
}

// balanceMaps has the volumes with the most dirty map pages write checkpoints when all
// together hold too many, and has writers wait while they hold far too many.
func (d *Driver) balanceMaps() {
	dirty, limit := d.mapCache.Stats().Dirty, d.opts.MapCacheBytes
	full := dirty > limit+limit/2
	was := d.mapsFull.Swap(full)
	if dirty <= limit/2 && !was {
		return
	}
	list := d.volumes()
	slices.SortFunc(list, func(a, b *Volume) int { return cmp.Compare(b.cmap.DirtyBytes(), a.cmap.DirtyBytes()) })
	for _, v := range list {
		if was && !full {
			v.drain.news.tell() // writers may go on
		}
		if dirty > limit/4 {
			dirty -= v.cmap.DirtyBytes()
			v.wantCheckpoint()
		}
	}
}

// readAheadIdle is how long an idle volume keeps what was read ahead.
const readAheadIdle = 5 * time.Second

// touch notes that the volume is in use.
func (v *Volume) touch(now time.Time) { v.lastUse.Store(now.UnixNano()) }
