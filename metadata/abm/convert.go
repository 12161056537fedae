package abm

import (
	"scoria/metadata"
	"scoria/metadata/internal/pbconv"
	"scoria/metadata/proto/abmpb"
)

func toOSD(o *abmpb.OSD) metadata.OSD {
	return metadata.OSD{
		ID: metadata.OSDID(o.GetId()), UUID: o.GetUuid(), Node: o.GetNode(), Addr: o.GetAddr(),
		State: metadata.OSDState(pbconv.U8(o.GetState())), Capacity: o.GetCapacity(), Used: o.GetUsed(), Full: o.GetFull(),
		LastSeen: metadata.NanosToTime(o.GetLastSeen()), LastRead: metadata.NanosToTime(o.GetLastRead()),
		LastWrite: metadata.NanosToTime(o.GetLastWrite()), LastError: metadata.NanosToTime(o.GetLastError()),
		ErrorText: o.GetErrorText(),
	}
}

func fromOSD(o metadata.OSD) *abmpb.OSD {
	return &abmpb.OSD{
		Id: uint32(o.ID), Uuid: o.UUID, Node: o.Node, Addr: o.Addr, State: uint32(o.State),
		Capacity: o.Capacity, Used: o.Used, Full: o.Full,
		LastSeen: metadata.TimeToNanos(o.LastSeen), LastRead: metadata.TimeToNanos(o.LastRead),
		LastWrite: metadata.TimeToNanos(o.LastWrite), LastError: metadata.TimeToNanos(o.LastError),
		ErrorText: o.ErrorText,
	}
}

func toNamespace(n *abmpb.Namespace) metadata.Namespace {
	ns := metadata.Namespace{
		ID: metadata.NamespaceID(n.GetId()), Name: n.GetName(), Preset: n.GetPreset(), NSM: n.GetNsm(),
		State: metadata.NamespaceState(pbconv.U8(n.GetState())), Created: metadata.NanosToTime(n.GetCreated()), KeyID: n.GetKeyId(),
	}
	if len(n.GetKey()) > 0 {
		ns.Key = n.GetKey()
	}
	return ns
}

func toHost(h *abmpb.NSMHost) metadata.NSMHost {
	return metadata.NSMHost{ID: h.GetId(), Addrs: h.GetAddrs(), Namespaces: int(h.GetNamespaces()), Lost: h.GetLost()}
}

func toVolume(v *abmpb.Volume) metadata.VolumeRecord {
	return metadata.VolumeRecord{
		ID: metadata.VolumeID(v.GetId()), Name: v.GetName(), Namespace: metadata.NamespaceID(v.GetNamespace()),
		Size: v.GetSize(), Preset: v.GetPreset(), Created: metadata.NanosToTime(v.GetCreated()),
		Epoch: metadata.Epoch(v.GetEpoch()), Owner: v.GetOwner(), LeaseUntil: metadata.NanosToTime(v.GetLeaseUntil()),
		LastOwner: v.GetLastOwner(), OwnerSince: metadata.Epoch(v.GetOwnerSince()), Deleting: v.GetDeleting(),
	}
}

// all converts a list.
func all[P, R any](in []P, convert func(P) R) []R {
	out := make([]R, len(in))
	for i := range in {
		out[i] = convert(in[i])
	}
	return out
}
