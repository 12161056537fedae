package alba

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"scoria/metadata"
)

// Errors of a Client. Absence is fs.ErrNotExist, a taken name fs.ErrExist. Besides, the
// errors of package metadata are passed on: metadata.ErrFenced, metadata.ErrAssertFailed,
// metadata.ErrInvalid, metadata.ErrLimit.
var (
	// ErrUnreadable: more fragments are lost or damaged than the policy can bear. Trying again does not help.
	ErrUnreadable = errors.New("alba: data is damaged beyond repair")
	// ErrUnavailable: too few disk servers, or no metadata service, answer now. Try again.
	ErrUnavailable = errors.New("alba: not available now")
	// ErrClosed: the Client has been closed.
	ErrClosed = errors.New("alba: client is closed")
	// ErrInvalid: the request makes no sense.
	ErrInvalid = errors.New("alba: invalid request")
)

// border gives an error of the metadata services the shape that callers are promised.
func border(err error) error {
	if err == nil {
		return nil
	}
	switch {
	case errors.Is(err, ErrUnreadable), errors.Is(err, ErrUnavailable), errors.Is(err, ErrClosed), errors.Is(err, ErrInvalid),
		errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrExist):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch metadata.KindOf(err) {
	case metadata.KindNotFound:
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case metadata.KindExists:
		return fmt.Errorf("%w: %w", fs.ErrExist, err)
	case metadata.KindUnavailable, metadata.KindStaleGCEpoch:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case metadata.KindInvalid:
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	case metadata.KindCorrupt:
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return err
}
