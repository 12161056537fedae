package volumedriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"scoria/internal/blocksum"
	"scoria/volumedriver/clustermap"
)

// readPart is the largest part of a read that is looked up at once, in clusters.
const readPart = 2048

// readJob is the memory of one read.
type readJob struct {
	entries []clustermap.Entry
	slices  []Slice
	runs    []run
	sums    []uint32
	bounce  []byte // whole clusters around an unaligned range
	plain   bool   // without read-ahead: it is the read-ahead itself
}

// run is a part of a read that the object store has to answer.
type run struct {
	first, n int  // clusters of the part
	damaged  bool // the local copy is there and damaged
}

var readJobs = sync.Pool{New: func() any { return new(readJob) }}

func (j *readJob) free() {
	clear(j.slices)
	j.plain = false
	if cap(j.bounce) > 1<<20 {
		j.bounce = nil
	}
	readJobs.Put(j)
}

func (j *readJob) room(clusters int) []clustermap.Entry {
	if cap(j.entries) < clusters {
		j.entries = make([]clustermap.Entry, max(clusters, 64))
	}
	return j.entries[:clusters]
}

// ReadAt fills p from byte off, verified.
func (v *Volume) ReadAt(ctx context.Context, p []byte, off uint64) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if err := v.check("read", off, uint64(len(p)), errReadOutside); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	j := readJobs.Get().(*readJob)
	defer j.free()
	if err := v.readBytes(ctx, j, p, off); err != nil {
		return fmt.Errorf("volume %s: read of %d bytes at %d: %w", v.Name(), len(p), off, err)
	}
	v.stats.reads.Add(1)
	v.stats.readBytes.Add(uint64(len(p)))
	return nil
}

// readBytes reads any range. Unaligned ends go by way of whole clusters.
func (v *Volume) readBytes(ctx context.Context, j *readJob, p []byte, off uint64) error {
	if head := off % ClusterSize; head != 0 || len(p) < ClusterSize {
		n := min(ClusterSize-int(head), len(p))
		if err := v.readBounced(ctx, j, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+uint64(n)
	}
	whole := len(p) / ClusterSize * ClusterSize
	for done := 0; done < whole; {
		n := min(whole-done, readPart*ClusterSize)
		if err := v.readClusters(ctx, j, (off+uint64(done))/ClusterSize, p[done:done+n]); err != nil {
			return err
		}
		done += n
	}
	if rest := p[whole:]; len(rest) > 0 {
		return v.readBounced(ctx, j, rest, off+uint64(whole))
	}
	return nil
}

// readBounced reads a range inside of one cluster.
func (v *Volume) readBounced(ctx context.Context, j *readJob, p []byte, off uint64) error {
	if cap(j.bounce) < ClusterSize {
		j.bounce = make([]byte, ClusterSize)
	}
	b := j.bounce[:ClusterSize]
	if err := v.readClusters(ctx, j, off/ClusterSize, b); err != nil {
		return err
	}
	copy(p, b[off%ClusterSize:])
	return nil
}

// readOne reads a cluster and tells the map entry that it was read by.
func (v *Volume) readOne(ctx context.Context, addr uint64, p []byte) (clustermap.Entry, error) {
	j := readJobs.Get().(*readJob)
	defer j.free()
	if err := v.readClusters(ctx, j, addr, p); err != nil {
		return clustermap.Entry{}, err
	}
	return j.entries[0], nil
}

// readAttempts bounds how often a read looks clusters up again that moved while it read.
const readAttempts = 16

// readClusters fills p with at most readPart whole clusters from addr on; j.entries has
// what they were read by.
func (v *Volume) readClusters(ctx context.Context, j *readJob, addr uint64, p []byte) error {
	entries := j.room(len(p) / ClusterSize)
	j.entries = entries
	if err := v.lookup(ctx, addr, entries); err != nil {
		return err
	}
	for attempt := 0; ; attempt++ {
		v.readLocal(j, addr, p)
		if len(j.runs) == 0 {
			return nil
		}
		err := v.readRemote(ctx, j, addr, p)
		if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrCorrupt) || attempt == readAttempts {
			return err
		}
		// What was read may have been overwritten and cleaned away, or evicted here after
		// it had been stored there. If nothing moved and it still fails, it is lost.
		now := make([]clustermap.Entry, len(entries))
		if lerr := v.lookup(ctx, addr, now); lerr != nil {
			return lerr
		}
		if attempt > 0 && !v.moved(j, now) {
			v.stats.corrupt.Add(1)
			v.log.Error("data cannot be read", "cluster", addr+uint64(j.runs[0].first), "location", entries[j.runs[0].first].Loc.String(), "error", err)
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			return err
		}
		copy(entries, now)
	}
}

// moved tells whether one of the clusters that are still to be read lies elsewhere now.
func (v *Volume) moved(j *readJob, now []clustermap.Entry) bool {
	for _, r := range j.runs {
		for i := r.first; i < r.first+r.n; i++ {
			if now[i] != j.entries[i] {
				return true
			}
		}
	}
	return false
}

// readLocal reads what is here: holes and what the local log has. The rest goes to j.runs.
func (v *Volume) readLocal(j *readJob, addr uint64, p []byte) {
	j.runs = j.runs[:0]
	entries := j.entries
	for i := 0; i < len(entries); {
		n := sameRun(entries[i:])
		part := p[i*ClusterSize : (i+n)*ClusterSize]
		loc := entries[i].Loc
		if !loc.Mapped() {
			clear(part)
			i += n
			continue
		}
		ok, err := v.buf.ReadAt(loc.SCO(), uint32(loc.Index()), part)
		switch {
		case err != nil:
			v.stats.localDamage.Add(1)
			v.log.Warn("the local log cannot be read; the object store is asked", "sco", loc.SCO(), "error", err)
			j.runs = append(j.runs, run{i, n, true})
		case !ok:
			j.runs = append(j.runs, run{i, n, false})
		default:
			v.stats.localClusters.Add(uint64(n))
			v.verifyRun(j, addr, i, n, part)
		}
		i += n
	}
}

// verifyRun checks clusters read from the local log, and leaves bad ones to the object store.
func (v *Volume) verifyRun(j *readJob, addr uint64, first, n int, part []byte) {
	for k := range n {
		i := first + k
		if verify(part[k*ClusterSize:(k+1)*ClusterSize], addr+uint64(i), j.entries[i]) {
			continue
		}
		v.stats.localDamage.Add(1)
		v.log.Warn("a cluster in the local log is damaged; the object store is asked", "cluster", addr+uint64(i), "location", j.entries[i].Loc.String())
		if last := len(j.runs) - 1; last >= 0 && j.runs[last].damaged && j.runs[last].first+j.runs[last].n == i &&
			j.entries[i].Loc == j.entries[i-1].Loc+1 {
			j.runs[last].n++
			continue
		}
		j.runs = append(j.runs, run{i, 1, true})
	}
}

// verify tells whether a cluster is what the map says it is.
func verify(data []byte, addr uint64, e clustermap.Entry) bool {
	return blocksum.Seal(blocksum.Of(data), addr) == e.Sum
}

// sameRun returns how many entries from the first on are holes, or neighbours in an SCO.
func sameRun(entries []clustermap.Entry) int {
	n := 1
	if !entries[0].Loc.Mapped() {
		for n < len(entries) && !entries[n].Loc.Mapped() {
			n++
		}
		return n
	}
	for n < len(entries) && entries[n].Loc == entries[n-1].Loc+1 && entries[n].Loc.Index() != 0 {
		n++
	}
	return n
}

// readRemote reads j.runs from the object store, all in one call, and verifies them.
func (v *Volume) readRemote(ctx context.Context, j *readJob, addr uint64, p []byte) error {
	j.slices, j.sums = j.slices[:0], j.sums[:0]
	for _, r := range j.runs {
		for i := r.first; i < r.first+r.n; i++ {
			j.sums = append(j.sums, blocksum.Seal(j.entries[i].Sum, addr+uint64(i)))
		}
	}
	next := 0
	for _, r := range j.runs {
		part := p[r.first*ClusterSize : (r.first+r.n)*ClusterSize]
		sums := j.sums[next : next+r.n : next+r.n]
		next += r.n
		if !j.plain && !r.damaged && v.ahead.take(ctx, addr+uint64(r.first), j.entries[r.first:r.first+r.n], part) {
			v.stats.cachedClusters.Add(uint64(r.n))
			continue
		}
		loc := j.entries[r.first].Loc
		j.slices = append(j.slices, Slice{Name: scoName(loc.SCO()), Off: uint64(loc.Index()) * ClusterSize, Data: part, Sums: sums})
	}
	if !j.plain {
		first, last := j.runs[0], j.runs[len(j.runs)-1]
		v.ahead.note(v, addr+uint64(first.first), uint64(last.first+last.n-first.first))
	}
	if len(j.slices) == 0 {
		return nil
	}
	ctx, cancel := v.bound(ctx)
	defer cancel()
	v.stats.remoteReads.Add(1)
	if err := v.patiently(ctx, func() error { return v.d.opts.Store.Read(ctx, v.ns, j.slices) }); err != nil {
		return v.ended(err)
	}
	// The store has checked the sums. That it did is checked here, where it is cheap.
	for _, s := range j.slices {
		v.stats.remoteClusters.Add(uint64(len(s.Sums)))
		for i, sum := range s.Sums {
			if blocksum.Of(s.Data[i*ClusterSize:(i+1)*ClusterSize]) != sum {
				return fmt.Errorf("object %s, cluster %d: the object store returned other data: %w", s.Name, s.Off/ClusterSize+uint64(i), ErrCorrupt)
			}
		}
	}
	return nil
}

// scoName is sco.Name with a single allocation: it is on the way of every read that is not
// answered locally.
func scoName(number uint64) string {
	b := [...]byte{'s', 'c', 'o', '/', 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for i := len(b) - 1; i >= 4; i-- {
		b[i] = "0123456789abcdef"[number&15]
		number >>= 4
	}
	return string(b[:])
}

// tryClusters is the largest read that TryReadAt answers, in clusters.
const tryClusters = 64

// TryReadAt fills p and returns true if that takes neither the object store nor a map page
// that is not in memory; otherwise it returns false, and p may have been changed.
func (v *Volume) TryReadAt(p []byte, off uint64) (done bool, err error) {
	done, _ = v.tryRead(p, off, false)
	return done, nil
}

// TryReadHole is TryReadAt, except that a range without any mapped cluster is told instead of
// filled with zeroes, whatever its length.
func (v *Volume) TryReadHole(p []byte, off uint64) (done, hole bool, err error) {
	done, hole = v.tryRead(p, off, true)
	return done, hole, nil
}

func (v *Volume) tryRead(p []byte, off uint64, tell bool) (done, hole bool) {
	n := len(p) / ClusterSize
	if off%ClusterSize != 0 || len(p)%ClusterSize != 0 || n == 0 || n > tryClusters && !tell {
		return false, false
	}
	if !v.tryEnter() {
		return false, false
	}
	defer v.leave()
	if size := v.size.Load(); off > size || uint64(len(p)) > size-off {
		return false, false
	}
	if n > tryClusters {
		hole = v.tryHole(off/ClusterSize, uint64(n))
		if hole {
			v.stats.reads.Add(1)
			v.stats.readBytes.Add(uint64(len(p)))
		}
		return hole, hole
	}
	var space [tryClusters]clustermap.Entry
	entries, addr := space[:n], off/ClusterSize
	if !v.cmap.Lookup(addr, entries) {
		return false, false
	}
	for i := 0; i < n; {
		k := sameRun(entries[i:])
		part := p[i*ClusterSize : (i+k)*ClusterSize]
		if mapped := entries[i].Loc.Mapped(); !mapped && k == n && tell {
			hole = true
		} else if !mapped {
			clear(part)
		} else if !v.tryRun(addr+uint64(i), entries[i:i+k], part) {
			return false, false
		}
		i += k
	}
	v.stats.reads.Add(1)
	v.stats.readBytes.Add(uint64(len(p)))
	return true, hole
}

// tryHole reports whether n clusters are known to be unmapped. It looks at both ends first,
// so that a range with data costs next to nothing.
func (v *Volume) tryHole(addr, n uint64) bool {
	var space [tryClusters]clustermap.Entry
	for _, at := range [...]uint64{addr, addr + n - 1} {
		if !v.cmap.Lookup(at, space[:1]) || space[0].Loc.Mapped() {
			return false
		}
	}
	for n > 0 {
		entries := space[:min(n, tryClusters)]
		if !v.cmap.Lookup(addr, entries) || sameRun(entries) != len(entries) || entries[0].Loc.Mapped() {
			return false
		}
		addr, n = addr+uint64(len(entries)), n-uint64(len(entries))
	}
	return true
}

// tryRun reads clusters that lie together, from the local log or a cache, and verifies them.
func (v *Volume) tryRun(addr uint64, entries []clustermap.Entry, part []byte) bool {
	loc := entries[0].Loc
	ok, err := v.buf.ReadAt(loc.SCO(), uint32(loc.Index()), part)
	if err != nil {
		return false
	}
	counter := &v.stats.localClusters
	if !ok {
		counter = &v.stats.cachedClusters
		if !v.ahead.take(noWait, addr, entries, part) &&
			!v.d.opts.Store.TryRead(v.ns, Slice{Name: scoName(loc.SCO()), Off: uint64(loc.Index()) * ClusterSize, Data: part}) {
			return false
		}
	}
	for i := range entries {
		if !verify(part[i*ClusterSize:(i+1)*ClusterSize], addr+uint64(i), entries[i]) {
			return false // ReadAt sorts it out
		}
	}
	counter.Add(uint64(len(entries)))
	return true
}

// Extents calls yield for consecutive extents from off on: mapped ones, and holes, which
// read as zeroes. The last one may reach past the range.
func (v *Volume) Extents(ctx context.Context, off, length uint64, yield func(length uint64, hole, zero bool) bool) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if err := v.check("block status", off, length, errReadOutside); err != nil {
		return err
	}
	if length == 0 {
		return nil
	}
	ctx, cancel := v.bound(ctx)
	defer cancel()
	addr, skip := off/ClusterSize, off%ClusterSize
	end := (off + length + ClusterSize - 1) / ClusterSize
	err := v.loadMap(ctx, func() error {
		return v.cmap.Extents(ctx, addr, end-addr, func(n uint64, mapped bool) bool {
			size := n*ClusterSize - skip
			addr, skip = addr+n, 0 // a second try goes on from here
			return yield(size, !mapped, !mapped)
		})
	})
	if err != nil {
		return fmt.Errorf("volume %s: block status at %d: %w", v.Name(), off, err)
	}
	return nil
}

// maxCacheHint bounds what one Cache call reads, in bytes.
const maxCacheHint = 32 << 20

// Cache reads the range, at most 32 MiB of it, so that it is in the caches below.
func (v *Volume) Cache(ctx context.Context, off, length uint64) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if err := v.check("cache hint", off, length, errReadOutside); err != nil {
		return err
	}
	j := readJobs.Get().(*readJob)
	defer j.free()
	const step = 1 << 20
	buf := make([]byte, min(step, length))
	for length = min(length, maxCacheHint); length > 0; {
		n := min(length, step-off%step)
		if err := v.readBytes(ctx, j, buf[:n], off); err != nil {
			return fmt.Errorf("volume %s: cache hint at %d: %w", v.Name(), off, err)
		}
		off, length = off+n, length-n
	}
	return nil
}
