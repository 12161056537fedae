package nbd

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"sort"
	"strings"

	"scoria/nbd/internal/wire"
)

// Limits of exports.
const (
	// MaxMinBlock is the largest MinBlock, fixed by the protocol.
	MaxMinBlock = 64 << 10
	// MaxContexts is the largest number of Export.Contexts.
	MaxContexts = 15
	// DefaultPreferredBlock is the PreferredBlock used when an Export has none.
	DefaultPreferredBlock = 4096
)

// Block-status flags of "base:allocation", for further contexts that want them.
const (
	StateHole = wire.StateHole
	StateZero = wire.StateZero
)

// Export is a device as it is offered. It must not change while it is open.
type Export struct {
	// Name is the canonical name, told to clients that ask for it; at most 4096 bytes.
	Name string
	// Description is for people; may be empty.
	Description string
	// Device carries out the requests.
	Device Device
	// ReadOnly refuses every command that writes, with EPERM, before Device sees it.
	ReadOnly bool
	// MinBlock is the smallest unit of offsets and lengths: a power of two from 1 to
	// MaxMinBlock; 0 means 1. Other requests get EINVAL.
	MinBlock uint32
	// PreferredBlock is the unit that works best: a power of two, at least 512 and MinBlock;
	// 0 means DefaultPreferredBlock, or MinBlock where that is larger.
	PreferredBlock uint32
	// FastZero promises that WriteZeroes of any range is quick, never a write of zeroes.
	FastZero bool
	// NoMultiConn says that Flush on one connection does not cover the others. Devices that
	// keep the contract of Device.Flush leave it false.
	NoMultiConn bool
	// Contexts are block-status contexts besides base:allocation, which every export has; at
	// most MaxContexts.
	Contexts []MetaContext
}

// MetaContext is a kind of block status with a name such as "scoria:changed".
type MetaContext struct {
	Name string
	// Extents calls yield for consecutive extents that begin at off until they cover the
	// range or yield returns false. What the flags mean is the context's affair.
	Extents func(ctx context.Context, off, length uint64, yield func(length uint64, flags uint32) bool) error
}

// ExportInfo is what a list of exports shows.
type ExportInfo struct {
	Name, Description string
}

// Exports resolves export names, and is the only place that does.
type Exports interface {
	// Open returns the export of that name, with a function to be called once when it is no
	// longer used. A name that does not exist is an error for which errors.Is finds
	// fs.ErrNotExist; one that the client may not have, fs.ErrPermission. The name is
	// whatever the client sent: valid UTF-8 without NUL of at most 4096 bytes, perhaps
	// empty. A *NameError tells the client more. ClientFrom(ctx) tells who asks.
	Open(ctx context.Context, name string) (*Export, func(), error)
	// List returns the exports that the client may see.
	List(ctx context.Context) ([]ExportInfo, error)
}

// NameError refuses an export name with a text for the client. It is no failure of the server,
// so it is not logged. errors.Is finds fs.ErrNotExist in it.
type NameError struct {
	Text string
}

// Error returns the text.
func (e *NameError) Error() string { return e.Text }

// Unwrap makes it an fs.ErrNotExist.
func (e *NameError) Unwrap() error { return fs.ErrNotExist }

// Client tells Exports who is at the other end.
type Client struct {
	// ID numbers the connections of a server from 1.
	ID                    uint64
	RemoteAddr, LocalAddr net.Addr
}

type clientKey struct{}

// ClientFrom returns the client on whose behalf Exports was called.
func ClientFrom(ctx context.Context) (Client, bool) {
	c, ok := ctx.Value(clientKey{}).(Client)
	return c, ok
}

// ExportMap is a fixed set of exports by name. An empty name opens the only export if there
// is just one.
type ExportMap map[string]*Export

// Open implements Exports.
func (m ExportMap) Open(_ context.Context, name string) (*Export, func(), error) {
	e, ok := m[name]
	if !ok && name == "" && len(m) == 1 {
		for _, e = range m {
			ok = true
		}
	}
	if !ok {
		return nil, nil, fmt.Errorf("export %q: %w", name, fs.ErrNotExist)
	}
	return e, func() {}, nil
}

// List implements Exports; the list is sorted by name.
func (m ExportMap) List(context.Context) ([]ExportInfo, error) {
	l := make([]ExportInfo, 0, len(m))
	for name, e := range m {
		l = append(l, ExportInfo{Name: name, Description: e.Description})
	}
	sort.Slice(l, func(i, j int) bool { return l[i].Name < l[j].Name })
	return l, nil
}

// check fails when the export breaks the rules of the protocol, which clients would answer
// by refusing it with a worse message.
func (e *Export) check() error {
	if e == nil || e.Device == nil {
		return fmt.Errorf("export has no device")
	}
	if err := wire.CheckString(e.Name); err != nil {
		return fmt.Errorf("export name: %w", err)
	}
	if b := e.minBlock(); b&(b-1) != 0 || b > MaxMinBlock {
		return fmt.Errorf("export %q: minimum block %d is not a power of two up to %d", e.Name, b, MaxMinBlock)
	}
	if b := e.preferredBlock(); b&(b-1) != 0 || b < 512 || b < e.minBlock() {
		return fmt.Errorf("export %q: preferred block %d is not a power of two of at least 512 and the minimum %d", e.Name, b, e.minBlock())
	}
	if len(e.Contexts) > MaxContexts {
		return fmt.Errorf("export %q: %d meta contexts, at most %d", e.Name, len(e.Contexts), MaxContexts)
	}
	seen := map[string]bool{wire.ContextBaseAllocation: true}
	for _, c := range e.Contexts {
		if wire.CheckString(c.Name) != nil || !strings.Contains(c.Name, ":") || seen[c.Name] || c.Extents == nil {
			return fmt.Errorf("export %q: meta context %q is not usable (namespace:leaf, once, with a function)", e.Name, c.Name)
		}
		seen[c.Name] = true
	}
	return nil
}

func (e *Export) minBlock() uint32 { return max(e.MinBlock, 1) }

func (e *Export) preferredBlock() uint32 {
	if e.PreferredBlock != 0 {
		return e.PreferredBlock
	}
	return max(DefaultPreferredBlock, e.minBlock())
}

// size is the device's size as the client may use it: whole minimum blocks, and within the
// signed 64 bits that most clients count in.
func (e *Export) size() uint64 {
	return min(e.Device.Size(), 1<<63-1) &^ uint64(e.minBlock()-1)
}

// flags are the transmission flags: a flag is set exactly if the feature works. Payload says
// that a BLOCK_STATUS may have one.
func (e *Export) flags(structured, payload bool) uint16 {
	f := wire.FlagHasFlags | wire.FlagSendFlush | wire.FlagSendCache
	if e.ReadOnly {
		f |= wire.FlagReadOnly
	} else {
		f |= wire.FlagSendFUA | wire.FlagSendTrim | wire.FlagSendWriteZeroes
		if e.FastZero {
			f |= wire.FlagSendFastZero
		}
	}
	if !e.NoMultiConn {
		f |= wire.FlagCanMultiConn
	}
	if structured {
		f |= wire.FlagSendDF
	}
	if payload {
		f |= wire.FlagStatusPayload
	}
	return f
}

// contexts are the names of all contexts of the export; their places plus 1 are their ids.
func (e *Export) contexts() []string {
	names := make([]string, 1, 1+len(e.Contexts))
	names[0] = wire.ContextBaseAllocation
	for _, c := range e.Contexts {
		names = append(names, c.Name)
	}
	return names
}

// matchContexts returns the places of the contexts that the queries choose. In a list, no
// query means all and "namespace:" means all of that namespace; in a selection both choose
// nothing. What is unknown is ignored.
func matchContexts(names, queries []string, list bool) []int {
	var found []int
	for i, name := range names {
		match := list && len(queries) == 0
		for _, q := range queries {
			if q == name || list && strings.HasSuffix(q, ":") && strings.HasPrefix(name, q) && strings.Count(q, ":") == 1 {
				match = true
			}
		}
		if match {
			found = append(found, i)
		}
	}
	return found
}
