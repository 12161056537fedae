package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"scoria/nbd/internal/wire"
)

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("nbd: server closed")

var errEvicted = errors.New("too many connections in the handshake")

// Server serves exports to clients. All methods may be called concurrently.
type Server struct {
	opts     Options
	pool     pool
	jobs     sync.Pool
	budget   budget
	counters counters
	draining atomic.Bool
	wg       sync.WaitGroup // every goroutine of the server
	ids      atomic.Uint64
	latest   atomic.Pointer[conn] // that received something last
	polls    bool                 // connections may poll: there is a processor left for others

	mu        sync.Mutex // guards what follows
	conns     map[*peer]struct{}
	half      map[*peer]struct{} // those in the handshake
	listeners map[net.Listener]struct{}
	closed    bool
	done      chan struct{} // closed with the server
	empty     sync.Cond     // conns became empty
}

// peer is a connection in any phase.
type peer struct {
	id     uint64
	nc     net.Conn
	cancel context.CancelCauseFunc
	conn   atomic.Pointer[conn] // set in transmission
}

// stop ends the connection from outside.
func (p *peer) stop(err error) {
	if c := p.conn.Load(); c != nil {
		c.abort(err)
		return
	}
	p.cancel(err)
	p.nc.Close()
}

// NewServer returns a server that is ready to Serve, or says what is wrong with the options.
// It has a goroutine until it is closed.
func NewServer(opts Options) (*Server, error) {
	opts.ensureDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	s := &Server{
		opts: opts, budget: budget{free: opts.MaxBytes}, polls: runtime.GOMAXPROCS(0) > 1,
		conns: map[*peer]struct{}{}, half: map[*peer]struct{}{}, listeners: map[net.Listener]struct{}{}, done: make(chan struct{}),
	}
	s.empty.L = &s.mu
	s.wg.Go(s.watch)
	return s, nil
}

// Serve accepts connections from l until ctx ends, the server is shut down or closed (then it
// returns ErrServerClosed), or accepting fails for good. It closes l. When ctx ends, the
// connections accepted here are cut off without ceremony.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.closed || s.draining.Load() {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			s.start(ctx, nc)
			continue
		}
		if s.draining.Load() || s.isClosed() {
			return ErrServerClosed
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("nbd: accept on %v: %w", l.Addr(), err)
		}
		// Out of descriptors or the like: it passes.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.opts.Logger.Warn("nbd: accept failed, trying again", "addr", l.Addr(), "err", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		case <-s.done:
		}
	}
}

// ServeConn serves one connection, which it closes, and returns when it has ended. The error
// says why, nil when the client left or the server ended it in good order.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	p, ctx, err := s.admit(ctx, nc)
	if err != nil {
		nc.Close()
		return err
	}
	defer s.wg.Done()
	return s.serve(ctx, p)
}

// start is ServeConn in a goroutine.
func (s *Server) start(ctx context.Context, nc net.Conn) {
	p, ctx, err := s.admit(ctx, nc)
	if err != nil {
		nc.Close()
		s.opts.Logger.Debug("nbd: connection refused", "from", nc.RemoteAddr(), "err", err)
		return
	}
	go func() {
		defer s.wg.Done()
		if err := s.serve(ctx, p); err != nil {
			log := s.opts.Logger.Info
			if p.conn.Load() == nil {
				log = s.opts.Logger.Debug // anybody can fail a handshake; that must not fill the log
			}
			log("nbd: connection ended", "from", nc.RemoteAddr(), "client", p.id, "err", err)
		}
	}()
}

// admit registers a connection and adds its goroutine to wg, making room among those in the handshake if need be.
func (s *Server) admit(ctx context.Context, nc net.Conn) (*peer, context.Context, error) {
	p := &peer{id: s.ids.Add(1), nc: nc}
	ctx, p.cancel = context.WithCancelCause(ctx)
	var evicted *peer
	s.mu.Lock()
	switch {
	case s.closed || s.draining.Load():
		s.mu.Unlock()
		p.cancel(ErrServerClosed)
		return nil, nil, ErrServerClosed
	case len(s.conns) >= s.opts.MaxConns:
		s.mu.Unlock()
		s.counters.refused.Add(1)
		err := fmt.Errorf("nbd: %d connections are open, which is the limit", s.opts.MaxConns)
		p.cancel(err)
		return nil, nil, err
	}
	if len(s.half) >= s.opts.MaxHandshakes {
		for q := range s.half {
			if evicted == nil || q.id < evicted.id {
				evicted = q
			}
		}
		delete(s.half, evicted)
	}
	s.conns[p], s.half[p] = struct{}{}, struct{}{}
	s.wg.Add(1) // under mu, so that Close cannot have stopped waiting
	s.counters.handshakes.Store(int64(len(s.half)))
	s.mu.Unlock()
	s.counters.accepted.Add(1)
	if evicted != nil {
		s.counters.refused.Add(1)
		evicted.stop(errEvicted)
	}
	return p, ctx, nil
}

// serve runs one connection through both phases.
func (s *Server) serve(ctx context.Context, p *peer) (err error) {
	defer func() {
		p.cancel(err)
		p.nc.Close()
		s.mu.Lock()
		delete(s.conns, p)
		delete(s.half, p)
		s.counters.handshakes.Store(int64(len(s.half)))
		if len(s.conns) == 0 {
			s.empty.Broadcast()
		}
		s.mu.Unlock()
		err = s.account(err)
	}()
	defer context.AfterFunc(ctx, func() { p.stop(context.Cause(ctx)) })()
	if t, ok := p.nc.(*net.TCPConn); ok {
		_ = t.SetNoDelay(true) // Go's default; said because latency depends on it
	}
	client := Client{ID: p.id, RemoteAddr: p.nc.RemoteAddr(), LocalAddr: p.nc.LocalAddr()}
	named := context.WithValue(ctx, clientKey{}, client) // ctx itself is in use by AfterFunc
	h := &handshake{srv: s, nc: p.nc, ctx: named}
	neg, err := h.run()
	if err != nil {
		return err
	}
	defer neg.release()
	c := &conn{srv: s, nc: p.nc, client: client, neg: neg}
	c.ctx, c.cancel = named, p.cancel
	c.rcv.init(p.nc, &s.pool)
	c.out.init(p.nc, &s.pool, c.uncharge, c.abort)
	c.quot.init(s.opts.MaxRequests, s.opts.MaxConnBytes)
	c.start()
	if err := p.nc.SetDeadline(time.Time{}); err != nil {
		return errLeft
	}
	p.conn.Store(c)
	s.mu.Lock()
	_, waiting := s.half[p]
	delete(s.half, p)
	s.counters.handshakes.Store(int64(len(s.half)))
	s.mu.Unlock()
	if !waiting {
		return errEvicted
	}
	if s.draining.Load() { // Shutdown may have set its deadline before ours was cleared
		s.kick(p)
	}
	s.opts.Logger.Debug("nbd: export in use", "export", neg.export.Name, "client", p.id, "from", client.RemoteAddr)
	return c.transmit()
}

// account counts how a connection ended and returns what is worth telling.
func (s *Server) account(err error) error {
	switch {
	case errors.Is(err, errTimeout):
		s.counters.timedOut.Add(1)
	case errors.Is(err, errHandshake):
		s.counters.handshakeErrors.Add(1)
	case errors.Is(err, wire.ErrMagic), errors.Is(err, errOversize):
		s.counters.protocolErrors.Add(1)
	case errors.Is(err, errDisc), errors.Is(err, errLeft), errors.Is(err, errAborted), errors.Is(err, errDrained), errors.Is(err, ErrServerClosed):
		return nil
	}
	return err
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// kick makes a connection notice that the server drains.
func (s *Server) kick(p *peer) {
	at := time.Now()
	if p.conn.Load() == nil {
		at = at.Add(drainLinger) // still time to read an answer to the last option
	}
	_ = p.nc.SetReadDeadline(at) // fails only on a closed connection
}

// Shutdown ends the server in good order: it stops accepting, answers options with
// ERR_SHUTDOWN and new requests with ESHUTDOWN, lets requests in flight finish, flushes
// devices that were written to, and closes the connections. When ctx ends first, it does
// what Close does and returns the cause. It returns when no goroutine of the server is left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	s.mu.Lock()
	for l := range s.listeners {
		l.Close()
	}
	for p := range s.conns {
		s.kick(p)
	}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stopLocked(context.Cause(ctx))
	})
	s.mu.Lock()
	for len(s.conns) > 0 {
		s.empty.Wait()
	}
	s.mu.Unlock()
	cut := !stop()
	s.Close()
	if cut {
		return fmt.Errorf("nbd: shutdown was cut short: %w", context.Cause(ctx))
	}
	return nil
}

// Close cuts off every connection and returns when no goroutine of the server is left. It
// may be called again.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	for l := range s.listeners {
		l.Close()
	}
	s.stopLocked(ErrServerClosed)
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

func (s *Server) stopLocked(err error) {
	for p := range s.conns {
		p.stop(err)
	}
}
