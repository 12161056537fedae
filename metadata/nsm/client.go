package nsm

import (
	"context"

	"scoria/metadata/proto/metapb"
	"scoria/metadata/proto/nsmpb"
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
	nsmpb.UnimplementedNSMServer
	caller *rpc.Caller
}

func (r remote) CreateNamespace(ctx context.Context, req *nsmpb.CreateNamespaceRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, nsmpb.NSM_CreateNamespace_FullMethodName, true, req, reply)
}

func (r remote) DeleteNamespace(ctx context.Context, req *nsmpb.DeleteNamespaceRequest) (*nsmpb.DeleteNamespaceReply, error) {
	reply := &nsmpb.DeleteNamespaceReply{}
	return reply, r.caller.Call(ctx, nsmpb.NSM_DeleteNamespace_FullMethodName, true, req, reply)
}

func (r remote) Namespaces(ctx context.Context, req *nsmpb.NamespacesRequest) (*nsmpb.NamespacesReply, error) {
	reply := &nsmpb.NamespacesReply{}
	return reply, r.caller.Call(ctx, nsmpb.NSM_Namespaces_FullMethodName, false, req, reply)
}

func (r remote) Apply(ctx context.Context, req *nsmpb.TxnRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, nsmpb.NSM_Apply_FullMethodName, true, req, reply)
}

func (r remote) Get(ctx context.Context, req *nsmpb.GetRequest) (*nsmpb.GetReply, error) {
	reply := &nsmpb.GetReply{}
	return reply, r.caller.Call(ctx, nsmpb.NSM_Get_FullMethodName, false, req, reply)
}

func (r remote) List(ctx context.Context, req *nsmpb.ListRequest) (*nsmpb.ListReply, error) {
	reply := &nsmpb.ListReply{}
	return reply, r.caller.Call(ctx, nsmpb.NSM_List_FullMethodName, false, req, reply)
}

func (r remote) Scan(ctx context.Context, req *nsmpb.ScanRequest) (*nsmpb.ScanReply, error) {
	reply := &nsmpb.ScanReply{}
	return reply, r.caller.Call(ctx, nsmpb.NSM_Scan_FullMethodName, false, req, reply)
}

func (r remote) UpdateManifest(ctx context.Context, req *nsmpb.UpdateManifestRequest) (*metapb.Empty, error) {
	reply := &metapb.Empty{}
	return reply, r.caller.Call(ctx, nsmpb.NSM_UpdateManifest_FullMethodName, true, req, reply)
}

func (r remote) DeleteQueue(ctx context.Context, req *nsmpb.DeleteQueueRequest) (*nsmpb.DeleteQueueReply, error) {
	reply := &nsmpb.DeleteQueueReply{}
	return reply, r.caller.Call(ctx, nsmpb.NSM_DeleteQueue_FullMethodName, true, req, reply)
}

func (r remote) GCEpochs(ctx context.Context, req *nsmpb.GCEpochsRequest) (*nsmpb.GCEpochsReply, error) {
	reply := &nsmpb.GCEpochsReply{}
	return reply, r.caller.Call(ctx, nsmpb.NSM_GCEpochs_FullMethodName, true, req, reply)
}
