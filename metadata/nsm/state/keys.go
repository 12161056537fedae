package state

import (
	"encoding/binary"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/internal/pbconv"
	"scoria/metadata/proto/nsmpb"
)

// The tables: first byte of a key. Numbers in keys are big-endian.
const (
	tNamespace   = 0x01 // ns u64 → Namespace
	tName        = 0x02 // ns, name → object id
	tManifest    = 0x03 // ns, object id → manifest
	tOSDObject   = 0x04 // ns, osd u32, object id → nothing
	tQueue       = 0x05 // osd u32, ns, object id, chunk u16, fragment u8, version u32 → nothing
	tBucket      = 0x06 // ns, safety+128 u8, k u8, m u8, placed u8, object id → nothing
	tBucketCount = 0x07 // ns, safety+128 u8, k u8, m u8, placed u8 → objects u64
	tUsage       = 0x08 // ns, osd u32 → fragments u64, bytes u64, queued u64
)

const (
	idLen     = 16
	prefixLen = 9 // table and namespace
)

func nsPrefix(table byte, ns uint64, room int) []byte {
	b := make([]byte, 0, prefixLen+room)
	return binary.BigEndian.AppendUint64(append(b, table), ns)
}

func namespaceKey(ns uint64) []byte { return nsPrefix(tNamespace, ns, 0) }
func nameKey(ns uint64, name string) []byte {
	return append(nsPrefix(tName, ns, len(name)), name...)
}
func manifestKey(ns uint64, id metadata.ObjectID) []byte {
	return append(nsPrefix(tManifest, ns, idLen), id[:]...)
}
func osdObjectKey(ns uint64, osd uint32, id metadata.ObjectID) []byte {
	b := binary.BigEndian.AppendUint32(nsPrefix(tOSDObject, ns, 4+idLen), osd)
	return append(b, id[:]...)
}
func usageKey(ns uint64, osd uint32) []byte {
	return binary.BigEndian.AppendUint32(nsPrefix(tUsage, ns, 4), osd)
}

// bucket is a class of equally safe objects.
type bucket struct{ k, m, placed uint8 }

func bucketOf(m *metadata.Manifest) bucket {
	return bucket{uint8(m.Policy.K), uint8(m.Policy.M), uint8(m.Placed())}
}

func (b bucket) append(key []byte) []byte {
	return append(key, byte(int(b.placed)-int(b.k)+128), b.k, b.m, b.placed)
}

func bucketKey(ns uint64, b bucket, id metadata.ObjectID) []byte {
	return append(b.append(nsPrefix(tBucket, ns, 4+idLen)), id[:]...)
}
func bucketCountKey(ns uint64, b bucket) []byte { return b.append(nsPrefix(tBucketCount, ns, 4)) }

// queued is an entry of a delete queue.
type queued struct {
	ns       uint64
	osd      uint32
	id       metadata.ObjectID
	chunk    uint16
	fragment uint8
	version  uint32
}

const queueKeyLen = 1 + 4 + 8 + idLen + 2 + 1 + 4

func queuePrefix(osd uint32, ns uint64) []byte {
	b := append(make([]byte, 0, queueKeyLen), tQueue)
	b = binary.BigEndian.AppendUint32(b, osd)
	if ns != 0 {
		b = binary.BigEndian.AppendUint64(b, ns)
	}
	return b
}

func queueKey(q queued) []byte {
	be := binary.BigEndian
	b := append(queuePrefix(q.osd, q.ns), q.id[:]...)
	b = be.AppendUint16(b, q.chunk)
	b = append(b, q.fragment)
	return be.AppendUint32(b, q.version)
}

func parseQueueKey(k []byte) (q queued, ok bool) {
	be := binary.BigEndian
	if len(k) != queueKeyLen {
		return q, false
	}
	q.osd, q.ns = be.Uint32(k[1:]), be.Uint64(k[5:])
	copy(q.id[:], k[13:])
	q.chunk, q.fragment, q.version = be.Uint16(k[29:]), k[31], be.Uint32(k[32:])
	return q, true
}

// toQueued checks a message.
func toQueued(q *nsmpb.QueuedDelete) (queued, error) {
	id, err := pbconv.ObjectID(q.GetObjectId())
	if err != nil {
		return queued{}, err
	}
	if q.GetNamespace() == 0 || q.GetOsd() == 0 || q.GetChunk() >= metadata.MaxChunks || q.GetFragment() >= metadata.MaxFragments {
		return queued{}, metadata.Errorf(metadata.KindInvalid, "queued delete %v makes no sense", q)
	}
	return queued{q.GetNamespace(), q.GetOsd(), id, uint16(q.GetChunk()), uint8(q.GetFragment()), q.GetVersion()}, nil
}

func (q queued) message() *nsmpb.QueuedDelete {
	return &nsmpb.QueuedDelete{
		Namespace: q.ns, Osd: q.osd, ObjectId: slices.Clone(q.id[:]),
		Chunk: uint32(q.chunk), Fragment: uint32(q.fragment), Version: q.version,
	}
}

// readNamespace returns the record, nil when there is none.
func readNamespace(r fsm.Reader, id uint64) (*nsmpb.Namespace, error) {
	b := r.Get(namespaceKey(id))
	if b == nil {
		return nil, nil
	}
	ns := &nsmpb.Namespace{}
	if err := proto.Unmarshal(b, ns); err != nil {
		return nil, metadata.Errorf(metadata.KindCorrupt, "record of namespace %d: %v", id, err)
	}
	return ns, nil
}

// liveNamespace returns the record of a namespace that is not being deleted.
func liveNamespace(r fsm.Reader, id uint64) (*nsmpb.Namespace, error) {
	ns, err := readNamespace(r, id)
	switch {
	case err != nil:
		return nil, err
	case ns == nil:
		return nil, metadata.Errorf(metadata.KindNotFound, "no namespace %d", id)
	case ns.GetDeleting():
		return nil, metadata.Errorf(metadata.KindState, "namespace %d is being deleted", id)
	}
	return ns, nil
}

func saveNamespace(tx fsm.Tx, ns *nsmpb.Namespace) error {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(ns)
	if err != nil {
		return metadata.Errorf(metadata.KindInternal, "record of namespace %d: %v", ns.GetId(), err)
	}
	tx.Put(namespaceKey(ns.GetId()), b)
	return nil
}

// readManifest returns the manifest of an object id, nil when there is none.
func readManifest(r fsm.Reader, ns uint64, id metadata.ObjectID) (*metadata.Manifest, error) {
	b := r.Get(manifestKey(ns, id))
	if b == nil {
		return nil, nil
	}
	m, err := metadata.DecodeManifest(b)
	if err != nil {
		return nil, metadata.Errorf(metadata.KindCorrupt, "namespace %d, object %v: %v", ns, id, err)
	}
	return m, nil
}

// scanManifests reads up to limit manifests under a prefix.
func scanManifests(r fsm.Reader, prefix []byte, limit int) (ms []*metadata.Manifest, err error) {
	r.Scan(prefix, fsm.PrefixEnd(prefix), func(k, v []byte) bool {
		var m *metadata.Manifest
		if m, err = metadata.DecodeManifest(v); err != nil {
			err = metadata.Errorf(metadata.KindCorrupt, "manifest %x: %v", k, err)
			return false
		}
		ms = append(ms, m)
		return len(ms) < limit
	})
	return ms, err
}

func readUsage(r fsm.Reader, ns uint64) (us []*nsmpb.OSDUsage, err error) {
	prefix := nsPrefix(tUsage, ns, 0)
	r.Scan(prefix, fsm.PrefixEnd(prefix), func(k, v []byte) bool {
		be := binary.BigEndian
		if len(k) != prefixLen+4 || len(v) != 24 {
			err = metadata.Errorf(metadata.KindCorrupt, "usage record %x", k)
			return false
		}
		us = append(us, &nsmpb.OSDUsage{
			Osd: be.Uint32(k[prefixLen:]), Fragments: be.Uint64(v), Bytes: be.Uint64(v[8:]), QueuedDeletes: be.Uint64(v[16:]),
		})
		return true
	})
	return us, err
}

func readBuckets(r fsm.Reader, ns uint64) (bs []*nsmpb.Bucket, err error) {
	prefix := nsPrefix(tBucketCount, ns, 0)
	r.Scan(prefix, fsm.PrefixEnd(prefix), func(k, v []byte) bool {
		if len(k) != prefixLen+4 || len(v) != 8 {
			err = metadata.Errorf(metadata.KindCorrupt, "bucket record %x", k)
			return false
		}
		bs = append(bs, &nsmpb.Bucket{
			K: uint32(k[prefixLen+1]), M: uint32(k[prefixLen+2]), Placed: uint32(k[prefixLen+3]),
			Objects: binary.BigEndian.Uint64(v),
		})
		return true
	})
	return bs, err
}

func sortedKeys[K uint32 | uint64, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
