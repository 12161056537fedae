package osd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"scoria/internal/frame"
)

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("osd: server closed")

// ServerOptions of a Server. The zero value is fine.
type ServerOptions struct {
	Logger         *slog.Logger  // nil is quiet
	MaxConnections int           // 0: 256; beyond it, one that has not said hello gives way
	MaxInFlight    int           // requests of one connection that are worked on; 0: 64
	MemoryBytes    int64         // values in memory, over all connections; 0: 256 MiB, at least one batch
	IdleTimeout    time.Duration // a connection that asks for nothing is closed; 0: 10 minutes
	IOTimeout      time.Duration // for the hello, and for the rest of a message that has begun; 0: 30 s
}

func (o *ServerOptions) ensureDefaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = 256
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 64
	}
	if o.MemoryBytes <= 0 {
		o.MemoryBytes = 256 << 20
	}
	// A batch's values are each padded to a block.
	o.MemoryBytes = max(o.MemoryBytes, MaxBatch+MaxBatchOps*align)
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = 10 * time.Minute
	}
	if o.IOTimeout <= 0 {
		o.IOTimeout = 30 * time.Second
	}
}

// Server serves a store over TCP. It does not close the store.
type Server struct {
	store API
	uuid  string
	opts  ServerOptions
	mem   *semaphore.Weighted
	slabs slabs

	ctx    context.Context // of all requests
	cancel context.CancelFunc
	mu     struct {
		sync.Mutex
		closed    bool
		listeners map[net.Listener]struct{}
		conns     map[*serverConn]struct{}
		started   uint64 // connections so far
	}
	wg sync.WaitGroup // connections
}

// NewServer returns a server of store, whose identity is uuid.
func NewServer(store API, uuid string, opts ServerOptions) *Server {
	opts.ensureDefaults()
	s := &Server{store: store, uuid: uuid, opts: opts, mem: semaphore.NewWeighted(opts.MemoryBytes)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.mu.listeners = map[net.Listener]struct{}{}
	s.mu.conns = map[*serverConn]struct{}{}
	return s
}

// Serve accepts connections until the server is closed (ErrServerClosed) or ln fails. It closes ln.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return errors.Join(ErrServerClosed, ln.Close())
	}
	s.mu.listeners[ln] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.mu.listeners, ln)
		s.mu.Unlock()
		_ = ln.Close() // it may be closed already
	}()
	var pause time.Duration
	for {
		nc, err := ln.Accept()
		if err == nil {
			pause = 0
			s.start(nc)
			continue
		}
		s.mu.Lock()
		closed := s.mu.closed
		s.mu.Unlock()
		if closed {
			return ErrServerClosed
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("osd server: accept: %w", err)
		}
		// Out of descriptors or the like: it passes.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.opts.Logger.Warn("osd server cannot accept, trying again", "addr", ln.Addr(), "err", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
		}
	}
}

// start serves a connection, for which another may have to give way: one that has not said hello,
// so that peers that say nothing lock nobody out.
func (s *Server) start(nc net.Conn) {
	c := &serverConn{s: s, nc: nc, slots: make(chan struct{}, s.opts.MaxInFlight)}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	s.mu.Lock()
	var evicted *serverConn
	if len(s.mu.conns) >= s.opts.MaxConnections {
		for o := range s.mu.conns {
			if !o.greeted && (evicted == nil || o.number < evicted.number) {
				evicted = o
			}
		}
	}
	if s.mu.closed || len(s.mu.conns) >= s.opts.MaxConnections && evicted == nil {
		s.mu.Unlock()
		c.cancel()
		_ = nc.Close() // there is nobody to tell
		return
	}
	if evicted != nil {
		delete(s.mu.conns, evicted)
		_ = evicted.nc.Close() // its reader notices
	}
	s.mu.started++
	c.number = s.mu.started
	s.mu.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		c.serve()
		s.mu.Lock()
		delete(s.mu.conns, c)
		s.mu.Unlock()
	}()
}

// Shutdown takes no new requests, finishes those it has and closes all connections. When ctx ends
// earlier it closes them at once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop(func(c *serverConn) { _ = c.nc.SetReadDeadline(time.Unix(1, 0)) })
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		s.cancel()
		return nil
	case <-ctx.Done():
		err := s.Close()
		<-done
		return errors.Join(ctx.Err(), err)
	}
}

// Close closes all connections and waits for their requests, which it cancels. Idempotent.
func (s *Server) Close() error {
	s.cancel()
	s.stop(func(c *serverConn) { _ = c.nc.Close() })
	s.wg.Wait()
	return nil
}

func (s *Server) stop(each func(*serverConn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.closed = true
	for ln := range s.mu.listeners {
		_ = ln.Close() // Serve notices
	}
	for c := range s.mu.conns {
		c.draining.Do(func() { c.drain = true })
		each(c)
	}
}

// serverConn is one connection.
type serverConn struct {
	s        *Server
	nc       net.Conn
	ctx      context.Context
	cancel   context.CancelFunc
	slots    chan struct{}
	wg       sync.WaitGroup // requests
	draining sync.Once
	number   uint64 // in the order of coming; under Server.mu like the next two
	greeted  bool
	drain    bool

	wmu        sync.Mutex // one reply at a time
	writeUntil time.Time  // write deadline; under wmu
}

func (c *serverConn) serve() {
	err := c.read()
	if err != nil && !errors.Is(err, io.EOF) {
		log := c.s.opts.Logger.Warn
		c.s.mu.Lock()
		if !c.greeted && !errors.Is(err, frame.ErrVersion) && !errors.Is(err, ErrWrongOSD) {
			log = c.s.opts.Logger.Debug // anybody can say nonsense; that must not fill the log
		}
		c.s.mu.Unlock()
		log("osd connection", "from", c.nc.RemoteAddr(), "err", err)
	}
	var ne net.Error
	if !errors.As(err, &ne) {
		c.cancel() // nobody waits for answers; after a time-out (Shutdown) somebody does
	}
	c.wg.Wait()
	c.cancel()
	_ = c.nc.Close() // all was answered, or cannot be
}

// deadline sets the time for the next read, unless the server is shutting down.
func (c *serverConn) deadline(d time.Duration) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.drain {
		return io.EOF
	}
	return c.nc.SetReadDeadline(time.Now().Add(d))
}

// read takes requests until the peer ends, or does what it may not.
func (c *serverConn) read() error {
	r := bufio.NewReaderSize(c.nc, 64<<10)
	var buf []byte
	var small round
	defer c.run(&small)
	greeted := false
	for {
		if small.isFull() || !isWhole(r) {
			c.run(&small)
			wait := c.s.opts.IdleTimeout
			if !greeted {
				wait = min(wait, c.s.opts.IOTimeout)
			}
			if err := c.await(r, wait); err != nil {
				return err
			}
		}
		limit := uint32(maxFrame)
		if !greeted {
			limit = 1024 // who has not said who he looks for gets no memory
		}
		var (
			typ      uint8
			id, tail uint64
			d        *frame.Decoder
			err      error
		)
		if buf, typ, id, tail, d, err = readMessage(r, buf, limit); err != nil {
			if !greeted && errors.Is(err, frame.ErrVersion) {
				c.reply(0, msgHello, err, nil) // the peer learns our version, from the frame if not from the text
			}
			return err
		}
		if !greeted {
			if typ != msgHello || tail != 0 {
				return fmt.Errorf("message of type %d before the hello: %w", typ, frame.ErrInvalid)
			}
			if err := c.hello(id, d); err != nil {
				return err
			}
			greeted = true
			c.s.mu.Lock()
			c.greeted = true
			c.s.mu.Unlock()
			continue
		}
		if typ == msgRead && tail == 0 {
			reads, sizes := decodeReads(d)
			if err := d.Finish(); err != nil {
				return err
			}
			if isSmall(sizes) {
				small.add(id, reads, sizes)
				continue
			}
			large := new(round)
			large.add(id, reads, sizes)
			c.run(&small) // before waiting for anything
			if err := c.start(func() { c.run(large) }); err != nil {
				return err
			}
			continue
		}
		c.run(&small)
		if tail > 0 {
			if err := c.deadline(c.s.opts.IOTimeout); err != nil {
				return err
			}
		}
		run, err := c.request(r, typ, tail, d)
		if err != nil {
			return err
		}
		if err := c.start(func() { run(id) }); err != nil {
			return err
		}
		if cap(buf) > 256<<10 {
			buf = nil
		}
	}
}

// await waits for the next message, and allows its time for the rest of it.
func (c *serverConn) await(r *bufio.Reader, wait time.Duration) error {
	if isWhole(r) {
		return nil
	}
	if err := c.deadline(wait); err != nil {
		return err
	}
	if _, err := r.Peek(1); err != nil || isWhole(r) {
		return err
	}
	return c.deadline(c.s.opts.IOTimeout)
}

// start runs f in a goroutine, when fewer than MaxInFlight do.
func (c *serverConn) start(f func()) error {
	select {
	case c.slots <- struct{}{}:
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	c.wg.Go(func() {
		f()
		<-c.slots
	})
	return nil
}

func (c *serverConn) hello(id uint64, d *frame.Decoder) error {
	h := decodeHello(d)
	if err := d.Finish(); err != nil {
		return err
	}
	var err error
	if h.UUID != "" && h.UUID != c.s.uuid {
		err = fmt.Errorf("this is osd %s, not %s: %w", c.s.uuid, h.UUID, ErrWrongOSD)
	}
	c.reply(id, msgHello, err, func(b []byte) ([]byte, [][]byte) { return appendHello(b, hello{UUID: c.s.uuid}), nil })
	return err
}

// reply sends the answer to a request. When that fails the connection is of no use any more.
func (c *serverConn) reply(id uint64, typ uint8, err error, body func([]byte) ([]byte, [][]byte)) {
	b := appendError(beginMessage(nil, id), err)
	var tail [][]byte
	if err == nil && body != nil {
		b, tail = body(b)
	}
	endMessage(b, msgReply+typ, tail)
	c.send(append(net.Buffers{b}, tail...))
}

// request decodes a request and reads its tail. An error ends the connection; what is wrong with the
// request itself is answered by run.
func (c *serverConn) request(r io.Reader, typ uint8, tail uint64, d *frame.Decoder) (run func(id uint64), err error) {
	if tail != 0 && typ != msgApply {
		return nil, fmt.Errorf("message of type %d with a tail: %w", typ, frame.ErrInvalid)
	}
	st := c.s.store
	switch typ {
	case msgApply:
		return c.apply(r, tail, d)
	case msgList:
		from, to, limit := decodeBound(d), decodeBound(d), int(d.U32())
		return func(id uint64) {
			items, err := st.List(c.ctx, from, to, limit)
			c.reply(id, typ, err, func(b []byte) ([]byte, [][]byte) { return appendItems(b, items), nil })
		}, d.Finish()
	case msgDeleteRange:
		from, to := decodeBound(d), decodeBound(d)
		return func(id uint64) { c.reply(id, typ, st.DeleteRange(c.ctx, from, to), nil) }, d.Finish()
	case msgVerify:
		from, to := decodeBound(d), decodeBound(d)
		return func(id uint64) {
			bad, checked, next, err := st.Verify(c.ctx, from, to)
			c.reply(id, typ, err, func(b []byte) ([]byte, [][]byte) { return appendVerify(b, bad, checked, next), nil })
		}, d.Finish()
	case msgInfo:
		return func(id uint64) {
			in, err := st.Info(c.ctx)
			c.reply(id, typ, err, func(b []byte) ([]byte, [][]byte) { return appendInfo(b, in), nil })
		}, d.Finish()
	case msgClaim:
		backend, osd := d.String(MaxBackend), d.U32()
		return func(id uint64) { c.reply(id, typ, st.Claim(c.ctx, backend, osd), nil) }, d.Finish()
	}
	return nil, fmt.Errorf("message of type %d: %w", typ, frame.ErrInvalid)
}

func (c *serverConn) apply(r io.Reader, tail uint64, d *frame.Decoder) (func(id uint64), error) {
	b, assertSums, sizes := decodeBatch(d)
	if err := d.Finish(); err != nil {
		return nil, err
	}
	var total uint64
	for _, n := range sizes {
		total += uint64(n)
	}
	if total != tail {
		return nil, fmt.Errorf("batch with %d bytes of values and a tail of %d: %w", total, tail, frame.ErrInvalid)
	}
	need := slabSize(sizes)
	if err := c.s.mem.Acquire(c.ctx, need); err != nil {
		return nil, err
	}
	slab := c.s.slabs.get(need)
	free := func() {
		c.s.slabs.put(slab)
		c.s.mem.Release(need)
	}
	for _, v := range place(b, sizes, slab) {
		if _, err := io.ReadFull(r, v); err != nil {
			free()
			return nil, fmt.Errorf("values of a batch: %w", err)
		}
	}
	return func(id uint64) {
		defer free()
		c.reply(id, msgApply, c.applyChecked(b, assertSums), nil)
	}, nil
}

// applyChecked applies a batch if it came through the network unharmed.
func (c *serverConn) applyChecked(b *Batch, assertSums [][]uint32) error {
	for i := range b.Asserts {
		if err := checkSums(fmt.Sprintf("assert of %x", b.Asserts[i].Key), b.Asserts[i].Value, assertSums[i]); err != nil {
			return err
		}
	}
	for i := range b.Puts {
		if err := checkSums(fmt.Sprintf("put of %x", b.Puts[i].Key), b.Puts[i].Value, b.Puts[i].Sums); err != nil {
			return err
		}
	}
	return c.s.store.Apply(c.ctx, b)
}
