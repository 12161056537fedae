// Package writebuffer is the local log of volumes: what a gateway acknowledged and what
// the object store does not have yet.
//
// A volume's log is a sequence of segment files, one for each SCO. Records (a header, the
// checksums, the data) are appended back to back, so that a write is one append and a
// FLUSH is one fdatasync of one file. The same files serve reads and the upload, and
// stay as a read cache until the Pool needs their space. FORMAT.md has the layout and
// what a crash leaves; DESIGN.md the reasons.
//
// What it promises:
//
//   - A record counts once Append returned: it was handed to the kernel in full, after all
//     records with smaller numbers, and Options.Applied was called for it. It survives
//     the end of the process.
//   - What was appended before a call of Sync survives the end of the machine once Sync
//     returned nil. After a failed fdatasync nothing is promised any more: the buffer
//     fails for good (ErrFailed); reads go on.
//   - Open recovers exactly a prefix of the records, which holds all of the above.
//
// One Pool serves all volumes of a gateway: it bounds the bytes on disk, paces writers
// toward the rate at which data drains, evicts what may be evicted, and bounds open files
// and memory.
//
// A Buffer has no goroutine of its own; the Pool has a single one.
package writebuffer
