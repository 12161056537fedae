// Package attach makes a kernel block device (/dev/nbdN) of a volume: it negotiates with
// the server in user space, hands the sockets to the kernel's nbd driver over generic
// netlink, and replaces connections that die, so that I/O waits for a gateway that
// restarts instead of failing.
package attach

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// Numbers of the NBD protocol that a client's handshake needs (doc/proto.md).
const (
	magicServer  = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption  = 0x49484156454f5054 // "IHAVEOPT"
	magicReply   = 0x3e889045565a9
	optGo        = 7
	repAck       = 1
	repInfo      = 3
	repErrBit    = 1 << 31
	infoExport   = 0
	infoBlock    = 3
	flagFixed    = 1
	flagNoZeroes = 2

	maxOptionReply   = 64 << 10
	maxBlock         = 4096 // largest logical block size of a kernel device, in bytes
	maxOptionReplies = 64
	handshakeTimeout = 30 * time.Second

	flagMultiConn = 1 << 8
)

// errSilent ends a handshake with a server that does not get on with it.
var errSilent = fmt.Errorf("the server did not complete the handshake within %v", handshakeTimeout)

// Export is what the server told about the volume.
type Export struct {
	Size     uint64 // bytes
	Flags    uint16 // transmission flags
	MinBlock uint32 // bytes
}

// MultiConn tells whether several connections may be used at once.
func (e Export) MultiConn() bool { return e.Flags&flagMultiConn != 0 }

// Target is a server to attach to.
type Target struct {
	Network string // "tcp" or "unix"
	Address string
	Volume  string
}

// ParseTarget understands nbd://HOST[:PORT]/VOLUME and nbd+unix:///VOLUME?socket=PATH; a bare
// name is a volume of the server at fallback (itself an address HOST:PORT or unix:PATH).
func ParseTarget(s, fallback string) (Target, error) {
	if !strings.Contains(s, "://") {
		network, address := "tcp", fallback
		if p, ok := strings.CutPrefix(fallback, "unix:"); ok {
			network, address = "unix", p
		}
		if s == "" {
			return Target{}, errors.New("the volume's name is empty")
		}
		return Target{Network: network, Address: address, Volume: s}, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return Target{}, fmt.Errorf("NBD address: %w", err)
	}
	t := Target{Volume: strings.TrimPrefix(u.Path, "/")}
	switch u.Scheme {
	case "nbd":
		if u.Hostname() == "" {
			return Target{}, fmt.Errorf("NBD address %q: the host is missing", s)
		}
		t.Network, t.Address = "tcp", u.Host
		if u.Port() == "" {
			t.Address = net.JoinHostPort(u.Hostname(), "10809")
		}
	case "nbd+unix":
		t.Network, t.Address = "unix", u.Query().Get("socket")
		if t.Address == "" {
			return Target{}, fmt.Errorf("NBD address %q: ?socket=PATH is missing", s)
		}
	default:
		return Target{}, fmt.Errorf("NBD address %q: want nbd:// or nbd+unix://", s)
	}
	if t.Volume == "" {
		return Target{}, fmt.Errorf("NBD address %q: the volume's name is missing", s)
	}
	return t, nil
}

// Connect dials the target and negotiates up to the transmission phase. The socket is
// returned as a file whose descriptor the kernel can take.
func Connect(ctx context.Context, t Target) (*os.File, Export, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, t.Network, t.Address)
	if errors.Is(err, os.ErrDeadlineExceeded) { // the socket noticed before the context did
		err = context.DeadlineExceeded
	}
	if err != nil {
		return nil, Export{}, fmt.Errorf("connect to the NBD server: %w", err)
	}
	defer conn.Close() //nolint:errcheck // the file holds a duplicate; on errors nothing is lost
	hctx, cancel := context.WithTimeoutCause(ctx, handshakeTimeout, errSilent)
	defer cancel()
	// The end of hctx, by time or by the caller, interrupts whatever the handshake waits for.
	alive := context.AfterFunc(hctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a closed connection waits for nothing
	exp, err := negotiate(conn, t.Volume)
	if !alive() && hctx.Err() != nil {
		err = context.Cause(hctx)
	}
	if err != nil {
		return nil, Export{}, fmt.Errorf("negotiate volume %q with %s: %w", t.Volume, t.Address, err)
	}
	fc, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, Export{}, fmt.Errorf("connection of type %T has no descriptor", conn)
	}
	f, err := fc.File()
	if err != nil {
		return nil, Export{}, fmt.Errorf("duplicate socket: %w", err)
	}
	return f, exp, nil
}

func negotiate(c io.ReadWriter, volume string) (Export, error) {
	var hello [18]byte
	if _, err := io.ReadFull(c, hello[:]); err != nil {
		return Export{}, fmt.Errorf("read greeting: %w", err)
	}
	if binary.BigEndian.Uint64(hello[0:]) != magicServer || binary.BigEndian.Uint64(hello[8:]) != magicOption {
		return Export{}, fmt.Errorf("greeting is not that of a newstyle NBD server")
	}
	flags := binary.BigEndian.Uint16(hello[16:]) & (flagFixed | flagNoZeroes)
	if flags&flagFixed == 0 {
		return Export{}, fmt.Errorf("server is too old (no fixed newstyle negotiation)")
	}
	req := binary.BigEndian.AppendUint32(nil, uint32(flags))
	req = binary.BigEndian.AppendUint64(req, magicOption)
	req = binary.BigEndian.AppendUint32(req, optGo)
	req = binary.BigEndian.AppendUint32(req, uint32(4+len(volume)+4))
	req = binary.BigEndian.AppendUint32(req, uint32(len(volume)))
	req = append(req, volume...)
	req = binary.BigEndian.AppendUint16(req, 1)
	req = binary.BigEndian.AppendUint16(req, infoBlock)
	if _, err := c.Write(req); err != nil {
		return Export{}, fmt.Errorf("send request: %w", err)
	}
	exp := Export{MinBlock: 1}
	seen := false
	for range maxOptionReplies {
		typ, body, err := readReply(c)
		if err != nil {
			return Export{}, err
		}
		switch {
		case typ == repAck:
			if !seen {
				return Export{}, fmt.Errorf("server did not tell the size")
			}
			return exp, exp.check()
		case typ&repErrBit != 0:
			return Export{}, fmt.Errorf("server refused (error %d): %s", typ&^repErrBit, body)
		case typ == repInfo && len(body) >= 12 && binary.BigEndian.Uint16(body) == infoExport:
			exp.Size, exp.Flags, seen = binary.BigEndian.Uint64(body[2:]), binary.BigEndian.Uint16(body[10:]), true
		case typ == repInfo && len(body) >= 14 && binary.BigEndian.Uint16(body) == infoBlock:
			exp.MinBlock = binary.BigEndian.Uint32(body[2:])
		}
	}
	return Export{}, fmt.Errorf("server sent over %d replies to one option", maxOptionReplies)
}

// check refuses what the kernel could not make a device of.
func (e Export) check() error {
	if e.Size == 0 || e.Size > 1<<63-1 {
		return fmt.Errorf("server tells a size of %d bytes", e.Size)
	}
	if e.MinBlock == 0 || e.MinBlock > maxBlock || e.MinBlock&(e.MinBlock-1) != 0 {
		return fmt.Errorf("server wants a block size of %d bytes; the kernel knows powers of two up to %d", e.MinBlock, maxBlock)
	}
	return nil
}

func readReply(c io.Reader) (typ uint32, body []byte, err error) {
	var h [20]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return 0, nil, fmt.Errorf("read reply: %w", err)
	}
	if binary.BigEndian.Uint64(h[0:]) != magicReply || binary.BigEndian.Uint32(h[8:]) != optGo {
		return 0, nil, fmt.Errorf("reply is out of step")
	}
	n := binary.BigEndian.Uint32(h[16:])
	if n > maxOptionReply {
		return 0, nil, fmt.Errorf("reply of %d bytes, limit %d", n, maxOptionReply)
	}
	body = make([]byte, n)
	if _, err := io.ReadFull(c, body); err != nil {
		return 0, nil, fmt.Errorf("read reply: %w", err)
	}
	return binary.BigEndian.Uint32(h[12:]), body, nil
}
