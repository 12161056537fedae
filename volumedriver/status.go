package volumedriver

import (
	"sync/atomic"
	"time"

	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/writebuffer"
)

// volumeCounters count what a volume has done since it was opened.
type volumeCounters struct {
	reads, readBytes, writes, writeBytes          atomic.Uint64
	flushes, trims, zeroes, unaligned, waits      atomic.Uint64
	localClusters, cachedClusters                 atomic.Uint64
	remoteReads, remoteClusters                   atomic.Uint64
	corrupt, localDamage, damagedSCOs             atomic.Uint64
	uploadedSCOs, uploadedBytes, commits, retries atomic.Uint64
	checkpoints, checkpointBytes                  atomic.Uint64
}

// VolumeStats are the counters of a volume since it was opened.
type VolumeStats struct {
	Reads, ReadBytes   uint64
	Writes, WriteBytes uint64
	Flushes            uint64
	Trims, Zeroes      uint64
	Unaligned          uint64 // writes that had to read first
	Waits              uint64 // writes that had to wait for room in the local log

	LocalClusters  uint64 // read from the local log
	CachedClusters uint64 // read from caches and read-ahead
	RemoteClusters uint64 // read from the object store, in RemoteReads calls
	RemoteReads    uint64

	Corrupt     uint64 // reads that failed because data is damaged for good
	LocalDamage uint64 // damage met in the local log; the object store may have had it
	DamagedSCOs uint64 // SCOs stored with unreadable clusters

	UploadedSCOs, UploadedBytes  uint64
	Commits                      uint64 // TLogs published
	Retries                      uint64 // attempts to store something that failed
	Checkpoints, CheckpointBytes uint64 // of the map
}

// DurabilityMode tells what an acknowledged FLUSH survives.
type DurabilityMode string

// DurabilityLocal: flushed data survives power loss of the gateway's host, not its loss.
const DurabilityLocal DurabilityMode = "local"

// VolumeStatus is what can be said of an open volume.
type VolumeStatus struct {
	ID, Namespace uint64
	Name          string
	Size          uint64 // bytes
	Mapped        uint64 // bytes with data (an estimate while map pages are not loaded)
	Epoch         uint64
	Handles       int
	Durability    DurabilityMode

	LastSeq      uint64    // last record written
	CommittedSeq uint64    // last record that is in the object store, safe
	DirtyBytes   int64     // of the local log that are not
	DirtySince   time.Time // zero: nothing is dirty
	CachedBytes  int64     // of the local log that serve as read cache
	TLogs        int       // behind the published map checkpoint

	// Degraded tells since when something has not been working (zero: all is well), Reason
	// what. Failed tells why the volume does not serve any more, "" if it does.
	Degraded time.Time
	Reason   string
	Failed   string
	Lost     string // what could not be recovered when the volume was opened, "" for nothing

	Map   clustermap.Stats
	Log   writebuffer.Stats
	Stats VolumeStats
}

// Stats returns the counters.
func (v *Volume) Stats() VolumeStats {
	s := &v.stats
	return VolumeStats{
		Reads: s.reads.Load(), ReadBytes: s.readBytes.Load(), Writes: s.writes.Load(), WriteBytes: s.writeBytes.Load(),
		Flushes: s.flushes.Load(), Trims: s.trims.Load(), Zeroes: s.zeroes.Load(), Unaligned: s.unaligned.Load(), Waits: s.waits.Load(),
		LocalClusters: s.localClusters.Load(), CachedClusters: s.cachedClusters.Load(),
		RemoteClusters: s.remoteClusters.Load(), RemoteReads: s.remoteReads.Load(),
		Corrupt: s.corrupt.Load(), LocalDamage: s.localDamage.Load(), DamagedSCOs: s.damagedSCOs.Load(),
		UploadedSCOs: s.uploadedSCOs.Load(), UploadedBytes: s.uploadedBytes.Load(), Commits: s.commits.Load(), Retries: s.retries.Load(),
		Checkpoints: s.checkpoints.Load(), CheckpointBytes: s.checkpointBytes.Load(),
	}
}

// Status tells how the volume is.
func (v *Volume) Status() VolumeStatus {
	h, _ := v.headCopy()
	log := v.buf.Stats()
	s := VolumeStatus{
		ID: v.id, Namespace: v.ns, Name: v.Name(), Size: v.Size(), Epoch: v.epoch, Durability: DurabilityLocal,
		LastSeq: v.buf.LastSeq(), CommittedSeq: h.Seq, DirtyBytes: v.undrainedBytes(), CachedBytes: log.CachedBytes, TLogs: len(h.TLogs),
		Lost: v.lost, Map: v.cmap.Stats(), Log: log, Stats: v.Stats(),
	}
	s.Mapped = s.Map.Mapped * ClusterSize
	if since := v.dirtySince.Load(); since != 0 {
		s.DirtySince = time.Unix(0, since)
	}
	s.Degraded, s.Reason = v.trouble.get()
	if err := v.buf.Err(); err != nil {
		s.Failed = err.Error()
	}
	if err := v.failure.Load(); err != nil {
		s.Failed = (*err).Error()
	}
	return s
}

// Status tells how an open volume is. false: the volume is not open here, so nothing of it
// is under way.
func (d *Driver) Status(id uint64) (VolumeStatus, bool) {
	d.mu.Lock()
	e := d.mu.entries[id]
	if e == nil || e.v == nil {
		d.mu.Unlock()
		return VolumeStatus{}, false
	}
	refs := e.refs
	d.mu.Unlock()
	s := e.v.Status()
	s.Handles = refs
	return s, true
}

// OpenVolumes tells how all open volumes are, in no order.
func (d *Driver) OpenVolumes() []VolumeStatus {
	var list []VolumeStatus
	for _, v := range d.volumes() {
		if s, ok := d.Status(v.id); ok {
			list = append(list, s)
		}
	}
	return list
}

// DriverStats are figures of the whole gateway.
type DriverStats struct {
	OpenVolumes int
	DirtyBytes  int64 // of all local logs
	Pool        writebuffer.PoolStats
	MapCache    clustermap.CacheStats
	Lease       string // why leases cannot be renewed, "" if they can
}

// Stats returns current figures.
func (d *Driver) Stats() DriverStats {
	s := DriverStats{Pool: d.pool.Stats(), MapCache: d.mapCache.Stats()}
	for _, v := range d.volumes() {
		s.OpenVolumes++
		s.DirtyBytes += v.undrainedBytes()
	}
	_, s.Lease = d.renewErr.get()
	return s
}
