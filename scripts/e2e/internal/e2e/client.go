// Package e2e is what the end-to-end test programs share: a small NBD client, written
// from the protocol and not from the server's code, and the start and end of servers.
package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Numbers of the NBD protocol that the client uses.
const (
	initMagic   = 0x4e42444d41474943 // "NBDMAGIC"
	optionMagic = 0x49484156454f5054 // "IHAVEOPT"
	replyMagic  = 0x0003e889045565a9
	optGo       = 7
	repAck      = 1
	repInfo     = 3
	reqMagic    = 0x25609513
	ansMagic    = 0x67446698

	cmdRead  = 0
	cmdWrite = 1
	cmdDisc  = 2
	cmdFlush = 3
	cmdTrim  = 4
	cmdZero  = 6

	flagFUA    = 1
	flagNoHole = 2
)

// Client is one NBD connection. Its methods may be called from many goroutines; each
// waits for its own answer.
type Client struct {
	conn net.Conn
	size uint64

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*call
	err     error // of the connection

	done chan struct{} // the reader has ended
}

type call struct {
	into []byte
	done chan error
}

// Dial attaches to an export. network and address are those of package net.
func Dial(network, address, export string) (*Client, error) {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, waiting: make(map[uint64]*call), done: make(chan struct{})}
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err == nil {
		err = c.handshake(export)
		if err == nil {
			err = conn.SetDeadline(time.Time{})
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("attach %q at %s: %w", export, address, err), conn.Close())
		}
	}
	go c.read()
	return c, nil
}

func (c *Client) handshake(export string) error {
	var hello [18]byte
	if _, err := io.ReadFull(c.conn, hello[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(hello[:]) != initMagic || binary.BigEndian.Uint64(hello[8:]) != optionMagic {
		return fmt.Errorf("no NBD server: % x", hello)
	}
	b := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	b = binary.BigEndian.AppendUint64(b, optionMagic)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(b, export...)
	b = binary.BigEndian.AppendUint16(b, 0)
	if _, err := c.conn.Write(b); err != nil {
		return err
	}
	for {
		var h [20]byte
		if _, err := io.ReadFull(c.conn, h[:]); err != nil {
			return err
		}
		typ, length := binary.BigEndian.Uint32(h[12:]), binary.BigEndian.Uint32(h[16:])
		if binary.BigEndian.Uint64(h[:]) != replyMagic || length > 1<<16 {
			return fmt.Errorf("bad option reply % x", h)
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(c.conn, body); err != nil {
			return err
		}
		switch {
		case typ == repAck:
			if c.size == 0 {
				return errors.New("the server told no size")
			}
			return nil
		case typ == repInfo && len(body) >= 12 && binary.BigEndian.Uint16(body) == 0:
			c.size = binary.BigEndian.Uint64(body[2:])
		case typ&(1<<31) != 0:
			return fmt.Errorf("refused (%#x): %s", typ, body)
		}
	}
}

// Size returns the size of the export in bytes.
func (c *Client) Size() uint64 { return c.size }

// read delivers answers until the connection ends.
func (c *Client) read() {
	defer close(c.done)
	err := c.readAll()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	for _, w := range c.waiting {
		w.done <- err
	}
	c.waiting = nil
}

func (c *Client) readAll() error {
	for {
		var h [16]byte
		if _, err := io.ReadFull(c.conn, h[:]); err != nil {
			return err
		}
		if binary.BigEndian.Uint32(h[:]) != ansMagic {
			return fmt.Errorf("bad reply % x", h)
		}
		errno, cookie := binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint64(h[8:])
		c.mu.Lock()
		w := c.waiting[cookie]
		delete(c.waiting, cookie)
		c.mu.Unlock()
		if w == nil {
			return fmt.Errorf("answer to the unknown cookie %d", cookie)
		}
		if errno != 0 {
			w.done <- syscall.Errno(errno)
			continue
		}
		_, err := io.ReadFull(c.conn, w.into)
		w.done <- err
		if err != nil {
			return err
		}
	}
}

func (c *Client) do(flags, cmd uint16, off uint64, length uint32, data, into []byte) error {
	w := &call{into: into, done: make(chan error, 1)}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.err
	}
	c.next++
	c.waiting[c.next] = w
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 28+len(data)), reqMagic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, c.next)
	b = binary.BigEndian.AppendUint64(b, off)
	b = binary.BigEndian.AppendUint32(b, length)
	_, err := c.conn.Write(append(b, data...)) // under the lock: requests must not mix
	if err != nil {
		delete(c.waiting, c.next)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return <-w.done
}

// ReadAt reads len(p) bytes at off.
func (c *Client) ReadAt(p []byte, off uint64) error {
	return c.do(0, cmdRead, off, uint32(len(p)), nil, p)
}

// WriteAt writes p at off; nil means that the server acknowledged it.
func (c *Client) WriteAt(p []byte, off uint64) error {
	return c.do(0, cmdWrite, off, uint32(len(p)), p, nil)
}

// WriteFUA writes p at off; nil means that it is durable.
func (c *Client) WriteFUA(p []byte, off uint64) error {
	return c.do(flagFUA, cmdWrite, off, uint32(len(p)), p, nil)
}

// Trim tells that a range is not needed any more.
func (c *Client) Trim(off uint64, n uint32) error { return c.do(0, cmdTrim, off, n, nil, nil) }

// Zero writes zeroes; with hole the server need not keep room for the range.
func (c *Client) Zero(off uint64, n uint32, hole bool) error {
	flags := uint16(flagNoHole)
	if hole {
		flags = 0
	}
	return c.do(flags, cmdZero, off, n, nil, nil)
}

// Flush asks for everything acknowledged to be durable.
func (c *Client) Flush() error { return c.do(0, cmdFlush, 0, 0, nil, nil) }

// Abort closes the socket, so that whoever waits for an answer gets an error. Close is still to be called.
func (c *Client) Abort() { _ = c.conn.Close() } // fails only if it is closed

// Close ends the connection, with NBD_CMD_DISC if it still works, and waits for the reader.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.err == nil {
		b := binary.BigEndian.AppendUint32(nil, reqMagic)
		b = binary.BigEndian.AppendUint32(b, cmdDisc)
		_, _ = c.conn.Write(append(b, make([]byte, 20)...)) // a server that has gone needs no goodbye
	}
	c.mu.Unlock()
	err := c.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil // by Abort
	}
	return err
}
