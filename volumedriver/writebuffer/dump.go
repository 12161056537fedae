package writebuffer

import (
	"fmt"
	"io"
	"os"

	"scoria/internal/vfs"
	"scoria/volumedriver/tlog"
)

// DumpSegment writes a segment file as text for people: its header, a line for each
// record, and why the log ends there. Data is verified. What is damaged is told in the
// text; an error means that the file cannot be read, or is no segment.
func DumpSegment(w io.Writer, fsys vfs.FS, name string) error {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	buf, size, err := readWhole(f)
	if err != nil {
		return fmt.Errorf("dump %s: %w", name, err)
	}
	defer giveReadBuffer(buf)
	s, err := newScanner(*buf, 0)
	if err != nil {
		return fmt.Errorf("dump %s: %w", name, err)
	}
	h := s.header
	if _, err := fmt.Fprintf(w, "segment of SCO %x, volume %d, epoch %d, from record %d, synced up to %d, behind %08x, chain %08x\n",
		h.number, h.volume, h.epoch, h.firstSeq, h.synced, h.prev, s.chain); err != nil {
		return err
	}
	var r record
	for s.next(&r) {
		line := fmt.Sprintf("%d %v %d+%d", r.seq, r.kind, r.addr, r.count)
		if r.kind == tlog.Write {
			line += fmt.Sprintf(" index %d data at %d sums %08x", r.index, s.dataAt, decodeSums(nil, s.sums))
		}
		if _, err := fmt.Fprintf(w, "%s synced %d chain %08x\n", line, r.synced, s.chain); err != nil {
			return err
		}
	}
	why := "end of the file"
	if s.off < int64(len(*buf)) {
		why = "zeroes up to the end of the file"
	}
	if s.cut != nil {
		why = s.cut.Error()
	}
	_, err = fmt.Fprintf(w, "end at %d of %d bytes, record %d, %d clusters: %s\n", s.off, size, s.seq, s.index, why)
	return err
}
