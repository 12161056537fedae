package writebuffer

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"scoria/internal/vfs"
	"scoria/volumedriver/sco"
	"scoria/volumedriver/tlog"
)

// ClusterSize is the unit of data, in bytes.
const ClusterSize = sco.ClusterSize

// Errors of this package, returned wrapped. A full disk is syscall.ENOSPC; a directory
// without a log, or an SCO that is not here (any more), is fs.ErrNotExist.
var (
	// ErrClosed: the Buffer or the Pool is closed.
	ErrClosed = errors.New("the write buffer is closed")
	// ErrFailed: a sync failed earlier, so what is durable is unknown. Only reads go on;
	// open the log again. It wraps the cause.
	ErrFailed = errors.New("the write buffer has failed")
	// ErrCorrupt: data that had been synced is damaged, or a checksum does not match.
	ErrCorrupt = errors.New("the write buffer is damaged")
	// ErrStale: the log was written under a newer epoch than Options.Epoch, or belongs to
	// another volume.
	ErrStale = errors.New("the write buffer has another owner")
	// ErrGap: the log does not reach back to Options.FromSeq: records between are missing.
	ErrGap = errors.New("the write buffer begins too late")
	// ErrInvalid: a wrong argument.
	ErrInvalid = errors.New("invalid argument")
)

// Entry is one record, as told to Options.Applied and to the replay of Open. Entry.Sums are
// valid during the call only.
type Entry = tlog.Entry

// Options of a Buffer. FS, Dir, Pool, Volume and Epoch are required.
type Options struct {
	FS     vfs.FS
	Dir    string // the log's own directory; Create makes it
	Pool   *Pool
	Volume uint64 // id of the volume; files of another one are refused
	Epoch  uint64 // owner epoch for new records; records of a greater one are refused

	// SCOClusters is the size of an SCO: 1..sco.MaxClusters, default sco.DefaultClusters.
	SCOClusters int
	// MinSCO is the smallest number that a new SCO may get. Open goes beyond all that it finds.
	MinSCO uint64

	// FromSeq (Open) says that the owner's map has all records up to it: only later ones
	// are replayed and have their data verified. It must have been synced.
	FromSeq uint64
	// Disposable (Open) says that SCOs up to this number are safe on the object store, with
	// the TLogs that name them: they are read cache only.
	Disposable uint64
	// Salvage (Open) accepts the loss of records that had been synced: without it
	// their damage is ErrCorrupt and nothing is changed.
	Salvage bool

	// Applied is called with all records in the order of their numbers, after they have been
	// handed to the kernel and before Append returns. One call at a time. It must not block,
	// nor call the Buffer.
	Applied func(entries []Entry)
	// Closed is called when an SCO was closed, that is may be uploaded. It must not
	// block, nor call the Buffer; nil is allowed.
	Closed func(number uint64)
	// Pressure is called when the Pool fills up and this log is among those whose open SCO
	// holds much of it: Rotate and drain soon. It must not block, nor call the Buffer or the
	// Pool; nil is allowed.
	Pressure func()

	// SpaceWait is how long an Append waits for space on a full file system before it fails
	// with ENOSPC, within its context. Default 30 s; negative: does not wait.
	SpaceWait time.Duration
	// Direct is the size in bytes from which a write's data goes by O_DIRECT, if it lies at a
	// multiple of 4096 in memory. Default 256 KiB; negative: never.
	Direct int

	Logger *slog.Logger // default: discards

	// For tests with small SCOs: how many syncs are "often" (default oftenSyncs), and how large a
	// segment must be to get space ahead (default aheadMin/2, so that it costs at most as much again).
	oftenSyncs int
	aheadAfter int64
	// Likewise: how much is kept in the page cache (default maxUnsynced).
	maxUnsynced int64
}

// maxHeaderBytes bounds the headers of one segment, hence also its records: Clears fill no SCO.
const maxHeaderBytes = 4 << 20

func (o *Options) ensureDefaults() {
	if o.SCOClusters == 0 {
		o.SCOClusters = sco.DefaultClusters
	}
	if o.MinSCO == 0 {
		o.MinSCO = 1
	}
	if o.SpaceWait == 0 {
		o.SpaceWait = 30 * time.Second
	}
	if o.Direct == 0 {
		o.Direct = 256 << 10
	}
	if o.oftenSyncs == 0 {
		o.oftenSyncs = oftenSyncs
	}
	if o.aheadAfter == 0 {
		o.aheadAfter = aheadMin / 2
	}
	if o.maxUnsynced == 0 {
		o.maxUnsynced = maxUnsynced
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Applied == nil {
		o.Applied = func([]Entry) {}
	}
	if o.Closed == nil {
		o.Closed = func(uint64) {}
	}
	if o.Pressure == nil {
		o.Pressure = func() {}
	}
}

func (o *Options) validate() error {
	switch {
	case o.FS == nil || o.Dir == "" || o.Pool == nil:
		return fmt.Errorf("write buffer options: FS, Dir and Pool are required: %w", ErrInvalid)
	case o.Volume == 0 || o.Epoch == 0:
		return fmt.Errorf("write buffer %s: volume %d and epoch %d must not be 0: %w", o.Dir, o.Volume, o.Epoch, ErrInvalid)
	case o.SCOClusters < 1 || o.SCOClusters > sco.MaxClusters:
		return fmt.Errorf("write buffer %s: SCOs of %d clusters, want 1..%d: %w", o.Dir, o.SCOClusters, sco.MaxClusters, ErrInvalid)
	case o.MinSCO > sco.MaxNumber:
		return fmt.Errorf("write buffer %s: SCO number %d, at most %d: %w", o.Dir, o.MinSCO, uint64(sco.MaxNumber), ErrInvalid)
	}
	return nil
}

// Op is an operation to be appended. The caller owns it; Data and Sums must not change
// until the call returns.
type Op struct {
	Kind  tlog.Kind
	Addr  uint64   // first cluster of the volume
	Count uint64   // clusters; a Write has 1..Options.SCOClusters, a Clear up to the volume's size
	Data  []byte   // Write: Count × 4096 bytes
	Sums  []uint32 // Write: the CRC32C of each cluster, sealed with its cluster address
	// Seq is set to the number of the op's last record (an op that does not fit the open
	// SCO becomes two).
	Seq uint64
}

// Recovery tells what Open found.
type Recovery struct {
	FirstSeq uint64 // first record that is here; LastSeq+1 when there is none
	LastSeq  uint64 // last record; 0: nothing was ever written
	LastSCO  uint64 // greatest number of an SCO that was seen, even if discarded
	Replayed uint64 // records told to replay

	// Cut says why the log ends before its files do; "" when it does not.
	Cut        string
	CutBytes   int64 // bytes discarded
	CutSCOs    int   // whole segments discarded
	LostSynced bool  // records are among them that had been synced (only with Options.Salvage)

	// Synced is the greatest record that anything here says was synced. It is told with ErrCorrupt, too.
	Synced uint64
}

// EndsBefore tells of an Open that failed with ErrCorrupt that the log ended before record from was
// reached, with nothing lost that a sync had promised: power was lost, and what the log lacks is
// in the object store up to from, and behind it was never synced. The log may begin anew there.
func (r *Recovery) EndsBefore(from uint64) bool { return r.LastSeq < from && r.Synced <= from }

// ClosedSCO is an SCO that is complete and not yet disposable.
type ClosedSCO struct {
	Number   uint64
	Clusters int // 0: it has only Clears, there is nothing to upload but the TLog section
	FirstSeq uint64
	LastSeq  uint64
	Bytes    int64 // of the segment file
	Uploaded bool
	// Entries is the section of this SCO for its TLog (tlog.AppendObject). Read only.
	Entries []byte
}

// Stats are figures of one Buffer.
type Stats struct {
	LastSeq, SyncedSeq uint64
	OpenSCO            uint64 // 0: none
	DirtyBytes         int64  // not disposable, with headers
	CachedBytes        int64  // disposable
	Segments           int

	Records, Clusters uint64 // appended
	UserBytes         uint64 // data appended
	WrittenBytes      uint64 // data, headers and padding written
	Batches           uint64 // groups of records written by one system call
	DirectBytes       uint64 // of WrittenBytes, by O_DIRECT
	AheadBytes        uint64 // zeroes written ahead of the end, not in WrittenBytes
	Syncs, SyncCalls  uint64 // fdatasyncs of files; calls of Sync
	Reads             uint64 // ReadAt answered from here
	SpaceWaits        uint64 // Appends that met a full file system
}
