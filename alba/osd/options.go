package osd

import (
	"fmt"
	"io"
	"log/slog"
	"runtime"

	"github.com/cockroachdb/pebble/v2"

	"scoria/internal/vfs"
)

const (
	defaultCache = 8 << 20
	minSegment   = 64 << 10
)

// Options of a Store. The zero value is fine.
type Options struct {
	// FS is the file system of the directory; nil is vfs.OS.
	FS vfs.FS
	// Logger gets what an operator should know; nil is quiet.
	Logger *slog.Logger
	// UUID is the identity: a new directory gets it ("": a random one), an existing one must have it.
	UUID string
	// Capacity is the bytes that may be used. 0 takes what the file system has, less a
	// reserve, divided by Sharers where several stores live on it.
	Capacity uint64
	// Sharers is the number of stores that share the file system; it counts when Capacity is 0. 0 is 1.
	Sharers int
	// Shared holds the caches that several stores of a process have in common; nil: an own small cache.
	Shared *Shared
	// SegmentSize is the bytes of a segment of the log, 64 KiB..4 GiB. 0 is 256 MiB.
	SegmentSize int64
	// GroupBytes is about the most that one group commit writes. 0 is 16 MiB.
	GroupBytes int64
	// QueueBytes bounds the batches that wait. 0 is 96 MiB; it is at least one batch.
	QueueBytes int64
	// FlushBytes is how much log is written between two flushes of the index. It bounds the
	// work of a start after a crash. 0 is 256 MiB.
	FlushBytes int64
	// ReapBytes is how many dead bytes are collected before they are given back to the file
	// system. They are given back earlier when the store is idle or full. 0 is 64 MiB.
	ReapBytes int64
	// BufferedReads reads values through the page cache. The default reads past it where the
	// memory of a read is aligned (vfs.DirectAlign) and its length a multiple of that: the
	// users of an OSD have caches of their own, and a miss costs half.
	BufferedReads bool
}

func (o *Options) ensureDefaults() error {
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelError + 1}))
	}
	o.Sharers = max(o.Sharers, 1)
	for _, d := range []struct {
		v       *int64
		name    string
		def     int64
		low, to int64
	}{
		{&o.SegmentSize, "segment size", 256 << 20, minSegment, 4 << 30},
		{&o.GroupBytes, "group bytes", 16 << 20, align, MaxBatch},
		{&o.QueueBytes, "queue bytes", 96 << 20, align, 16 << 30},
		{&o.FlushBytes, "flush bytes", 256 << 20, align, 16 << 30},
		{&o.ReapBytes, "reap bytes", 64 << 20, align, 1 << 40},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < d.low || *d.v > d.to {
			return fmt.Errorf("%s %d, allowed is %d..%d: %w", d.name, *d.v, d.low, d.to, ErrInvalid)
		}
	}
	o.SegmentSize = alignUp(o.SegmentSize)
	if o.UUID != "" && !validUUID(o.UUID) {
		return fmt.Errorf("uuid %q is not one in lower case: %w", o.UUID, ErrInvalid)
	}
	return nil
}

// Shared is what the stores of a process have in common: the block cache and the open tables
// of their indexes. Close it after the stores.
type Shared struct {
	cache *pebble.Cache
	files *pebble.FileCache
}

// NewShared makes caches of the given size in bytes for all stores together; 0 is 32 MiB.
func NewShared(cacheBytes int64) *Shared {
	if cacheBytes <= 0 {
		cacheBytes = 32 << 20
	}
	return &Shared{
		cache: pebble.NewCache(cacheBytes),
		files: pebble.NewFileCache(runtime.GOMAXPROCS(0), 512),
	}
}

// Close gives the caches up. Stores that are open keep them until they close.
func (s *Shared) Close() {
	s.files.Unref()
	s.cache.Unref()
}
