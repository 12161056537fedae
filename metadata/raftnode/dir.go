package raftnode

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"scoria/internal/frame"
	"scoria/internal/vfs"
	"scoria/metadata"
)

// Names in a node's directory.
const (
	lockFile    = "LOCK"
	nodeFile    = "NODE"
	logFile     = "raft.db"
	newLogFile  = "raft.db.new" // until the node file is there
	stateFile   = "state.db"
	markerFile  = "state.open"
	snapshotDir = "snapshots"
)

// The node file: one frame; body: kind, id, created (nanoseconds).
const (
	nodeMagic   = 0x444f4e53 // "SNOD"
	nodeType    = 1
	nodeVersion = 1
	nodeLimit   = 4096
)

// nodeInfo is what the node file holds.
type nodeInfo struct {
	Kind    string
	ID      string
	Created time.Time
}

func encodeNode(n nodeInfo) []byte {
	body := frame.AppendString(nil, n.Kind)
	body = frame.AppendString(body, n.ID)
	body = binary.LittleEndian.AppendUint64(body, uint64(metadata.TimeToNanos(n.Created)))
	return frame.Append(nil, nodeMagic, nodeType, nodeVersion, 0, body)
}

func decodeNode(b []byte) (n nodeInfo, err error) {
	h, body, rest, err := frame.Parse(b, nodeMagic, nodeLimit)
	switch {
	case errors.Is(err, frame.ErrMagic):
		return n, fmt.Errorf("%w: %w", err, ErrForeign)
	case err != nil:
		return n, fmt.Errorf("%w: %w", err, metadata.ErrCorrupt)
	case h.Type != nodeType || h.Version != nodeVersion:
		return n, fmt.Errorf("type %d version %d: %w", h.Type, h.Version, ErrNewer)
	case len(rest) != 0:
		return n, fmt.Errorf("%d bytes behind the frame: %w", len(rest), metadata.ErrCorrupt)
	}
	d := frame.NewDecoder(body)
	n = nodeInfo{Kind: d.String(metadata.MaxName), ID: d.String(metadata.MaxName), Created: metadata.NanosToTime(int64(d.U64()))}
	if err := d.Finish(); err != nil {
		return n, fmt.Errorf("%w: %w", err, metadata.ErrCorrupt)
	}
	return n, nil
}

// dir is a node's directory, locked.
type dir struct {
	path   string
	bootID string
	lock   io.Closer
}

func (d *dir) file(name string) string { return filepath.Join(d.path, name) }

// openDir locks a directory for a node, and makes it when it is empty or absent.
func openDir(o *Options) (d *dir, err error) {
	fsys := vfs.OS
	if err := fsys.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make metadata directory: %w", err)
	}
	d = &dir{path: o.Dir, bootID: o.bootID}
	b, err := vfs.ReadFile(fsys, d.file(nodeFile), nodeLimit)
	if errors.Is(err, vfs.ErrTooLong) {
		return nil, fmt.Errorf("%w: %w", err, metadata.ErrCorrupt)
	}
	fresh := errors.Is(err, fs.ErrNotExist)
	if err != nil && !fresh {
		return nil, fmt.Errorf("read %s: %w", d.file(nodeFile), err)
	}
	if fresh {
		if err := d.checkEmpty(); err != nil {
			return nil, err
		}
	}
	if d.lock, err = vfs.LockFile(d.file(lockFile)); err != nil {
		return nil, fmt.Errorf("metadata directory %s: %w (is another scoria running on it?)", o.Dir, err)
	}
	lock := d.lock
	defer func() {
		if err != nil {
			_ = lock.Close() // the first error counts
		}
	}()
	if fresh {
		if err := d.makeLog(); err != nil {
			return nil, fmt.Errorf("make log: %w", err)
		}
		n := nodeInfo{Kind: o.Machine.Kind(), ID: o.ID, Created: time.Now()}
		if err := vfs.WriteFile(fsys, d.file(nodeFile), encodeNode(n), 0o600); err != nil {
			return nil, fmt.Errorf("write %s: %w", d.file(nodeFile), err)
		}
		return d, fsys.SyncDir(o.Dir)
	}
	n, err := decodeNode(b)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", d.file(nodeFile), err)
	case n.Kind != o.Machine.Kind():
		return nil, fmt.Errorf("%s holds a node of %q, not of %q: %w", o.Dir, n.Kind, o.Machine.Kind(), ErrForeign)
	case n.ID != o.ID:
		return nil, fmt.Errorf("%s holds node %q, not %q: %w", o.Dir, n.ID, o.ID, ErrForeign)
	}
	return d, nil
}

// checkEmpty refuses a directory with things in it that are not of a node being made.
func (d *dir) checkEmpty() error {
	entries, err := vfs.OS.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("list metadata directory: %w", err)
	}
	for _, e := range entries {
		if name := e.Name(); name != lockFile && name != newLogFile && name != "lost+found" && !strings.HasPrefix(name, nodeFile) {
			return fmt.Errorf("%s has no %s file, but %q in it: give an empty directory, or restore the file: %w", d.path, nodeFile, name, ErrForeign)
		}
	}
	return nil
}

// makeLog makes an empty log for a node that is being made, under another name.
func (d *dir) makeLog() error {
	if err := removeIfThere(d.file(newLogFile)); err != nil {
		return err
	}
	db, err := bbolt.Open(d.file(newLogFile), 0o600, &bbolt.Options{Timeout: boltTimeout}) // syncs what it makes
	if err != nil {
		return err
	}
	return db.Close()
}

// placeLog gives a new log its name. It was synced before the node file was written, so that
// a log that is torn, empty or not there is damage, and never one that is still being made: a
// voter that began again with an empty log would have forgotten its votes and entries.
func (d *dir) placeLog() error {
	path := d.file(logFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := vfs.OS.Rename(d.file(newLogFile), path); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s was lost: bring it back, or start with an empty directory: %w", path, metadata.ErrCorrupt)
		} else if err != nil {
			return fmt.Errorf("name the log: %w", err)
		}
		return vfs.OS.SyncDir(d.path)
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if info.Size() == 0 {
		return fmt.Errorf("%s is empty: bring it back, or start with an empty directory: %w", path, metadata.ErrCorrupt)
	}
	return nil
}

// stateIntact tells whether the state file can be taken as it is. It is not synced while
// it is in use: after the machine went down (not just the process) it may be torn, and is
// rebuilt from snapshot and log. The marker tells under which boot it was opened.
func (d *dir) stateIntact() (bool, error) {
	b, err := vfs.ReadFile(vfs.OS, d.file(markerFile), 256)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // closed cleanly and synced
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", d.file(markerFile), err)
	}
	return string(b) == d.bootID, nil
}

// markOpen is called before the state file is written to.
func (d *dir) markOpen() error {
	if err := vfs.WriteFile(vfs.OS, d.file(markerFile), []byte(d.bootID), 0o600); err != nil {
		return fmt.Errorf("mark state as open: %w", err)
	}
	return vfs.OS.SyncDir(d.path)
}

// markClosed is called when the state file is synced and closed.
func (d *dir) markClosed() error {
	if err := vfs.OS.Remove(d.file(markerFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mark state as closed: %w", err)
	}
	return vfs.OS.SyncDir(d.path)
}

func removeIfThere(name string) error {
	if err := vfs.OS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// readBootID identifies this start of the machine. Where the kernel does not tell, every
// start of the process counts as one, which costs a rebuild after a crash, not safety.
func readBootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil && len(b) >= 32 {
		return strings.TrimSpace(string(b))
	}
	return "process-" + rand.Text()
}
