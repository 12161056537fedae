// Package nsm is the namespace manager: the manifests of namespaces, which objects live on
// which OSD, what has to be deleted there, and the GC epochs, all kept by one Raft cluster
// and changed in conditional transactions.
package nsm

import (
	"context"

	"scoria/metadata"
)

// API is what a namespace manager does. Service implements it on a node, Client over gRPC.
// All methods are safe for concurrent use. Mutations are idempotent under retry. Errors
// are *metadata.Error of the documented kinds, KindUnavailable when no leader answers.
type API interface {
	// CreateNamespace makes a namespace; making it again with the same arguments is fine.
	CreateNamespace(ctx context.Context, ns metadata.NamespaceID, preset metadata.Preset) error
	// DeleteNamespace removes it with all manifests, a bounded amount at a time; done tells
	// whether nothing is left. Fragments go by range delete on the OSDs, not by delete queue.
	DeleteNamespace(ctx context.Context, ns metadata.NamespaceID) (done bool, err error)
	// Namespaces describes namespaces: all of this NSM when ids is empty.
	Namespaces(ctx context.Context, ids ...metadata.NamespaceID) ([]NamespaceInfo, error)
	// Apply runs a transaction: all or nothing.
	Apply(ctx context.Context, ns metadata.NamespaceID, txn Txn) error
	// Get returns the manifests of the named objects, nil where there is none.
	Get(ctx context.Context, ns metadata.NamespaceID, names []string) ([]*metadata.Manifest, error)
	// List returns objects whose name starts with prefix and is greater than after, in order, at most limit (≤ 1000).
	List(ctx context.Context, ns metadata.NamespaceID, prefix, after string, limit int) ([]metadata.ObjectInfo, error)
	// Scan walks manifests for maintenance.
	Scan(ctx context.Context, req ScanRequest) (ScanReply, error)
	// UpdateManifest replaces the places of an object's fragments: m.Version must be the
	// stored version + 1, the object id and all but Chunks[].Fragments unchanged, else
	// ErrAssertFailed. Places that are replaced go to the delete queues of their OSDs.
	UpdateManifest(ctx context.Context, ns metadata.NamespaceID, m *metadata.Manifest, gc metadata.GCEpoch) error
	// DeleteQueue works on the queue of fragment keys that an OSD has still to delete.
	DeleteQueue(ctx context.Context, req DeleteQueueRequest) ([]QueuedDelete, error)
	// GCEpochs opens a new epoch and/or closes all below min, and returns the namespace's
	// range: manifests are accepted with an epoch in [min, next).
	GCEpochs(ctx context.Context, ns metadata.NamespaceID, op GCOp) (min, next metadata.GCEpoch, err error)
}

// Txn is a conditional transaction on one namespace.
type Txn struct {
	// Fence is the caller's owner epoch: below the namespace's it fails with ErrFenced; above
	// it, the namespace's is raised to it. 0 does not take part and is refused (ErrFenced) by
	// a namespace that has been fenced.
	Fence   metadata.Epoch
	Asserts []Assert
	Puts    []metadata.Manifest // Version must be 0; an object of the same name is replaced, its fragments go to the delete queues
	Deletes []string            // absent names are fine
}

// Assert is a condition on one object.
type Assert struct {
	Name     string
	Exists   bool              // must exist (true) or be absent (false)
	ObjectID metadata.ObjectID // when Exists and not zero: must be this upload
}

// NamespaceInfo describes a namespace.
type NamespaceInfo struct {
	ID            metadata.NamespaceID
	Fence         metadata.Epoch
	Preset        metadata.Preset
	Objects       uint64
	LogicalBytes  uint64 // sum of object sizes
	StoredBytes   uint64 // sum of fragment lengths and inline data
	PerOSD        map[metadata.OSDID]OSDUsage
	Buckets       []Bucket // weakest first
	GCMin, GCNext metadata.GCEpoch
	Deleting      bool
}

// OSDUsage is what a namespace has on an OSD.
type OSDUsage struct {
	Fragments, Bytes uint64
	QueuedDeletes    uint64
}

// Bucket counts objects of equal safety: effective policy K,M with Placed fragments at the
// worst chunk. Placed-K is how many more may be lost.
type Bucket struct {
	K, M, Placed int
	Objects      uint64
}

// ScanRequest selects manifests: of one OSD (OSD set), or of one bucket (Bucket set), or all, by object id.
type ScanRequest struct {
	Namespace metadata.NamespaceID
	OSD       metadata.OSDID
	Bucket    *Bucket
	IDs       []metadata.ObjectID // only these (GC asks whether tags are live); absent ones are left out
	After     metadata.ObjectID   // start behind this id
	Limit     int                 // ≤ 1000
}

// ScanReply is a page of a scan.
type ScanReply struct {
	Manifests []*metadata.Manifest
	Next      metadata.ObjectID // After of the next page
	More      bool
}

// QueuedDelete is a fragment that its OSD has still to delete.
type QueuedDelete struct {
	Namespace metadata.NamespaceID
	OSD       metadata.OSDID
	ObjectID  metadata.ObjectID
	Chunk     uint16
	Fragment  uint8
	Version   uint32
}

// DeleteQueueRequest lists up to Limit entries for an OSD (over all namespaces, or one),
// after removing the entries in Done.
type DeleteQueueRequest struct {
	Namespace metadata.NamespaceID // 0: all
	OSD       metadata.OSDID
	Done      []QueuedDelete
	Limit     int // ≤ 1000; 0 lists nothing
}

// GCOp changes GC epochs. The zero value only reads.
type GCOp struct {
	Open       bool             // open one more epoch
	CloseBelow metadata.GCEpoch // when not 0: min becomes this (never lowered, at most next-1)
}
