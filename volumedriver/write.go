package volumedriver

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"scoria/internal/blocksum"
	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/tlog"
	"scoria/volumedriver/writebuffer"
)

const (
	kindWrite = tlog.Write
	kindClear = tlog.Clear
)

// batch is the memory of one write: operations for the log and their sums.
type batch struct {
	ops  []writebuffer.Op
	sums []uint32
}

var batches = sync.Pool{New: func() any { return new(batch) }}

func newBatch(clusters int) *batch {
	b := batches.Get().(*batch)
	if cap(b.sums) < clusters {
		b.sums = make([]uint32, 0, max(clusters, 64))
	}
	b.ops, b.sums = b.ops[:0], b.sums[:0]
	return b
}

// maxPooledSums bounds what a pooled batch keeps.
const maxPooledSums = 16 << 10

func (b *batch) free() {
	clear(b.ops) // keep no one's data
	if cap(b.sums) <= maxPooledSums {
		batches.Put(b)
	}
}

// write adds writes of whole clusters, in operations of at most limit clusters. The room
// for the sums must have been asked of newBatch.
func (b *batch) write(addr uint64, data []byte, limit int) {
	for len(data) > 0 {
		n := min(len(data)/ClusterSize, limit)
		first := len(b.sums)
		for i := range n {
			b.sums = append(b.sums, blocksum.Seal(blocksum.Of(data[i*ClusterSize:(i+1)*ClusterSize]), addr+uint64(i)))
		}
		b.ops = append(b.ops, writebuffer.Op{Kind: kindWrite, Addr: addr, Count: uint64(n),
			Data: data[: n*ClusterSize : n*ClusterSize], Sums: b.sums[first:len(b.sums):len(b.sums)]})
		addr += uint64(n)
		data = data[n*ClusterSize:]
	}
}

func (b *batch) clear(addr, count uint64) {
	if count > 0 {
		b.ops = append(b.ops, writebuffer.Op{Kind: kindClear, Addr: addr, Count: count})
	}
}

// WriteAt writes p at byte off. When it returns nil the data survives the end of the process,
// with fua also that of the machine.
func (v *Volume) WriteAt(ctx context.Context, p []byte, off uint64, fua bool) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if err := v.check("write", off, uint64(len(p)), errWriteOutside); err != nil {
		return err
	}
	if len(p) > 0 {
		if err := v.write(ctx, p, off, uint64(len(p))); err != nil {
			return err
		}
		v.stats.writes.Add(1)
		v.stats.writeBytes.Add(uint64(len(p)))
	}
	if fua {
		return v.sync(ctx)
	}
	return nil
}

// write writes p, or zeroes if p is nil, to a range of length bytes.
func (v *Volume) write(ctx context.Context, p []byte, off, length uint64) error {
	if err := v.waitForMap(ctx); err != nil {
		return err
	}
	if off%ClusterSize != 0 || length%ClusterSize != 0 {
		return v.writeEdges(ctx, p, off, length)
	}
	addr, n := off/ClusterSize, length/ClusterSize
	b := newBatch(len(p) / ClusterSize)
	defer b.free()
	if p == nil {
		b.clear(addr, n)
	} else {
		b.write(addr, p, v.d.opts.SCOClusters)
	}
	set := stripeMask(addr, n)
	if err := v.lock(ctx, set, 0); err != nil {
		return err
	}
	defer v.locks.unlock(set)
	return v.append(ctx, b.ops)
}

// append appends operations to the log; the locks of their ranges are held.
func (v *Volume) append(ctx context.Context, ops []writebuffer.Op) error {
	done, err := v.buf.TryAppend(ops)
	if !done {
		var cancel context.CancelFunc
		ctx, cancel = v.bound(ctx)
		defer cancel()
		v.stats.waits.Add(1)
		v.d.relieve() // others may hold the room
		if s := v.d.pool.Stats(); s.DirtyBytes < s.SoftBytes {
			// Not the pool makes it wait, so the file system is full: the drain makes room.
			v.starved.Add(1)
			defer v.starved.Add(-1)
			v.request()
		}
		err = v.buf.Append(ctx, ops)
	}
	if err != nil {
		return fmt.Errorf("volume %s: write: %w", v.Name(), v.ended(err))
	}
	return nil
}

// edge is a cluster of which only a part is written.
type edge struct {
	addr     uint64
	from, to int // bytes of the cluster that are written
	entry    clustermap.Entry
	data     []byte // the whole cluster
}

// writeEdges writes a range with unaligned ends. It reads the clusters at the ends, patches
// them, and appends, if they have not changed meanwhile, everything at once, under locks
// that it takes only for that.
func (v *Volume) writeEdges(ctx context.Context, p []byte, off, length uint64) error {
	end := off + length
	first, last := off/ClusterSize, (end-1)/ClusterSize
	var edges []edge
	if off%ClusterSize != 0 || end < (first+1)*ClusterSize {
		edges = append(edges, edge{addr: first, from: int(off % ClusterSize), to: int(min(end-first*ClusterSize, ClusterSize))})
	}
	if end%ClusterSize != 0 && (last != first || len(edges) == 0) {
		edges = append(edges, edge{addr: last, to: int(end - last*ClusterSize)})
	}
	var alone uint64
	for i := range edges {
		edges[i].data = make([]byte, ClusterSize)
		alone |= stripeMask(edges[i].addr, 1)
	}
	shared := stripeMask(first, last-first+1) &^ alone
	v.stats.unaligned.Add(1)
	for attempt := 0; ; attempt++ {
		done, err := v.tryEdges(ctx, p, off, length, edges, shared, alone, attempt >= patientAttempts)
		if done || err != nil {
			return err
		}
	}
}

// patientAttempts is how often a read-modify-write reads outside of the locks before it
// does so inside, where nobody can get ahead of it.
const patientAttempts = 8

func (v *Volume) tryEdges(ctx context.Context, p []byte, off, length uint64, edges []edge, shared, alone uint64, inside bool) (done bool, err error) {
	if inside {
		if err := v.lock(ctx, shared, alone); err != nil {
			return false, err
		}
		defer v.locks.unlock(shared | alone)
	}
	for i := range edges {
		e := &edges[i]
		if e.entry, err = v.readOne(ctx, e.addr, e.data); err != nil {
			return false, fmt.Errorf("volume %s: cluster %d, to be changed in part: %w", v.Name(), e.addr, err)
		}
		if p == nil {
			clear(e.data[e.from:e.to])
		} else {
			copy(e.data[e.from:e.to], p[e.addr*ClusterSize+uint64(e.from)-off:])
		}
	}
	if !inside {
		if err := v.lock(ctx, shared, alone); err != nil {
			return false, err
		}
		defer v.locks.unlock(shared | alone)
		for i := range edges {
			var now [1]clustermap.Entry
			if !v.cmap.Lookup(edges[i].addr, now[:]) || now[0] != edges[i].entry {
				return false, nil // evicted or written meanwhile
			}
		}
	}
	b := v.edgeBatch(p, off, length, edges)
	defer b.free()
	return true, v.append(ctx, b.ops)
}

// edgeBatch makes the operations of a range of length bytes whose edges have been patched,
// in the order of addresses.
func (v *Volume) edgeBatch(p []byte, off, length uint64, edges []edge) *batch {
	b := newBatch(len(p)/ClusterSize + len(edges))
	limit := v.d.opts.SCOClusters
	from, to := (off+ClusterSize-1)/ClusterSize, (off+length)/ClusterSize // whole clusters
	if e := edges[0]; e.addr < from {
		b.write(e.addr, e.data, limit)
		edges = edges[1:]
	}
	switch {
	case from >= to:
	case p == nil:
		b.clear(from, to-from)
	default:
		b.write(from, p[from*ClusterSize-off:to*ClusterSize-off], limit)
	}
	for _, e := range edges {
		b.write(e.addr, e.data, limit)
	}
	return b
}

// lock takes range locks, unless ctx or the volume ends first: their holders may be waiting
// for room.
func (v *Volume) lock(ctx context.Context, shared, alone uint64) error {
	if alone == 0 && v.locks.tryShared(shared) {
		return nil
	}
	ctx, cancel := v.bound(ctx)
	defer cancel()
	if err := v.locks.lock(ctx, shared, alone); err != nil {
		return fmt.Errorf("volume %s: wait for other writes: %w", v.Name(), v.ended(err))
	}
	return nil
}

// Flush makes every write that returned before the call survive the end of the machine.
func (v *Volume) Flush(ctx context.Context) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	v.stats.flushes.Add(1)
	return v.sync(ctx)
}

func (v *Volume) sync(ctx context.Context) error {
	if err := v.buf.Sync(ctx); err != nil {
		return fmt.Errorf("volume %s: flush: %w", v.Name(), err)
	}
	return nil
}

// Trim makes holes of the whole clusters inside the range. Other bytes do not change. It
// costs the same for any length.
func (v *Volume) Trim(ctx context.Context, off, length uint64, fua bool) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if err := v.check("trim", off, length, errWriteOutside); err != nil {
		return err
	}
	first, end := (off+ClusterSize-1)/ClusterSize, (off+length)/ClusterSize
	if first < end {
		if err := v.write(ctx, nil, first*ClusterSize, (end-first)*ClusterSize); err != nil {
			return err
		}
	}
	v.stats.trims.Add(1)
	if fua {
		return v.sync(ctx)
	}
	return nil
}

// WriteZeroes makes the range read as zeroes. Whole clusters become holes also with noHole:
// in a log every later write takes new space, so zeroes written out would reserve none.
func (v *Volume) WriteZeroes(ctx context.Context, off, length uint64, noHole, fua bool) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if err := v.check("write of zeroes", off, length, errWriteOutside); err != nil {
		return err
	}
	if length > 0 {
		if err := v.write(ctx, nil, off, length); err != nil {
			return err
		}
	}
	v.stats.zeroes.Add(1)
	if fua {
		return v.sync(ctx)
	}
	return nil
}

// TryWriteBatch carries out writes of whole clusters, sets errs[i] and returns true; or it
// does nothing and returns false when that would have to wait for anything but the local log.
func (v *Volume) TryWriteBatch(offs []uint64, data [][]byte, errs []error) (done bool) {
	clusters, set := 0, uint64(0)
	size := v.size.Load()
	for i, p := range data {
		n := len(p) / ClusterSize
		if n == 0 || offs[i]%ClusterSize != 0 || len(p)%ClusterSize != 0 || n > v.d.opts.SCOClusters ||
			offs[i] > size || uint64(len(p)) > size-offs[i] {
			return false
		}
		clusters += n
		set |= stripeMask(offs[i]/ClusterSize, uint64(n))
	}
	if v.mapIsFull() || !v.tryEnter() {
		return false
	}
	defer v.leave()
	b := newBatch(clusters)
	defer b.free()
	for i, p := range data {
		b.write(offs[i]/ClusterSize, p, v.d.opts.SCOClusters)
	}
	if !v.locks.tryShared(set) {
		return false
	}
	done, err := v.buf.TryAppend(b.ops)
	v.locks.unlock(set)
	if !done {
		return false
	}
	if err != nil {
		err = fmt.Errorf("volume %s: write: %w", v.Name(), err)
		for i := range errs {
			errs[i] = err
		}
		return true
	}
	v.stats.writes.Add(uint64(len(data)))
	v.stats.writeBytes.Add(uint64(clusters) * ClusterSize)
	return true
}

// mapIsFull tells that so much of the map waits for a checkpoint that writes must wait too.
func (v *Volume) mapIsFull() bool {
	return v.cmap.DirtyBytes() > v.d.opts.MapCacheBytes || v.d.mapsFull.Load()
}

// waitForMap waits until the map has room for changes. Only a checkpoint that cannot be
// written (a full disk, an object store out of reach for long) lets it come to that.
func (v *Volume) waitForMap(ctx context.Context) error {
	if !v.mapIsFull() {
		return nil
	}
	ctx, cancel := v.bound(ctx)
	defer cancel()
	for v.mapIsFull() {
		news := v.drain.news.wait()
		v.wantCheckpoint()
		if !v.mapIsFull() {
			break
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("volume %s: write waits for a checkpoint of the map: %w", v.Name(), errors.Join(context.Cause(ctx), v.trouble.cause()))
		}
	}
	return nil
}
