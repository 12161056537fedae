package osd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"scoria/internal/frame"
)

// call is a request that waits for its reply.
type call struct {
	typ uint8
	// result decodes the reply's body and returns the memory for its tail; check looks at it when it is there.
	result    func(d *frame.Decoder) [][]byte
	done      chan struct{}
	err       error
	receiving bool // under clientConn.mu: the reply is being read into the caller's memory
}

// clientConn is one connection.
type clientConn struct {
	c    *Client
	nc   net.Conn
	r    *bufio.Reader
	send chan struct{} // held by who sends

	hasDeadline bool      // of receiving; the receiver's
	writeUntil  time.Time // deadline of sending; of who sends

	mu    sync.Mutex
	calls map[uint64]*call
	last  uint64
	dead  error
}

func (n *clientConn) alive() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dead == nil
}

// close ends the connection; the receiver fails what waits.
func (n *clientConn) close(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead == nil {
		n.dead = err
		_ = n.nc.Close() // the reason is err
	}
}

// receive is the goroutine that reads replies.
func (n *clientConn) receive() {
	err := n.readReplies()
	n.close(err)
	n.mu.Lock()
	calls := n.calls
	n.calls = nil
	err = n.dead
	n.mu.Unlock()
	for _, cl := range calls {
		cl.err = n.c.unavailable(fmt.Errorf("connection lost: %w", err))
		close(cl.done)
	}
}

func (n *clientConn) readReplies() error {
	var buf []byte
	for {
		if err := n.await(); err != nil {
			return err
		}
		var (
			typ      uint8
			id, tail uint64
			d        *frame.Decoder
			err      error
		)
		if buf, typ, id, tail, d, err = readMessage(n.r, buf, maxFrame); err != nil {
			return err
		}
		if tail > uint64(n.r.Buffered()) {
			if err := n.timed(true); err != nil {
				return err
			}
		}
		n.mu.Lock()
		cl := n.calls[id]
		if cl != nil {
			cl.receiving = true
		}
		n.mu.Unlock()
		if cl == nil { // its caller has given up
			if _, err := io.CopyN(io.Discard, n.r, int64(tail)); err != nil {
				return err
			}
			continue
		}
		if typ != msgReply+cl.typ {
			return fmt.Errorf("reply of type %d to a request of type %d: %w", typ, cl.typ, frame.ErrInvalid)
		}
		if err := n.finish(cl, d, tail); err != nil {
			return err
		}
		n.mu.Lock()
		delete(n.calls, id)
		n.mu.Unlock()
		close(cl.done)
	}
}

// await waits for a reply for as long as it takes, but once it has begun only so long for the
// rest of it. Deadlines are set only where there is something to wait for: they cost as much
// as a small message.
func (n *clientConn) await() error {
	if isWhole(n.r) {
		return nil
	}
	if err := n.timed(false); err != nil {
		return err
	}
	if _, err := n.r.Peek(1); err != nil || isWhole(n.r) {
		return err
	}
	return n.timed(true)
}

// timed sets or removes the deadline of receiving.
func (n *clientConn) timed(yes bool) error {
	until := time.Time{}
	if yes {
		until = time.Now().Add(n.c.opts.IOTimeout)
	} else if !n.hasDeadline {
		return nil
	}
	n.hasDeadline = yes
	return n.nc.SetReadDeadline(until)
}

// finish takes in a reply. An error ends the connection.
func (n *clientConn) finish(cl *call, d *frame.Decoder, tail uint64) error {
	cl.err = decodeError(d, nil)
	var bufs [][]byte
	if cl.err == nil && cl.result != nil {
		bufs = cl.result(d)
	}
	if err := d.Finish(); err != nil {
		return err
	}
	for _, b := range bufs {
		if uint64(len(b)) > tail {
			return fmt.Errorf("reply with a short tail: %w", frame.ErrInvalid)
		}
		if _, err := io.ReadFull(n.r, b); err != nil {
			return err
		}
		tail -= uint64(len(b))
	}
	if tail != 0 {
		return fmt.Errorf("reply with %d bytes too many: %w", tail, frame.ErrInvalid)
	}
	return nil
}

func (n *clientConn) do(ctx context.Context, typ uint8, build func([]byte) ([]byte, [][]byte), result func(*frame.Decoder) [][]byte) error {
	cl := &call{typ: typ, result: result, done: make(chan struct{})}
	n.mu.Lock()
	if n.dead != nil || n.calls == nil {
		err := n.dead
		n.mu.Unlock()
		return n.c.unavailable(fmt.Errorf("connection lost: %w", err))
	}
	n.last++
	id := n.last
	n.calls[id] = cl
	n.mu.Unlock()
	if err := n.write(ctx, id, typ, build); err != nil {
		n.abandon(id, cl)
		return err
	}
	select {
	case <-cl.done:
		return cl.err
	case <-ctx.Done():
		n.abandon(id, cl)
		return ctx.Err()
	}
}

// abandon gives a call up; when it returns the receiver does not touch the caller's memory.
func (n *clientConn) abandon(id uint64, cl *call) {
	n.mu.Lock()
	receiving := cl.receiving
	if !receiving && n.calls != nil {
		delete(n.calls, id)
	}
	n.mu.Unlock()
	if !receiving {
		return
	}
	t := time.NewTimer(abandonAfter)
	defer t.Stop()
	select {
	case <-cl.done:
	case <-t.C:
		n.close(errors.New("reply came too slowly"))
		<-cl.done
	}
}

func (n *clientConn) write(ctx context.Context, id uint64, typ uint8, build func([]byte) ([]byte, [][]byte)) error {
	b, tail := build(beginMessage(nil, id))
	endMessage(b, typ, tail)
	if len(b) > maxFrame {
		return fmt.Errorf("request of %d bytes: %w", len(b), ErrInvalid)
	}
	select {
	case n.send <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	free := func() { <-n.send }
	defer func() { free() }()
	now := time.Now()
	limit := now.Add(n.c.opts.IOTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) && len(tail) > 0 {
		limit = d
	}
	var err error
	// One that is set already and not much earlier will do: setting it costs as much as sending.
	if n.writeUntil.After(limit) || n.writeUntil.Sub(now) < limit.Sub(now)/2 {
		n.writeUntil = limit
		err = n.nc.SetWriteDeadline(limit)
	}
	rest := append(net.Buffers{b}, tail...)
	if err == nil {
		err = n.transmit(ctx, &rest)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && len(tail) == 0 && errors.Is(err, os.ErrDeadlineExceeded) && n.linger(limit, rest):
		free = func() {}
		return ctx.Err()
	}
	n.close(err) // half a request was sent
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return n.c.unavailable(err)
}

// linger sends the rest of a message after its caller has given up: the server takes nothing at
// the moment, and half a message would end the connection, and with it the requests of others.
// The message is in our own memory.
func (n *clientConn) linger(limit time.Time, rest net.Buffers) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.calls == nil {
		return false // the receiver has ended, and Close may not wait for more
	}
	n.c.wg.Go(func() {
		defer func() { <-n.send }()
		err := n.nc.SetWriteDeadline(limit)
		if err == nil {
			err = writeAll(n.nc, &rest)
		}
		if err != nil {
			n.close(err)
		}
	})
	return true
}

// transmit sends what it can before ctx ends; rest is what remains.
func (n *clientConn) transmit(ctx context.Context, rest *net.Buffers) error {
	if ctx.Done() == nil {
		return writeAll(n.nc, rest)
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = n.nc.SetWriteDeadline(time.Unix(1, 0)) // a connection that does not take it is dead, which the write tells
	})
	err := writeAll(n.nc, rest)
	if !stop() {
		<-ended
		n.writeUntil = time.Time{} // to be set anew
	}
	return err
}

func writeAll(nc net.Conn, rest *net.Buffers) error {
	_, err := rest.WriteTo(nc)
	return err
}
