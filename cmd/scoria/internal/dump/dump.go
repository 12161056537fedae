// Package dump recognizes every file that Scoria writes, by what it starts with, and writes
// it as text for people. The trees dump their own formats; this package only finds out which.
//
// It only reads. Files of a system that runs may be dumped, but what is just being written
// may look torn, and the metadata databases are locked then.
package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"scoria/alba/osd"
	"scoria/cmd/scoria/internal/system"
	"scoria/internal/frame"
	"scoria/internal/vfs"
	"scoria/metadata"
	abmstate "scoria/metadata/abm/state"
	nsmstate "scoria/metadata/nsm/state"
	"scoria/metadata/raftnode"
	"scoria/volumedriver"
	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/tlog"
	"scoria/volumedriver/writebuffer"
)

// Errors of File, wrapped with the file's name and what was found. Files that cannot be read
// at all give the error of the system (fs.ErrNotExist, fs.ErrPermission).
var (
	ErrUnknown = errors.New("not a file of Scoria")
	ErrDamaged = errors.New("damaged")
	ErrNewer   = errors.New("written by a newer Scoria")
	ErrBusy    = errors.New("in use; stop the server first")
)

// maxWhole bounds the files that are read as a whole, in bytes: heads, TLogs, map records.
const maxWhole = 256 << 20

// kind is a format: how its files start, and what writes them as text.
type kind struct {
	name  string
	magic uint32 // of the first four bytes, little endian
	at    int    // where the magic is
	dump  func(w io.Writer, name string) error
}

// Magic numbers of the formats. They are written out here, beside their encoders, because
// they are how a dump finds the right decoder, which then checks for itself.
var kinds = []kind{
	{"write buffer segment", 0x53574353, 0, func(w io.Writer, name string) error { return writebuffer.DumpSegment(w, vfs.OS, name) }},
	{"tlog", 0x4c544353, 0, whole(tlog.Dump)},
	{"volume head", 'S' | 'C'<<8 | 'V'<<16 | 'H'<<24, 0, whole(volumedriver.Dump)},
	{"local volume state", 'S' | 'C'<<8 | 'V'<<16 | 'S'<<24, 0, whole(volumedriver.Dump)},
	{"map checkpoint", 'S' | 'C'<<8 | 'M'<<16 | 'R'<<24, 0, whole(clustermap.DumpRecord)},
	{"map pack", 'S' | 'C'<<8 | 'M'<<16 | 'P'<<24, 0, dumpPack},
	{"osd identity", 0x44494f53, 0, dumpOSD},
	{"osd segment", 0x474c4f53, 0, dumpOSD},
	{"metadata node", 0x444f4e53, 0, dumpNode},
	{"metadata snapshot", 0x504e5353, 0, dumpNode},
	{"metadata database", 0xed0cdaed, 16, dumpDatabase},
}

// File writes the file as text to w and returns what kind of file it is. On an error, part of
// it may have been written.
func File(w io.Writer, name string) (string, error) {
	k, err := recognize(name)
	if err != nil {
		return "", err
	}
	if err := k.dump(w, name); err != nil {
		return k.name, fmt.Errorf("%s (%s): %w", name, k.name, classify(err))
	}
	return k.name, nil
}

func recognize(name string) (kind, error) {
	st, err := os.Stat(name)
	if err != nil {
		return kind{}, err
	}
	if st.IsDir() {
		return kind{}, fmt.Errorf("%s: %w: it is a directory; name a file in it", name, ErrUnknown)
	}
	if !st.Mode().IsRegular() {
		return kind{}, fmt.Errorf("%s: %w: it is no regular file", name, ErrUnknown)
	}
	f, err := os.Open(name)
	if err != nil {
		return kind{}, err
	}
	defer f.Close() //nolint:errcheck // read only
	var start [32]byte
	n, err := io.ReadFull(f, start[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return kind{}, fmt.Errorf("read %s: %w", name, err)
	}
	for _, k := range kinds {
		if n >= k.at+4 && binary.LittleEndian.Uint32(start[k.at:]) == k.magic {
			return k, nil
		}
	}
	if filepath.Base(name) == "scoria.json" {
		return kind{name: "data directory", dump: whole(system.DumpIdentity)}, nil
	}
	if byName := nameOnly(filepath.Base(name)); byName != "" {
		return kind{}, fmt.Errorf("%s: is called like %s, but starts with %x: %w", name, byName, start[:min(n, 8)], ErrDamaged)
	}
	return kind{}, fmt.Errorf("%s: starts with %x: %w; known are segments of the write buffer, heads, states, TLogs, map checkpoints and packs, segments and identities of disk servers, metadata (NODE, raft.db, state.db, snapshots) and scoria.json",
		name, start[:min(n, 8)], ErrUnknown)
}

// nameOnly tells what a file with a damaged start is by its name, "" if the name says nothing.
func nameOnly(base string) string {
	switch base {
	case "NODE", "raft.db", "state.db", "state.bin":
		return "a file of a metadata node"
	case "identity":
		return "the identity of a disk server"
	}
	if n, ok := strings.CutPrefix(base, "seg-"); ok && len(n) == 8 {
		return "a segment of a disk server"
	}
	return ""
}

// classify adds one of this package's errors to an error of a decoder.
func classify(err error) error {
	var corrupt *clustermap.CorruptError
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return err
	case errors.Is(err, frame.ErrVersion), errors.Is(err, raftnode.ErrNewer), errors.Is(err, system.ErrNewer):
		return fmt.Errorf("%w: %w", ErrNewer, err)
	case errors.Is(err, vfs.ErrLocked):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, frame.ErrMagic), errors.Is(err, frame.ErrChecksum), errors.Is(err, frame.ErrTooLong), errors.Is(err, frame.ErrTruncated),
		errors.Is(err, frame.ErrInvalid), errors.Is(err, vfs.ErrTooLong), errors.Is(err, osd.ErrCorrupt), errors.Is(err, metadata.ErrCorrupt), errors.Is(err, volumedriver.ErrCorrupt), errors.Is(err, clustermap.ErrCorrupt), errors.Is(err, writebuffer.ErrCorrupt),
		errors.Is(err, system.ErrDataDir), errors.As(err, &corrupt):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// whole makes a dump of a file of one that takes its bytes.
func whole(dump func(io.Writer, []byte) error) func(io.Writer, string) error {
	return func(w io.Writer, name string) error {
		b, err := vfs.ReadFile(vfs.OS, name, maxWhole)
		if err != nil {
			return err
		}
		return dump(w, b)
	}
}

func dumpPack(w io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return clustermap.DumpPack(w, f, st.Size())
}

func dumpOSD(w io.Writer, name string) error {
	// The store's own dump goes by the names that a store gives, also for what it checks.
	abs, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	err = osd.Dump(w, vfs.OS, abs)
	if errors.Is(err, osd.ErrInvalid) {
		return fmt.Errorf("%w; give it the name that the disk server gave it: %w", err, ErrUnknown)
	}
	return err
}

func dumpNode(w io.Writer, name string) error { return raftnode.Dump(w, name, describers) }

// dumpDatabase dumps a bbolt file. Its two kinds are told apart by name only.
func dumpDatabase(w io.Writer, name string) error {
	if base := filepath.Base(name); base != "raft.db" && base != "state.db" {
		return fmt.Errorf("%w: a database of a metadata node is called raft.db or state.db", ErrUnknown)
	}
	return dumpNode(w, name)
}

func describers(kind string) raftnode.Describer {
	switch kind {
	case "abm":
		return abmstate.Machine{}
	case "nsm":
		return nsmstate.Machine{}
	}
	return nil
}
