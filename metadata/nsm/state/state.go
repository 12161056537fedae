// Package state is the state machine of a namespace manager: pure decisions over a
// key-value transaction. It keeps manifests and all that is derived from them (per-OSD
// index, delete queues, buckets, usage) in step, in one transaction per command; Audit
// recomputes the derived part and compares. The keys and records are described in
// metadata/FORMAT.md.
package state

import (
	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/internal/pbconv"
	"scoria/metadata/proto/nsmpb"
)

// The commands. The list is append-only. Bodies are the request messages of nsm.proto.
const (
	CmdCreateNamespace = 1
	CmdDeleteNamespace = 2
	CmdApply           = 3
	CmdUpdateManifest  = 4
	CmdDeleteQueueDone = 5
	CmdGCEpochs        = 6
)

// CommandVersion is the layout of the bodies that this Scoria writes and reads.
const CommandVersion = 1

// Bounds of one request.
const (
	MaxPuts    = 1024 // also deletes and asserts, each
	MaxPage    = 1000 // entries of a list
	deleteStep = 500  // manifests that one DeleteNamespace command removes
)

// Machine is the state machine. It has no state of its own.
type Machine struct{}

// Kind returns "nsm".
func (Machine) Kind() string { return "nsm" }

// Apply runs one command.
func (Machine) Apply(tx fsm.Tx, cmd fsm.Command) ([]byte, error) {
	if cmd.Version != CommandVersion {
		return nil, fsm.ErrUnknownCommand
	}
	switch cmd.Type {
	case CmdCreateNamespace:
		return run(tx, cmd, createNamespace)
	case CmdDeleteNamespace:
		return run(tx, cmd, deleteNamespace)
	case CmdApply:
		return run(tx, cmd, applyTxn)
	case CmdUpdateManifest:
		return run(tx, cmd, updateManifest)
	case CmdDeleteQueueDone:
		return run(tx, cmd, deleteQueueDone)
	case CmdGCEpochs:
		return run(tx, cmd, gcEpochs)
	}
	return nil, fsm.ErrUnknownCommand
}

// message is a pointer to a generated message.
type message[T any] interface {
	*T
	proto.Message
}

// run decodes the body, calls the operation and encodes its reply (nil: an empty one).
func run[T any, P message[T]](tx fsm.Tx, cmd fsm.Command, op func(tx fsm.Tx, req P) (proto.Message, error)) ([]byte, error) {
	req := P(new(T))
	if err := proto.Unmarshal(cmd.Body, req); err != nil {
		return nil, metadata.Errorf(metadata.KindCorrupt, "nsm command %d: %v", cmd.Type, err)
	}
	reply, err := op(tx, req)
	if err != nil || reply == nil {
		return nil, err
	}
	return proto.Marshal(reply)
}

func createNamespace(tx fsm.Tx, req *nsmpb.CreateNamespaceRequest) (proto.Message, error) {
	if req.GetId() == 0 {
		return nil, metadata.Errorf(metadata.KindInvalid, "namespace id 0")
	}
	preset := pbconv.ToPreset(req.GetPreset())
	if err := preset.Validate(); err != nil {
		return nil, err
	}
	ns, err := readNamespace(tx, req.GetId())
	switch {
	case err != nil:
		return nil, err
	case ns == nil:
		ns = &nsmpb.Namespace{Id: req.GetId(), GcMin: 1, GcNext: 2}
	case ns.GetDeleting():
		return nil, metadata.Errorf(metadata.KindState, "namespace %d is being deleted", req.GetId())
	case ns.GetPreset().GetName() != preset.Name:
		return nil, metadata.Errorf(metadata.KindExists, "namespace %d exists with preset %q", req.GetId(), ns.GetPreset().GetName())
	case ns.GetPreset().GetVersion() >= preset.Version:
		return nil, nil // made again, or an older version of its preset
	}
	ns.Preset = req.GetPreset()
	return nil, saveNamespace(tx, ns)
}

// deleteNamespace removes a bounded number of manifests, or queue entries once there are
// no manifests, and the record at last.
func deleteNamespace(tx fsm.Tx, req *nsmpb.DeleteNamespaceRequest) (proto.Message, error) {
	ns, err := readNamespace(tx, req.GetId())
	if err != nil {
		return nil, err
	}
	if ns == nil {
		return &nsmpb.DeleteNamespaceReply{Done: true}, nil
	}
	ns.Deleting = true
	c := newChange(tx, ns)
	manifests, err := scanManifests(tx, manifestKey(ns.GetId(), metadata.ObjectID{})[:prefixLen], deleteStep)
	if err != nil {
		return nil, err
	}
	for _, m := range manifests {
		c.remove(m)
		tx.Delete(nameKey(ns.GetId(), m.Name))
	}
	if len(manifests) == deleteStep {
		return &nsmpb.DeleteNamespaceReply{}, c.flush()
	}
	usage, err := readUsage(tx, ns.GetId())
	if err != nil {
		return nil, err
	}
	budget := 8 * deleteStep
	for _, u := range usage {
		if u.GetQueuedDeletes() > 0 {
			budget -= c.dropQueue(u.GetOsd(), budget)
		}
	}
	if err := c.flush(); err != nil {
		return nil, err
	}
	if budget <= 0 {
		return &nsmpb.DeleteNamespaceReply{}, nil
	}
	tx.Delete(namespaceKey(ns.GetId()))
	return &nsmpb.DeleteNamespaceReply{Done: true}, nil
}

func applyTxn(tx fsm.Tx, req *nsmpb.TxnRequest) (proto.Message, error) {
	ns, err := liveNamespace(tx, req.GetNamespace())
	if err != nil {
		return nil, err
	}
	if len(req.GetPuts()) > MaxPuts || len(req.GetDeletes()) > MaxPuts || len(req.GetAsserts()) > MaxPuts {
		return nil, metadata.Errorf(metadata.KindLimit, "transaction of %d asserts, %d puts, %d deletes: at most %d each",
			len(req.GetAsserts()), len(req.GetPuts()), len(req.GetDeletes()), MaxPuts)
	}
	switch {
	case req.GetFence() < ns.GetFence():
		return nil, metadata.Errorf(metadata.KindFenced, "namespace %d: owner epoch %d is stale, the newest is %d", ns.GetId(), req.GetFence(), ns.GetFence())
	case req.GetFence() > ns.GetFence():
		ns.Fence = req.GetFence()
	}
	for _, a := range req.GetAsserts() {
		if err := checkAssert(tx, ns.GetId(), a); err != nil {
			return nil, err
		}
	}
	c := newChange(tx, ns)
	touched := make(map[string]bool, len(req.GetPuts())+len(req.GetDeletes()))
	for _, name := range req.GetDeletes() {
		if touched[name] {
			return nil, metadata.Errorf(metadata.KindInvalid, "object %q is named twice in a transaction", name)
		}
		touched[name] = true
		if err := c.drop(name); err != nil {
			return nil, err
		}
	}
	for _, b := range req.GetPuts() {
		m, err := metadata.DecodeManifest(b)
		if err != nil {
			return nil, metadata.Errorf(metadata.KindInvalid, "put: %v", err)
		}
		if touched[m.Name] {
			return nil, metadata.Errorf(metadata.KindInvalid, "object %q is named twice in a transaction", m.Name)
		}
		touched[m.Name] = true
		if err := c.put(m, b); err != nil {
			return nil, err
		}
	}
	return nil, c.flush()
}

func checkAssert(tx fsm.Tx, ns uint64, a *nsmpb.Assert) error {
	id := tx.Get(nameKey(ns, a.GetName()))
	switch {
	case a.GetExists() && id == nil:
		return metadata.Errorf(metadata.KindAssertFailed, "object %q does not exist", a.GetName())
	case !a.GetExists() && id != nil:
		return metadata.Errorf(metadata.KindAssertFailed, "object %q exists", a.GetName())
	case !a.GetExists() || len(a.GetObjectId()) == 0:
		return nil
	}
	want, err := pbconv.ObjectID(a.GetObjectId())
	if err != nil {
		return err
	}
	if want != (metadata.ObjectID{}) && string(id) != string(want[:]) {
		return metadata.Errorf(metadata.KindAssertFailed, "object %q is another upload (%x)", a.GetName(), id)
	}
	return nil
}

func gcEpochs(tx fsm.Tx, req *nsmpb.GCEpochsRequest) (proto.Message, error) {
	ns, err := liveNamespace(tx, req.GetNamespace())
	if err != nil {
		return nil, err
	}
	if req.GetOpen() {
		ns.GcNext++
	}
	if below := min(req.GetCloseBelow(), ns.GetGcNext()-1); below > ns.GetGcMin() {
		ns.GcMin = below
	}
	return &nsmpb.GCEpochsReply{Min: ns.GetGcMin(), Next: ns.GetGcNext()}, saveNamespace(tx, ns)
}

// checkGC checks that fragments were tagged with an epoch that is open.
func checkGC(ns *nsmpb.Namespace, epoch metadata.GCEpoch) error {
	switch {
	case uint64(epoch) < ns.GetGcMin():
		return metadata.Errorf(metadata.KindStaleGCEpoch, "namespace %d: GC epoch %d is closed (open: %d to %d): upload again",
			ns.GetId(), epoch, ns.GetGcMin(), ns.GetGcNext()-1)
	case uint64(epoch) >= ns.GetGcNext():
		return metadata.Errorf(metadata.KindInvalid, "namespace %d: GC epoch %d was not opened yet (open: %d to %d)",
			ns.GetId(), epoch, ns.GetGcMin(), ns.GetGcNext()-1)
	}
	return nil
}

func deleteQueueDone(tx fsm.Tx, req *nsmpb.DeleteQueueRequest) (proto.Message, error) {
	if len(req.GetDone()) > MaxPage {
		return nil, metadata.Errorf(metadata.KindLimit, "%d finished deletes, at most %d per request", len(req.GetDone()), MaxPage)
	}
	changes := make(map[uint64]*change)
	for _, q := range req.GetDone() {
		e, err := toQueued(q)
		if err != nil {
			return nil, err
		}
		key := queueKey(e)
		if tx.Get(key) == nil {
			continue // done before
		}
		tx.Delete(key)
		c := changes[q.GetNamespace()]
		if c == nil {
			c = &change{tx: tx, ns: q.GetNamespace()}
			changes[q.GetNamespace()] = c
		}
		c.usage(e.osd).queued--
	}
	for _, ns := range sortedKeys(changes) {
		if err := changes[ns].flush(); err != nil {
			return nil, err
		}
	}
	return nil, nil
}
