package nsm

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"scoria/metadata/fsm"
	"scoria/metadata/nsm/state"
	"scoria/metadata/proto/metapb"
	"scoria/metadata/proto/nsmpb"
	"scoria/metadata/rpc"
)

// Service is the API on a node: requests become commands of the node's state machine
// (state.Machine), reads look at its state.
type Service struct {
	api
	server nsmpb.NSMServer
}

var _ API = (*Service)(nil)

// NewService returns the service over a host of state.Machine: a raftnode.Node, or a
// fsm.MemHost in tests. The host is the caller's to close.
func NewService(host fsm.Host) *Service {
	l := &local{host: host}
	return &Service{api: api{l}, server: l}
}

// Register offers the service on a gRPC server (rpc.NewServer).
func Register(r grpc.ServiceRegistrar, s *Service) { nsmpb.RegisterNSMServer(r, s.server) }

// local implements the generated server interface on this node.
type local struct {
	nsmpb.UnimplementedNSMServer
	host fsm.Host
}

func mutate[T any, P interface {
	*T
	proto.Message
}](ctx context.Context, l *local, cmd uint8, req proto.Message) (P, error) {
	return rpc.Mutate[T, P](ctx, l.host, cmd, state.CommandVersion, req)
}

func (l *local) CreateNamespace(ctx context.Context, req *nsmpb.CreateNamespaceRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdCreateNamespace, req)
}

func (l *local) DeleteNamespace(ctx context.Context, req *nsmpb.DeleteNamespaceRequest) (*nsmpb.DeleteNamespaceReply, error) {
	return mutate[nsmpb.DeleteNamespaceReply](ctx, l, state.CmdDeleteNamespace, req)
}

func (l *local) Namespaces(ctx context.Context, req *nsmpb.NamespacesRequest) (*nsmpb.NamespacesReply, error) {
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*nsmpb.NamespacesReply, error) {
		all, err := state.Namespaces(r, req.GetIds())
		return &nsmpb.NamespacesReply{Namespaces: all}, err
	})
}

func (l *local) Apply(ctx context.Context, req *nsmpb.TxnRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdApply, req)
}

func (l *local) Get(ctx context.Context, req *nsmpb.GetRequest) (*nsmpb.GetReply, error) {
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*nsmpb.GetReply, error) { return state.Get(r, req) })
}

func (l *local) List(ctx context.Context, req *nsmpb.ListRequest) (*nsmpb.ListReply, error) {
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*nsmpb.ListReply, error) { return state.List(r, req) })
}

func (l *local) Scan(ctx context.Context, req *nsmpb.ScanRequest) (*nsmpb.ScanReply, error) {
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*nsmpb.ScanReply, error) { return state.Scan(r, req) })
}

func (l *local) UpdateManifest(ctx context.Context, req *nsmpb.UpdateManifestRequest) (*metapb.Empty, error) {
	return mutate[metapb.Empty](ctx, l, state.CmdUpdateManifest, req)
}

func (l *local) DeleteQueue(ctx context.Context, req *nsmpb.DeleteQueueRequest) (*nsmpb.DeleteQueueReply, error) {
	if len(req.GetDone()) > 0 {
		done := &nsmpb.DeleteQueueRequest{Done: req.GetDone()}
		if _, err := mutate[metapb.Empty](ctx, l, state.CmdDeleteQueueDone, done); err != nil {
			return nil, err
		}
	}
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*nsmpb.DeleteQueueReply, error) { return state.DeleteQueue(r, req) })
}

func (l *local) GCEpochs(ctx context.Context, req *nsmpb.GCEpochsRequest) (*nsmpb.GCEpochsReply, error) {
	if req.GetOpen() || req.GetCloseBelow() != 0 {
		return mutate[nsmpb.GCEpochsReply](ctx, l, state.CmdGCEpochs, req)
	}
	return rpc.View(ctx, l.host, func(r fsm.Reader) (*nsmpb.GCEpochsReply, error) {
		return state.GCEpochs(r, req.GetNamespace())
	})
}
