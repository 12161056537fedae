// Package abm is the ALBA manager: the registry of a backend. It knows the OSDs, presets,
// NSM hosts, namespaces and volumes (with their owner epochs and leases), kept by one Raft
// cluster.
package abm

import (
	"context"
	"time"

	"scoria/metadata"
)

// API is all that an ALBA manager does. Service implements it on a node, Client over gRPC.
// All methods are safe for concurrent use. Mutations are idempotent under retry. Errors
// are *metadata.Error, KindUnavailable when no leader answers. Time and ids are chosen by
// the service and travel in the command, never by the state machine.
type API interface {
	Backend
	OSDs
	Namespaces
	Volumes
	Leases
}

// Backend is what concerns the backend as a whole.
type Backend interface {
	// BackendID returns the identity of this backend, made when its first node started.
	BackendID(ctx context.Context) (string, error)
	// CreatePreset adds a preset (Version 1). UpdatePreset changes policies and inline limit of one.
	CreatePreset(ctx context.Context, p metadata.Preset) error
	UpdatePreset(ctx context.Context, p metadata.Preset) error
	DeletePreset(ctx context.Context, name string) error
	Presets(ctx context.Context) ([]metadata.Preset, error)
	// AddNSMHost registers a namespace manager; adding it again updates its addresses.
	AddNSMHost(ctx context.Context, h metadata.NSMHost) error
	NSMHosts(ctx context.Context) ([]metadata.NSMHost, error)
}

// OSDs is the registry of disk servers.
type OSDs interface {
	// SeenOSD registers an OSD as available, or refreshes address, capacity, usage, error
	// and last-seen times of a known one (matched by UUID). It returns the record.
	SeenOSD(ctx context.Context, o metadata.OSD) (metadata.OSD, error)
	// ClaimOSD gives an available OSD an id. Claiming it again returns the same id.
	ClaimOSD(ctx context.Context, uuid string) (metadata.OSD, error)
	// SetOSDState moves along claimed → decommissioning|lost → gone, and decommissioning|lost → claimed.
	SetOSDState(ctx context.Context, id metadata.OSDID, s metadata.OSDState) error
	ListOSDs(ctx context.Context) ([]metadata.OSD, error)
}

// Namespaces is the registry of namespaces.
type Namespaces interface {
	// CreateNamespace makes a record in state Creating on the NSM host with the fewest
	// namespaces. The creator then tells the NSM and calls NamespaceReady.
	// ErrExists when the name is taken (by an active namespace).
	CreateNamespace(ctx context.Context, name, preset string) (metadata.Namespace, error)
	// SetNamespaceState moves Creating → Active, Creating|Active → Deleting; RemoveNamespace ends it.
	SetNamespaceState(ctx context.Context, id metadata.NamespaceID, s metadata.NamespaceState) error
	RemoveNamespace(ctx context.Context, id metadata.NamespaceID) error
	Namespace(ctx context.Context, name string) (metadata.Namespace, error)
	NamespaceByID(ctx context.Context, id metadata.NamespaceID) (metadata.Namespace, error)
	ListNamespaces(ctx context.Context) ([]metadata.Namespace, error)
}

// Volumes is the registry of volumes.
type Volumes interface {
	// CreateVolume makes the record of a volume over an existing namespace.
	CreateVolume(ctx context.Context, v metadata.VolumeRecord) (metadata.VolumeRecord, error)
	Volume(ctx context.Context, name string) (metadata.VolumeRecord, error)
	ListVolumes(ctx context.Context) ([]metadata.VolumeRecord, error)
	// AcquireVolume makes owner the owner under a new epoch. It fails with ErrOwned while
	// another owner's lease lasts, unless force. The new owner must raise the namespace's
	// fence to the epoch before it reads the volume's head.
	AcquireVolume(ctx context.Context, id metadata.VolumeID, owner string, lease time.Duration, force bool) (metadata.VolumeRecord, error)
	// ReleaseVolume ends ownership under epoch; ErrFenced when the epoch is not the newest.
	ReleaseVolume(ctx context.Context, id metadata.VolumeID, epoch metadata.Epoch) error
	// ResizeVolume grows a volume under epoch. RenameVolume changes the name.
	ResizeVolume(ctx context.Context, id metadata.VolumeID, epoch metadata.Epoch, size uint64) error
	RenameVolume(ctx context.Context, id metadata.VolumeID, name string) error
	// MarkVolumeDeleting hides a volume from use; RemoveVolume removes the record at last.
	MarkVolumeDeleting(ctx context.Context, id metadata.VolumeID) error
	RemoveVolume(ctx context.Context, id metadata.VolumeID) error
}

// Leases keeps owners and agents alive.
type Leases interface {
	// RenewOwner extends the leases of all volumes that owner holds, in one command.
	RenewOwner(ctx context.Context, owner string, lease time.Duration) error
	// TakeLease takes or renews a named lease (maintenance roles) and tells who holds it.
	TakeLease(ctx context.Context, name, holder string, lease time.Duration) (current string, err error)
}
