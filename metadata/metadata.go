// Package metadata is the vocabulary of Scoria's metadata: the identities, records and
// error kinds that the ALBA manager (package abm), the namespace managers (package nsm)
// and their users share. It holds data and rules about data, no I/O.
package metadata

import (
	"encoding/hex"
	"fmt"
	"time"
)

// NamespaceID numbers a namespace of a backend. 0 is invalid. Ids are never reused.
type NamespaceID uint64

// OSDID numbers an OSD (disk server) that the backend has claimed. 0 is invalid, and
// stands for "no OSD" (a hole) in manifests. Ids are never reused.
type OSDID uint32

// VolumeID numbers a volume. 0 is invalid. Ids are never reused.
type VolumeID uint64

// Epoch is an owner epoch: it grows with every change of ownership of a volume, and every
// mutation of the volume's namespace asserts it. 0 means "not owned".
type Epoch uint64

// GCEpoch numbers the epochs by which orphaned fragments are found. It starts at 1.
type GCEpoch uint64

// ObjectID names one upload of an object. It is random and fresh for every put, so that a
// fragment key never means two different contents.
type ObjectID [16]byte

// String returns the id in hexadecimal.
func (id ObjectID) String() string { return hex.EncodeToString(id[:]) }

// Policy says how the chunks of an object are spread: K data and M parity fragments, of
// which C must be stored before a put succeeds, with at most X fragments of a chunk on one node.
type Policy struct {
	K, M, C, X int
}

// Limits of a policy. Reed–Solomon over GF(2^8) bounds K+M at 256; 32 is plenty.
const (
	MaxFragments = 32
)

// Validate checks 1 ≤ K, 0 ≤ M, K+M ≤ MaxFragments, K ≤ C ≤ K+M, 1 ≤ X.
func (p Policy) Validate() error {
	switch {
	case p.K < 1 || p.M < 0 || p.K+p.M > MaxFragments:
		return fmt.Errorf("policy %v: needs k ≥ 1, m ≥ 0 and k+m ≤ %d: %w", p, MaxFragments, ErrInvalid)
	case p.C < p.K || p.C > p.K+p.M:
		return fmt.Errorf("policy %v: c must be within k..k+m: %w", p, ErrInvalid)
	case p.X < 1:
		return fmt.Errorf("policy %v: x must be ≥ 1: %w", p, ErrInvalid)
	}
	return nil
}

// String returns "(k,m,c,x)".
func (p Policy) String() string { return fmt.Sprintf("(%d,%d,%d,%d)", p.K, p.M, p.C, p.X) }

// Compression of a preset or object.
type Compression uint8

// The compressions.
const (
	CompressNone Compression = 1
	CompressS2   Compression = 2
	CompressZstd Compression = 3
)

// Encryption of a preset or object.
type Encryption uint8

// The encryptions.
const (
	EncryptNone      Encryption = 1
	EncryptAES256GCM Encryption = 2
)

// Preset is a named bundle of choices for the objects of a namespace.
type Preset struct {
	Name        string
	Version     uint32   // starts at 1, +1 with each change
	Policies    []Policy // in order of preference; the first that the usable OSDs satisfy is taken
	ChunkSize   uint32   // bytes of object data per chunk, a multiple of 4 KiB, 64 KiB..64 MiB
	InlineLimit uint32   // objects up to this many bytes live in their manifest, 0..64 KiB
	Compression Compression
	Encryption  Encryption
	Default     bool // taken when none is named
}

// Namespace is a set of objects with one preset on one NSM host.
type Namespace struct {
	ID      NamespaceID
	Name    string // unique, 1..128 bytes
	Preset  string
	NSM     string // id of the NSM host
	State   NamespaceState
	Created time.Time
	// Key is the key of the namespace's encryption (32 bytes), nil when its preset does not encrypt.
	Key   []byte
	KeyID uint32
}

// NamespaceState is where a namespace is in its life.
type NamespaceState uint8

// The states. Creating: known to the ABM, not yet to its NSM host. Deleting: objects and
// fragments are being removed; the record goes last.
const (
	NamespaceCreating NamespaceState = 1
	NamespaceActive   NamespaceState = 2
	NamespaceDeleting NamespaceState = 3
)

// OSD is a disk server as the ABM knows it.
type OSD struct {
	ID                             OSDID  // 0 while available (seen, not claimed)
	UUID                           string // the server's own identity, never changes
	Node                           string // failure domain: the machine
	Addr                           string // host:port, or "inproc:NAME" in the one-process system
	State                          OSDState
	Capacity                       uint64 // bytes
	Used                           uint64 // bytes
	Full                           bool
	LastSeen                       time.Time
	LastRead, LastWrite, LastError time.Time
	ErrorText                      string
}

// OSDState is where an OSD is in its life.
type OSDState uint8

// The states: available → claimed → decommissioning → gone. Lost is a claimed OSD that an
// operator (or the repair timer) declared dead: it is read no more and repaired elsewhere.
const (
	OSDAvailable       OSDState = 1
	OSDClaimed         OSDState = 2
	OSDDecommissioning OSDState = 3
	OSDLost            OSDState = 4
	OSDGone            OSDState = 5
)

// NSMHost is a namespace manager cluster.
type NSMHost struct {
	ID         string
	Addrs      []string // host:port of its nodes, or "inproc:NAME"
	Namespaces int
	Lost       bool
}

// VolumeRecord is what the ABM knows of a volume.
type VolumeRecord struct {
	ID        VolumeID
	Name      string // unique, 1..128 bytes
	Namespace NamespaceID
	Size      uint64 // bytes, a multiple of 4096, up to 64 TiB
	Preset    string
	Created   time.Time
	// Epoch is the owner epoch: +1 with each Acquire. Owner is the gateway that holds it,
	// "" when released. LeaseUntil is for liveness only, never for safety.
	Epoch      Epoch
	Owner      string
	LeaseUntil time.Time
	// LastOwner is who acquired it last (kept by a release). OwnerSince is the first epoch
	// of LastOwner's uninterrupted run of ownership: a local write buffer of LastOwner whose
	// epoch is ≥ OwnerSince (the value before acquiring) has been nobody else's since, and is valid.
	LastOwner  string
	OwnerSince Epoch
	Deleting   bool
}
