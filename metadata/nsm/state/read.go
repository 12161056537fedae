package state

import (
	"bytes"
	"slices"

	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/internal/pbconv"
	"scoria/metadata/proto/nsmpb"
)

// maxPageBytes bounds the manifests of one reply; a page is cut short at it.
const maxPageBytes = 4 << 20

// Namespaces describes namespaces, all when ids is empty. Absent ones are ErrNotFound.
func Namespaces(r fsm.Reader, ids []uint64) ([]*nsmpb.NamespaceInfo, error) {
	if len(ids) == 0 {
		r.Scan([]byte{tNamespace}, []byte{tNamespace + 1}, func(k, _ []byte) bool {
			if len(k) == prefixLen {
				ids = append(ids, beUint64(k[1:]))
			}
			return true
		})
	}
	infos := make([]*nsmpb.NamespaceInfo, 0, len(ids))
	for _, id := range ids {
		ns, err := readNamespace(r, id)
		if err != nil {
			return nil, err
		}
		if ns == nil {
			return nil, metadata.Errorf(metadata.KindNotFound, "no namespace %d", id)
		}
		info := &nsmpb.NamespaceInfo{Namespace: ns}
		if info.Usage, err = readUsage(r, id); err != nil {
			return nil, err
		}
		if info.Buckets, err = readBuckets(r, id); err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func beUint64(b []byte) (v uint64) {
	for _, c := range b[:8] {
		v = v<<8 | uint64(c)
	}
	return v
}

// Get returns the encoded manifests of the named objects, empty where there is none.
func Get(r fsm.Reader, req *nsmpb.GetRequest) (*nsmpb.GetReply, error) {
	if len(req.GetNames()) > MaxPage {
		return nil, metadata.Errorf(metadata.KindLimit, "%d objects asked for, at most %d per request", len(req.GetNames()), MaxPage)
	}
	if _, err := liveNamespace(r, req.GetNamespace()); err != nil {
		return nil, err
	}
	reply := &nsmpb.GetReply{Manifests: make([][]byte, len(req.GetNames()))}
	for i, name := range req.GetNames() {
		b := r.Get(nameKey(req.GetNamespace(), name))
		if b == nil {
			continue
		}
		id, err := pbconv.ObjectID(b)
		if err != nil {
			return nil, metadata.Errorf(metadata.KindCorrupt, "name %q: %v", name, err)
		}
		reply.Manifests[i] = bytes.Clone(r.Get(manifestKey(req.GetNamespace(), id)))
		if reply.Manifests[i] == nil {
			return nil, metadata.Errorf(metadata.KindCorrupt, "name %q: its manifest %v is missing", name, id)
		}
	}
	return reply, nil
}

// List returns a page of objects by name.
func List(r fsm.Reader, req *nsmpb.ListRequest) (*nsmpb.ListReply, error) {
	ns := req.GetNamespace()
	if _, err := liveNamespace(r, ns); err != nil {
		return nil, err
	}
	limit := pageSize(req.GetLimit())
	prefix := nameKey(ns, req.GetPrefix())
	from := prefix
	if after := append(nameKey(ns, req.GetAfter()), 0); req.GetAfter() != "" && bytes.Compare(after, from) > 0 {
		from = after
	}
	var ids []metadata.ObjectID
	r.Scan(from, fsm.PrefixEnd(prefix), func(_, v []byte) bool {
		var id metadata.ObjectID
		copy(id[:], v)
		ids = append(ids, id)
		return len(ids) < limit
	})
	reply := &nsmpb.ListReply{}
	for _, id := range ids {
		m, err := readManifest(r, ns, id)
		if err != nil {
			return nil, err
		}
		if m == nil {
			return nil, metadata.Errorf(metadata.KindCorrupt, "namespace %d: manifest %v is missing", ns, id)
		}
		info := m.Info()
		reply.Objects = append(reply.Objects, &nsmpb.ObjectInfo{
			Name: info.Name, ObjectId: slices.Clone(info.ObjectID[:]), Size: info.Size, Created: metadata.TimeToNanos(info.Created),
			Version: info.Version, Inline: info.Inline, Policy: pbconv.FromPolicy(info.Policy), Missing: uint32(info.Missing),
		})
	}
	return reply, nil
}

func pageSize(n uint32) int {
	if n == 0 || n > MaxPage {
		return MaxPage
	}
	return int(n)
}

// Scan returns a page of manifests by object id: the ids asked for, or those of an OSD, of
// a bucket, or all. Also of a namespace that is being deleted.
func Scan(r fsm.Reader, req *nsmpb.ScanRequest) (*nsmpb.ScanReply, error) {
	ns, err := readNamespace(r, req.GetNamespace())
	if err != nil {
		return nil, err
	}
	if ns == nil {
		return nil, metadata.Errorf(metadata.KindNotFound, "no namespace %d", req.GetNamespace())
	}
	if len(req.GetIds()) > 0 {
		return scanIDs(r, req)
	}
	var prefix []byte
	switch b := req.GetBucket(); {
	case req.GetOsd() != 0 && b != nil:
		return nil, metadata.Errorf(metadata.KindInvalid, "scan of both an OSD and a bucket")
	case req.GetOsd() != 0:
		prefix = osdObjectKey(ns.GetId(), req.GetOsd(), metadata.ObjectID{})
		prefix = prefix[:len(prefix)-idLen]
	case b != nil:
		if b.GetK() > metadata.MaxFragments || b.GetM() > metadata.MaxFragments || b.GetPlaced() > metadata.MaxFragments {
			return nil, metadata.Errorf(metadata.KindInvalid, "scan of bucket %v", b)
		}
		prefix = bucketKey(ns.GetId(), bucket{uint8(b.GetK()), uint8(b.GetM()), uint8(b.GetPlaced())}, metadata.ObjectID{})
		prefix = prefix[:len(prefix)-idLen]
	default:
		prefix = nsPrefix(tManifest, ns.GetId(), 0)
	}
	from := prefix
	if len(req.GetAfter()) > 0 {
		after, err := pbconv.ObjectID(req.GetAfter())
		if err != nil {
			return nil, err
		}
		if after != (metadata.ObjectID{}) {
			from = append(append(slices.Clone(prefix), after[:]...), 0)
		}
	}
	return scanPage(r, ns.GetId(), from, fsm.PrefixEnd(prefix), pageSize(req.GetLimit()))
}

func scanPage(r fsm.Reader, ns uint64, from, to []byte, limit int) (*nsmpb.ScanReply, error) {
	reply := &nsmpb.ScanReply{}
	var missing error
	size := 0
	r.Scan(from, to, func(k, v []byte) bool {
		if len(reply.Manifests) == limit || size > maxPageBytes {
			reply.More = true
			return false
		}
		id := metadata.ObjectID(k[len(k)-idLen:])
		if k[0] != tManifest {
			v = r.Get(manifestKey(ns, id))
		}
		if v == nil {
			missing = metadata.Errorf(metadata.KindCorrupt, "namespace %d: manifest %v is missing", ns, id)
			return false
		}
		reply.Manifests = append(reply.Manifests, bytes.Clone(v))
		reply.Next = slices.Clone(id[:])
		size += len(v)
		return true
	})
	return reply, missing
}

func scanIDs(r fsm.Reader, req *nsmpb.ScanRequest) (*nsmpb.ScanReply, error) {
	if len(req.GetIds()) > MaxPage {
		return nil, metadata.Errorf(metadata.KindLimit, "%d object ids asked for, at most %d per request", len(req.GetIds()), MaxPage)
	}
	reply := &nsmpb.ScanReply{}
	for _, b := range req.GetIds() {
		id, err := pbconv.ObjectID(b)
		if err != nil {
			return nil, err
		}
		if v := r.Get(manifestKey(req.GetNamespace(), id)); v != nil {
			reply.Manifests = append(reply.Manifests, bytes.Clone(v))
		}
	}
	return reply, nil
}

// DeleteQueue lists up to Limit entries (0: none) of an OSD's delete queue.
func DeleteQueue(r fsm.Reader, req *nsmpb.DeleteQueueRequest) (*nsmpb.DeleteQueueReply, error) {
	reply := &nsmpb.DeleteQueueReply{}
	if req.GetLimit() == 0 {
		return reply, nil
	}
	if req.GetOsd() == 0 {
		return nil, metadata.Errorf(metadata.KindInvalid, "delete queue of OSD 0")
	}
	limit := pageSize(req.GetLimit())
	prefix := queuePrefix(req.GetOsd(), req.GetNamespace())
	r.Scan(prefix, fsm.PrefixEnd(prefix), func(k, _ []byte) bool {
		if q, ok := parseQueueKey(k); ok {
			reply.Entries = append(reply.Entries, q.message())
		}
		return len(reply.Entries) < limit
	})
	return reply, nil
}

// GCEpochs returns the namespace's range of open epochs.
func GCEpochs(r fsm.Reader, id uint64) (*nsmpb.GCEpochsReply, error) {
	ns, err := liveNamespace(r, id)
	if err != nil {
		return nil, err
	}
	return &nsmpb.GCEpochsReply{Min: ns.GetGcMin(), Next: ns.GetGcNext()}, nil
}
