package nbd

import (
	"scoria/nbd/internal/wire"
)

// rule is what a command may do on an export.
type rule struct {
	offered bool
	flags   uint16     // allowed command flags
	needs   uint16     // of them, those that it cannot do without
	writes  bool       // refused on read-only exports
	payload bool       // the length is bounded by MaxPayload
	beyond  wire.Errno // the answer to a range past the end
}

// rulesOf derives the rules from the transmission flags, so that what is offered and what
// is accepted cannot differ. WRITE, TRIM and WRITE_ZEROES are known on read-only exports
// too: there the answer is EPERM.
func rulesOf(flags uint16, contexts, extended bool) (r [wire.CmdCount]rule) {
	var fua, fast uint16
	if flags&wire.FlagSendFUA != 0 {
		fua = wire.CmdFlagFUA
	}
	if flags&wire.FlagSendFastZero != 0 {
		fast = wire.CmdFlagFastZero
	}
	r[wire.CmdRead] = rule{offered: true, flags: fua, payload: true, beyond: wire.EINVAL}
	if flags&wire.FlagSendDF != 0 {
		r[wire.CmdRead].flags |= wire.CmdFlagDF
	}
	r[wire.CmdWrite] = rule{offered: true, flags: fua, writes: true, payload: true, beyond: wire.ENOSPC}
	r[wire.CmdFlush] = rule{offered: true, flags: fua}
	r[wire.CmdTrim] = rule{offered: true, flags: fua, writes: true, beyond: wire.EINVAL}
	r[wire.CmdCache] = rule{offered: true, flags: fua, beyond: wire.EINVAL}
	r[wire.CmdWriteZeroes] = rule{offered: true, flags: fua | fast | wire.CmdFlagNoHole, writes: true, beyond: wire.ENOSPC}
	r[wire.CmdBlockStatus] = rule{offered: contexts, flags: fua | wire.CmdFlagReqOne, beyond: wire.EINVAL}
	if flags&wire.FlagStatusPayload != 0 {
		r[wire.CmdBlockStatus].flags |= wire.CmdFlagPayloadLen
	}
	if extended {
		r[wire.CmdWrite].flags |= wire.CmdFlagPayloadLen
		r[wire.CmdWrite].needs = wire.CmdFlagPayloadLen
	}
	return r
}

// check decides about a request before anything is done. The text goes to clients that can
// show it.
func (c *conn) check(req *wire.Request) (wire.Errno, string) {
	if req.Type >= wire.CmdCount || req.Type == wire.CmdDisc {
		return wire.EINVAL, "unknown command"
	}
	r := &c.rules[req.Type]
	if !r.offered {
		return wire.EINVAL, "command was not negotiated"
	}
	if c.draining.Load() {
		return wire.ESHUTDOWN, "server is shutting down"
	}
	if r.writes && c.neg.export.ReadOnly {
		return wire.EPERM, "export is read-only"
	}
	if req.Flags&^r.flags != 0 {
		return wire.EINVAL, "flag does not belong to the command or was not offered"
	}
	if req.Flags&r.needs != r.needs {
		return wire.EINVAL, "WRITE has no payload"
	}
	if req.Type == wire.CmdFlush {
		return wire.OK, "" // offset and length are reserved
	}
	if r.payload && req.Length > uint64(c.srv.opts.MaxPayload) {
		return wire.EINVAL, "request is longer than the maximum payload"
	}
	size, length := c.neg.export.size(), req.Length
	if length > size || req.Offset > size-length {
		return r.beyond, "request reaches past the end of the export"
	}
	if (req.Offset|length)&uint64(c.neg.export.minBlock()-1) != 0 {
		return wire.EINVAL, "request is not aligned to the minimum block size"
	}
	if length == 0 && req.Type == wire.CmdBlockStatus {
		return wire.EINVAL, "no range to tell the status of"
	}
	return wire.OK, ""
}

func commandName(typ uint16) string {
	names := [wire.CmdCount]string{"READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS"}
	if typ < wire.CmdCount {
		return names[typ]
	}
	return "unknown"
}
