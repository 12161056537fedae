package nbdtest

import (
	"context"
	"sync"

	"scoria/nbd/internal/wire"
)

// Remote is an export of a server as a device, over as many connections as calls are made at
// once, so that TestDevice can judge everything between a socket and a disk. Contexts are not
// passed on.
type Remote struct {
	dial func() (*Client, error)
	size uint64

	mu   sync.Mutex // guards what follows
	free []*Client
}

// NewRemote returns the device behind connections made by dial, which have chosen an export,
// with base:allocation as context 1 if extents are wanted.
func NewRemote(dial func() (*Client, error)) (*Remote, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	return &Remote{dial: dial, size: c.Size, free: []*Client{c}}, nil
}

// Close disconnects; no call may be under way.
func (r *Remote) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var first error
	for _, c := range r.free {
		if err := c.Disconnect(); err != nil && first == nil {
			first = err
		}
	}
	r.free = nil
	return first
}

// with makes a call on a connection of its own.
func (r *Remote) with(f func(c *Client) error) (err error) {
	r.mu.Lock()
	var c *Client
	if n := len(r.free); n > 0 {
		c, r.free = r.free[n-1], r.free[:n-1]
	}
	r.mu.Unlock()
	if c == nil {
		if c, err = r.dial(); err != nil {
			return err
		}
	}
	err = f(c)
	r.mu.Lock()
	r.free = append(r.free, c)
	r.mu.Unlock()
	return err
}

// Size implements nbd.Device: the size when the first connection was made.
func (r *Remote) Size() uint64 { return r.size }

// ReadAt implements nbd.Device.
func (r *Remote) ReadAt(_ context.Context, p []byte, off uint64) error {
	return r.with(func(c *Client) error { return c.ReadAt(p, off) })
}

// WriteAt implements nbd.Device.
func (r *Remote) WriteAt(_ context.Context, p []byte, off uint64, fua bool) error {
	return r.with(func(c *Client) error { return c.WriteAt(p, off, fua) })
}

// Flush implements nbd.Device.
func (r *Remote) Flush(context.Context) error {
	return r.with(func(c *Client) error { return c.Flush() })
}

// Trim implements nbd.Device; lengths above 4 GiB need extended headers.
func (r *Remote) Trim(_ context.Context, off, length uint64, fua bool) error {
	return r.with(func(c *Client) error { return c.Trim(off, length, fua) })
}

// WriteZeroes implements nbd.Device; lengths above 4 GiB need extended headers.
func (r *Remote) WriteZeroes(_ context.Context, off, length uint64, noHole, fua bool) error {
	return r.with(func(c *Client) error { return c.WriteZeroes(off, length, noHole, fua) })
}

// Cache implements nbd.Device; lengths above 4 GiB need extended headers.
func (r *Remote) Cache(_ context.Context, off, length uint64) error {
	return r.with(func(c *Client) error {
		_, err := c.Do(wire.CmdCache, 0, off, length, nil)
		return err
	})
}

// Extents implements nbd.Device; lengths above 4 GiB need extended headers.
func (r *Remote) Extents(_ context.Context, off, length uint64, yield func(uint64, bool, bool) bool) error {
	for end := off + length; off < end; {
		var list []wire.Extent
		err := r.with(func(c *Client) error {
			reply, err := c.Do(wire.CmdBlockStatus, 0, off, end-off, nil)
			if err == nil {
				list = reply.Status[1]
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, e := range list {
			if !yield(e.Length, e.Flags&wire.StateHole != 0, e.Flags&wire.StateZero != 0) {
				return nil
			}
			off += e.Length
		}
	}
	return nil
}
