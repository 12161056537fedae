// Package state is the state machine of the ALBA manager: pure decisions over a key-value
// transaction. Time, ids and keys come in with the commands. The keys and records are
// described in metadata/FORMAT.md; dump.go prints them.
package state

import (
	"encoding/binary"
	"fmt"

	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/proto/abmpb"
)

// The commands. The list is append-only. Bodies are the request messages of abm.proto.
const (
	CmdInitBackend        = 1
	CmdCreatePreset       = 2
	CmdUpdatePreset       = 3
	CmdDeletePreset       = 4
	CmdAddNSMHost         = 5
	CmdSeenOSD            = 6
	CmdClaimOSD           = 7
	CmdSetOSDState        = 8
	CmdCreateNamespace    = 9
	CmdSetNamespaceState  = 10
	CmdRemoveNamespace    = 11
	CmdCreateVolume       = 12
	CmdAcquireVolume      = 13
	CmdReleaseVolume      = 14
	CmdResizeVolume       = 15
	CmdRenameVolume       = 16
	CmdMarkVolumeDeleting = 17
	CmdRemoveVolume       = 18
	CmdRenewOwner         = 19
	CmdTakeLease          = 20
)

// CommandVersion is the layout of the bodies that this Scoria writes and reads.
const CommandVersion = 1

// The tables: first byte of a key.
const (
	tCounters        = 0x01 // → Counters
	tPreset          = 0x02 // name → Preset
	tHost            = 0x03 // id → NSMHost
	tOSD             = 0x04 // uuid → OSD
	tOSDByID         = 0x05 // id u32 → uuid
	tNamespace       = 0x06 // id u64 → Namespace
	tNamespaceByName = 0x07 // name → id u64, active ones
	tVolume          = 0x08 // id u64 → Volume
	tVolumeByName    = 0x09 // name → id u64, but for those being deleted
	tVolumeByNS      = 0x0a // namespace u64 → volume id u64
	tOwner           = 0x0b // owner → Owner
	tLease           = 0x0c // name → Lease
)

// Bounds of the tables that requests can grow without an operator's intent.
const (
	maxPresets = 1024
	maxHosts   = 1024
	maxOSDs    = 65536
	maxLeases  = 4096
	maxText    = 1024 // bytes of an address or error text
)

// Machine is the state machine. It has no state of its own.
type Machine struct{}

// Kind returns "abm".
func (Machine) Kind() string { return "abm" }

// Apply runs one command.
func (Machine) Apply(tx fsm.Tx, cmd fsm.Command) ([]byte, error) {
	if cmd.Version != CommandVersion {
		return nil, fsm.ErrUnknownCommand
	}
	s := store{tx}
	switch cmd.Type {
	case CmdInitBackend:
		return run(cmd, s.initBackend)
	case CmdCreatePreset:
		return run(cmd, s.createPreset)
	case CmdUpdatePreset:
		return run(cmd, s.updatePreset)
	case CmdDeletePreset:
		return run(cmd, s.deletePreset)
	case CmdAddNSMHost:
		return run(cmd, s.addNSMHost)
	case CmdSeenOSD:
		return run(cmd, s.seenOSD)
	case CmdClaimOSD:
		return run(cmd, s.claimOSD)
	case CmdSetOSDState:
		return run(cmd, s.setOSDState)
	case CmdCreateNamespace:
		return run(cmd, s.createNamespace)
	case CmdSetNamespaceState:
		return run(cmd, s.setNamespaceState)
	case CmdRemoveNamespace:
		return run(cmd, s.removeNamespace)
	case CmdCreateVolume:
		return run(cmd, s.createVolume)
	case CmdAcquireVolume:
		return run(cmd, s.acquireVolume)
	case CmdReleaseVolume:
		return run(cmd, s.releaseVolume)
	case CmdResizeVolume:
		return run(cmd, s.resizeVolume)
	case CmdRenameVolume:
		return run(cmd, s.renameVolume)
	case CmdMarkVolumeDeleting:
		return run(cmd, s.markVolumeDeleting)
	case CmdRemoveVolume:
		return run(cmd, s.removeVolume)
	case CmdRenewOwner:
		return run(cmd, s.renewOwner)
	case CmdTakeLease:
		return run(cmd, s.takeLease)
	}
	return nil, fsm.ErrUnknownCommand
}

// message is a pointer to a generated message.
type message[T any] interface {
	*T
	proto.Message
}

// run decodes the body, calls the operation and encodes its reply (nil: an empty one).
func run[T any, P message[T]](cmd fsm.Command, op func(now int64, req P) (proto.Message, error)) ([]byte, error) {
	req := P(new(T))
	if err := proto.Unmarshal(cmd.Body, req); err != nil {
		return nil, metadata.Errorf(metadata.KindCorrupt, "abm command %d: %v", cmd.Type, err)
	}
	reply, err := op(cmd.Now, req)
	if err != nil || reply == nil {
		return nil, err
	}
	return proto.Marshal(reply)
}

// store is typed access to the tables.
type store struct{ tx fsm.Tx }

// load reads a record; ok tells whether there is one.
func load[T any, P message[T]](r fsm.Reader, key []byte) (rec P, ok bool, err error) {
	b := r.Get(key)
	if b == nil {
		return nil, false, nil
	}
	rec, err = decode[T, P](key, b)
	return rec, err == nil, err
}

func decode[T any, P message[T]](key, b []byte) (P, error) {
	rec := P(new(T))
	if err := proto.Unmarshal(b, rec); err != nil {
		return nil, metadata.Errorf(metadata.KindCorrupt, "abm record %q: %v", key, err)
	}
	return rec, nil
}

// list reads all records of a table.
func list[T any, P message[T]](r fsm.Reader, table byte) (recs []P, err error) {
	r.Scan([]byte{table}, []byte{table + 1}, func(k, v []byte) bool {
		var rec P
		if rec, err = decode[T, P](k, v); err != nil {
			return false
		}
		recs = append(recs, rec)
		return true
	})
	return recs, err
}

func count(r fsm.Reader, table byte) (n int) {
	r.Scan([]byte{table}, []byte{table + 1}, func(_, _ []byte) bool { n++; return true })
	return n
}

func (s store) save(key []byte, rec proto.Message) error {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(rec)
	if err != nil {
		return fmt.Errorf("abm record %q: %w", key, err)
	}
	s.tx.Put(key, b)
	return nil
}

func nameKey(table byte, name string) []byte { return append([]byte{table}, name...) }
func idKey(table byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{table}, id)
}
func osdKey(id uint32) []byte { return binary.BigEndian.AppendUint32([]byte{tOSDByID}, id) }
func idValue(id uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, id)
}

// loadID reads an id out of an index.
func loadID(r fsm.Reader, key []byte) (uint64, bool) {
	b := r.Get(key)
	if len(b) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(b), true
}

func counters(r fsm.Reader) (*abmpb.Counters, error) {
	c, ok, err := load[abmpb.Counters](r, []byte{tCounters})
	if !ok && err == nil {
		c = &abmpb.Counters{}
	}
	return c, err
}

func (s store) saveCounters(c *abmpb.Counters) error { return s.save([]byte{tCounters}, c) }

func (s store) initBackend(_ int64, req *abmpb.InitBackendRequest) (proto.Message, error) {
	if err := metadata.ValidateName("backend", req.GetId()); err != nil {
		return nil, err
	}
	c, err := counters(s.tx)
	if err != nil {
		return nil, err
	}
	if c.BackendId == "" {
		c.BackendId = req.GetId()
		if err := s.saveCounters(c); err != nil {
			return nil, err
		}
	}
	return &abmpb.BackendIDReply{Id: c.BackendId}, nil
}
