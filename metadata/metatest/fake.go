// Package metatest has what tests of metadata and of its users need: in-memory services
// (the real ones, over a state in memory instead of Raft), conformance suites of both
// APIs, and small clusters in one process.
package metatest

import (
	"scoria/metadata/abm"
	abmstate "scoria/metadata/abm/state"
	"scoria/metadata/fsm"
	"scoria/metadata/nsm"
	nsmstate "scoria/metadata/nsm/state"
)

// NewABM returns an ALBA manager in memory: the real service and state machine without
// Raft and disk. It needs no closing.
func NewABM() *abm.Service { return abm.NewService(fsm.NewMemHost(abmstate.Machine{})) }

// NewNSM returns a namespace manager in memory, likewise.
func NewNSM() *nsm.Service { return nsm.NewService(fsm.NewMemHost(nsmstate.Machine{})) }
