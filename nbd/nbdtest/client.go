package nbdtest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"scoria/nbd/internal/wire"
)

// Client is a small NBD client for tests. It checks what the server sends far more strictly
// than a real client would, and lets a test send whatever it likes through Conn. Requests may
// be sent by one goroutine while another receives replies.
type Client struct {
	Conn net.Conn
	// Handshake is what the server's greeting offered.
	Handshake uint16
	// Size, Flags and the block sizes are those of the export after Go or ExportName.
	Size                             uint64
	Flags                            uint16
	MinBlock, PreferredBlock, MaxLen uint32
	// Structured says that structured replies were agreed, Extended that extended headers were.
	Structured, Extended bool

	noZeroes bool
	br       *bufio.Reader
	out      []byte
	mu       sync.Mutex // guards what follows
	cookie   uint64
	sent     map[uint64]wire.Request
}

// RequestError is an error reply.
type RequestError struct {
	Errno   uint32
	Message string
}

// Error implements error.
func (e *RequestError) Error() string {
	return fmt.Sprintf("server answers %v %s", wire.Errno(e.Errno), e.Message)
}

// ErrnoOf returns the NBD error number in err, 0 if there is none.
func ErrnoOf(err error) uint32 {
	if e, ok := errors.AsType[*RequestError](err); ok {
		return e.Errno
	}
	return 0
}

// OptionError is an error reply to an option.
type OptionError struct {
	Type    uint32
	Message string
}

// Error implements error.
func (e *OptionError) Error() string {
	return fmt.Sprintf("server refuses the option with error %d: %s", e.Type&^wire.RepErrBit, e.Message)
}

// OptionReply is one reply to an option.
type OptionReply struct {
	Type    uint32
	Payload []byte
}

// Reply is the whole reply to a request.
type Reply struct {
	Cookie  uint64
	Errno   uint32
	Message string
	Data    []byte                   // of a READ
	Status  map[uint32][]wire.Extent // of a BLOCK_STATUS, by context id
	Chunks  int                      // 0: a simple reply
	Content int                      // chunks with data or holes
	Holes   int                      // chunks with holes
}

// Dial connects and does the greeting.
func Dial(network, addr string) (*Client, error) {
	nc, err := net.Dial(network, addr)
	if err != nil {
		return nil, err
	}
	c, err := NewClient(nc)
	if err != nil {
		nc.Close()
	}
	return c, err
}

// NewClient does the greeting on an open connection.
func NewClient(nc net.Conn) (*Client, error) {
	c := Raw(nc)
	if err := c.Greet(wire.ClientFixedNewstyle | wire.ClientNoZeroes); err != nil {
		return nil, err
	}
	return c, nil
}

// Raw makes a client of a connection on which nothing was said yet.
func Raw(nc net.Conn) *Client {
	return &Client{Conn: nc, br: bufio.NewReaderSize(nc, 64<<10), sent: map[uint64]wire.Request{}}
}

// Greet reads the server's greeting and answers with flags.
func (c *Client) Greet(flags uint32) error {
	var b [wire.GreetingSize]byte
	if _, err := io.ReadFull(c.br, b[:]); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if binary.BigEndian.Uint64(b[:]) != wire.MagicInit || binary.BigEndian.Uint64(b[8:]) != wire.MagicOption {
		return fmt.Errorf("greeting %x", b)
	}
	c.Handshake = binary.BigEndian.Uint16(b[16:])
	c.noZeroes = flags&wire.ClientNoZeroes != 0 && c.Handshake&wire.HandshakeNoZeroes != 0
	_, err := c.Conn.Write(binary.BigEndian.AppendUint32(nil, flags))
	return err
}

// Close closes the connection without a word.
func (c *Client) Close() error { return c.Conn.Close() }

// Option sends an option and returns its replies before the last, which is an ACK or comes
// back as an *OptionError.
func (c *Client) Option(id uint32, payload []byte) ([]OptionReply, error) {
	if _, err := c.Conn.Write(wire.AppendOption(nil, id, payload)); err != nil {
		return nil, err
	}
	return c.OptionReplies(id)
}

// OptionReplies reads the replies to an option that was sent already.
func (c *Client) OptionReplies(id uint32) ([]OptionReply, error) {
	var list []OptionReply
	for {
		r, err := c.optionReply(id)
		switch {
		case err != nil:
			return list, err
		case r.Type == wire.RepAck:
			if len(r.Payload) != 0 {
				return list, fmt.Errorf("ACK with %d bytes", len(r.Payload))
			}
			return list, nil
		case r.Type&wire.RepErrBit != 0:
			if err := wire.CheckString(string(r.Payload)); err != nil {
				return list, fmt.Errorf("message of an option error: %w", err)
			}
			return list, &OptionError{r.Type, string(r.Payload)}
		}
		list = append(list, r)
	}
}

func (c *Client) optionReply(id uint32) (OptionReply, error) {
	var h [wire.OptionReplySize]byte
	if _, err := io.ReadFull(c.br, h[:]); err != nil {
		return OptionReply{}, fmt.Errorf("reply to option %d: %w", id, err)
	}
	if m := binary.BigEndian.Uint64(h[:]); m != wire.MagicOptionReply {
		return OptionReply{}, fmt.Errorf("reply to option %d has magic %#x", id, m)
	}
	if got := binary.BigEndian.Uint32(h[8:]); got != id {
		return OptionReply{}, fmt.Errorf("reply to option %d, sent %d", got, id)
	}
	n := binary.BigEndian.Uint32(h[16:])
	if n > 1<<20 {
		return OptionReply{}, fmt.Errorf("reply to option %d has %d bytes", id, n)
	}
	r := OptionReply{Type: binary.BigEndian.Uint32(h[12:]), Payload: make([]byte, n)}
	_, err := io.ReadFull(c.br, r.Payload)
	return r, err
}

// Negotiate agrees on structured replies and selects contexts of an export, whose ids it
// returns by name.
func (c *Client) Negotiate(export string, contexts ...string) (map[string]uint32, error) {
	if _, err := c.Option(wire.OptStructuredReply, nil); err != nil {
		return nil, err
	}
	c.Structured = true
	return c.Contexts(true, export, contexts...)
}

// NegotiateExtended is Negotiate with extended headers instead of structured replies.
func (c *Client) NegotiateExtended(export string, contexts ...string) (map[string]uint32, error) {
	if _, err := c.Option(wire.OptExtendedHeaders, nil); err != nil {
		return nil, err
	}
	c.Extended = true
	return c.Contexts(true, export, contexts...)
}

// Contexts selects (set) or lists contexts.
func (c *Client) Contexts(set bool, export string, queries ...string) (map[string]uint32, error) {
	id := wire.OptListMetaContext
	if set {
		id = wire.OptSetMetaContext
	}
	replies, err := c.Option(id, wire.AppendMetaRequest(nil, wire.MetaRequest{Name: export, Queries: queries}))
	if err != nil {
		return nil, err
	}
	ids := map[string]uint32{}
	for _, r := range replies {
		if r.Type != wire.RepMetaContext || len(r.Payload) < 4 {
			return nil, fmt.Errorf("reply of type %d and %d bytes to a context option", r.Type, len(r.Payload))
		}
		ids[string(r.Payload[4:])] = binary.BigEndian.Uint32(r.Payload)
	}
	return ids, nil
}

// Go chooses an export and starts the transmission phase.
func (c *Client) Go(name string) error { return c.info(wire.OptGo, name, wire.InfoBlockSize) }

// Info asks about an export.
func (c *Client) Info(name string) error { return c.info(wire.OptInfo, name, wire.InfoBlockSize) }

func (c *Client) info(id uint32, name string, infos ...uint16) error {
	replies, err := c.Option(id, wire.AppendExportRequest(nil, wire.ExportRequest{Name: name, Infos: infos}))
	if err != nil {
		return err
	}
	found := false
	for _, r := range replies {
		p := r.Payload
		if r.Type != wire.RepInfo || len(p) < 2 {
			return fmt.Errorf("reply of type %d and %d bytes to INFO or GO", r.Type, len(p))
		}
		switch typ := binary.BigEndian.Uint16(p); {
		case typ == wire.InfoExport && len(p) == 12:
			c.Size, c.Flags, found = binary.BigEndian.Uint64(p[2:]), binary.BigEndian.Uint16(p[10:]), true
		case typ == wire.InfoBlockSize && len(p) == 14:
			c.MinBlock, c.PreferredBlock, c.MaxLen = binary.BigEndian.Uint32(p[2:]), binary.BigEndian.Uint32(p[6:]), binary.BigEndian.Uint32(p[10:])
		case typ == wire.InfoExport || typ == wire.InfoBlockSize:
			return fmt.Errorf("information %d of %d bytes", typ, len(p))
		}
	}
	if !found {
		return errors.New("no INFO_EXPORT")
	}
	return nil
}

// ExportName chooses an export the way of old.
func (c *Client) ExportName(name string) error {
	if _, err := c.Conn.Write(wire.AppendOption(nil, wire.OptExportName, []byte(name))); err != nil {
		return err
	}
	b := make([]byte, 10+wire.ExportNamePadding)
	if c.noZeroes {
		b = b[:10]
	}
	if _, err := io.ReadFull(c.br, b); err != nil {
		return fmt.Errorf("EXPORT_NAME: %w", err)
	}
	for _, x := range b[10:] {
		if x != 0 {
			return errors.New("EXPORT_NAME: padding is not zero")
		}
	}
	c.Size, c.Flags = binary.BigEndian.Uint64(b), binary.BigEndian.Uint16(b[8:])
	return nil
}

// List returns the names of all exports.
func (c *Client) List() ([]string, error) {
	replies, err := c.Option(wire.OptList, nil)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, r := range replies {
		if r.Type != wire.RepServer || len(r.Payload) < 4 {
			return nil, fmt.Errorf("reply of type %d and %d bytes to LIST", r.Type, len(r.Payload))
		}
		n := binary.BigEndian.Uint32(r.Payload)
		if int(n) > len(r.Payload)-4 {
			return nil, fmt.Errorf("LIST: name of %d bytes in %d", n, len(r.Payload))
		}
		names = append(names, string(r.Payload[4:4+n]))
	}
	return names, nil
}

// Abort leaves the handshake in good order.
func (c *Client) Abort() error {
	_, err := c.Option(wire.OptAbort, nil)
	return err
}

// Queue adds a request to what the next Send sends, and returns its cookie. With extended
// headers, a payload that is not nil is announced by the flag and the length that the header
// then has.
func (c *Client) Queue(typ, flags uint16, off, length uint64, payload []byte) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cookie++
	r := wire.Request{Flags: flags, Type: typ, Cookie: c.cookie * 0x9e3779b97f4a7c15, Offset: off, Length: length}
	c.sent[r.Cookie] = r
	if c.Extended {
		h := r
		if payload != nil {
			h.Flags, h.Length = flags|wire.CmdFlagPayloadLen, uint64(len(payload))
		}
		c.out = append(wire.AppendExtRequest(c.out, h), payload...)
		return r.Cookie
	}
	c.out = append(wire.AppendRequest(c.out, r), payload...)
	return r.Cookie
}

// Send sends what was queued, in one write.
func (c *Client) Send() error {
	_, err := c.Conn.Write(c.out)
	c.out = c.out[:0]
	return err
}

// Do sends one request and returns its reply. An error reply is a *RequestError.
func (c *Client) Do(typ, flags uint16, off, length uint64, payload []byte) (*Reply, error) {
	cookie := c.Queue(typ, flags, off, length, payload)
	if err := c.Send(); err != nil {
		return nil, err
	}
	r, err := c.Receive()
	if err != nil {
		return nil, err
	}
	if r.Cookie != cookie {
		return nil, fmt.Errorf("reply to %#x, sent %#x", r.Cookie, cookie)
	}
	return r, r.Err()
}

// Err is the error of an error reply.
func (r *Reply) Err() error {
	if r.Errno != 0 {
		return &RequestError{r.Errno, r.Message}
	}
	return nil
}

// ReadAt reads.
func (c *Client) ReadAt(p []byte, off uint64) error {
	r, err := c.Do(wire.CmdRead, 0, off, uint64(len(p)), nil)
	if err == nil {
		copy(p, r.Data)
	}
	return err
}

// WriteAt writes.
func (c *Client) WriteAt(p []byte, off uint64, fua bool) error {
	_, err := c.Do(wire.CmdWrite, fuaFlag(fua), off, uint64(len(p)), p)
	return err
}

// Flush flushes.
func (c *Client) Flush() error {
	_, err := c.Do(wire.CmdFlush, 0, 0, 0, nil)
	return err
}

// Trim trims.
func (c *Client) Trim(off, length uint64, fua bool) error {
	_, err := c.Do(wire.CmdTrim, fuaFlag(fua), off, length, nil)
	return err
}

// WriteZeroes zeroes.
func (c *Client) WriteZeroes(off, length uint64, noHole, fua bool) error {
	flags := fuaFlag(fua)
	if noHole {
		flags |= wire.CmdFlagNoHole
	}
	_, err := c.Do(wire.CmdWriteZeroes, flags, off, length, nil)
	return err
}

// Disconnect sends DISC and waits until the server closed the connection, which must send
// nothing more.
func (c *Client) Disconnect() error {
	if c.Extended {
		c.out = wire.AppendExtRequest(c.out, wire.Request{Type: wire.CmdDisc})
	} else {
		c.out = wire.AppendRequest(c.out, wire.Request{Type: wire.CmdDisc})
	}
	if err := c.Send(); err != nil {
		return err
	}
	if _, err := c.br.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("after DISC: %w", err)
	}
	return c.Conn.Close()
}

func fuaFlag(fua bool) uint16 {
	if fua {
		return wire.CmdFlagFUA
	}
	return 0
}
