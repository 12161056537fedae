// Package tlog is the codec of TLogs (transaction logs): objects that tell, in the order
// of the writes, which clusters of a volume lie where.
//
// A TLog consists of sections, one for each SCO it covers. The write buffer encodes
// the section of an SCO while the SCO is written; the driver joins the sections of a run
// of SCOs to an object. FORMAT.md has the layout. The package is pure.
package tlog

import (
	"errors"

	"scoria/volumedriver/sco"
)

// Kind is what an entry does to the volume.
type Kind uint8

// The kinds of entries.
const (
	Write Kind = 1 // Count clusters from Addr on lie in SCO from Index on
	Clear Kind = 2 // Count clusters from Addr on are unmapped and read as zeroes
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case Write:
		return "write"
	case Clear:
		return "clear"
	}
	return "invalid"
}

// Limits of the format. What exceeds them is refused by encoder and decoder.
const (
	MaxAddr        = 1 << 34 // clusters of the largest volume (64 TiB)
	MaxSections    = 1 << 14 // SCOs in one TLog
	MaxEntries     = 1 << 22 // entries in one TLog
	MaxObjectBytes = 64 << 20
)

// ErrInvalid is returned (wrapped) by the encoder for an entry that breaks the rules.
var ErrInvalid = errors.New("invalid TLog entry")

// Entry is one record of a volume's log.
type Entry struct {
	Seq   uint64 // number of the record, from 1, without gaps
	Kind  Kind
	Addr  uint64 // first cluster of the volume
	Count uint64 // clusters, at least 1; a Write has at most sco.MaxClusters
	SCO   uint64 // the SCO being filled when the record was made (also for a Clear)
	Index uint32 // first cluster in SCO (for a Clear: the next one to be filled)
	// Sums are the CRC32C of the clusters, each sealed with its cluster address
	// (blocksum.Seal); nil for a Clear. Valid as long as who handed out the entry says.
	Sums []uint32
}

// Valid tells whether the entry keeps within the limits.
func (e *Entry) Valid() bool {
	if e.Seq == 0 || e.SCO == 0 || e.SCO > sco.MaxNumber || e.Count == 0 ||
		e.Addr >= MaxAddr || e.Count > MaxAddr-e.Addr || e.Index > sco.MaxClusters {
		return false
	}
	switch e.Kind {
	case Write:
		return e.Count <= sco.MaxClusters-uint64(e.Index) && uint64(len(e.Sums)) == e.Count
	case Clear:
		return len(e.Sums) == 0
	}
	return false
}
