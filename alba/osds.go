package alba

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"scoria/alba/osd"
	"scoria/alba/placement"
	"scoria/metadata"
)

const (
	probeMax  = time.Minute // longest back-off of probes
	fullRests = 20          // probe intervals for which a full disk is left alone
	stuckPart = 15          // of the write time-out: without progress for so long a disk gets no new fragments
)

// disks is the Client's view of all OSDs. Look-ups take no lock.
type disks struct {
	c       *Client
	table   atomic.Pointer[map[metadata.OSDID]*disk]
	fetched atomic.Int64  // unix nanoseconds of the last refresh
	turn    chan struct{} // capacity 1: held by who refreshes
	later   atomic.Bool   // a refresh in the background is under way
}

func (d *disks) init(c *Client) {
	d.c, d.turn = c, make(chan struct{}, 1)
	d.table.Store(&map[metadata.OSDID]*disk{})
}

// disk is one OSD: its record, handle and health.
type disk struct {
	id   metadata.OSDID
	rec  atomic.Pointer[metadata.OSD]
	api  atomic.Pointer[osd.API]
	tags tagList

	mean, dev atomic.Int64 // of read latency, nanoseconds (moving)
	answered  atomic.Int64 // unix nanoseconds of the last answer to a read
	asked     atomic.Bool  // Client.ask runs
	errors    atomic.Uint64
	bad       atomic.Bool  // failing: not used, being probed
	fullUntil atomic.Int64 // unix nanoseconds
	batches   atomic.Int32 // on their way
	progress  atomic.Int64 // unix nanoseconds: when the last batch ended, or the first began

	mu struct {
		sync.Mutex
		lastErr string
		wrong   []FragmentKey // that it gave with sums that fit, and that are not what was stored
	}
}

// get returns the disk with the id, nil when it is not known.
func (d *disks) get(id metadata.OSDID) *disk { return (*d.table.Load())[id] }

// fresh refreshes the list when it is older than age. A list that exists is kept when the
// ABM does not answer: reading and writing go on without it.
func (d *disks) fresh(ctx context.Context, age time.Duration) error {
	if d.young(age) {
		return nil
	}
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.turn }()
	if d.young(age) {
		return nil
	}
	list, err := d.c.opts.ABM.ListOSDs(ctx)
	if err != nil {
		if len(*d.table.Load()) > 0 {
			d.c.opts.Logger.Warn("list of OSDs not refreshed", "err", err)
			d.fetched.Store(time.Now().UnixNano()) // and not asked again at once
			return nil
		}
		return fmt.Errorf("list of OSDs: %w", err)
	}
	next := maps.Clone(*d.table.Load())
	for i := range list {
		rec := list[i]
		if rec.ID == 0 {
			continue
		}
		k := next[rec.ID]
		if k == nil {
			k = &disk{id: rec.ID}
			next[rec.ID] = k
		}
		if old := k.rec.Swap(&rec); old != nil && old.Addr != rec.Addr {
			k.api.Store(nil) // made again from the new address
		}
	}
	d.table.Store(&next)
	d.fetched.Store(time.Now().UnixNano())
	return nil
}

func (d *disks) young(age time.Duration) bool {
	return time.Now().UnixNano()-d.fetched.Load() < int64(age)
}

// handle returns the API of a disk.
func (c *Client) handle(k *disk) (osd.API, error) {
	if p := k.api.Load(); p != nil {
		return *p, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.api.Load(); p != nil {
		return *p, nil
	}
	api, err := c.opts.OSD(*k.rec.Load())
	if err != nil {
		return nil, fmt.Errorf("OSD %d: %w", k.id, err)
	}
	k.api.Store(&api)
	return api, nil
}

// RefreshOSDs looks at the list of OSDs now.
func (c *Client) RefreshOSDs(ctx context.Context) error { return border(c.disks.fresh(ctx, 0)) }

// OSD returns the handle of an OSD, for maintenance.
func (c *Client) OSD(ctx context.Context, id metadata.OSDID) (osd.API, error) {
	if err := c.disks.fresh(ctx, c.opts.OSDRefresh); err != nil {
		return nil, border(err)
	}
	k := c.disks.get(id)
	if k == nil {
		if err := c.disks.fresh(ctx, time.Second); err != nil {
			return nil, border(err)
		}
		if k = c.disks.get(id); k == nil {
			return nil, fmt.Errorf("OSD %d is not known: %w", id, ErrUnavailable)
		}
	}
	return c.handle(k)
}

// readable tells whether the disk may hold readable data.
func (k *disk) readable() bool {
	s := k.rec.Load().State
	return s == metadata.OSDClaimed || s == metadata.OSDDecommissioning
}

// gone tells that what was on the disk is lost for good.
func (k *disk) gone() bool {
	s := k.rec.Load().State
	return s == metadata.OSDLost || s == metadata.OSDGone
}

// writable tells whether new fragments may go to the disk.
func (k *disk) writable(now time.Time, stuck time.Duration) bool {
	r := k.rec.Load()
	if k.batches.Load() > 0 && now.UnixNano()-k.progress.Load() > int64(stuck) {
		return false // hanging: what is sent there now would only hold memory until it times out
	}
	return r.State == metadata.OSDClaimed && !r.Full && !k.bad.Load() && k.fullUntil.Load() < now.UnixNano()
}

// candidates returns the disks that can take fragments, but for the excluded ones.
func (d *disks) candidates(exclude func(metadata.OSDID) bool) []placement.Candidate {
	now := time.Now()
	table := *d.table.Load()
	out := make([]placement.Candidate, 0, len(table))
	for id, k := range table {
		if !k.writable(now, d.c.opts.WriteTimeout/stuckPart) || (exclude != nil && exclude(id)) {
			continue
		}
		r := k.rec.Load()
		free := uint64(0)
		if r.Capacity > r.Used {
			free = r.Capacity - r.Used
		}
		out = append(out, placement.Candidate{ID: id, Node: r.Node, Weight: free})
	}
	return out
}

// full counts the disks that have no room, or had none a moment ago.
func (d *disks) full() (n int) {
	now := time.Now().UnixNano()
	for _, k := range *d.table.Load() {
		if k.rec.Load().Full || k.fullUntil.Load() > now {
			n++
		}
	}
	return n
}

func (d *disks) node(id metadata.OSDID) string {
	if k := d.get(id); k != nil {
		return k.rec.Load().Node
	}
	return ""
}

// succeeded notes a read that was answered.
func (k *disk) succeeded(took time.Duration) {
	k.answered.Store(time.Now().UnixNano())
	k.measure(took)
}

// measure notes the latency of a read.
func (k *disk) measure(took time.Duration) {
	// As TCP does: mean += err/8, dev += (|err| - dev)/4. Races lose a sample, no more.
	mean := k.mean.Load()
	if mean == 0 {
		k.mean.Store(int64(took))
		k.dev.Store(int64(took) / 2)
		return
	}
	diff := int64(took) - mean
	k.mean.Store(mean + diff/8)
	if diff < 0 {
		diff = -diff
	}
	dev := k.dev.Load()
	k.dev.Store(dev + (diff-dev)/4)
}

// hedgeAfter is how long a read of n bytes may take before others are asked too: beyond
// mean + 4 deviations lies about one read in a hundred.
func (k *disk) hedgeAfter(o *Options, n int) time.Duration {
	wait := time.Duration(k.mean.Load() + 4*k.dev.Load())
	wait = min(max(wait, o.HedgeMin), o.HedgeMax)
	return wait + time.Duration(n)*20 // and 50 MB/s
}

// failed notes an error of a request. An error that says something about the disk as a
// whole takes it out of use until a probe succeeds; what concerns a key or space does not.
func (c *Client) failed(k *disk, err error) {
	switch {
	case err == nil:
		return
	case errors.Is(err, osd.ErrFull):
		k.fullUntil.Store(time.Now().Add(fullRests * c.opts.ProbeInterval).UnixNano())
		return
	case errors.Is(err, osd.ErrNotFound), errors.Is(err, osd.ErrCorrupt), errors.Is(err, osd.ErrAssertFailed), errors.Is(err, osd.ErrInvalid),
		errors.Is(err, context.Canceled):
		return
	}
	k.errors.Add(1)
	k.mu.Lock()
	k.mu.lastErr = err.Error()
	k.mu.Unlock()
	if k.bad.CompareAndSwap(false, true) {
		c.opts.Logger.Warn("OSD taken out of use", "osd", k.id, "err", err)
		if !c.spawn(func(ctx context.Context) { c.probe(ctx, k) }) {
			k.bad.Store(false)
		}
	}
}

// probe tries a failing disk until it writes and reads again.
func (c *Client) probe(ctx context.Context, k *disk) {
	for wait := c.opts.ProbeInterval; ; wait = min(wait*2, probeMax) {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		err := c.probeOnce(ctx, k)
		if err == nil || errors.Is(err, osd.ErrFull) {
			k.mean.Store(0)
			k.bad.Store(false)
			c.opts.Logger.Info("OSD back in use", "osd", k.id)
			return
		}
	}
}

func (c *Client) probeOnce(ctx context.Context, k *disk) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.ReadTimeout)
	defer cancel()
	api, err := c.handle(k)
	if err != nil {
		return err
	}
	// One key for all probes: what one leaves that was cut off (its client died, its delete
	// failed), the next one takes away.
	key := binary.BigEndian.AppendUint64([]byte{byte(KeyProbe)}, 0)
	value := make([]byte, osd.BlockSize)
	if err := api.Apply(ctx, &osd.Batch{Puts: []osd.Put{{Key: key, Value: value}}}); err != nil {
		return fmt.Errorf("probe write: %w", err)
	}
	reads := []osd.Read{{Key: key, Buf: value}}
	if err := api.Read(ctx, reads); err != nil {
		return fmt.Errorf("probe read: %w", err)
	}
	if reads[0].Err != nil && !errors.Is(reads[0].Err, osd.ErrNotFound) { // another client's probe was ahead
		return fmt.Errorf("probe read: %w", reads[0].Err)
	}
	if err := api.Apply(ctx, &osd.Batch{Deletes: [][]byte{key}}); err != nil {
		return fmt.Errorf("probe delete: %w", err)
	}
	return nil
}

// randomUint64 returns a random number. The system's generator does not fail.
func randomUint64() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // documented never to return an error
	return binary.LittleEndian.Uint64(b[:])
}

// Disks describes all known OSDs, by id.
func (c *Client) Disks() []DiskStats {
	table := *c.disks.table.Load()
	out := make([]DiskStats, 0, len(table))
	for _, id := range slices.Sorted(maps.Keys(table)) {
		k := table[id]
		k.mu.Lock()
		last, wrong := k.mu.lastErr, len(k.mu.wrong)
		k.mu.Unlock()
		out = append(out, DiskStats{
			ID: id, Node: k.rec.Load().Node, ReadLatency: time.Duration(k.mean.Load()), Errors: k.errors.Load(),
			Disqualified: k.bad.Load(), Full: k.fullUntil.Load() > time.Now().UnixNano(), LastError: last, Wrong: wrong,
			HedgeThreshold: k.hedgeAfter(&c.opts, osd.BlockSize),
		})
	}
	return out
}

// freshLater refreshes the list in the background; one refresh at a time.
func (d *disks) freshLater() {
	if !d.later.CompareAndSwap(false, true) {
		return
	}
	ok := d.c.spawn(func(ctx context.Context) {
		defer d.later.Store(false)
		ctx, cancel := context.WithTimeout(ctx, d.c.opts.ReadTimeout)
		defer cancel()
		if err := d.fresh(ctx, d.c.opts.OSDRefresh); err != nil {
			d.c.opts.Logger.Warn("list of OSDs not refreshed", "err", err)
		}
	})
	if !ok {
		d.later.Store(false)
	}
}
