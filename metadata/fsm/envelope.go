package fsm

import (
	"encoding/binary"
	"fmt"

	"scoria/internal/frame"
	"scoria/metadata"
)

// The envelope is one frame (FORMAT.md): its type and version are the command's.
const (
	envelopeMagic  = 0x444d4353 // "SCMD"
	envelopeHeader = 24
	flagSkippable  = 1

	// MaxCommand bounds the body of a command, in bytes.
	MaxCommand = 4 << 20
)

// Seal returns the envelope of a command. It fails with KindLimit for a body over MaxCommand.
func Seal(cmd Command) ([]byte, error) {
	if cmd.Type == 0 || cmd.Version == 0 {
		return nil, metadata.Errorf(metadata.KindInternal, "command of type %d version %d", cmd.Type, cmd.Version)
	}
	if len(cmd.Body) > MaxCommand {
		return nil, metadata.Errorf(metadata.KindLimit, "request of %d bytes, at most %d are allowed: split it", len(cmd.Body), MaxCommand)
	}
	le := binary.LittleEndian
	body := make([]byte, 0, envelopeHeader+len(cmd.Body))
	body = le.AppendUint64(body, cmd.Request.Client)
	body = le.AppendUint64(body, cmd.Request.Seq)
	body = le.AppendUint64(body, uint64(cmd.Now))
	body = append(body, cmd.Body...)
	var flags uint16
	if cmd.Skippable {
		flags = flagSkippable
	}
	dst := make([]byte, 0, frame.HeaderSize+len(body))
	return frame.Append(dst, envelopeMagic, cmd.Type, cmd.Version, flags, body), nil
}

// Open opens an envelope. Body is a part of b. Damage is metadata.ErrCorrupt.
func Open(b []byte) (Command, error) {
	h, body, rest, err := frame.Parse(b, envelopeMagic, envelopeHeader+MaxCommand)
	if err != nil {
		return Command{}, fmt.Errorf("command: %w: %w", err, metadata.ErrCorrupt)
	}
	d := frame.NewDecoder(body)
	cmd := Command{
		Type: h.Type, Version: h.Version, Skippable: h.Flags&flagSkippable != 0,
		Request: RequestID{Client: d.U64(), Seq: d.U64()},
		Now:     int64(d.U64()),
	}
	cmd.Body = d.Take(d.Rest())
	switch {
	case d.Err() != nil:
		return Command{}, fmt.Errorf("command: %w: %w", d.Err(), metadata.ErrCorrupt)
	case len(rest) != 0:
		return Command{}, fmt.Errorf("command: %d bytes behind it: %w", len(rest), metadata.ErrCorrupt)
	case h.Type == 0 || h.Version == 0 || h.Flags&^flagSkippable != 0:
		return Command{}, fmt.Errorf("command: type %d version %d flags %#x: %w", h.Type, h.Version, h.Flags, metadata.ErrCorrupt)
	case (cmd.Request.Client == 0) != (cmd.Request.Seq == 0):
		return Command{}, fmt.Errorf("command: request %v: %w", cmd.Request, metadata.ErrCorrupt)
	}
	return cmd, nil
}
