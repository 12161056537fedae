package system

import (
	"context"
	"errors"
	"io/fs"

	"scoria/alba"
	"scoria/metadata"
	"scoria/volumedriver"
)

// objectStore makes an ALBA client the ObjectStore of the volume driver.
type objectStore struct{ client *alba.Client }

var _ volumedriver.ObjectStore = objectStore{}

func (s objectStore) Apply(ctx context.Context, ns uint64, txn volumedriver.Txn) error {
	t := alba.Txn{Fence: metadata.Epoch(txn.Epoch), Deletes: txn.Deletes, Puts: make([]alba.PutObject, len(txn.Puts))}
	for i, p := range txn.Puts {
		t.Puts[i] = alba.PutObject{Name: p.Name, Data: p.Data, Sums: p.Sums, Release: p.Release}
	}
	return driverError(s.client.Apply(ctx, metadata.NamespaceID(ns), t))
}

func (s objectStore) Read(ctx context.Context, ns uint64, slices []volumedriver.Slice) error {
	as := make([]alba.Slice, len(slices))
	for i, sl := range slices {
		as[i] = alba.Slice{Name: sl.Name, Off: sl.Off, Data: sl.Data, Sums: sl.Sums}
	}
	return driverError(s.client.Read(ctx, metadata.NamespaceID(ns), as))
}

func (s objectStore) TryRead(ns uint64, sl volumedriver.Slice) bool {
	return s.client.TryRead(metadata.NamespaceID(ns), alba.Slice{Name: sl.Name, Off: sl.Off, Data: sl.Data, Sums: sl.Sums})
}

func (s objectStore) Get(ctx context.Context, ns uint64, name string, limit int) ([]byte, error) {
	b, err := s.client.Get(ctx, metadata.NamespaceID(ns), name, limit)
	return b, driverError(err)
}

func (s objectStore) List(ctx context.Context, ns uint64, prefix, after string, limit int) ([]string, error) {
	infos, err := s.client.List(ctx, metadata.NamespaceID(ns), prefix, after, limit)
	if err != nil {
		return nil, driverError(err)
	}
	names := make([]string, len(infos))
	for i, o := range infos {
		names[i] = o.Name
	}
	return names, nil
}

// also makes err match target as well, whose text would add nothing.
func also(err, target error) error { return &alsoError{error: err, target: target} }

type alsoError struct {
	error  // has the text
	target error
}

// Unwrap lets errors.Is find both.
func (e *alsoError) Unwrap() []error { return []error{e.error, e.target} }

// driverError translates errors of ALBA and the metadata services to those that the volume
// driver declares. The text of the cause is kept.
func driverError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, metadata.ErrFenced):
		return also(err, volumedriver.ErrFenced)
	case errors.Is(err, metadata.ErrOwned):
		return also(err, volumedriver.ErrOwned)
	case errors.Is(err, metadata.ErrNotFound):
		return also(err, fs.ErrNotExist)
	case errors.Is(err, metadata.ErrExists):
		return also(err, fs.ErrExist)
	case errors.Is(err, alba.ErrUnreadable), errors.Is(err, metadata.ErrCorrupt):
		return also(err, volumedriver.ErrCorrupt)
	case errors.Is(err, alba.ErrUnavailable), errors.Is(err, metadata.ErrUnavailable), errors.Is(err, alba.ErrClosed):
		return also(err, volumedriver.ErrUnavailable)
	case errors.Is(err, metadata.ErrInvalid), errors.Is(err, alba.ErrInvalid), errors.Is(err, metadata.ErrLimit):
		return also(err, volumedriver.ErrInvalid)
	}
	return err
}
