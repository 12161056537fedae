package writebuffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"scoria/internal/frame"
	"scoria/internal/vfs"
)

// What had been synced is told by the records and headers behind it. Of the last records of a log
// that has come to rest nothing tells it, so their loss would look like a torn tail. A small
// file beside the segments does: the note. It is written when nothing happens, not synced, and
// true whenever it is read; an old one or none only means that such a loss is not noticed.

const (
	noteName    = "synced"
	noteMagic   = 0x4e574353 // "SCWN"
	noteType    = 1
	noteVersion = 1
	noteBody    = 8 + 8 + 8 + 4
)

// note says that records up to seq are durable, the last of them in the given SCO.
type note struct {
	volume, number, seq uint64
	head                uint32 // checksum of the segment's header: no other segment is meant
}

func (n *note) encode() []byte {
	body := binary.LittleEndian.AppendUint64(nil, n.volume)
	body = binary.LittleEndian.AppendUint64(body, n.number)
	body = binary.LittleEndian.AppendUint64(body, n.seq)
	body = binary.LittleEndian.AppendUint32(body, n.head)
	return frame.Append(nil, noteMagic, noteType, noteVersion, 0, body)
}

func parseNote(b []byte) (n note, err error) {
	h, body, _, err := frame.Parse(b, noteMagic, noteBody)
	switch {
	case err != nil:
		return n, fmt.Errorf("note: %w", err)
	case h.Type != noteType || h.Version != noteVersion:
		return n, fmt.Errorf("note: type %d, version %d: %w", h.Type, h.Version, frame.ErrVersion)
	case len(body) != noteBody:
		return n, fmt.Errorf("note: %d bytes: %w", len(body), frame.ErrInvalid)
	}
	le := binary.LittleEndian
	return note{volume: le.Uint64(body), number: le.Uint64(body[8:]), seq: le.Uint64(body[16:]), head: le.Uint32(body[24:])}, nil
}

// WantsNote tells whether NoteSynced has something to do. It costs nothing.
func (b *Buffer) WantsNote() bool {
	seq := b.synced.Load()
	return seq != b.note.noted.Load() && seq == b.lastSeq.Load()
}

// NoteSynced notes what is durable, if the log has come to rest: everything is synced, and
// nothing came since the last call. Call it from time to time; it waits for no sync. An error is
// for the log, nothing depends on it.
func (b *Buffer) NoteSynced() error {
	b.note.Lock()
	defer b.note.Unlock()
	seq := b.synced.Load()
	rests := seq == b.note.seen
	b.note.seen = seq
	if !rests {
		return nil
	}
	return b.noteLocked(seq)
}

// noteLocked writes a note; b.note is locked.
func (b *Buffer) noteLocked(seq uint64) error {
	if seq == b.note.noted.Load() || seq != b.lastSeq.Load() || b.sync.failure() != nil {
		return nil
	}
	var seg *segment
	b.mu.Lock()
	if segs := *b.segs.Load(); len(segs) > 0 {
		if s := segs[len(segs)-1]; s.lastSeq == seq && s.firstSeq <= seq && s.state != stateDisposable {
			seg = s // otherwise a header behind it tells, or nothing depends on it
		}
	}
	b.mu.Unlock()
	if seg == nil {
		b.note.noted.Store(seq)
		return nil
	}
	n := note{volume: b.opts.Volume, number: seg.number, seq: seq, head: seg.head}
	f, err := b.opts.FS.OpenFile(filepath.Join(b.opts.Dir, noteName), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("write buffer %s: note: %w", b.opts.Dir, err)
	}
	_, err = f.WriteAt(n.encode(), 0) // within a sector: the old one or this one
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write buffer %s: note: %w", b.opts.Dir, err)
	}
	b.note.noted.Store(seq)
	return nil
}

// readNote adds what the note says to what is known to have been synced, if it is about one of the
// log's segments. A note that cannot be read says nothing.
func (r *recovery) readNote() {
	opts := &r.b.opts
	name := filepath.Join(opts.Dir, noteName)
	_, err := opts.FS.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var b []byte
	if err == nil {
		b, err = vfs.ReadFile(opts.FS, name, frame.HeaderSize+noteBody)
	}
	if err != nil {
		opts.Logger.Warn("the note of what was synced cannot be read; a loss at the log's end would not be noticed", "dir", opts.Dir, "err", err)
		return
	}
	n, err := parseNote(b)
	if err != nil {
		opts.Logger.Warn("the note of what was synced is damaged; a loss at the log's end would not be noticed", "dir", opts.Dir, "err", err)
		return
	}
	if n.volume != opts.Volume || n.seq <= r.seq {
		return
	}
	for _, f := range r.files {
		if f.number != n.number {
			continue
		}
		// A number is never given to a second segment. If the header is damaged, it is still that one.
		if _, head, err := readSegmentHeader(opts.FS, f.path); err != nil || head == n.head {
			r.synced = max(r.synced, n.seq)
		}
		return
	}
}

// dropNote removes a note that speaks of records that are lost now, durably.
func dropNote(fsys vfs.FS, dir string) error {
	err := fsys.Remove(filepath.Join(dir, noteName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}
