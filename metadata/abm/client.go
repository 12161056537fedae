package abm

import (
	"context"

	"scoria/metadata/proto/abmpb"
	"scoria/metadata/proto/metapb"
	"scoria/metadata/rpc"
)

// Client is the API over gRPC. It finds the leader, and repeats what failed for want of
// one under the same request id, so that mutations happen once.
type Client struct {
	api
	caller *rpc.Caller
}

var _ API = (*Client)(nil)

// NewClient returns a client of the cluster at opts.Addrs. It connects when it is used.
func NewClient(opts rpc.Options) (*Client, error) {
	caller, err := rpc.NewCaller(opts)
	if err != nil {
		return nil, err
	}
	return &Client{api: api{remote{caller: caller}}, caller: caller}, nil
}

// Close ends the connections.
func (c *Client) Close() error { return c.caller.Close() }

// remote implements the generated server interface by calling a server.
type remote struct {
	abmpb.UnimplementedABMServer
	caller *rpc.Caller
}

func (r remote) BackendID(ctx context.Context, req *abmpb.BackendIDRequest) (*abmpb.BackendIDReply, error) {
	reply := &abmpb.BackendIDReply{}
	return reply, r.caller.Call(ctx, abmpb.ABM_BackendID_FullMethodName, true, req, reply)
}

func (r remote) CreatePreset(ctx context.Context, req *abmpb.PresetRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_CreatePreset_FullMethodName, true, req, reply)
}

func (r remote) UpdatePreset(ctx context.Context, req *abmpb.PresetRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_UpdatePreset_FullMethodName, true, req, reply)
}

func (r remote) DeletePreset(ctx context.Context, req *abmpb.DeletePresetRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_DeletePreset_FullMethodName, true, req, reply)
}

func (r remote) Presets(ctx context.Context, req *abmpb.ListRequest) (*abmpb.PresetsReply, error) {
	reply := &abmpb.PresetsReply{}
	return reply, r.caller.Call(ctx, abmpb.ABM_Presets_FullMethodName, false, req, reply)
}

func (r remote) AddNSMHost(ctx context.Context, req *abmpb.AddNSMHostRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_AddNSMHost_FullMethodName, true, req, reply)
}

func (r remote) NSMHosts(ctx context.Context, req *abmpb.ListRequest) (*abmpb.NSMHostsReply, error) {
	reply := &abmpb.NSMHostsReply{}
	return reply, r.caller.Call(ctx, abmpb.ABM_NSMHosts_FullMethodName, false, req, reply)
}

func (r remote) SeenOSD(ctx context.Context, req *abmpb.SeenOSDRequest) (*abmpb.OSD, error) {
	reply := &abmpb.OSD{}
	return reply, r.caller.Call(ctx, abmpb.ABM_SeenOSD_FullMethodName, true, req, reply)
}

func (r remote) ClaimOSD(ctx context.Context, req *abmpb.ClaimOSDRequest) (*abmpb.OSD, error) {
	reply := &abmpb.OSD{}
	return reply, r.caller.Call(ctx, abmpb.ABM_ClaimOSD_FullMethodName, true, req, reply)
}

func (r remote) SetOSDState(ctx context.Context, req *abmpb.SetOSDStateRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_SetOSDState_FullMethodName, true, req, reply)
}

func (r remote) ListOSDs(ctx context.Context, req *abmpb.ListRequest) (*abmpb.OSDsReply, error) {
	reply := &abmpb.OSDsReply{}
	return reply, r.caller.Call(ctx, abmpb.ABM_ListOSDs_FullMethodName, false, req, reply)
}

func (r remote) CreateNamespace(ctx context.Context, req *abmpb.CreateNamespaceRequest) (*abmpb.Namespace, error) {
	reply := &abmpb.Namespace{}
	return reply, r.caller.Call(ctx, abmpb.ABM_CreateNamespace_FullMethodName, true, req, reply)
}

func (r remote) SetNamespaceState(ctx context.Context, req *abmpb.SetNamespaceStateRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_SetNamespaceState_FullMethodName, true, req, reply)
}

func (r remote) RemoveNamespace(ctx context.Context, req *abmpb.RemoveNamespaceRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_RemoveNamespace_FullMethodName, true, req, reply)
}

func (r remote) GetNamespace(ctx context.Context, req *abmpb.GetNamespaceRequest) (*abmpb.Namespace, error) {
	reply := &abmpb.Namespace{}
	return reply, r.caller.Call(ctx, abmpb.ABM_GetNamespace_FullMethodName, false, req, reply)
}

func (r remote) ListNamespaces(ctx context.Context, req *abmpb.ListRequest) (*abmpb.NamespacesReply, error) {
	reply := &abmpb.NamespacesReply{}
	return reply, r.caller.Call(ctx, abmpb.ABM_ListNamespaces_FullMethodName, false, req, reply)
}

func (r remote) CreateVolume(ctx context.Context, req *abmpb.CreateVolumeRequest) (*abmpb.Volume, error) {
	reply := &abmpb.Volume{}
	return reply, r.caller.Call(ctx, abmpb.ABM_CreateVolume_FullMethodName, true, req, reply)
}

func (r remote) GetVolume(ctx context.Context, req *abmpb.GetVolumeRequest) (*abmpb.Volume, error) {
	reply := &abmpb.Volume{}
	return reply, r.caller.Call(ctx, abmpb.ABM_GetVolume_FullMethodName, false, req, reply)
}

func (r remote) ListVolumes(ctx context.Context, req *abmpb.ListRequest) (*abmpb.VolumesReply, error) {
	reply := &abmpb.VolumesReply{}
	return reply, r.caller.Call(ctx, abmpb.ABM_ListVolumes_FullMethodName, false, req, reply)
}

func (r remote) AcquireVolume(ctx context.Context, req *abmpb.AcquireVolumeRequest) (*abmpb.Volume, error) {
	reply := &abmpb.Volume{}
	return reply, r.caller.Call(ctx, abmpb.ABM_AcquireVolume_FullMethodName, true, req, reply)
}

func (r remote) ReleaseVolume(ctx context.Context, req *abmpb.ReleaseVolumeRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_ReleaseVolume_FullMethodName, true, req, reply)
}

func (r remote) ResizeVolume(ctx context.Context, req *abmpb.ResizeVolumeRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_ResizeVolume_FullMethodName, true, req, reply)
}

func (r remote) RenameVolume(ctx context.Context, req *abmpb.RenameVolumeRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_RenameVolume_FullMethodName, true, req, reply)
}

func (r remote) MarkVolumeDeleting(ctx context.Context, req *abmpb.VolumeIDRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_MarkVolumeDeleting_FullMethodName, true, req, reply)
}

func (r remote) RemoveVolume(ctx context.Context, req *abmpb.VolumeIDRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_RemoveVolume_FullMethodName, true, req, reply)
}

func (r remote) RenewOwner(ctx context.Context, req *abmpb.RenewOwnerRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, abmpb.ABM_RenewOwner_FullMethodName, true, req, reply)
}

func (r remote) TakeLease(ctx context.Context, req *abmpb.TakeLeaseRequest) (*abmpb.TakeLeaseReply, error) {
	reply := &abmpb.TakeLeaseReply{}
	return reply, r.caller.Call(ctx, abmpb.ABM_TakeLease_FullMethodName, true, req, reply)
}
