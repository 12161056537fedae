package writebuffer

import "context"

// Buffer is the log of one volume. All methods are safe for concurrent use.
type Buffer struct{}

// Create makes an empty log in Options.Dir, whose first record will have number
// firstSeq (≥ 1). fs.ErrExist when there is a log already.
func Create(ctx context.Context, opts Options, firstSeq uint64) (*Buffer, error) { panic("draft") }

// Open recovers the log in Options.Dir, and calls replay for all records after FromSeq in
// order. fs.ErrNotExist when there is no log, ErrGap, ErrStale, ErrCorrupt. When replay
// fails, so does Open, with its error. Nothing on the disk is changed by an Open that failed.
// What follows the recovered prefix is discarded durably before Open returns. New
// records go to a new SCO; all others are closed ones.
func Open(ctx context.Context, opts Options, replay func(*Entry) error) (*Buffer, Recovery, error) {
	panic("draft")
}

// RemoveAll removes the log in dir, with the directory. The log must not be open.
func RemoveAll(ctx context.Context, opts Options) error { panic("draft") }

// Append reserves room in the Pool (waits: pacing, hard limit), appends all ops, contiguous and in order, and returns
// when they and all records before them are handed to the kernel and applied. On an error a part may have been appended (and applied):
// those with Op.Seq != 0.
func (b *Buffer) Append(ctx context.Context, ops []Op) error { panic("draft") }

// TryAppend is Append when it has to wait for nothing but the local disk: done is false, and nothing has been appended, when
// the Pool asks for pacing or is full or the file system is. Call Append then.
func (b *Buffer) TryAppend(ops []Op) (done bool, err error) { panic("draft") }

// Sync makes all that was appended before the call durable.
func (b *Buffer) Sync(ctx context.Context) error { panic("draft") }

// ReadAt reads len(p)/4096 clusters of an SCO from index on. ok is false when the SCO is not here (never was, or evicted):
// look the cluster up again, then ask the object store. Data is not verified: the caller has the sums.
func (b *Buffer) ReadAt(number uint64, index uint32, p []byte) (ok bool, err error) { panic("draft") }

// Rotate closes the open SCO, if it has records.
func (b *Buffer) Rotate(ctx context.Context) error { panic("draft") }

// ClosedSCOs lists the closed SCOs that are not disposable, in order. Those with Number > after.
func (b *Buffer) ClosedSCOs(after uint64) []ClosedSCO { panic("draft") }

// Load fills data (Clusters × 4096) with a closed SCO's clusters and sums with their plain CRC32C, verified: ErrCorrupt.
func (b *Buffer) Load(ctx context.Context, number uint64, data []byte, sums []uint32) error {
	panic("draft")
}

// MarkUploaded tells that the SCO's data is on the object store (counts as drained; its memory copy is dropped).
func (b *Buffer) MarkUploaded(number uint64) { panic("draft") }

// MarkDisposable tells that all closed SCOs up to number are safe on the object store, with the TLogs that name them,
// AND that the owner's durable map checkpoint has all their records: they become read cache.
func (b *Buffer) MarkDisposable(upTo uint64) { panic("draft") }

// Evict removes all disposable segments (before closing an idle volume).
func (b *Buffer) Evict() error { panic("draft") }

// LastSeq, SyncedSeq, OldestDirtySeq (0: nothing dirty), DirtyBytes.
func (b *Buffer) LastSeq() uint64        { panic("draft") }
func (b *Buffer) SyncedSeq() uint64      { panic("draft") }
func (b *Buffer) OldestDirtySeq() uint64 { panic("draft") }
func (b *Buffer) DirtyBytes() int64      { panic("draft") }
func (b *Buffer) Err() error             { panic("draft") }
func (b *Buffer) Stats() Stats           { panic("draft") }

// Close waits for running calls and closes the files. It does not sync. Idempotent.
func (b *Buffer) Close() error { panic("draft") }

// PoolOptions ...
type PoolOptions struct {
	HardBytes    int64   // bytes on disk of all logs; default 1 GiB
	SoftFraction float64 // of HardBytes: from here on writers are paced; default 0.6
	MaxFiles     int     // open read handles, default 256
	MemoryBytes  int64   // copies of large writes kept for the upload; default 96 MiB; negative: none
}

// Pool ...
type Pool struct{}

// NewPool ...
func NewPool(opts PoolOptions) *Pool { panic("draft") }

// Close ...
func (p *Pool) Close() error { panic("draft") }
