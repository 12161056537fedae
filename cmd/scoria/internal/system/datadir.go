// Package system puts the trees together: it runs a whole one-machine Scoria (ALBA manager,
// namespace manager, disk servers, gateway, maintenance) in one process under one data
// directory, and joins the interfaces that the trees declare to each other.
package system

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"scoria/internal/vfs"
)

// ErrDataDir marks errors of the data directory itself: foreign, damaged, of a newer
// version or in use.
var ErrDataDir = errors.New("data directory")

// ErrNewer marks a data directory that a newer Scoria has written.
var ErrNewer = errors.New("newer format")

const (
	identityName   = "scoria.json"
	identityFormat = 1
	maxIdentity    = 64 << 10
)

// identity is the file DATA/scoria.json: it marks a directory as Scoria's.
type identity struct {
	Magic   string   `json:"magic"`   // "scoria"
	Format  int      `json:"format"`  // version of the directory's layout
	Gateway string   `json:"gateway"` // owner name of volumes, never changes
	OSDs    []string `json:"osds"`    // UUIDs of the disk servers in osd-0, osd-1, ...
}

// dataDir is an opened and locked data directory.
type dataDir struct {
	path string
	id   identity
	lock io.Closer
	once sync.Once
	err  error
}

// openDataDir opens or makes the directory and locks it. A directory that is not empty and
// has no identity file is refused: it is somebody else's.
func openDataDir(path string) (*dataDir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrDataDir, path, err)
	}
	if st, err := os.Stat(abs); err == nil && !st.IsDir() {
		return nil, fmt.Errorf("%w %s: is a file; give a directory by --data", ErrDataDir, abs)
	}
	id, err := readIdentity(abs)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err != nil && !fresh {
		return nil, err
	}
	if fresh {
		if err := checkEmpty(abs); err != nil {
			return nil, err
		}
		if err := vfs.OS.MkdirAll(abs, 0o700); err != nil {
			return nil, fmt.Errorf("%w %s: %w", ErrDataDir, abs, err)
		}
		id = identity{Magic: "scoria", Format: identityFormat, Gateway: "gw-" + rand.Text()[:12]}
	}
	lock, err := vfs.LockFile(filepath.Join(abs, "lock"))
	if errors.Is(err, vfs.ErrLocked) {
		return nil, fmt.Errorf("%w %s: another scoria serves it; stop that one or give another directory by --data: %w", ErrDataDir, abs, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrDataDir, abs, err)
	}
	d := &dataDir{path: abs, id: id, lock: lock}
	if fresh {
		if err := d.save(); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	return d, nil
}

// checkEmpty refuses a directory that holds anything but the leftovers of a first start that was cut off.
func checkEmpty(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrDataDir, path, err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "lock", identityName + ".tmp", "lost+found":
		default:
			return fmt.Errorf("%w %s: holds %q but no %s: it is not a data directory of Scoria; give an empty one by --data", ErrDataDir, path, e.Name(), identityName)
		}
	}
	return nil
}

func readIdentity(path string) (identity, error) {
	name := filepath.Join(path, identityName)
	b, err := vfs.ReadFile(vfs.OS, name, maxIdentity)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return identity{}, err
		}
		return identity{}, fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	id, err := parseIdentity(b)
	switch {
	case errors.Is(err, ErrNewer):
		return identity{}, fmt.Errorf("%w %s: %w; run a newer scoria", ErrDataDir, path, err)
	case err != nil:
		return identity{}, fmt.Errorf("%w %s: %s is damaged or not Scoria's (%w); restore it from a copy, nothing was changed", ErrDataDir, path, identityName, err)
	}
	return id, nil
}

func parseIdentity(b []byte) (identity, error) {
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return identity{}, err
	}
	switch {
	case id.Magic != "scoria":
		return identity{}, fmt.Errorf("magic is %q", id.Magic)
	case id.Format > identityFormat:
		return identity{}, fmt.Errorf("%w: has format %d, this scoria knows up to %d", ErrNewer, id.Format, identityFormat)
	case id.Format < 1 || id.Gateway == "" || len(id.OSDs) > maxOSDs:
		return identity{}, fmt.Errorf("format %d, gateway %q, %d disk servers", id.Format, id.Gateway, len(id.OSDs))
	}
	for i, u := range id.OSDs {
		if u == "" || slices.Contains(id.OSDs[:i], u) {
			return identity{}, fmt.Errorf("disk server %d has no identity of its own (%q)", i, u)
		}
	}
	return id, nil
}

// DumpIdentity writes what a file scoria.json says as text for people. Its errors match
// ErrNewer or ErrDataDir.
func DumpIdentity(w io.Writer, b []byte) error {
	id, err := parseIdentity(b)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDataDir, identityName, err)
	}
	_, err = fmt.Fprintf(w, "data directory of format %d\ngateway %s\n", id.Format, id.Gateway)
	for i, u := range id.OSDs {
		if err == nil {
			_, err = fmt.Fprintf(w, "osd-%d: %s\n", i, u)
		}
	}
	return err
}

func (d *dataDir) save() error {
	b, err := json.MarshalIndent(d.id, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", identityName, err)
	}
	if err := vfs.WriteFile(vfs.OS, filepath.Join(d.path, identityName), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("%w %s: %w", ErrDataDir, d.path, err)
	}
	return nil
}

// Close gives the lock back.
func (d *dataDir) Close() error {
	d.once.Do(func() { d.err = d.lock.Close() })
	return d.err
}
