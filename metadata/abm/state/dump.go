package state

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"scoria/metadata/fsm"
	"scoria/metadata/proto/abmpb"
	"scoria/metadata/proto/metapb"
)

// DescribePair describes a pair of the state for people. Keys of namespaces are not shown.
func (Machine) DescribePair(k, v []byte) string {
	if len(k) == 0 {
		return fmt.Sprintf("unknown = %x", v)
	}
	var rec proto.Message
	switch k[0] {
	case tCounters:
		rec = &abmpb.Counters{}
	case tPreset:
		rec = &metapb.Preset{}
	case tHost:
		rec = &abmpb.NSMHost{}
	case tOSD:
		rec = &abmpb.OSD{}
	case tNamespace:
		rec = &abmpb.Namespace{}
	case tVolume:
		rec = &abmpb.Volume{}
	case tOwner:
		rec = &abmpb.Owner{}
	case tLease:
		rec = &abmpb.Lease{}
	case tOSDByID, tNamespaceByName, tVolumeByName, tVolumeByNS:
		return fmt.Sprintf("index %d %q = %q", k[0], k[1:], v)
	default:
		return fmt.Sprintf("unknown %x = %x", k, v)
	}
	if err := proto.Unmarshal(v, rec); err != nil {
		return fmt.Sprintf("table %d %q: damaged: %v", k[0], k[1:], err)
	}
	return fmt.Sprintf("%s %q: %v", rec.ProtoReflect().Descriptor().Name(), k[1:], withoutKey(rec))
}

// withoutKey hides an encryption key.
func withoutKey(m proto.Message) proto.Message {
	switch m := m.(type) {
	case *abmpb.Namespace:
		m.Key = nil
	case *abmpb.CreateNamespaceRequest:
		m.Key = nil
	}
	return m
}

// commandBody makes an empty body of a command, nil for an unknown one.
func commandBody(typ uint8) proto.Message {
	switch typ {
	case CmdInitBackend:
		return &abmpb.InitBackendRequest{}
	case CmdCreatePreset, CmdUpdatePreset:
		return &abmpb.PresetRequest{}
	case CmdDeletePreset:
		return &abmpb.DeletePresetRequest{}
	case CmdAddNSMHost:
		return &abmpb.AddNSMHostRequest{}
	case CmdSeenOSD:
		return &abmpb.SeenOSDRequest{}
	case CmdClaimOSD:
		return &abmpb.ClaimOSDRequest{}
	case CmdSetOSDState:
		return &abmpb.SetOSDStateRequest{}
	case CmdCreateNamespace:
		return &abmpb.CreateNamespaceRequest{}
	case CmdSetNamespaceState:
		return &abmpb.SetNamespaceStateRequest{}
	case CmdRemoveNamespace:
		return &abmpb.RemoveNamespaceRequest{}
	case CmdCreateVolume:
		return &abmpb.CreateVolumeRequest{}
	case CmdAcquireVolume:
		return &abmpb.AcquireVolumeRequest{}
	case CmdReleaseVolume:
		return &abmpb.ReleaseVolumeRequest{}
	case CmdResizeVolume:
		return &abmpb.ResizeVolumeRequest{}
	case CmdRenameVolume:
		return &abmpb.RenameVolumeRequest{}
	case CmdMarkVolumeDeleting, CmdRemoveVolume:
		return &abmpb.VolumeIDRequest{}
	case CmdRenewOwner:
		return &abmpb.RenewOwnerRequest{}
	case CmdTakeLease:
		return &abmpb.TakeLeaseRequest{}
	}
	return nil
}

// DescribeCommand describes a logged command for people. Keys of namespaces are not shown.
func (Machine) DescribeCommand(cmd fsm.Command) string {
	m := commandBody(cmd.Type)
	if m == nil {
		return fmt.Sprintf("unknown command %d of %d bytes", cmd.Type, len(cmd.Body))
	}
	if err := proto.Unmarshal(cmd.Body, m); err != nil {
		return fmt.Sprintf("command %d: damaged: %v", cmd.Type, err)
	}
	return fmt.Sprintf("command %d %s %v", cmd.Type, m.ProtoReflect().Descriptor().Name(), withoutKey(m))
}
