package osd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"scoria/internal/frame"
)

// ClientOptions of a Client. The zero value is fine.
type ClientOptions struct {
	// Dial opens a connection; nil is TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Connections is how many are used; 0: 2. They are opened when they are needed.
	Connections int
	// DialTimeout bounds connecting and greeting; 0: 5 s.
	DialTimeout time.Duration
	// IOTimeout bounds the sending of a request and the receiving of a reply that has begun; 0: 30 s.
	IOTimeout time.Duration
}

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
	// abandonAfter is how long a call whose context has ended waits for a reply that is just being received into its memory.
	// A server that stops in the middle of a reply would be felt for so long.
	abandonAfter = 300 * time.Millisecond
)

// Client reaches a Server. It is an API; what cannot be sent or is not answered is ErrUnavailable.
type Client struct {
	addr, uuid string
	opts       ClientOptions
	slots      []*slot
	next       atomic.Uint32
	ctx        context.Context // of the client's life
	cancel     context.CancelFunc
	wg         sync.WaitGroup // receivers
}

var _ API = (*Client)(nil)

// slot is a place for a connection.
type slot struct {
	lock    chan struct{} // held while connecting
	mu      sync.Mutex
	conn    *clientConn // nil: none
	backoff time.Duration
	retryAt time.Time
	lastErr error
}

// Dial returns a client of the server at addr that talks to the OSD with the identity uuid only ("": any).
// It does not connect yet: an unreachable server shows in the calls.
func Dial(addr, uuid string, opts ClientOptions) *Client {
	if opts.Dial == nil {
		opts.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	if opts.Connections <= 0 {
		opts.Connections = 2
	}
	if opts.DialTimeout <= 0 {
		opts.DialTimeout = 5 * time.Second
	}
	if opts.IOTimeout <= 0 {
		opts.IOTimeout = 30 * time.Second
	}
	c := &Client{addr: addr, uuid: uuid, opts: opts}
	for range opts.Connections {
		c.slots = append(c.slots, &slot{lock: make(chan struct{}, 1)})
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close closes the connections and waits; calls that run fail with ErrUnavailable. Idempotent.
func (c *Client) Close() error {
	c.cancel()
	for _, s := range c.slots {
		s.lock <- struct{}{} // nobody is connecting any more
		s.mu.Lock()
		if s.conn != nil {
			s.conn.close(errors.New("client closed"))
		}
		s.mu.Unlock()
		<-s.lock
	}
	c.wg.Wait()
	return nil
}

func (c *Client) unavailable(err error) error {
	return fmt.Errorf("osd at %s: %w: %w", c.addr, err, ErrUnavailable)
}

// connect returns a connection of the slot, which it opens if there is none.
func (c *Client) connect(ctx context.Context, s *slot) (*clientConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	live := func() *clientConn {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.conn != nil && s.conn.alive() {
			return s.conn
		}
		return nil
	}
	if c.ctx.Err() != nil {
		return nil, c.unavailable(errors.New("client closed"))
	}
	if conn := live(); conn != nil {
		return conn, nil
	}
	select {
	case s.lock <- struct{}{}:
		defer func() { <-s.lock }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c.ctx.Err() != nil {
		return nil, c.unavailable(errors.New("client closed"))
	}
	if conn := live(); conn != nil {
		return conn, nil
	}
	s.mu.Lock()
	wait, last := time.Until(s.retryAt), s.lastErr
	s.mu.Unlock()
	if wait > 0 {
		return nil, last
	}
	conn, err := c.dial(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil { // not the caller's impatience
			s.backoff = min(max(2*s.backoff, minBackoff), maxBackoff)
			s.retryAt, s.lastErr = time.Now().Add(s.backoff), err
		}
		return nil, err
	}
	s.conn, s.backoff, s.lastErr = conn, 0, nil
	return conn, nil
}

func (c *Client) dial(ctx context.Context) (*clientConn, error) {
	dctx, cancel := context.WithTimeout(ctx, c.opts.DialTimeout)
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()
	nc, err := c.opts.Dial(dctx, c.addr)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.unavailable(err)
	}
	unwatch := context.AfterFunc(dctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	r := bufio.NewReaderSize(nc, 64<<10)
	err = c.greet(nc, r)
	if !unwatch() && err == nil {
		err = dctx.Err()
	}
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = nc.Close() // it was of no use
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, ErrWrongOSD):
			return nil, fmt.Errorf("osd at %s: %w", c.addr, err)
		}
		return nil, c.unavailable(err)
	}
	conn := &clientConn{c: c, nc: nc, r: r, send: make(chan struct{}, 1), calls: map[uint64]*call{}}
	c.wg.Go(conn.receive)
	return conn, nil
}

func (c *Client) greet(nc net.Conn, r io.Reader) error {
	b := appendHello(beginMessage(nil, 0), hello{UUID: c.uuid})
	endMessage(b, msgHello, nil)
	if _, err := nc.Write(b); err != nil {
		return err
	}
	_, typ, _, tail, d, err := readMessage(r, nil, maxText+1024)
	if err != nil {
		return err
	}
	if typ != msgReply+msgHello || tail != 0 {
		return fmt.Errorf("greeted with a message of type %d: %w", typ, frame.ErrInvalid)
	}
	if err := decodeError(d, nil); err != nil {
		return err
	}
	h := decodeHello(d)
	if err := d.Finish(); err != nil {
		return err
	}
	if c.uuid != "" && h.UUID != c.uuid {
		return fmt.Errorf("it is %s, not %s: %w", h.UUID, c.uuid, ErrWrongOSD)
	}
	return nil
}

// slot chooses a connection. Small reads have the first one for themselves, if there are several:
// the more of them come together the less each costs, and they do not wait behind large values.
func (c *Client) slot(small bool, try int) *slot {
	n := len(c.slots)
	switch {
	case n == 1:
		return c.slots[0]
	case small:
		return c.slots[try%n]
	}
	return c.slots[1+int(c.next.Add(1))%(n-1)]
}

// do sends a request and waits for its reply. repeat allows a second try when the connection
// turns out to be dead, which a server's restart leaves.
func (c *Client) do(ctx context.Context, typ uint8, repeat bool, build func([]byte) ([]byte, [][]byte), result func(*frame.Decoder) [][]byte) error {
	return c.doBy(ctx, false, typ, repeat, build, result)
}

func (c *Client) doBy(ctx context.Context, small bool, typ uint8, repeat bool, build func([]byte) ([]byte, [][]byte), result func(*frame.Decoder) [][]byte) error {
	for try := 0; ; try++ {
		conn, err := c.connect(ctx, c.slot(small, try))
		if err == nil {
			err = conn.do(ctx, typ, build, result)
			if repeat && try == 0 && errors.Is(err, ErrUnavailable) && !conn.alive() && ctx.Err() == nil {
				continue
			}
		}
		return err
	}
}

// Apply implements API. It is never repeated: after ErrUnavailable the batch may have been done.
func (c *Client) Apply(ctx context.Context, b *Batch) error {
	if err := b.Validate(); err != nil {
		return err
	}
	return c.do(ctx, msgApply, false, func(dst []byte) ([]byte, [][]byte) { return appendBatch(dst, b) }, nil)
}

// Read implements API. The data is checked again here against the sums that came with it.
func (c *Client) Read(ctx context.Context, reads []Read) error {
	if err := ValidateReads(reads); err != nil {
		return err
	}
	// A read whose own form is wrong is answered here.
	bytes := 0
	for i := range reads {
		bytes += len(reads[i].Buf)
		reads[i].Sums, reads[i].Size, reads[i].Err = reads[i].Sums[:0], 0, nil
		if len(reads[i].Key) > MaxKey {
			return c.readValid(ctx, reads)
		}
	}
	err := c.doBy(ctx, bytes <= roundBytes, msgRead, true, func(dst []byte) ([]byte, [][]byte) { return appendReads(dst, reads), nil },
		func(d *frame.Decoder) [][]byte { return decodeReadResults(d, reads) })
	if err != nil {
		return err
	}
	for i := range reads {
		if r := &reads[i]; r.Err == nil {
			r.Err = checkSums(fmt.Sprintf("read of %x at %s", r.Key, c.addr), r.Buf, r.Sums)
		}
	}
	return nil
}

// readValid reads those that can be sent.
func (c *Client) readValid(ctx context.Context, reads []Read) error {
	var good []Read
	var at []int
	for i := range reads {
		if reads[i].Err = reads[i].Validate(); reads[i].Err == nil {
			good, at = append(good, reads[i]), append(at, i)
		}
	}
	if err := c.Read(ctx, good); err != nil {
		return err
	}
	for i, r := range good {
		reads[at[i]] = r
	}
	return nil
}

// List implements API.
func (c *Client) List(ctx context.Context, from, to []byte, limit int) (items []Item, err error) {
	if err := errors.Join(ValidateRange(from, to), ValidateLimit(limit)); err != nil {
		return nil, err
	}
	err = c.do(ctx, msgList, true, func(dst []byte) ([]byte, [][]byte) {
		return binary.LittleEndian.AppendUint32(appendBound(appendBound(dst, from), to), uint32(limit)), nil
	}, func(d *frame.Decoder) [][]byte {
		items = decodeItems(d)
		return nil
	})
	return items, err
}

// DeleteRange implements API.
func (c *Client) DeleteRange(ctx context.Context, from, to []byte) error {
	if err := ValidateRange(from, to); err != nil {
		return err
	}
	return c.do(ctx, msgDeleteRange, false, func(dst []byte) ([]byte, [][]byte) {
		return appendBound(appendBound(dst, from), to), nil
	}, nil)
}

// Verify implements API.
func (c *Client) Verify(ctx context.Context, from, to []byte) (bad []Bad, checked uint64, next []byte, err error) {
	if err := ValidateRange(from, to); err != nil {
		return nil, 0, nil, err
	}
	err = c.do(ctx, msgVerify, true, func(dst []byte) ([]byte, [][]byte) {
		return appendBound(appendBound(dst, from), to), nil
	}, func(d *frame.Decoder) [][]byte {
		bad, checked, next = decodeVerify(d)
		return nil
	})
	return bad, checked, next, err
}

// Info implements API.
func (c *Client) Info(ctx context.Context) (in Info, err error) {
	err = c.do(ctx, msgInfo, true, func(dst []byte) ([]byte, [][]byte) { return dst, nil }, func(d *frame.Decoder) [][]byte {
		in = decodeInfo(d)
		return nil
	})
	return in, err
}

// Claim implements API.
func (c *Client) Claim(ctx context.Context, backend string, id uint32) error {
	if err := ValidateClaim(backend, id); err != nil {
		return err
	}
	return c.do(ctx, msgClaim, false, func(dst []byte) ([]byte, [][]byte) {
		return binary.LittleEndian.AppendUint32(frame.AppendString(dst, backend), id), nil
	}, nil)
}
