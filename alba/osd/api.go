// Package osd is the disk server: an ordered key-value store for fragments with atomic
// conditional batches, group commit and partial reads of verified 4 KiB blocks. Store keeps
// one disk, Server serves a Store over TCP, Client reaches a Server; Store and Client both
// are an API, so that the one-process system pays for no socket.
package osd

import (
	"context"
	"errors"

	"scoria/internal/blocksum"
)

// Limits of requests. They bound memory, on the wire as in process.
const (
	MaxKey       = 128      // bytes of a key
	MaxValue     = 64 << 20 // bytes of a value
	MaxBatch     = 80 << 20 // bytes of keys and values of a batch
	MaxBatchOps  = 4096     // asserts, puts and deletes of a batch together
	MaxReadBytes = 64 << 20 // bytes asked for in one Read
	MaxReadOps   = 4096
	MaxList      = 1000 // items of one List
	BlockSize    = blocksum.BlockSize
)

// Errors of an OSD. They survive the wire.
var (
	ErrAssertFailed = errors.New("osd: assert failed")
	ErrFull         = errors.New("osd: full")         // sets are refused, deletes and reads work
	ErrNotFound     = errors.New("osd: no such key")  // errors.Is(err, fs.ErrNotExist) holds too for errors of Read
	ErrCorrupt      = errors.New("osd: corrupt data") // a block or record fails its checksum; the key and block are in the text
	ErrUnavailable  = errors.New("osd: unavailable")  // cannot be reached, closed, or failed after an I/O error
	ErrInvalid      = errors.New("osd: bad request")
	ErrWrongOSD     = errors.New("osd: another identity or owner") // not the disk that was asked for
)

// API is a disk server. All methods are safe for concurrent use; requests are pipelined.
type API interface {
	// Apply makes the batch's asserts, puts and deletes atomically and durably: when it
	// returns nil, a power loss changes nothing. On ErrAssertFailed, ErrFull and ErrInvalid
	// nothing was changed. On other errors (ErrUnavailable, ctx) it may or may not have been done.
	// The batch's memory is not referenced after Apply has returned.
	Apply(ctx context.Context, b *Batch) error
	// Read fills the reads; each gets its own Err. The error it returns concerns all of them.
	Read(ctx context.Context, reads []Read) error
	// List returns keys in [from, to) in order, at most limit (≤ MaxList); to == nil: no end.
	List(ctx context.Context, from, to []byte, limit int) ([]Item, error)
	// DeleteRange deletes all keys in [from, to) durably.
	DeleteRange(ctx context.Context, from, to []byte) error
	// Verify reads all values in [from, to), checks every block on the server, and returns
	// what is bad; next is where to go on (nil: done). It works for about a bounded amount of bytes per call.
	Verify(ctx context.Context, from, to []byte) (bad []Bad, checked uint64, next []byte, err error)
	// Info tells identity, capacity, use and statistics.
	Info(ctx context.Context) (Info, error)
	// Claim binds the OSD to a backend and an id; claiming it again alike is fine, ErrWrongOSD if bound otherwise.
	Claim(ctx context.Context, backend string, id uint32) error
	// Close ends it and waits. Idempotent.
	Close() error
}

// Batch is an atomic conditional change. Of several operations on one key the last counts.
type Batch struct {
	Asserts []Assert
	Puts    []Put
	Deletes [][]byte // absent keys are fine; applied after Puts
	// Background marks work that may wait behind foreground work (repair, cleaning).
	Background bool
}

// Assert is a condition: the key is absent, or holds exactly Value.
type Assert struct {
	Key    []byte
	Exists bool
	Value  []byte // compared when Exists
}

// Put sets a key.
type Put struct {
	Key   []byte
	Value []byte
	// Sums are the plain CRC32C of the value's 4 KiB blocks (the last may be short), as
	// computed where the data came from; they are stored and verified on every later read.
	// nil: the OSD computes them (small values).
	Sums []uint32
}

// Read asks for a part of a value.
type Read struct {
	Key []byte
	Off uint64 // multiple of BlockSize
	Buf []byte // filled; its length is what is asked for. It ends at a block border or at the end of the value
	// Results.
	Sums []uint32 // plain CRC32C of the blocks read, appended to what was passed in [:0]; Buf was verified against them
	Size uint64   // of the whole value
	Err  error    // ErrNotFound, ErrCorrupt, ErrInvalid, ErrUnavailable
}

// Item is a listed key.
type Item struct {
	Key  []byte
	Size uint64
}

// Bad is a damaged value.
type Bad struct {
	Key   []byte
	Block uint32 // first damaged block
	Text  string
}

// Info describes an OSD.
type Info struct {
	UUID     string
	Backend  string // "" when not claimed
	ID       uint32
	Capacity uint64 // bytes that may be used
	Used     uint64
	Keys     uint64
	Full     bool
	Failed   string // why it refuses writes after an I/O error, "" when healthy
	Stats    Stats
}

// Stats counts since start.
type Stats struct {
	Applies, Puts, Deletes, Reads, ReadBlocks uint64
	BytesWritten, BytesRead                   uint64
	Syncs, Groups                             uint64 // Applies/Groups is the group commit factor
	AssertFailures, CorruptBlocks             uint64
}
