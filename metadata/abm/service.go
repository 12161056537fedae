package abm

import (
	"context"
	"crypto/rand"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"scoria/metadata/abm/state"
	"scoria/metadata/fsm"
	"scoria/metadata/proto/abmpb"
	"scoria/metadata/proto/metapb"
	"scoria/metadata/rpc"
)

// Service is the API on a node: requests become commands of the node's state machine
// (state.Machine), reads look at its state.
type Service struct {
	api
	server abmpb.ABMServer
}

var _ API = (*Service)(nil)

// NewService returns the service over a host of state.Machine: a raftnode.Node, or a
// fsm.MemHost in tests. The host is the caller's to close.
func NewService(host fsm.Host) *Service {
	l := &local{host: host}
	return &Service{api: api{l}, server: l}
}

// Register offers the service on a gRPC server (rpc.NewServer).
func Register(r grpc.ServiceRegistrar, s *Service) { abmpb.RegisterABMServer(r, s.server) }

// local implements the generated server interface on this node.
type local struct {
	abmpb.UnimplementedABMServer
	host fsm.Host
}

func mutate[T any, P interface {
	*T
	proto.Message
}](ctx context.Context, l *local, cmd uint8, req proto.Message) (P, error) {
	return rpc.Mutate[T, P](ctx, l.host, cmd, state.CommandVersion, req)
}

func (l *local) BackendID(ctx context.Context, req *abmpb.BackendIDRequest) (*abmpb.BackendIDReply, error) {
	reply, err := rpc.View(ctx, l.host, func(r fsm.Reader) (*abmpb.BackendIDReply, error) {
		id, err := state.BackendID(r)
		return &abmpb.BackendIDReply{Id: id}, err
	})
	if err != nil || reply.GetId() != "" {
		return reply, err
	}
	return mutate[abmpb.BackendIDReply](ctx, l, state.CmdInitBackend, &abmpb.InitBackendRequest{Id: rand.Text()})
}

func (l *local) CreatePreset(ctx context.Context, req *abmpb.PresetRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdCreatePreset, req)
}

func (l *local) UpdatePreset(ctx context.Context, req *abmpb.PresetRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdUpdatePreset, req)
}

func (l *local) DeletePreset(ctx context.Context, req *abmpb.DeletePresetRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdDeletePreset, req)
}

func (l *local) Presets(ctx context.Context, req *abmpb.ListRequest) (*abmpb.PresetsReply, error) {
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*abmpb.PresetsReply, error) {
		all, err := state.Presets(r)
		return &abmpb.PresetsReply{Presets: all}, err
	})
}

func (l *local) AddNSMHost(ctx context.Context, req *abmpb.AddNSMHostRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdAddNSMHost, req)
}

func (l *local) NSMHosts(ctx context.Context, req *abmpb.ListRequest) (*abmpb.NSMHostsReply, error) {
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*abmpb.NSMHostsReply, error) {
		all, err := state.NSMHosts(r)
		return &abmpb.NSMHostsReply{Hosts: all}, err
	})
}

func (l *local) SeenOSD(ctx context.Context, req *abmpb.SeenOSDRequest) (*abmpb.OSD, error) {
	return mutate[abmpb.OSD](ctx, l, state.CmdSeenOSD, req)
}

func (l *local) ClaimOSD(ctx context.Context, req *abmpb.ClaimOSDRequest) (*abmpb.OSD, error) {
	return mutate[abmpb.OSD](ctx, l, state.CmdClaimOSD, req)
}

func (l *local) SetOSDState(ctx context.Context, req *abmpb.SetOSDStateRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdSetOSDState, req)
}

func (l *local) ListOSDs(ctx context.Context, req *abmpb.ListRequest) (*abmpb.OSDsReply, error) {
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*abmpb.OSDsReply, error) {
		all, err := state.OSDs(r)
		return &abmpb.OSDsReply{Osds: all}, err
	})
}

func (l *local) CreateNamespace(ctx context.Context, req *abmpb.CreateNamespaceRequest) (*abmpb.Namespace, error) {
	req = proto.CloneOf(req)
	req.Key = make([]byte, 32)
	_, _ = rand.Read(req.Key) // never fails
	return mutate[abmpb.Namespace](ctx, l, state.CmdCreateNamespace, req)
}

func (l *local) SetNamespaceState(ctx context.Context, req *abmpb.SetNamespaceStateRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdSetNamespaceState, req)
}

func (l *local) RemoveNamespace(ctx context.Context, req *abmpb.RemoveNamespaceRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdRemoveNamespace, req)
}

func (l *local) GetNamespace(ctx context.Context, req *abmpb.GetNamespaceRequest) (*abmpb.Namespace, error) {
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*abmpb.Namespace, error) {
		if req.GetId() != 0 {
			return state.NamespaceByID(r, req.GetId())
		}
		return state.NamespaceByName(r, req.GetName())
	})
}

func (l *local) ListNamespaces(ctx context.Context, req *abmpb.ListRequest) (*abmpb.NamespacesReply, error) {
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*abmpb.NamespacesReply, error) {
		all, err := state.Namespaces(r)
		return &abmpb.NamespacesReply{Namespaces: all}, err
	})
}

func (l *local) CreateVolume(ctx context.Context, req *abmpb.CreateVolumeRequest) (*abmpb.Volume, error) {
	return mutate[abmpb.Volume](ctx, l, state.CmdCreateVolume, req)
}

func (l *local) GetVolume(ctx context.Context, req *abmpb.GetVolumeRequest) (*abmpb.Volume, error) {
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*abmpb.Volume, error) {
		return state.VolumeByName(r, req.GetName())
	})
}

func (l *local) ListVolumes(ctx context.Context, req *abmpb.ListRequest) (*abmpb.VolumesReply, error) {
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*abmpb.VolumesReply, error) {
		all, err := state.Volumes(r)
		return &abmpb.VolumesReply{Volumes: all}, err
	})
}

func (l *local) AcquireVolume(ctx context.Context, req *abmpb.AcquireVolumeRequest) (*abmpb.Volume, error) {
	return mutate[abmpb.Volume](ctx, l, state.CmdAcquireVolume, req)
}

func (l *local) ReleaseVolume(ctx context.Context, req *abmpb.ReleaseVolumeRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdReleaseVolume, req)
}

func (l *local) ResizeVolume(ctx context.Context, req *abmpb.ResizeVolumeRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdResizeVolume, req)
}

func (l *local) RenameVolume(ctx context.Context, req *abmpb.RenameVolumeRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdRenameVolume, req)
}

func (l *local) MarkVolumeDeleting(ctx context.Context, req *abmpb.VolumeIDRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdMarkVolumeDeleting, req)
}

func (l *local) RemoveVolume(ctx context.Context, req *abmpb.VolumeIDRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdRemoveVolume, req)
}

func (l *local) RenewOwner(ctx context.Context, req *abmpb.RenewOwnerRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdRenewOwner, req)
}

func (l *local) TakeLease(ctx context.Context, req *abmpb.TakeLeaseRequest) (*abmpb.TakeLeaseReply, error) {
	return mutate[abmpb.TakeLeaseReply](ctx, l, state.CmdTakeLease, req)
}
