package alba

import (
	"encoding/binary"
	"errors"
	"fmt"

	"scoria/metadata"
)

// KeyKind is the first byte of a key on an OSD.
type KeyKind byte

// The kinds of keys. FORMAT.md tells what their values are.
const (
	KeyData     KeyKind = 'd' // a fragment
	KeyRecovery KeyKind = 'r' // what is needed to rebuild the manifest of a fragment's object
	KeyTag      KeyKind = 'g' // a GC tag: an upload that may not have been committed
	KeyProbe    KeyKind = 'p' // written by clients to learn whether a disk is well again
)

// Lengths of keys, in bytes.
const (
	fragmentKeyLen = 1 + 8 + 16 + 2 + 1 + 4
	tagKeyLen      = 1 + 8 + 8 + 16 + 4 + 4
)

// ErrKey is returned for bytes that are no key of ours.
var ErrKey = errors.New("alba: not a key of this kind")

// FragmentKey names a fragment, or its recovery information.
type FragmentKey struct {
	Namespace metadata.NamespaceID
	ObjectID  metadata.ObjectID
	Chunk     uint16
	Fragment  uint8
	Version   uint32 // of the manifest at which it was written
}

// Append appends the key of the kind (KeyData or KeyRecovery) to dst.
func (k FragmentKey) Append(dst []byte, kind KeyKind) []byte {
	dst = appendObject(dst, kind, k.Namespace, k.ObjectID)
	dst = binary.BigEndian.AppendUint16(dst, k.Chunk)
	dst = append(dst, k.Fragment)
	return binary.BigEndian.AppendUint32(dst, k.Version)
}

// Bytes returns the key of the kind.
func (k FragmentKey) Bytes(kind KeyKind) []byte {
	return k.Append(make([]byte, 0, fragmentKeyLen), kind)
}

// String is for messages.
func (k FragmentKey) String() string {
	return fmt.Sprintf("namespace %d object %v chunk %d fragment %d version %d", k.Namespace, k.ObjectID, k.Chunk, k.Fragment, k.Version)
}

// ParseFragmentKey decodes a key of kind KeyData or KeyRecovery.
func ParseFragmentKey(b []byte) (k FragmentKey, kind KeyKind, err error) {
	if len(b) != fragmentKeyLen || (KeyKind(b[0]) != KeyData && KeyKind(b[0]) != KeyRecovery) {
		return k, 0, fmt.Errorf("key %x: %w", b, ErrKey)
	}
	k.Namespace = metadata.NamespaceID(binary.BigEndian.Uint64(b[1:]))
	copy(k.ObjectID[:], b[9:25])
	k.Chunk = binary.BigEndian.Uint16(b[25:])
	k.Fragment = b[27]
	k.Version = binary.BigEndian.Uint32(b[28:])
	return k, KeyKind(b[0]), nil
}

// TagKey names the GC tag of one batch of an upload. Nonce is random, so that two agents
// repairing one object onto one OSD do not share, and remove, one tag.
type TagKey struct {
	Namespace metadata.NamespaceID
	Epoch     metadata.GCEpoch
	ObjectID  metadata.ObjectID
	Version   uint32 // of the fragments that were written
	Nonce     uint32
}

// Bytes returns the key.
func (k TagKey) Bytes() []byte {
	dst := append(make([]byte, 0, tagKeyLen), byte(KeyTag))
	dst = binary.BigEndian.AppendUint64(dst, uint64(k.Namespace))
	dst = binary.BigEndian.AppendUint64(dst, uint64(k.Epoch))
	dst = append(dst, k.ObjectID[:]...)
	dst = binary.BigEndian.AppendUint32(dst, k.Version)
	return binary.BigEndian.AppendUint32(dst, k.Nonce)
}

// ParseTagKey decodes the key of a GC tag.
func ParseTagKey(b []byte) (k TagKey, err error) {
	if len(b) != tagKeyLen || KeyKind(b[0]) != KeyTag {
		return k, fmt.Errorf("key %x: %w", b, ErrKey)
	}
	k.Namespace = metadata.NamespaceID(binary.BigEndian.Uint64(b[1:]))
	k.Epoch = metadata.GCEpoch(binary.BigEndian.Uint64(b[9:]))
	copy(k.ObjectID[:], b[17:33])
	k.Version = binary.BigEndian.Uint32(b[33:])
	k.Nonce = binary.BigEndian.Uint32(b[37:])
	return k, nil
}

// TagPart is a fragment that a tag vouches for.
type TagPart struct {
	Chunk    uint16
	Fragment uint8
}

// tagValue encodes the fragments of a batch: 3 bytes each.
func tagValue(parts []part) []byte {
	b := make([]byte, 0, 3*len(parts))
	for _, p := range parts {
		b = append(binary.BigEndian.AppendUint16(b, uint16(p.chunk)), uint8(p.fragment))
	}
	return b
}

// MaxTagValue bounds the value of a tag, in bytes.
const MaxTagValue = 3 * groupBytes / metadata.MinChunkSize

// ParseTagValue decodes the value of a GC tag.
func ParseTagValue(b []byte) ([]TagPart, error) {
	if len(b)%3 != 0 || len(b) > MaxTagValue {
		return nil, fmt.Errorf("tag of %d bytes: %w", len(b), ErrKey)
	}
	parts := make([]TagPart, len(b)/3)
	for i := range parts {
		parts[i] = TagPart{binary.BigEndian.Uint16(b[3*i:]), b[3*i+2]}
	}
	return parts, nil
}

// TagRange returns the keys [from, to) of the tags of a namespace with epochs below before.
func TagRange(ns metadata.NamespaceID, before metadata.GCEpoch) (from, to []byte) {
	from = binary.BigEndian.AppendUint64([]byte{byte(KeyTag)}, uint64(ns))
	to = binary.BigEndian.AppendUint64(from[:len(from):len(from)], uint64(before))
	return from, to
}

// NamespaceRange returns the keys [from, to) of one kind of a namespace.
func NamespaceRange(kind KeyKind, ns metadata.NamespaceID) (from, to []byte) {
	from = binary.BigEndian.AppendUint64([]byte{byte(kind)}, uint64(ns))
	if ns == ^metadata.NamespaceID(0) {
		return from, []byte{byte(kind) + 1}
	}
	return from, binary.BigEndian.AppendUint64([]byte{byte(kind)}, uint64(ns)+1)
}

// ObjectRange returns the keys [from, to) of one kind of an object.
func ObjectRange(kind KeyKind, ns metadata.NamespaceID, id metadata.ObjectID) (from, to []byte) {
	from = appendObject(nil, kind, ns, id)
	return from, append(appendObject(nil, kind, ns, id), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
}

func appendObject(dst []byte, kind KeyKind, ns metadata.NamespaceID, id metadata.ObjectID) []byte {
	dst = append(dst, byte(kind))
	dst = binary.BigEndian.AppendUint64(dst, uint64(ns))
	return append(dst, id[:]...)
}

// KeyNamespace returns the namespace of a fragment, recovery or tag key.
func KeyNamespace(b []byte) (metadata.NamespaceID, bool) {
	if len(b) < 9 || (KeyKind(b[0]) != KeyData && KeyKind(b[0]) != KeyRecovery && KeyKind(b[0]) != KeyTag) {
		return 0, false
	}
	return metadata.NamespaceID(binary.BigEndian.Uint64(b[1:])), true
}
