package rpc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/fsm"
)

// Options configure a client.
type Options struct {
	// Addrs are the nodes of the cluster (host:port). One is enough to find the leader, all
	// are better.
	Addrs []string
	// RetryFor bounds how long a call is retried while no leader answers. Default 15 s.
	RetryFor time.Duration
	// AttemptTimeout bounds one attempt at one node. Default 5 s.
	AttemptTimeout time.Duration
	// Dial are further options (tests: a dialer; later: TLS). Without credentials among
	// them connections are not encrypted.
	Dial []grpc.DialOption
}

// Caller calls a replicated service: it finds the leader, and repeats what failed with
// KindUnavailable under the same request id, so that it is applied once. It is safe for
// concurrent use.
type Caller struct {
	opts   Options
	client uint64

	mu     sync.Mutex
	closed bool
	conns  map[string]*grpc.ClientConn
	target string // where the leader was last
	next   int    // next of opts.Addrs to try
	seqs   sequence
}

// maxConns bounds the connections to nodes that leaders have named.
const maxConns = 32

// errClosed is what calls after Close return.
var errClosed = metadata.Errorf(metadata.KindUnavailable, "metadata client is closed")

// NewCaller returns a Caller. It connects when it is used.
func NewCaller(opts Options) (*Caller, error) {
	if len(opts.Addrs) == 0 {
		return nil, metadata.Errorf(metadata.KindInvalid, "metadata client: no addresses")
	}
	if opts.RetryFor <= 0 {
		opts.RetryFor = 15 * time.Second
	}
	if opts.AttemptTimeout <= 0 {
		opts.AttemptTimeout = 5 * time.Second
	}
	return &Caller{
		opts: opts, client: rand.Uint64() | 1, conns: make(map[string]*grpc.ClientConn),
		seqs: sequence{next: 1, oldest: 1, moved: make(chan struct{})},
	}, nil
}

// Close ends all connections; calls under way fail. Closing again is fine.
func (c *Caller) Close() error {
	c.mu.Lock()
	conns := c.conns
	c.conns, c.closed = nil, true
	c.mu.Unlock()
	var errs []error
	for _, conn := range conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// Call calls a method ("/scoria.abm.v1.ABM/CreatePreset"). A mutation gets a request id.
func (c *Caller) Call(ctx context.Context, method string, mutation bool, req, reply proto.Message) error {
	if mutation {
		seq, err := c.take(ctx)
		if err != nil {
			return err
		}
		defer c.done(seq)
		ctx = withRequest(ctx, fsm.RequestID{Client: c.client, Seq: seq})
	}
	give := time.Now().Add(c.opts.RetryFor)
	pause := 5 * time.Millisecond
	for hops := 1; ; hops++ {
		moved, err := c.attempt(ctx, method, req, reply)
		if err == nil || metadata.KindOf(err) != metadata.KindUnavailable || errors.Is(err, errClosed) && c.isClosed() {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		if time.Now().After(give) {
			return fmt.Errorf("no leader of %v answered within %v: %w", c.opts.Addrs, c.opts.RetryFor, err)
		}
		if moved && hops%4 != 0 { // nodes that name each other must not make us spin
			continue
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-timer.C:
		}
		pause = min(2*pause, 500*time.Millisecond)
	}
}

func (c *Caller) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// attempt calls one node. moved tells that the failure named a leader that was not tried just now.
func (c *Caller) attempt(ctx context.Context, method string, req, reply proto.Message) (moved bool, err error) {
	conn, addr, err := c.pick()
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.AttemptTimeout)
	defer cancel()
	err = conn.Invoke(ctx, method, req, reply, grpc.MaxCallRecvMsgSize(maxReply))
	if err == nil {
		return false, nil
	}
	if _, bad := proto.Marshal(req); bad != nil { // it was never sent
		return false, metadata.Errorf(metadata.KindInvalid, "request: %v", bad)
	}
	leader, err := fromStatus(err)
	if metadata.KindOf(err) == metadata.KindUnavailable {
		moved = c.turn(addr, leader)
	}
	return moved, err
}

// pick returns the connection to try next.
func (c *Caller) pick() (*grpc.ClientConn, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, "", errClosed
	}
	if c.target == "" {
		c.target = c.opts.Addrs[c.next%len(c.opts.Addrs)]
	}
	if conn := c.conns[c.target]; conn != nil {
		return conn, c.target, nil
	}
	if len(c.conns) >= maxConns {
		for addr, conn := range c.conns {
			delete(c.conns, addr)
			_ = conn.Close() // its calls fail and are repeated
			break
		}
	}
	opts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithIdleTimeout(10 * time.Minute),
	}, c.opts.Dial...)
	conn, err := grpc.NewClient("passthrough:///"+c.target, opts...)
	if err != nil {
		return nil, "", metadata.Errorf(metadata.KindInvalid, "metadata service at %q: %v", c.target, err)
	}
	c.conns[c.target] = conn
	return conn, c.target, nil
}

// turn chooses another node after addr failed: the leader it named, or the next in the list.
func (c *Caller) turn(addr, leader string) (moved bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.target != addr {
		return true // somebody else chose meanwhile
	}
	if leader != "" && leader != addr {
		c.target = leader
		return true
	}
	c.next++
	c.target = ""
	return false
}

// sequence gives out request numbers within a window: a number is taken only while all
// unanswered ones are less than fsm.WindowSize behind it.
type sequence struct {
	next, oldest uint64
	done         [fsm.WindowSize]bool // by number modulo WindowSize, within [oldest, next)
	moved        chan struct{}        // closed when oldest moves
}

func (c *Caller) take(ctx context.Context) (uint64, error) {
	for {
		c.mu.Lock()
		s := &c.seqs
		if s.next-s.oldest < fsm.WindowSize {
			seq := s.next
			s.next++
			s.done[seq%fsm.WindowSize] = false
			c.mu.Unlock()
			return seq, nil
		}
		moved := s.moved
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: %w", ctx.Err(), metadata.Errorf(metadata.KindUnavailable, "%d requests are under way", fsm.WindowSize))
		case <-moved:
		}
	}
}

func (c *Caller) done(seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.seqs
	s.done[seq%fsm.WindowSize] = true
	before := s.oldest
	for s.oldest < s.next && s.done[s.oldest%fsm.WindowSize] {
		s.oldest++
	}
	if s.oldest != before {
		close(s.moved)
		s.moved = make(chan struct{})
	}
}
