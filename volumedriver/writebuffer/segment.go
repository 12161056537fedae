package writebuffer

import (
	"fmt"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"

	"scoria/volumedriver/sco"
	"scoria/volumedriver/tlog"
)

// segment is one file of the log: an SCO with its records.
type segment struct {
	number   uint64
	path     string
	firstSeq uint64
	head     uint32 // checksum of the header; set before the segment is listed

	handle  atomic.Pointer[handle]
	removed atomic.Bool // evicted: the file is gone, or goes
	indexed atomic.Bool // runs are complete

	// mu guards what readers need; nobody does I/O under it.
	mu struct {
		sync.RWMutex
		runs     []run
		clusters uint32
		mem      []byte // copy of the data of runs with mem set; nil: none
	}

	noMem bool // no room for a copy in memory; the leader's

	// Guarded by Buffer.mu.
	size       int64  // bytes that count
	syncedSize int64  // bytes known to be durable
	lastSeq    uint64 // firstSeq-1: no record
	state      state
	uploaded   bool
	enlisted   bool   // the Pool may evict it
	evicting   bool   // somebody removes it, or has
	writeOut   bool   // its writing out was asked for
	entries    []byte // section for the TLog; of closed segments that are not disposable
}

// state of a segment.
type state uint8

const (
	stateOpen       state = 1
	stateClosed     state = 2
	stateDisposable state = 3
)

func segmentPath(dir string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf(segmentPattern, number))
}

// parseSegmentName returns the number of a segment file's name.
func parseSegmentName(name string) (uint64, bool) {
	const prefix, suffix, width = "sco-", ".log", 9
	if len(name) != len(prefix)+width+len(suffix) || name[:len(prefix)] != prefix || name[len(prefix)+width:] != suffix {
		return 0, false
	}
	n, ok := sco.ParseHex(name[len(prefix):len(prefix)+width], width)
	return n, ok && n != 0
}

// run tells where clusters lie: records of the same size at the same distance. So a
// segment of nothing but 4 KiB writes has one run.
type run struct {
	index   uint32 // first cluster
	per     uint32 // clusters of each record
	records uint32
	stride  uint32 // bytes from record to record
	off     int64  // of the first cluster
	mem     bool   // segment.mem has the data
}

// addRun notes that count clusters from index on lie at off.
func addRun(runs []run, index, count uint32, off int64, mem bool) []run {
	if n := len(runs); n > 0 {
		l := &runs[n-1]
		step := off - (l.off + int64(l.records-1)*int64(l.stride))
		if l.per == count && l.mem == mem && l.index+l.per*l.records == index && step > 0 && step < 1<<32 &&
			(l.records == 1 || step == int64(l.stride)) {
			l.stride = uint32(step)
			l.records++
			return runs
		}
	}
	return append(runs, run{index: index, per: count, records: 1, off: off, mem: mem})
}

// find returns where cluster index lies, and how many clusters lie there back to back.
func find(runs []run, index uint32) (off int64, n uint32, mem, ok bool) {
	i := sort.Search(len(runs), func(i int) bool { return runs[i].index > index }) - 1
	if i < 0 {
		return 0, 0, false, false
	}
	r := &runs[i]
	rec, c := (index-r.index)/r.per, (index-r.index)%r.per
	if rec >= r.records {
		return 0, 0, false, false
	}
	return r.off + int64(rec)*int64(r.stride) + int64(c)*ClusterSize, r.per - c, r.mem, true
}

// scanned is what a scan of a segment file found.
type scanned struct {
	header   segmentHeader
	runs     []run
	clusters uint32
	end      int64 // behind the last good record
	size     int64 // of the file
	lastSeq  uint64
	chain    uint32
	head     uint32 // checksum of the header
	synced   uint64
	section  []byte
	cut      error // why the good part ends before the file; nil: it does not
}

// scan walks over the segment in b. An error means that not even its header is good.
func scan(b []byte, size int64, verifyAfter uint64) (*scanned, error) {
	s, err := newScanner(b, verifyAfter)
	if err != nil {
		return nil, err
	}
	var (
		out     = &scanned{header: s.header, head: s.chain, size: size}
		section tlog.Section
		sums    []uint32
		r       record
	)
	section.Reset(s.header.number)
	for s.next(&r) {
		e := Entry{Seq: r.seq, Kind: r.kind, Addr: r.addr, Count: r.count, SCO: s.header.number, Index: r.index}
		if r.kind == tlog.Write {
			sums = decodeSums(sums[:0], s.sums)
			e.Sums = sums
			out.runs = addRun(out.runs, r.index, uint32(r.count), s.dataAt, false)
		}
		if err := section.Add(&e); err != nil {
			return nil, err // more records than any segment has
		}
	}
	out.clusters, out.end, out.lastSeq, out.chain, out.synced, out.cut = s.index, s.off, s.seq, s.chain, s.synced, s.cut
	if out.cut == nil && int64(len(b)) < size {
		out.cut = fmt.Errorf("SCO %x, offset %d: %d bytes beyond the largest segment", s.header.number, out.end, size-out.end)
	}
	if section.Entries() > 0 {
		out.section = section.Bytes()
	}
	out.claims(s, r)
	return out, nil
}

// claims looks behind a record whose data is damaged, if its header is good, for records
// that say how much had been synced when they were written.
func (out *scanned) claims(s *scanner, r record) {
	for s.cut != nil {
		crc, err := uint32(0), error(nil)
		if r, crc, _, err = parseRecord(s.b[min(s.off, int64(len(s.b))):]); err != nil || r.seq != s.seq+1 || r.prev != s.chain || r.size() > int64(len(s.b))-s.off {
			return
		}
		out.synced = max(out.synced, r.synced)
		s.chain, s.seq, s.off = crc, r.seq, s.off+r.size()
	}
}

func decodeSums(dst []uint32, b []byte) []uint32 {
	for ; len(b) >= 4; b = b[4:] {
		dst = append(dst, uint32(b[0])|uint32(b[1])<<8|uint32(b[2])<<16|uint32(b[3])<<24)
	}
	return dst
}
