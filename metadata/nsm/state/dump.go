package state

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/proto/nsmpb"
)

// DescribePair describes a pair of the state for people.
func (Machine) DescribePair(k, v []byte) string {
	if len(k) < prefixLen {
		return fmt.Sprintf("unknown %x = %x", k, v)
	}
	ns, rest := beUint64(k[1:]), k[prefixLen:]
	switch k[0] {
	case tNamespace:
		rec := &nsmpb.Namespace{}
		if err := proto.Unmarshal(v, rec); err != nil {
			return fmt.Sprintf("namespace %d: damaged: %v", ns, err)
		}
		return fmt.Sprintf("namespace %d: %v", ns, rec)
	case tName:
		return fmt.Sprintf("namespace %d name %q: object %x", ns, rest, v)
	case tManifest:
		m, err := metadata.DecodeManifest(v)
		if err != nil {
			return fmt.Sprintf("namespace %d object %x: damaged: %v", ns, rest, err)
		}
		return fmt.Sprintf("namespace %d object %x: %s", ns, rest, describeManifest(m))
	case tOSDObject:
		return fmt.Sprintf("namespace %d on OSD %x: object %x", ns, rest[:min(4, len(rest))], rest[min(4, len(rest)):])
	case tQueue:
		if q, ok := parseQueueKey(k); ok {
			return fmt.Sprintf("delete queue of OSD %d: namespace %d object %v chunk %d fragment %d version %d", q.osd, q.ns, q.id, q.chunk, q.fragment, q.version)
		}
	case tBucket, tBucketCount, tUsage:
		return fmt.Sprintf("namespace %d %s %x = %x", ns, map[byte]string{tBucket: "bucket entry", tBucketCount: "bucket count", tUsage: "OSD usage"}[k[0]], rest, v)
	}
	return fmt.Sprintf("unknown %x = %x", k, v)
}

func describeManifest(m *metadata.Manifest) string {
	if m.Inline != nil {
		return fmt.Sprintf("%q version %d, %d bytes inline", m.Name, m.Version, m.Size)
	}
	return fmt.Sprintf("%q version %d, %d bytes in %d chunks, policy %v, at least %d placed, GC epoch %d, made %v: %+v",
		m.Name, m.Version, m.Size, len(m.Chunks), m.Policy, m.Placed(), m.GCEpoch, m.Created, m.Chunks)
}

// DescribeCommand describes a logged command for people.
func (Machine) DescribeCommand(cmd fsm.Command) string {
	var m proto.Message
	switch cmd.Type {
	case CmdCreateNamespace:
		m = &nsmpb.CreateNamespaceRequest{}
	case CmdDeleteNamespace:
		m = &nsmpb.DeleteNamespaceRequest{}
	case CmdApply:
		return describeTxn(cmd.Body)
	case CmdUpdateManifest:
		m = &nsmpb.UpdateManifestRequest{}
	case CmdDeleteQueueDone:
		m = &nsmpb.DeleteQueueRequest{}
	case CmdGCEpochs:
		m = &nsmpb.GCEpochsRequest{}
	default:
		return fmt.Sprintf("unknown command %d of %d bytes", cmd.Type, len(cmd.Body))
	}
	if err := proto.Unmarshal(cmd.Body, m); err != nil {
		return fmt.Sprintf("command %d: damaged: %v", cmd.Type, err)
	}
	return fmt.Sprintf("%s %v", m.ProtoReflect().Descriptor().Name(), m)
}

func describeTxn(body []byte) string {
	req := &nsmpb.TxnRequest{}
	if err := proto.Unmarshal(body, req); err != nil {
		return fmt.Sprintf("Txn: damaged: %v", err)
	}
	text := fmt.Sprintf("Txn namespace %d fence %d asserts %v deletes %q", req.GetNamespace(), req.GetFence(), req.GetAsserts(), req.GetDeletes())
	for _, b := range req.GetPuts() {
		if m, err := metadata.DecodeManifest(b); err != nil {
			text += fmt.Sprintf(" put damaged (%v)", err)
		} else {
			text += fmt.Sprintf(" put %q %v", m.Name, m.ObjectID)
		}
	}
	return text
}
