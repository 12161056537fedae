// Package rpc is what the metadata services and their clients share: making commands out
// of requests, errors that keep their kind over gRPC, request ids, the server's settings,
// and Caller, which finds the leader and retries.
//
// A mutation carries its request id in the header "scoria-request-bin" (client and number,
// both 64 bits big-endian). A failed call carries a scoria.meta.v1.Problem in its status.
package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	grpcmd "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/proto/metapb"
)

const (
	requestHeader  = "scoria-request-bin"
	maxRecvServer  = fsm.MaxCommand + 64<<10
	maxReply       = 128 << 20
	maxStreams     = 1024 // calls at a time per connection
	connectionIdle = 5 * time.Minute
)

type message[T any] interface {
	*T
	proto.Message
}

// Mutate logs req as a command of the host's machine and decodes its reply.
func Mutate[T any, P message[T]](ctx context.Context, h fsm.Host, typ, version uint8, req proto.Message) (P, error) {
	body, err := proto.Marshal(req)
	if err != nil {
		return nil, metadata.Errorf(metadata.KindInvalid, "request: %v", err)
	}
	envelope, err := fsm.Seal(fsm.Command{
		Type: typ, Version: version, Request: requestOf(ctx), Now: time.Now().UnixNano(), Body: body,
	})
	if err != nil {
		return nil, err
	}
	b, err := h.Apply(ctx, envelope)
	if err != nil {
		return nil, err
	}
	reply := P(new(T))
	if err := proto.Unmarshal(b, reply); err != nil {
		return nil, metadata.Errorf(metadata.KindCorrupt, "reply: %v", err)
	}
	return reply, nil
}

// View reads from the host's state.
func View[R any](ctx context.Context, h fsm.Host, fn func(fsm.Reader) (R, error)) (reply R, err error) {
	err = h.Read(ctx, func(r fsm.Reader) error {
		reply, err = fn(r)
		return err
	})
	return reply, err
}

// requestOf reads the request id that a Caller sent; zero for local calls.
func requestOf(ctx context.Context) (id fsm.RequestID) {
	md, ok := grpcmd.FromIncomingContext(ctx)
	if !ok {
		return id
	}
	if v := md.Get(requestHeader); len(v) == 1 && len(v[0]) == 16 {
		id.Client = binary.BigEndian.Uint64([]byte(v[0]))
		id.Seq = binary.BigEndian.Uint64([]byte(v[0][8:]))
	}
	if id.Client == 0 || id.Seq == 0 {
		return fsm.RequestID{}
	}
	return id
}

func withRequest(ctx context.Context, id fsm.RequestID) context.Context {
	b := binary.BigEndian.AppendUint64(nil, id.Client)
	b = binary.BigEndian.AppendUint64(b, id.Seq)
	return grpcmd.AppendToOutgoingContext(ctx, requestHeader, string(b))
}

// kindCodes are the gRPC codes of the kinds, for clients that are not ours.
var kindCodes = map[metadata.Kind]codes.Code{
	metadata.KindInvalid:      codes.InvalidArgument,
	metadata.KindNotFound:     codes.NotFound,
	metadata.KindExists:       codes.AlreadyExists,
	metadata.KindAssertFailed: codes.FailedPrecondition,
	metadata.KindFenced:       codes.Aborted,
	metadata.KindStaleGCEpoch: codes.FailedPrecondition,
	metadata.KindState:        codes.FailedPrecondition,
	metadata.KindUnavailable:  codes.Unavailable,
	metadata.KindLimit:        codes.ResourceExhausted,
	metadata.KindOwned:        codes.FailedPrecondition,
	metadata.KindCorrupt:      codes.DataLoss,
	metadata.KindInternal:     codes.Internal,
}

// toStatus makes a status with a Problem out of an error.
func toStatus(err error, leader string) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	kind := metadata.KindOf(err)
	st, detailErr := status.New(kindCodes[kind], err.Error()).WithDetails(
		&metapb.Problem{Kind: uint32(kind), Text: err.Error(), Leader: leader})
	if detailErr != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return st.Err()
}

// fromStatus reads a status; leader is where to go instead, when the node knew.
func fromStatus(err error) (leader string, out error) {
	st, ok := status.FromError(err)
	if !ok {
		return "", err
	}
	for _, d := range st.Details() {
		if p, ok := d.(*metapb.Problem); ok && p.GetKind() != 0 && p.GetKind() <= math.MaxUint16 {
			return p.GetLeader(), &metadata.Error{Kind: metadata.Kind(p.GetKind()), Text: p.GetText()}
		}
	}
	switch st.Code() {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
		return "", metadata.Errorf(metadata.KindUnavailable, "metadata service: %s", st.Message())
	case codes.ResourceExhausted:
		return "", metadata.Errorf(metadata.KindLimit, "metadata service: %s", st.Message())
	case codes.Unimplemented:
		return "", metadata.Errorf(metadata.KindInvalid, "metadata service: %s: upgrade the server", st.Message())
	}
	return "", metadata.Errorf(metadata.KindInternal, "metadata service: %s: %s", st.Code(), st.Message())
}

// NewServer returns a gRPC server with our limits, error kinds, health and reflection.
// Services are registered on it with abm.Register and nsm.Register before it serves.
// leader tells where the leader is (fsm.Host.LeaderAddr), for the errors of a follower.
func NewServer(leader func() string, opts ...grpc.ServerOption) *grpc.Server {
	unary := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		reply, err := handler(ctx, req)
		if err == nil {
			return reply, nil
		}
		if _, ours := status.FromError(err); ours {
			return nil, err
		}
		hint := ""
		if metadata.KindOf(err) == metadata.KindUnavailable {
			hint = leader()
		}
		return nil, toStatus(err, hint)
	}
	all := append([]grpc.ServerOption{
		grpc.ChainUnaryInterceptor(unary),
		grpc.MaxRecvMsgSize(maxRecvServer),
		grpc.MaxSendMsgSize(maxReply),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: connectionIdle, Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}, opts...)
	s := grpc.NewServer(all...)
	hs := health.NewServer()
	hs.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(s, hs)
	reflection.Register(s)
	return s
}
