package alba

import (
	"sync/atomic"
	"time"

	"scoria/metadata"
)

// Stats counts since the Client was made.
type Stats struct {
	Transactions, Puts, PutBytes   uint64
	FragmentsStored, FragmentBytes uint64
	FragmentsReplaced              uint64 // written elsewhere because the chosen OSD failed
	FragmentsLate, FragmentsHoles  uint64 // added after the manifest; left out
	PutRetries                     uint64
	Slices, SliceBytes             uint64
	CacheHits, CacheMisses         uint64 // of blocks
	ManifestHits, ManifestMisses   uint64
	OSDReads, OSDReadBytes         uint64
	Hedges, HedgesWon              uint64
	Rebuilt                        uint64 // ranges reconstructed for reads
	Corrupt, Missing               uint64 // fragments found so by reads
	Merged                         uint64 // fetches that another one answered
	RepairsQueued, RepairsDropped  uint64
	Repaired                       uint64 // fragments written by repair
	TagsPending                    int
}

type counters struct {
	transactions, puts, putBytes                   atomic.Uint64
	stored, storedBytes, replaced, late, holes     atomic.Uint64
	putRetries                                     atomic.Uint64
	slices, sliceBytes, hits, misses               atomic.Uint64
	manifestHits, manifestMisses                   atomic.Uint64
	osdReads, osdReadBytes, hedges, hedgesWon      atomic.Uint64
	rebuilt, corrupt, missing, merged              atomic.Uint64
	repairsQueued, repairsDropped, repairFragments atomic.Uint64
}

// Stats returns the counters.
func (c *Client) Stats() Stats {
	s := &c.stats
	return Stats{
		Transactions: s.transactions.Load(), Puts: s.puts.Load(), PutBytes: s.putBytes.Load(),
		FragmentsStored: s.stored.Load(), FragmentBytes: s.storedBytes.Load(), FragmentsReplaced: s.replaced.Load(),
		FragmentsLate: s.late.Load(), FragmentsHoles: s.holes.Load(), PutRetries: s.putRetries.Load(),
		Slices: s.slices.Load(), SliceBytes: s.sliceBytes.Load(), CacheHits: s.hits.Load(), CacheMisses: s.misses.Load(),
		ManifestHits: s.manifestHits.Load(), ManifestMisses: s.manifestMisses.Load(),
		OSDReads: s.osdReads.Load(), OSDReadBytes: s.osdReadBytes.Load(), Hedges: s.hedges.Load(), HedgesWon: s.hedgesWon.Load(),
		Rebuilt: s.rebuilt.Load(), Corrupt: s.corrupt.Load(), Missing: s.missing.Load(), Merged: s.merged.Load(),
		RepairsQueued: s.repairsQueued.Load(), RepairsDropped: s.repairsDropped.Load(), Repaired: s.repairFragments.Load(),
		TagsPending: c.pendingTags(),
	}
}

// DiskStats is what a Client has seen of an OSD.
type DiskStats struct {
	ID             metadata.OSDID
	Node           string
	ReadLatency    time.Duration // moving average
	Errors         uint64        // since start
	Disqualified   bool          // answered with errors lately, being probed
	Full           bool
	LastError      string
	HedgeThreshold time.Duration
	// Wrong counts fragments (up to 100) that it gave with checksums that fit, and that are not
	// what it was given. They are made anew from others.
	Wrong int
}
