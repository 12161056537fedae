package metadata

import (
	"errors"
	"fmt"
)

// Kind numbers the ways in which a metadata operation fails. Kinds are sent over the wire
// and kept in logs: the list is append-only.
type Kind uint16

// The kinds.
const (
	KindInvalid      Kind = 1  // the request makes no sense
	KindNotFound     Kind = 2  // no such thing
	KindExists       Kind = 3  // a thing of this name exists
	KindAssertFailed Kind = 4  // a condition of a transaction does not hold
	KindFenced       Kind = 5  // the caller's owner epoch is not the newest
	KindStaleGCEpoch Kind = 6  // the upload took longer than its GC epoch lived
	KindState        Kind = 7  // not in a state that allows this
	KindUnavailable  Kind = 8  // no leader, not reached, shutting down: try again
	KindLimit        Kind = 9  // over a limit
	KindOwned        Kind = 10 // somebody else's lease is valid
	KindCorrupt      Kind = 11 // stored state or message is damaged
	KindInternal     Kind = 12 // a defect of ours
)

// Sentinels, one per kind, for errors.Is.
var (
	ErrInvalid      error = &Error{Kind: KindInvalid, Text: "invalid request"}
	ErrNotFound     error = &Error{Kind: KindNotFound, Text: "not found"}
	ErrExists       error = &Error{Kind: KindExists, Text: "already exists"}
	ErrAssertFailed error = &Error{Kind: KindAssertFailed, Text: "condition does not hold"}
	ErrFenced       error = &Error{Kind: KindFenced, Text: "owner epoch is stale"}
	ErrStaleGCEpoch error = &Error{Kind: KindStaleGCEpoch, Text: "GC epoch is closed"}
	ErrState        error = &Error{Kind: KindState, Text: "not possible in this state"}
	ErrUnavailable  error = &Error{Kind: KindUnavailable, Text: "metadata service unavailable"}
	ErrLimit        error = &Error{Kind: KindLimit, Text: "over a limit"}
	ErrOwned        error = &Error{Kind: KindOwned, Text: "owned by another gateway"}
	ErrCorrupt      error = &Error{Kind: KindCorrupt, Text: "corrupt metadata"}
	ErrInternal     error = &Error{Kind: KindInternal, Text: "internal error"}
)

// Error is a numbered error that survives the wire.
type Error struct {
	Kind Kind
	Text string
}

// Errorf returns an Error of the kind.
func Errorf(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Text: fmt.Sprintf(format, args...)}
}

// Error returns the text.
func (e *Error) Error() string { return e.Text }

// Is reports whether target is an Error of the same kind.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind
}

// KindOf returns the kind of err, KindInternal for errors that are not ours and 0 for nil.
func KindOf(err error) Kind {
	if err == nil {
		return 0
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return KindInternal
}
