package volumedriver

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"scoria/internal/frame"
	"scoria/internal/vfs"
	"scoria/volumedriver/sco"
	"scoria/volumedriver/writebuffer"
)

// Options of a Driver. Dir, Store, Registry and GatewayID are required.
type Options struct {
	FS        vfs.FS // default: the machine's
	Dir       string // everything the driver keeps locally; nobody else's (the caller locks it)
	Store     ObjectStore
	Registry  Registry
	GatewayID string // owner name of this gateway; must stay the same over restarts

	WriteBufferBytes int64 // bytes on disk of all local logs; default 1 GiB
	// Pool, if not nil, has further settings of the write buffer; its HardBytes is set from
	// WriteBufferBytes unless it is set itself.
	Pool          writebuffer.PoolOptions
	MapCacheBytes int64 // memory for map pages of all volumes; default 256 MiB
	MapDiskBytes  int64 // local copies of map packs that are in the object store too; default 1 GiB

	SCOClusters    int           // clusters of an SCO, 1..16384; default 4096 (16 MiB)
	TLogSCOs       int           // SCOs of a TLog, 1..1024; default 8
	Uploads        int           // SCOs on their way to the object store at a time, over all volumes; default 4
	ReadAheadBytes int64         // memory for read-ahead, over all volumes; default 64 MiB; negative: none
	DrainDelay     time.Duration // dirty data older than this is drained; default 30 s; negative: only when it must
	IdleDelay      time.Duration // a drained volume that nobody has open and that lost nothing is closed after this; default 60 s; negative: never
	Lease          time.Duration // of ownership; renewed at a third of it; default 30 s
	OpenTimeout    time.Duration // longest opening of a volume; default 60 s
	SpaceWait      time.Duration // how long a write waits on a full local file system before ENOSPC; default 30 s; negative: not
	ReadPatience   time.Duration // how long a read waits for an object store out of reach before it fails; default 15 s; negative: not
	Tick           time.Duration // period of the housekeeping; default 1 s

	// CheckpointDirty is how many bytes of map pages of a volume may wait for a checkpoint;
	// default MapCacheBytes/2. CheckpointTLogs is how many TLogs may follow the map
	// checkpoint of a head (they are read at a takeover); default 16.
	CheckpointDirty int64
	CheckpointTLogs int

	Logger *slog.Logger // default: discards
}

func (o *Options) ensureDefaults() {
	def(&o.WriteBufferBytes, 1<<30)
	def(&o.MapCacheBytes, 256<<20)
	def(&o.MapDiskBytes, 1<<30)
	def(&o.SCOClusters, sco.DefaultClusters)
	def(&o.TLogSCOs, 8)
	def(&o.Uploads, 4)
	def(&o.ReadAheadBytes, 64<<20)
	def(&o.DrainDelay, 30*time.Second)
	def(&o.IdleDelay, time.Minute)
	def(&o.Lease, 30*time.Second)
	def(&o.OpenTimeout, time.Minute)
	def(&o.SpaceWait, 30*time.Second)
	def(&o.ReadPatience, 15*time.Second)
	def(&o.Tick, time.Second)
	def(&o.CheckpointDirty, max(o.MapCacheBytes/2, 64<<10))
	def(&o.CheckpointTLogs, 16)
	def(&o.Pool.HardBytes, o.WriteBufferBytes)
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

func def[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// Limits of names and sizes.
const (
	maxNameBytes = 128
	maxTLogSCOs  = 1024
)

func (o *Options) validate() error {
	switch {
	case o.Dir == "" || o.Store == nil || o.Registry == nil || o.GatewayID == "":
		return fmt.Errorf("volume driver options: Dir, Store, Registry and GatewayID are required: %w", ErrInvalid)
	case o.SCOClusters < 1 || o.SCOClusters > sco.MaxClusters:
		return fmt.Errorf("volume driver options: SCOs of %d clusters, want 1..%d: %w", o.SCOClusters, sco.MaxClusters, ErrInvalid)
	case o.TLogSCOs < 1 || o.TLogSCOs > maxTLogSCOs:
		return fmt.Errorf("volume driver options: TLogs of %d SCOs, want 1..%d: %w", o.TLogSCOs, maxTLogSCOs, ErrInvalid)
	case o.Uploads < 1 || o.CheckpointTLogs < 1 || o.Tick < 0 || o.Lease < 0 || o.OpenTimeout < 0:
		return fmt.Errorf("volume driver options: Uploads, CheckpointTLogs, Tick, Lease and OpenTimeout must be positive: %w", ErrInvalid)
	}
	return nil
}

// CheckName tells whether a volume may have the name: 1..128 letters, digits, '.', '_' and
// '-', the first one a letter or digit. ('@' separates a snapshot, '/' is for paths.)
func CheckName(name string) error {
	if name == "" {
		return fmt.Errorf("volume name: it is empty: %w", ErrInvalid)
	}
	if len(name) > maxNameBytes {
		return fmt.Errorf("volume name: %d bytes, at most %d are allowed: %w", len(name), maxNameBytes, ErrInvalid)
	}
	for i, r := range name {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || r != '.' && r != '_' && r != '-') {
			return fmt.Errorf("volume name %q: %q is not allowed at place %d; use letters, digits, '.', '_' and '-', beginning with a letter or digit: %w",
				name, r, i+1, ErrInvalid)
		}
	}
	return nil
}

// CheckSize tells whether a volume may have the size in bytes: a multiple of 4096 from
// 4096 to MaxSize.
func CheckSize(size uint64) error {
	switch {
	case size == 0:
		return fmt.Errorf("volume size: it must not be 0: %w", ErrInvalid)
	case size > MaxSize:
		return fmt.Errorf("volume size: %d bytes, at most %d (64 TiB) are allowed: %w", size, uint64(MaxSize), ErrInvalid)
	case size%ClusterSize != 0:
		return fmt.Errorf("volume size: %d bytes is not a multiple of %d; the next one is %d: %w",
			size, ClusterSize, (size/ClusterSize+1)*ClusterSize, ErrInvalid)
	}
	return nil
}

// isForeign tells that bytes are of another format or version, as opposed to damaged.
func isForeign(err error) bool {
	return errors.Is(err, frame.ErrMagic) || errors.Is(err, frame.ErrVersion)
}
