package clustermap

import (
	"errors"
	"fmt"
)

// Errors of the package. ErrCorrupt is matched by every *CorruptError and by records
// that do not decode.
var (
	ErrCorrupt = errors.New("cluster map is corrupt")
	ErrBusy    = errors.New("a checkpoint is being written")
	ErrClosed  = errors.New("cluster map is closed")
)

// CorruptError is a page (or the index of a pack) whose content is not what was written.
// errors.Is(err, ErrCorrupt) holds.
type CorruptError struct {
	Pack   uint32 // number of the pack
	Offset uint32 // of the page in the pack, in bytes
	Err    error  // what is wrong
}

// Error implements error.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("cluster map: pack %d, offset %d: %v", e.Pack, e.Offset, e.Err)
}

// Unwrap gives ErrCorrupt and the cause.
func (e *CorruptError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }
