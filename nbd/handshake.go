package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"time"

	"scoria/nbd/internal/wire"
)

// maxOptions bounds the options of one handshake. A client that walks a list of exports asks
// INFO about each.
const maxOptions = 1 << 16

var (
	errAborted   = errors.New("client aborted the handshake")
	errHandshake = errors.New("handshake failed")
)

// negotiated is what a handshake ends with.
type negotiated struct {
	export     *Export
	release    func()
	structured bool
	extended   bool  // headers; implies structured
	contexts   []int // ids of the selected meta contexts: 1 is base:allocation, 2.. Export.Contexts
}

// handshake is the haggling phase of one connection. It reads exactly what belongs to it, so
// nothing of the transmission phase is lost. It has one goroutine.
type handshake struct {
	srv      *Server
	nc       net.Conn
	ctx      context.Context
	deadline time.Time
	buf      [wire.OptionHeaderSize]byte
	noZeroes bool

	structured bool
	extended   bool // implies structured
	// The last SET_META_CONTEXT: for which export, and which contexts by name and id.
	metaExport string
	metaNames  []string
	metaIDs    []int
}

// run haggles until an export is chosen.
func (h *handshake) run() (negotiated, error) {
	h.deadline = time.Now().Add(h.srv.opts.HandshakeTimeout)
	if err := h.nc.SetDeadline(h.deadline); err != nil {
		return negotiated{}, fmt.Errorf("%w: %w", errHandshake, err)
	}
	if err := h.send(wire.AppendGreeting(nil, wire.HandshakeFixedNewstyle|wire.HandshakeNoZeroes)); err != nil {
		return negotiated{}, err
	}
	if err := h.read(h.buf[:4]); err != nil {
		return negotiated{}, err
	}
	flags := binary.BigEndian.Uint32(h.buf[:4])
	if flags&^(wire.ClientFixedNewstyle|wire.ClientNoZeroes) != 0 {
		return negotiated{}, fmt.Errorf("%w: unknown client flags %#x", errHandshake, flags)
	}
	h.noZeroes = flags&wire.ClientNoZeroes != 0
	for range maxOptions {
		neg, done, err := h.option()
		if err != nil || done {
			return neg, err
		}
	}
	return negotiated{}, fmt.Errorf("%w: more than %d options", errHandshake, maxOptions)
}

// option reads and answers one option; done when it chose an export.
func (h *handshake) option() (negotiated, bool, error) {
	var none negotiated
	if err := h.read(h.buf[:]); err != nil {
		return none, false, err
	}
	opt, err := wire.ParseOptionHeader(h.buf[:])
	if err != nil {
		return none, false, fmt.Errorf("%w: %w", errHandshake, err)
	}
	if opt.Length > wire.MaxOptionPayload {
		if opt.ID == wire.OptExportName {
			return none, false, fmt.Errorf("%w: EXPORT_NAME of %d bytes", errHandshake, opt.Length)
		}
		if err := h.discard(int64(opt.Length)); err != nil {
			return none, false, err
		}
		return none, false, h.refuse(opt.ID, wire.RepErrTooBig, "option is longer than 64 KiB")
	}
	var payload []byte
	if opt.Length > 0 {
		payload = make([]byte, opt.Length)
		if err := h.read(payload); err != nil {
			return none, false, err
		}
	}
	if h.srv.draining.Load() && opt.ID != wire.OptAbort {
		if opt.ID == wire.OptExportName {
			return none, false, errDrained
		}
		return none, false, h.refuse(opt.ID, wire.RepErrShutdown, "server is shutting down")
	}
	switch opt.ID {
	case wire.OptExportName:
		neg, err := h.exportName(payload)
		return neg, err == nil, err
	case wire.OptGo, wire.OptInfo:
		return h.info(opt.ID, payload)
	case wire.OptAbort:
		_ = h.ack(opt.ID) // the client may be gone already, which is as good
		return none, false, errAborted
	case wire.OptList:
		return none, false, h.list(payload)
	case wire.OptStructuredReply:
		if len(payload) > 0 {
			return none, false, h.refuse(opt.ID, wire.RepErrInvalid, "STRUCTURED_REPLY has no payload")
		}
		if h.extended { // there is no way back
			return none, false, h.refuse(opt.ID, wire.RepErrExtHeaderReqd, "extended headers were agreed already")
		}
		h.structured = true
		return none, false, h.ack(opt.ID)
	case wire.OptExtendedHeaders:
		if len(payload) > 0 {
			return none, false, h.refuse(opt.ID, wire.RepErrInvalid, "EXTENDED_HEADERS has no payload")
		}
		h.structured, h.extended = true, true
		return none, false, h.ack(opt.ID)
	case wire.OptListMetaContext, wire.OptSetMetaContext:
		return none, false, h.metaContext(opt.ID, payload)
	case wire.OptStartTLS:
		if len(payload) > 0 {
			return none, false, h.refuse(opt.ID, wire.RepErrInvalid, "STARTTLS has no payload")
		}
		return none, false, h.refuse(opt.ID, wire.RepErrPolicy, "TLS is not configured on this server")
	}
	return none, false, h.refuse(opt.ID, wire.RepErrUnsup, "option is not supported")
}

// exportName is the way of old: no reply frame, and no way to refuse but to close.
func (h *handshake) exportName(payload []byte) (negotiated, error) {
	if h.extended {
		return negotiated{}, fmt.Errorf("%w: EXPORT_NAME after EXTENDED_HEADERS", errHandshake)
	}
	name := string(payload)
	if err := wire.CheckString(name); err != nil {
		return negotiated{}, fmt.Errorf("%w: EXPORT_NAME: %w", errHandshake, err)
	}
	e, release, err := h.open(name)
	if err != nil {
		return negotiated{}, fmt.Errorf("%w: EXPORT_NAME: %w", errHandshake, err)
	}
	if err := h.send(wire.AppendExportName(nil, e.size(), e.flags(h.structured, false), !h.noZeroes)); err != nil {
		release()
		return negotiated{}, err
	}
	return h.choose(name, e, release), nil
}

// info answers INFO and GO; done when a GO succeeded.
func (h *handshake) info(option uint32, payload []byte) (negotiated, bool, error) {
	var none negotiated
	req, err := wire.ParseExportRequest(payload)
	if err != nil {
		return none, false, h.refuse(option, wire.RepErrInvalid, err.Error())
	}
	e, release, err := h.open(req.Name)
	if err != nil {
		return none, false, h.refuseOpen(option, err)
	}
	neg := h.choose(req.Name, e, release)
	out := wire.AppendInfoExport(nil, option, e.size(), neg.flags())
	if req.Wants(wire.InfoName) {
		out = wire.AppendInfoString(out, option, wire.InfoName, e.Name)
	}
	if req.Wants(wire.InfoDescription) && e.Description != "" {
		out = wire.AppendInfoString(out, option, wire.InfoDescription, e.Description)
	}
	if req.Wants(wire.InfoBlockSize) || e.minBlock() != 1 {
		out = wire.AppendInfoBlockSize(out, option, e.minBlock(), e.preferredBlock(), h.srv.opts.MaxPayload)
	}
	out = wire.AppendOptionReply(out, option, wire.RepAck, nil)
	if option == wire.OptInfo {
		release() // before the client can go on to delete what it asked about
		return none, false, h.send(out)
	}
	if err := h.send(out); err != nil {
		release()
		return none, false, err
	}
	return neg, true, nil
}

// flags are the transmission flags of what was negotiated.
func (n *negotiated) flags() uint16 {
	return n.export.flags(n.structured, n.extended && len(n.contexts) > 0)
}

// choose is what a GO ends the handshake with. Contexts count only if they were selected for this export and
// are still what the client was told.
func (h *handshake) choose(name string, e *Export, release func()) negotiated {
	neg := negotiated{export: e, release: release, structured: h.structured, extended: h.extended}
	if h.structured && name == h.metaExport {
		names := e.contexts()
		for i, id := range h.metaIDs {
			if id > len(names) || names[id-1] != h.metaNames[i] {
				return neg
			}
		}
		neg.contexts = h.metaIDs
	}
	return neg
}

func (h *handshake) list(payload []byte) error {
	if len(payload) > 0 {
		return h.refuse(wire.OptList, wire.RepErrInvalid, "LIST has no payload")
	}
	ctx, cancel := context.WithTimeout(h.ctx, h.srv.opts.OpenTimeout)
	defer cancel()
	start := time.Now()
	exports, err := h.srv.opts.Exports.List(ctx)
	h.extend(time.Since(start))
	switch {
	case errors.Is(err, fs.ErrPermission):
		return h.refuse(wire.OptList, wire.RepErrPolicy, "exports are not listed for this client")
	case err != nil:
		h.srv.opts.Logger.Warn("nbd: list of exports failed", "err", err)
		return h.refuse(wire.OptList, wire.RepErrPlatform, "exports cannot be listed now")
	}
	var out []byte
	for _, e := range exports {
		if wire.CheckString(e.Name) != nil {
			continue // no client could ask for it
		}
		if out = wire.AppendServer(out, e.Name, e.Description); len(out) > 64<<10 {
			if err := h.send(out); err != nil {
				return err
			}
			out = out[:0]
		}
	}
	return h.send(wire.AppendOptionReply(out, wire.OptList, wire.RepAck, nil))
}

func (h *handshake) metaContext(option uint32, payload []byte) error {
	set := option == wire.OptSetMetaContext
	if set { // replaces what was selected, even when it fails
		h.metaExport, h.metaNames, h.metaIDs = "", nil, nil
	}
	req, err := wire.ParseMetaRequest(payload)
	if err != nil {
		return h.refuse(option, wire.RepErrInvalid, err.Error())
	}
	if !h.structured {
		return h.refuse(option, wire.RepErrInvalid, "meta contexts need structured replies first")
	}
	e, release, err := h.open(req.Name)
	if err != nil {
		return h.refuseOpen(option, err)
	}
	names := e.contexts()
	release()
	var out []byte
	if set {
		h.metaExport = req.Name
	}
	for _, i := range matchContexts(names, req.Queries, !set) {
		id := uint32(0) // reserved in a list
		if set {
			id = uint32(i + 1)
			h.metaIDs, h.metaNames = append(h.metaIDs, i+1), append(h.metaNames, names[i])
		}
		out = wire.AppendMetaContext(out, option, id, names[i])
	}
	return h.send(wire.AppendOptionReply(out, option, wire.RepAck, nil))
}

// open resolves a name. The time it takes does not count against the client.
func (h *handshake) open(name string) (*Export, func(), error) {
	ctx, cancel := context.WithTimeout(h.ctx, h.srv.opts.OpenTimeout)
	defer cancel()
	start := time.Now()
	e, release, err := h.srv.opts.Exports.Open(ctx, name)
	h.extend(time.Since(start))
	if err != nil {
		return nil, nil, err
	}
	if release == nil {
		release = func() {}
	}
	if err := e.check(); err != nil {
		release()
		return nil, nil, err
	}
	return e, release, nil
}

func (h *handshake) extend(d time.Duration) {
	if h.srv.draining.Load() { // what was sent meanwhile is still answered
		h.deadline = time.Now().Add(drainLinger)
	} else {
		h.deadline = h.deadline.Add(d)
	}
	_ = h.nc.SetDeadline(h.deadline) // fails only on a closed connection, as the next read will
}

func (h *handshake) refuseOpen(option uint32, err error) error {
	if e, ok := errors.AsType[*NameError](err); ok {
		return h.refuse(option, wire.RepErrUnknown, e.Text)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return h.refuse(option, wire.RepErrUnknown, "no such export")
	case errors.Is(err, fs.ErrPermission):
		return h.refuse(option, wire.RepErrPolicy, "export is not for this client")
	}
	h.srv.opts.Logger.Warn("nbd: export cannot be opened", "err", err)
	return h.refuse(option, wire.RepErrUnknown, "export cannot be opened now; the server's log says why")
}

func (h *handshake) ack(option uint32) error {
	return h.send(wire.AppendOptionReply(nil, option, wire.RepAck, nil))
}

func (h *handshake) refuse(option, typ uint32, message string) error {
	return h.send(wire.AppendOptionError(nil, option, typ, message))
}

func (h *handshake) send(b []byte) error {
	if _, err := h.nc.Write(b); err != nil {
		return h.broken(err)
	}
	return nil
}

func (h *handshake) read(p []byte) error {
	if _, err := io.ReadFull(h.nc, p); err != nil {
		return h.broken(err)
	}
	return nil
}

func (h *handshake) discard(n int64) error {
	if _, err := io.CopyN(io.Discard, h.nc, n); err != nil {
		return h.broken(err)
	}
	return nil
}

// broken says why reading or writing failed.
func (h *handshake) broken(err error) error {
	if cause := context.Cause(h.ctx); cause != nil {
		return cause
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		if h.srv.draining.Load() {
			return errDrained
		}
		return fmt.Errorf("%w: %w", errHandshake, errTimeout)
	}
	return errLeft
}
