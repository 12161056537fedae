package nsm

import (
	"context"
	"fmt"

	"scoria/metadata"
	"scoria/metadata/internal/pbconv"
	"scoria/metadata/proto/nsmpb"
)

// api turns the vocabulary's API into messages. Service and Client differ only in who
// takes them: the node's own server, or one at the end of a connection.
type api struct{ rpc nsmpb.NSMServer }

func (a api) CreateNamespace(ctx context.Context, ns metadata.NamespaceID, preset metadata.Preset) error {
	_, err := a.rpc.CreateNamespace(ctx, &nsmpb.CreateNamespaceRequest{Id: uint64(ns), Preset: pbconv.FromPreset(preset)})
	return err
}

func (a api) DeleteNamespace(ctx context.Context, ns metadata.NamespaceID) (bool, error) {
	reply, err := a.rpc.DeleteNamespace(ctx, &nsmpb.DeleteNamespaceRequest{Id: uint64(ns)})
	return reply.GetDone(), err
}

func (a api) Namespaces(ctx context.Context, ids ...metadata.NamespaceID) ([]NamespaceInfo, error) {
	req := &nsmpb.NamespacesRequest{}
	for _, id := range ids {
		req.Ids = append(req.Ids, uint64(id))
	}
	reply, err := a.rpc.Namespaces(ctx, req)
	if err != nil {
		return nil, err
	}
	infos := make([]NamespaceInfo, 0, len(reply.GetNamespaces()))
	for _, n := range reply.GetNamespaces() {
		infos = append(infos, toInfo(n))
	}
	return infos, nil
}

func toInfo(n *nsmpb.NamespaceInfo) NamespaceInfo {
	ns := n.GetNamespace()
	info := NamespaceInfo{
		ID: metadata.NamespaceID(ns.GetId()), Fence: metadata.Epoch(ns.GetFence()), Preset: pbconv.ToPreset(ns.GetPreset()),
		Objects: ns.GetObjects(), LogicalBytes: ns.GetLogicalBytes(), StoredBytes: ns.GetStoredBytes(),
		GCMin: metadata.GCEpoch(ns.GetGcMin()), GCNext: metadata.GCEpoch(ns.GetGcNext()), Deleting: ns.GetDeleting(),
		PerOSD: make(map[metadata.OSDID]OSDUsage, len(n.GetUsage())),
	}
	for _, u := range n.GetUsage() {
		info.PerOSD[metadata.OSDID(u.GetOsd())] = OSDUsage{Fragments: u.GetFragments(), Bytes: u.GetBytes(), QueuedDeletes: u.GetQueuedDeletes()}
	}
	for _, b := range n.GetBuckets() {
		info.Buckets = append(info.Buckets, Bucket{K: int(b.GetK()), M: int(b.GetM()), Placed: int(b.GetPlaced()), Objects: b.GetObjects()})
	}
	return info
}

func (a api) Apply(ctx context.Context, ns metadata.NamespaceID, txn Txn) error {
	req := &nsmpb.TxnRequest{Namespace: uint64(ns), Fence: uint64(txn.Fence), Deletes: txn.Deletes}
	for i := range txn.Asserts {
		as := &txn.Asserts[i]
		m := &nsmpb.Assert{Name: as.Name, Exists: as.Exists}
		if as.ObjectID != (metadata.ObjectID{}) {
			m.ObjectId = as.ObjectID[:]
		}
		req.Asserts = append(req.Asserts, m)
	}
	for i := range txn.Puts {
		b, err := metadata.EncodeManifest(&txn.Puts[i])
		if err != nil {
			return err
		}
		req.Puts = append(req.Puts, b)
	}
	_, err := a.rpc.Apply(ctx, req)
	return err
}

func (a api) Get(ctx context.Context, ns metadata.NamespaceID, names []string) ([]*metadata.Manifest, error) {
	reply, err := a.rpc.Get(ctx, &nsmpb.GetRequest{Namespace: uint64(ns), Names: names})
	if err != nil {
		return nil, err
	}
	if len(reply.GetManifests()) != len(names) {
		return nil, metadata.Errorf(metadata.KindCorrupt, "%d manifests answer %d names", len(reply.GetManifests()), len(names))
	}
	return manifests(reply.GetManifests())
}

// manifests decodes manifests; an empty one becomes nil.
func manifests(encoded [][]byte) ([]*metadata.Manifest, error) {
	ms := make([]*metadata.Manifest, len(encoded))
	for i, b := range encoded {
		if len(b) == 0 {
			continue
		}
		m, err := metadata.DecodeManifest(b)
		if err != nil {
			return nil, fmt.Errorf("reply of the namespace manager: %w", err)
		}
		ms[i] = m
	}
	return ms, nil
}

func (a api) List(ctx context.Context, ns metadata.NamespaceID, prefix, after string, limit int) ([]metadata.ObjectInfo, error) {
	reply, err := a.rpc.List(ctx, &nsmpb.ListRequest{Namespace: uint64(ns), Prefix: prefix, After: after, Limit: page(limit)})
	if err != nil {
		return nil, err
	}
	infos := make([]metadata.ObjectInfo, 0, len(reply.GetObjects()))
	for _, o := range reply.GetObjects() {
		id, err := pbconv.ObjectID(o.GetObjectId())
		if err != nil {
			return nil, err
		}
		infos = append(infos, metadata.ObjectInfo{
			Name: o.GetName(), ObjectID: id, Size: o.GetSize(), Created: metadata.NanosToTime(o.GetCreated()),
			Version: o.GetVersion(), Inline: o.GetInline(), Policy: pbconv.ToPolicy(o.GetPolicy()), Missing: int(o.GetMissing()),
		})
	}
	return infos, nil
}

// page narrows a limit; the server takes 0 and more than a page as a whole page.
func page(limit int) uint32 { return uint32(max(0, min(limit, 1000))) }

func (a api) Scan(ctx context.Context, req ScanRequest) (ScanReply, error) {
	m := &nsmpb.ScanRequest{Namespace: uint64(req.Namespace), Osd: uint32(req.OSD), Limit: page(req.Limit)}
	if req.Bucket != nil {
		b := *req.Bucket
		if b.K < 0 || b.M < 0 || b.Placed < 0 {
			return ScanReply{}, metadata.Errorf(metadata.KindInvalid, "scan of bucket %+v", b)
		}
		m.Bucket = &nsmpb.Bucket{K: uint32(b.K), M: uint32(b.M), Placed: uint32(b.Placed)}
	}
	if req.IDs != nil && len(req.IDs) == 0 {
		return ScanReply{}, nil // asked for none, not for all
	}
	for i := range req.IDs {
		m.Ids = append(m.Ids, req.IDs[i][:])
	}
	if req.After != (metadata.ObjectID{}) {
		m.After = req.After[:]
	}
	reply, err := a.rpc.Scan(ctx, m)
	if err != nil {
		return ScanReply{}, err
	}
	out := ScanReply{More: reply.GetMore()}
	if out.Manifests, err = manifests(reply.GetManifests()); err != nil {
		return ScanReply{}, err
	}
	if len(reply.GetNext()) > 0 {
		if out.Next, err = pbconv.ObjectID(reply.GetNext()); err != nil {
			return ScanReply{}, err
		}
	}
	return out, nil
}

func (a api) UpdateManifest(ctx context.Context, ns metadata.NamespaceID, m *metadata.Manifest, gc metadata.GCEpoch) error {
	b, err := metadata.EncodeManifest(m)
	if err != nil {
		return err
	}
	_, err = a.rpc.UpdateManifest(ctx, &nsmpb.UpdateManifestRequest{Namespace: uint64(ns), Manifest: b, GcEpoch: uint64(gc)})
	return err
}

func (a api) DeleteQueue(ctx context.Context, req DeleteQueueRequest) ([]QueuedDelete, error) {
	m := &nsmpb.DeleteQueueRequest{Namespace: uint64(req.Namespace), Osd: uint32(req.OSD), Limit: page(req.Limit)}
	for i := range req.Done {
		q := &req.Done[i]
		m.Done = append(m.Done, &nsmpb.QueuedDelete{
			Namespace: uint64(q.Namespace), Osd: uint32(q.OSD), ObjectId: q.ObjectID[:],
			Chunk: uint32(q.Chunk), Fragment: uint32(q.Fragment), Version: q.Version,
		})
	}
	reply, err := a.rpc.DeleteQueue(ctx, m)
	if err != nil {
		return nil, err
	}
	out := make([]QueuedDelete, 0, len(reply.GetEntries()))
	for _, q := range reply.GetEntries() {
		id, err := pbconv.ObjectID(q.GetObjectId())
		if err != nil {
			return nil, err
		}
		out = append(out, QueuedDelete{
			Namespace: metadata.NamespaceID(q.GetNamespace()), OSD: metadata.OSDID(q.GetOsd()), ObjectID: id,
			Chunk: uint16(q.GetChunk()), Fragment: pbconv.U8(q.GetFragment()), Version: q.GetVersion(),
		})
	}
	return out, nil
}

func (a api) GCEpochs(ctx context.Context, ns metadata.NamespaceID, op GCOp) (metadata.GCEpoch, metadata.GCEpoch, error) {
	reply, err := a.rpc.GCEpochs(ctx, &nsmpb.GCEpochsRequest{Namespace: uint64(ns), Open: op.Open, CloseBelow: uint64(op.CloseBelow)})
	return metadata.GCEpoch(reply.GetMin()), metadata.GCEpoch(reply.GetNext()), err
}
