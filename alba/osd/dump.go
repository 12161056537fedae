package osd

import (
	"errors"
	"fmt"
	"io"
	"path"

	"scoria/internal/vfs"
)

// Dump writes what a segment or identity file holds to w, one line per record and operation.
// ErrInvalid: the file is neither. It reads the file only, also that of a store that runs.
func Dump(w io.Writer, fsys vfs.FS, name string) error {
	if path.Base(name) == identityFile {
		id, err := readIdentity(fsys, path.Dir(name))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "osd identity: uuid %s, claimed by backend %q as %d\n", id.UUID, id.Backend, id.ID)
		return err
	}
	no, ok := parseSegmentName(path.Base(name))
	if !ok {
		return fmt.Errorf("%s is no file of an osd (want %q or %sNNNNNNNN): %w", name, identityFile, segmentPrefix, ErrInvalid)
	}
	l := &logReader{segs: newSegments(fsys, path.Dir(name), 1)}
	defer l.close()
	open, err := l.open(no)
	if err != nil && !errors.Is(err, errForeign) { // dumping asks for no identity
		return err
	}
	if !open && err == nil {
		return fmt.Errorf("%s has no valid segment header: %w", name, ErrCorrupt)
	}
	if _, err := fmt.Fprintf(w, "osd segment %d of %s: nonce %016x, first record %d, %d bytes\n",
		l.info.No, l.info.UUID, l.info.Nonce, l.info.FirstSeq, l.size); err != nil {
		return err
	}
	holes := int64(0)
	for off := int64(segmentHeader); off < l.size; {
		r, header, ops, ok, err := l.record(off)
		if err != nil {
			return err
		}
		if !ok { // punched, torn or never written
			off, holes = off+align, holes+align
			continue
		}
		if _, err := fmt.Fprintf(w, "%d: record %d (durable %d), header %d, values %d\n", off, r.Seq, r.Durable, header, r.Values); err != nil {
			return err
		}
		if err := dumpOps(w, ops); err != nil {
			return err
		}
		off += header + int64(r.Values)
	}
	_, err = fmt.Fprintf(w, "%d bytes without a record (punched, or not written)\n", holes)
	return err
}

func dumpOps(w io.Writer, ops []op) error {
	for i := range ops {
		o := &ops[i]
		if o.kind == opDelete {
			if _, err := fmt.Fprintf(w, "  delete %x\n", o.key); err != nil {
				return err
			}
			continue
		}
		e, err := parseEntry(o.entry)
		if err != nil {
			return err
		}
		where := "inline"
		if o.kind == opPut {
			where = fmt.Sprintf("at %d", e.off)
		}
		if _, err := fmt.Fprintf(w, "  put %x, %d bytes, %s\n", o.key, e.size, where); err != nil {
			return err
		}
	}
	return nil
}
