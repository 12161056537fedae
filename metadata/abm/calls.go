package abm

import (
	"context"
	"time"

	"scoria/metadata"
	"scoria/metadata/internal/pbconv"
	"scoria/metadata/proto/abmpb"
	"scoria/metadata/proto/metapb"
)

// api turns the vocabulary's API into messages. Service and Client differ only in who
// takes them: the node's own server, or one at the end of a connection.
type api struct{ rpc abmpb.ABMServer }

func (a api) BackendID(ctx context.Context) (string, error) {
	reply, err := a.rpc.BackendID(ctx, &abmpb.BackendIDRequest{})
	return reply.GetId(), err
}

func (a api) CreatePreset(ctx context.Context, p metadata.Preset) error {
	_, err := a.rpc.CreatePreset(ctx, &abmpb.PresetRequest{Preset: pbconv.FromPreset(p)})
	return err
}

func (a api) UpdatePreset(ctx context.Context, p metadata.Preset) error {
	_, err := a.rpc.UpdatePreset(ctx, &abmpb.PresetRequest{Preset: pbconv.FromPreset(p)})
	return err
}

func (a api) DeletePreset(ctx context.Context, name string) error {
	_, err := a.rpc.DeletePreset(ctx, &abmpb.DeletePresetRequest{Name: name})
	return err
}

func (a api) Presets(ctx context.Context) ([]metadata.Preset, error) {
	reply, err := a.rpc.Presets(ctx, &abmpb.ListRequest{})
	if err != nil {
		return nil, err
	}
	return all(reply.GetPresets(), func(p *metapb.Preset) metadata.Preset { return pbconv.ToPreset(p) }), nil
}

func (a api) AddNSMHost(ctx context.Context, h metadata.NSMHost) error {
	_, err := a.rpc.AddNSMHost(ctx, &abmpb.AddNSMHostRequest{Host: &abmpb.NSMHost{Id: h.ID, Addrs: h.Addrs, Lost: h.Lost}})
	return err
}

func (a api) NSMHosts(ctx context.Context) ([]metadata.NSMHost, error) {
	reply, err := a.rpc.NSMHosts(ctx, &abmpb.ListRequest{})
	if err != nil {
		return nil, err
	}
	return all(reply.GetHosts(), toHost), nil
}

func (a api) SeenOSD(ctx context.Context, o metadata.OSD) (metadata.OSD, error) {
	reply, err := a.rpc.SeenOSD(ctx, &abmpb.SeenOSDRequest{Osd: fromOSD(o)})
	if err != nil {
		return metadata.OSD{}, err
	}
	return toOSD(reply), nil
}

func (a api) ClaimOSD(ctx context.Context, uuid string) (metadata.OSD, error) {
	reply, err := a.rpc.ClaimOSD(ctx, &abmpb.ClaimOSDRequest{Uuid: uuid})
	if err != nil {
		return metadata.OSD{}, err
	}
	return toOSD(reply), nil
}

func (a api) SetOSDState(ctx context.Context, id metadata.OSDID, s metadata.OSDState) error {
	_, err := a.rpc.SetOSDState(ctx, &abmpb.SetOSDStateRequest{Id: uint32(id), State: uint32(s)})
	return err
}

func (a api) ListOSDs(ctx context.Context) ([]metadata.OSD, error) {
	reply, err := a.rpc.ListOSDs(ctx, &abmpb.ListRequest{})
	if err != nil {
		return nil, err
	}
	return all(reply.GetOsds(), toOSD), nil
}

func (a api) CreateNamespace(ctx context.Context, name, preset string) (metadata.Namespace, error) {
	reply, err := a.rpc.CreateNamespace(ctx, &abmpb.CreateNamespaceRequest{Name: name, Preset: preset})
	if err != nil {
		return metadata.Namespace{}, err
	}
	return toNamespace(reply), nil
}

func (a api) SetNamespaceState(ctx context.Context, id metadata.NamespaceID, s metadata.NamespaceState) error {
	_, err := a.rpc.SetNamespaceState(ctx, &abmpb.SetNamespaceStateRequest{Id: uint64(id), State: uint32(s)})
	return err
}

func (a api) RemoveNamespace(ctx context.Context, id metadata.NamespaceID) error {
	_, err := a.rpc.RemoveNamespace(ctx, &abmpb.RemoveNamespaceRequest{Id: uint64(id)})
	return err
}

func (a api) Namespace(ctx context.Context, name string) (metadata.Namespace, error) {
	reply, err := a.rpc.GetNamespace(ctx, &abmpb.GetNamespaceRequest{Name: name})
	if err != nil {
		return metadata.Namespace{}, err
	}
	return toNamespace(reply), nil
}

func (a api) NamespaceByID(ctx context.Context, id metadata.NamespaceID) (metadata.Namespace, error) {
	if id == 0 {
		return metadata.Namespace{}, metadata.Errorf(metadata.KindInvalid, "namespace id 0")
	}
	reply, err := a.rpc.GetNamespace(ctx, &abmpb.GetNamespaceRequest{Id: uint64(id)})
	if err != nil {
		return metadata.Namespace{}, err
	}
	return toNamespace(reply), nil
}

func (a api) ListNamespaces(ctx context.Context) ([]metadata.Namespace, error) {
	reply, err := a.rpc.ListNamespaces(ctx, &abmpb.ListRequest{})
	if err != nil {
		return nil, err
	}
	return all(reply.GetNamespaces(), toNamespace), nil
}

func (a api) CreateVolume(ctx context.Context, v metadata.VolumeRecord) (metadata.VolumeRecord, error) {
	return volume(a.rpc.CreateVolume(ctx, &abmpb.CreateVolumeRequest{
		Name: v.Name, Namespace: uint64(v.Namespace), Size: v.Size, Preset: v.Preset,
	}))
}

func volume(v *abmpb.Volume, err error) (metadata.VolumeRecord, error) {
	if err != nil {
		return metadata.VolumeRecord{}, err
	}
	return toVolume(v), nil
}

func (a api) Volume(ctx context.Context, name string) (metadata.VolumeRecord, error) {
	return volume(a.rpc.GetVolume(ctx, &abmpb.GetVolumeRequest{Name: name}))
}

func (a api) ListVolumes(ctx context.Context) ([]metadata.VolumeRecord, error) {
	reply, err := a.rpc.ListVolumes(ctx, &abmpb.ListRequest{})
	if err != nil {
		return nil, err
	}
	return all(reply.GetVolumes(), toVolume), nil
}

func (a api) AcquireVolume(ctx context.Context, id metadata.VolumeID, owner string, lease time.Duration, force bool) (metadata.VolumeRecord, error) {
	return volume(a.rpc.AcquireVolume(ctx, &abmpb.AcquireVolumeRequest{Id: uint64(id), Owner: owner, Lease: int64(lease), Force: force}))
}

func (a api) ReleaseVolume(ctx context.Context, id metadata.VolumeID, epoch metadata.Epoch) error {
	_, err := a.rpc.ReleaseVolume(ctx, &abmpb.ReleaseVolumeRequest{Id: uint64(id), Epoch: uint64(epoch)})
	return err
}

func (a api) ResizeVolume(ctx context.Context, id metadata.VolumeID, epoch metadata.Epoch, size uint64) error {
	_, err := a.rpc.ResizeVolume(ctx, &abmpb.ResizeVolumeRequest{Id: uint64(id), Epoch: uint64(epoch), Size: size})
	return err
}

func (a api) RenameVolume(ctx context.Context, id metadata.VolumeID, name string) error {
	_, err := a.rpc.RenameVolume(ctx, &abmpb.RenameVolumeRequest{Id: uint64(id), Name: name})
	return err
}

func (a api) MarkVolumeDeleting(ctx context.Context, id metadata.VolumeID) error {
	_, err := a.rpc.MarkVolumeDeleting(ctx, &abmpb.VolumeIDRequest{Id: uint64(id)})
	return err
}

func (a api) RemoveVolume(ctx context.Context, id metadata.VolumeID) error {
	_, err := a.rpc.RemoveVolume(ctx, &abmpb.VolumeIDRequest{Id: uint64(id)})
	return err
}

func (a api) RenewOwner(ctx context.Context, owner string, lease time.Duration) error {
	_, err := a.rpc.RenewOwner(ctx, &abmpb.RenewOwnerRequest{Owner: owner, Lease: int64(lease)})
	return err
}

func (a api) TakeLease(ctx context.Context, name, holder string, lease time.Duration) (string, error) {
	reply, err := a.rpc.TakeLease(ctx, &abmpb.TakeLeaseRequest{Name: name, Holder: holder, Lease: int64(lease)})
	return reply.GetHolder(), err
}
