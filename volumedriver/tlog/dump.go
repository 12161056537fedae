package tlog

import (
	"fmt"
	"io"
)

// Dump writes a TLog as text for people: a line about the whole, then one for each entry.
func Dump(w io.Writer, obj []byte) error {
	info, err := Decode(obj, nil)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "tlog %x epoch %d: %d sections, SCOs %x..%x, records %d..%d, %d clusters\n", info.Number, info.Epoch,
		info.Sections, info.FirstSCO, info.LastSCO, info.FirstSeq, info.LastSeq, info.Clusters); err != nil {
		return err
	}
	_, err = Decode(obj, func(e *Entry) error { return DumpEntry(w, e) })
	return err
}

// DumpEntry writes one entry as a line.
func DumpEntry(w io.Writer, e *Entry) error {
	_, err := fmt.Fprintf(w, "%d %v %d+%d", e.Seq, e.Kind, e.Addr, e.Count)
	if err == nil && e.Kind == Write {
		_, err = fmt.Fprintf(w, " sco %x[%d] sums %08x", e.SCO, e.Index, e.Sums)
	}
	if err == nil {
		_, err = fmt.Fprintln(w)
	}
	return err
}
