// Package volumedriver turns volumes into objects: it keeps a volume's writes in a local
// log (the write buffer), packs them in order into SCOs, describes them by TLogs, keeps the
// cluster map, and reads data back from the log or from the object store.
//
// It knows neither NBD nor ALBA: a Volume has the shape of a block device, and what it
// needs from below it declares here as ObjectStore and Registry.
package volumedriver

import (
	"context"
	"errors"
	"time"
)

// ClusterSize is the unit of a volume's map, in bytes.
const ClusterSize = 4096

// MaxSize is the largest volume, in bytes (64 TiB).
const MaxSize = 64 << 40

// Errors of this package. ObjectStore and Registry implementations wrap them too.
// Absence is fs.ErrNotExist, a taken name fs.ErrExist.
var (
	ErrFenced      = errors.New("the volume has a newer owner") // this gateway must not serve it any more
	ErrOwned       = errors.New("the volume is owned by another gateway")
	ErrCorrupt     = errors.New("data is damaged beyond repair")
	ErrUnavailable = errors.New("the object store cannot be reached") // try again
	ErrClosed      = errors.New("the volume is closed")
	ErrInvalid     = errors.New("invalid argument")
)

// ObjectStore keeps the objects of volumes, a namespace per volume. Implementations are
// safe for concurrent use, verify what they return, and retry only within ctx.
type ObjectStore interface {
	// Apply stores the data of all puts, then makes puts and deletes visible in ONE
	// transaction, which fails with ErrFenced when txn.Epoch is not the newest owner epoch
	// of the namespace (a newer one is remembered as the newest). nil means durable.
	// On ErrUnavailable it may have been done or not; the same Apply may be repeated.
	Apply(ctx context.Context, ns uint64, txn Txn) error
	// Read fills all slices, verified. fs.ErrNotExist when an object is absent, ErrCorrupt
	// when a block cannot be rebuilt, ErrUnavailable when too few servers answer.
	Read(ctx context.Context, ns uint64, slices []Slice) error
	// TryRead fills a slice from memory caches, without waiting; false when it cannot.
	TryRead(ns uint64, slice Slice) bool
	// Get returns a whole object of at most limit bytes.
	Get(ctx context.Context, ns uint64, name string, limit int) ([]byte, error)
	// List returns names in order that start with prefix and are greater than after, at most limit.
	List(ctx context.Context, ns uint64, prefix, after string, limit int) ([]string, error)
}

// Txn is a conditional transaction of an ObjectStore.
type Txn struct {
	Epoch   uint64 // the owner epoch; 0 is invalid
	Puts    []Put
	Deletes []string
}

// Put is an object to store. An object of the same name is replaced.
type Put struct {
	Name string
	Data []byte // must not change until Release is called; aligned to 4096 bytes in memory where it is large
	// Sums are the plain CRC32C of Data's 4 KiB blocks; nil: the store computes them.
	Sums []uint32
	// Release, if not nil, is called exactly once when the store does not use Data any more:
	// before or some time after Apply returns (late fragments may still be on their way).
	Release func()
}

// Slice asks for a part of an object.
type Slice struct {
	Name string
	Off  uint64
	Data []byte // filled in full
	// Sums, if not nil, are the plain CRC32C that the blocks of Data must have (Off and
	// len(Data) are multiples of 4096 then): what fails them is treated as damaged, and
	// rebuilt from other fragments or reported as ErrCorrupt.
	Sums []uint32
}

// Registry keeps the records of volumes and who owns them.
type Registry interface {
	// Create makes a volume with its namespace, ready for use. fs.ErrExist when the name is taken.
	Create(ctx context.Context, name string, size uint64, preset string) (Record, error)
	// Lookup finds a volume by name: fs.ErrNotExist. List returns all, by name.
	Lookup(ctx context.Context, name string) (Record, error)
	List(ctx context.Context) ([]Record, error)
	// Acquire makes owner the owner under a new epoch: ErrOwned while another's lease lasts,
	// unless force.
	Acquire(ctx context.Context, id uint64, owner string, lease time.Duration, force bool) (Record, error)
	// Renew extends the leases of all of owner's volumes.
	Renew(ctx context.Context, owner string, lease time.Duration) error
	// Release, Resize assert the epoch: ErrFenced.
	Release(ctx context.Context, id, epoch uint64) error
	Resize(ctx context.Context, id, epoch, size uint64) error
	Rename(ctx context.Context, id uint64, name string) error
	// Delete hides the volume at once and removes its namespace and record in the background.
	Delete(ctx context.Context, id uint64) error
}

// Record is what the registry knows of a volume.
type Record struct {
	ID        uint64
	Name      string
	Namespace uint64
	Size      uint64
	Preset    string
	Created   time.Time
	Epoch     uint64 // owner epoch; 0: never owned
	Owner     string // "" when released
	// LastOwner acquired it last; OwnerSince is the first epoch of its uninterrupted run. A
	// local write buffer of LastOwner of an epoch ≥ OwnerSince is the newest state.
	LastOwner  string
	OwnerSince uint64
}
