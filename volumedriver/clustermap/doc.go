// Package clustermap maps the clusters of a volume to the places where their data lies.
//
// A cluster is 4 KiB of a volume. Its Entry of 12 bytes names a Location (SCO, index in
// the SCO, ancestor volume) and the sealed CRC32C of the data. The map is a radix tree of
// pages: a leaf holds 256 entries (1 MiB of volume), an inner page 256 references. Pages
// are written once, into append-only packs, and never changed; an update copies the path
// from the root, so that snapshots and clones share all that they have in common.
//
// The volume's owner uses a Map like this:
//
//   - Lookup answers reads from pages in memory and never waits; when a page is missing,
//     Get (or Load) reads it through the PackStore, outside of all locks.
//   - Set and Clear apply the records of the log in their order. They never fail and
//     never wait for a page: an update of an absent page becomes a partial page, which
//     is completed when somebody loads it or when the checkpoint is written.
//   - BeginCheckpoint freezes the state in O(1); Checkpoint.Write writes all changed
//     pages as one pack and returns the record from which Open finds the state again.
//   - Cache bounds the memory of all maps of a gateway. Clean pages are evicted; dirty
//     ones are reported (DirtyBytes), so that the owner writes a checkpoint in time.
//
// Corrupt pages are reported as *CorruptError, which is ErrCorrupt; the absence of a pack
// (fs.ErrNotExist) and an outage come from the PackStore and are passed on as they are.
//
// The package is pure: no files, network, clock, randomness or logging. FORMAT.md
// describes packs, pages and records; DESIGN.md says why they are as they are.
package clustermap
