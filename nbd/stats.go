package nbd

import (
	"sync/atomic"

	"scoria/nbd/internal/wire"
)

// CommandStats counts the requests of one command.
type CommandStats struct {
	Requests uint64 // answered, with or without an error
	Errors   uint64 // of them, answered with an error
	Bytes    uint64 // sum of the lengths of those that succeeded; 0 for FLUSH
}

// Stats is what a Server has done so far. Counters only grow; gauges are marked.
type Stats struct {
	Connections     int64  // gauge: open, with those in the handshake
	Handshakes      int64  // gauge: connections that have not chosen an export
	Waiting         int64  // gauge: requests that wait in a device
	BytesFree       int64  // gauge: payload memory not in use, of Options.MaxBytes
	Accepted        uint64 // connections accepted
	Refused         uint64 // closed at once because of MaxConns, or for MaxHandshakes
	HandshakeErrors uint64 // connections that ended in the handshake other than by ABORT or leaving
	ProtocolErrors  uint64 // connections closed because the stream was out of step
	TimedOut        uint64 // connections closed by a time-out
	DeviceErrors    uint64 // calls of a device that failed
	Handed          uint64 // requests handed to a goroutine of their own
	Read            CommandStats
	Write           CommandStats
	Flush           CommandStats
	Trim            CommandStats
	Cache           CommandStats
	WriteZeroes     CommandStats
	BlockStatus     CommandStats
	Unknown         CommandStats // commands the server does not know
}

// tally counts by command; type CmdDisc stands for what is unknown, as DISC has no answer.
type tally [wire.CmdCount]CommandStats

func tallySlot(typ uint16) uint16 {
	if typ >= wire.CmdCount {
		return wire.CmdDisc
	}
	return typ
}

func (t *tally) add(req *wire.Request, errno wire.Errno) {
	s := &t[tallySlot(req.Type)]
	s.Requests++
	if errno != wire.OK {
		s.Errors++
	} else if req.Type != wire.CmdFlush {
		s.Bytes += req.Length
	}
}

// counters are the server's; connections add to them once per batch.
type counters struct {
	accepted, refused, handshakeErrors, protocolErrors, timedOut, deviceErrors, handed atomic.Uint64
	handshakes, waiting                                                                atomic.Int64
	commands                                                                           [wire.CmdCount]struct {
		requests, errors, bytes atomic.Uint64
	}
}

func (c *counters) add(req *wire.Request, errno wire.Errno) {
	s := &c.commands[tallySlot(req.Type)]
	s.requests.Add(1)
	if errno != wire.OK {
		s.errors.Add(1)
	} else if req.Type != wire.CmdFlush {
		s.bytes.Add(req.Length)
	}
}

// fold adds t and clears it.
func (c *counters) fold(t *tally) {
	for i := range t {
		if s := &t[i]; s.Requests != 0 {
			c.commands[i].requests.Add(s.Requests)
			c.commands[i].bytes.Add(s.Bytes)
			if s.Errors != 0 {
				c.commands[i].errors.Add(s.Errors)
			}
			*s = CommandStats{}
		}
	}
}

func (c *counters) command(i uint16) CommandStats {
	s := &c.commands[i]
	return CommandStats{Requests: s.requests.Load(), Errors: s.errors.Load(), Bytes: s.bytes.Load()}
}

// Stats returns the counters of the server; it is cheap and may be called at any time.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	conns := len(s.conns)
	s.mu.Unlock()
	s.budget.mu.Lock()
	free := s.budget.free
	s.budget.mu.Unlock()
	c := &s.counters
	return Stats{
		Connections: int64(conns), Handshakes: c.handshakes.Load(), Waiting: c.waiting.Load(), BytesFree: free,
		Accepted: c.accepted.Load(), Refused: c.refused.Load(), HandshakeErrors: c.handshakeErrors.Load(),
		ProtocolErrors: c.protocolErrors.Load(), TimedOut: c.timedOut.Load(), DeviceErrors: c.deviceErrors.Load(), Handed: c.handed.Load(),
		Read: c.command(wire.CmdRead), Write: c.command(wire.CmdWrite), Flush: c.command(wire.CmdFlush), Trim: c.command(wire.CmdTrim),
		Cache: c.command(wire.CmdCache), WriteZeroes: c.command(wire.CmdWriteZeroes), BlockStatus: c.command(wire.CmdBlockStatus), Unknown: c.command(wire.CmdDisc),
	}
}
