package main

const bufferDir = "volumedriver/writebuffer"

// bufferMutants break the local log: what C1 to C3 rest on.
var bufferMutants = []Mutant{
	{
		Name: "first-record-not-replayed", Contract: "C1", Breaks: "recovery leaves out the first record behind the map checkpoint",
		File: "volumedriver/writebuffer/recover.go",
		Old:  "			if e.Seq <= opts.FromSeq {\n", New: "			if e.Seq <= opts.FromSeq+1 {\n",
		Package: bufferDir, Tests: "^TestCrashEverywhere$",
	},
	{
		Name: "hard-limit-ignored", Contract: "C7", Breaks: "the local log grows beyond its limit",
		File: "volumedriver/writebuffer/pool.go",
		Old:  "	if p.mu.total+n > p.opts.HardBytes && p.mu.dirty > 0 {\n", New: "	if p.mu.total+n > 2*p.opts.HardBytes && p.mu.dirty > 0 {\n",
		Package: bufferDir, Tests: "^TestHardLimitIsFair$",
	},
	{
		Name: "flush-without-sync", Contract: "C2", Breaks: "FLUSH is answered without fdatasync of the log",
		File: "volumedriver/writebuffer/sync.go",
		Old:  "			err = errors.Join(h.f.Sync(), h.unref())\n", New: "			err = h.unref()\n",
		Package: bufferDir, Tests: "^TestCrashEverywhere$",
	},
	{
		Name: "flush-without-directory-sync", Contract: "C2", Breaks: "the name of a new segment is not synced by FLUSH",
		File: "volumedriver/writebuffer/sync.go",
		Old:  "	if dir > 0 {\n", New: "	if dir > 1<<30 {\n",
		Package: bufferDir, Tests: "^TestCrashEverywhere$",
	},
	{
		Name: "failed-flush-is-forgotten", Contract: "C2", Breaks: "a FLUSH after a failed one succeeds",
		File: "volumedriver/writebuffer/sync.go",
		Old:  "		s.err = fmt.Errorf(\"%w: %w\", ErrFailed, err)\n", New: "		return fmt.Errorf(\"%w: %w\", ErrFailed, err)\n",
		Package: bufferDir, Tests: "^TestFaultsEverywhere$",
	},
	{
		Name: "flush-skips-first-file", Contract: "C2", Breaks: "FLUSH syncs the newest segment only",
		File: "volumedriver/writebuffer/sync.go",
		Old:  "	for _, seg := range b.mu.unsynced {\n		parts", New: "	for _, seg := range b.mu.unsynced[max(0, len(b.mu.unsynced)-1):] {\n		parts",
		Package: bufferDir, Tests: "^TestCrashEverywhere$",
	},
	{
		Name: "ack-before-write", Contract: "C1", Breaks: "a batch is acknowledged although the kernel did not take it",
		File: "volumedriver/writebuffer/scratch.go",
		Old:  "	err := s.write(b)\n	if err == nil {\n		err = s.commit(b)\n	}\n", New: "	if err := s.write(b); err != nil {\n		b.opts.Logger.Warn(\"late\", \"err\", err)\n	}\n	err := s.commit(b)\n",
		Package: bufferDir, Tests: "^TestFaultsEverywhere$",
	},
	{
		Name: "record-checksum-ignored", Contract: "C3", Breaks: "recovery takes records whose checksum is wrong",
		File: "volumedriver/writebuffer/record.go",
		Old:  "if got := blocksum.Of(b[8:n]); got != crc {", New: "if got := blocksum.Of(b[8:n]); got != crc && n < 0 {",
		Package: bufferDir, Tests: "^TestScanDamage$|^TestDamage$",
	},
	{
		Name: "record-data-unverified", Contract: "C3", Breaks: "recovery takes records whose data is torn",
		File: "volumedriver/writebuffer/record.go",
		Old:  "if r.kind == tlog.Write && r.seq > s.verifyAfter {", New: "if r.kind == tlog.Write && r.seq > s.verifyAfter && off < 0 {",
		Package: bufferDir, Tests: "^TestCrashEverywhere$",
	},
	{
		Name: "record-chain-ignored", Contract: "C3", Breaks: "recovery takes remains of a failed write behind new records",
		File: "volumedriver/writebuffer/record.go",
		Old:  " || r.index != s.index || r.prev != s.chain:", New: " || r.index != s.index:",
		Package: bufferDir, Tests: "^TestStaleRemains$",
	},
	{
		Name: "segment-epoch-ignored", Contract: "C4", Breaks: "recovery takes a segment of an older incarnation",
		File: "volumedriver/writebuffer/recover.go",
		Old:  " || h.prev != r.chain || h.epoch < r.epoch {", New: " {",
		Package: bufferDir, Tests: "^TestForeignSegments$",
	},
	{
		Name: "cut-not-synced", Contract: "C3", Breaks: "recovery writes on before the cut of the torn end is durable",
		File: "volumedriver/writebuffer/recover.go",
		Old:  "		if err = f.Truncate(r.cutAt); err == nil {\n			err = f.Sync()\n		}\n", New: "		err = f.Truncate(r.cutAt)\n",
		Package: bufferDir, Tests: "^TestCrashEverywhere$",
	},
	{
		Name: "lost-flush-is-silent", Contract: "C2", Breaks: "recovery takes damaged flushed records for a torn end",
		File: "volumedriver/writebuffer/recover.go",
		Old:  "	if r.synced > r.seq {\n		if !opts.Salvage {\n", New: "	if r.synced > r.seq && r.seq == 0 {\n		if !opts.Salvage {\n",
		Package: bufferDir, Tests: "^TestDamage$",
	},
	{
		Name: "evict-not-uploaded", Contract: "C5", Breaks: "segments are evicted before they are in the object store",
		File: "volumedriver/writebuffer/buffer.go",
		Old:  "		if s.state != stateDisposable {\n", New: "		if s.state == stateOpen {\n",
		Package: bufferDir, Tests: "^TestOnlyDisposableIsEvicted$",
	},
	{
		Name: "last-durable-segment-evicted", Contract: "C3", Breaks: "the segment that holds the end of the log is evicted",
		File: "volumedriver/writebuffer/buffer.go",
		Old:  "	for keep >= 0 && segs[keep].syncedSize == 0 {\n", New: "	for keep >= 0 && segs[keep].syncedSize == -1 {\n",
		Package: bufferDir, Tests: "^TestLastDurableSegmentStays$",
	},
	{
		Name: "number-published-late", Contract: "C2", Breaks: "records are applied before Sync knows of them",
		File: "volumedriver/writebuffer/scratch.go",
		Old:  "	b.lastSeq.Store(t.seq)\n	if len(s.entries) > 0 {\n		b.opts.Applied(s.entries)\n	}\n", New: "	if len(s.entries) > 0 {\n		b.opts.Applied(s.entries)\n	}\n	b.lastSeq.Store(t.seq)\n",
		Package: bufferDir, Tests: "^TestAppliedIsCoveredBySync$",
	},
	{
		Name: "sync-covers-later-records", Contract: "C2", Breaks: "a record appended during the sync counts as synced",
		File: "volumedriver/writebuffer/sync.go",
		Old:  "	if b.synced.Load() < target {\n		b.synced.Store(target)\n	}\n", New: "	if target = b.lastSeq.Load(); b.synced.Load() < target {\n		b.synced.Store(target)\n	}\n",
		Package: bufferDir, Tests: "^TestSyncCoversOnlyWhatCameBefore$",
	},
	{
		Name: "failed-sync-of-earlier-process-forgotten", Contract: "C2", Breaks: "a log whose sync failed is opened without writing again what the kernel gave up",
		File: "volumedriver/writebuffer/recover.go",
		Old:  "	return r.mend()\n", New: "	return nil\n",
		Package: bufferDir, Tests: "^TestFailedSyncOfAnEarlierProcess$",
	},
	{
		Name: "mark-of-failed-sync-removed-early", Contract: "C2", Breaks: "the mark of a failed sync goes before what it stands for is synced",
		File: "volumedriver/writebuffer/mend.go",
		Old:  "	r.b.mended.Store(true)\n	return nil\n", New: "	r.b.mended.Store(true)\n	r.b.unmark()\n	return nil\n",
		Package: bufferDir, Tests: "^TestFailedSyncOfAnEarlierProcess$",
	},
	{
		Name: "note-of-unsynced-records", Contract: "C2", Breaks: "the note says that records are durable which are not synced",
		File: "volumedriver/writebuffer/note.go",
		Old:  "	seq := b.synced.Load()\n	rests := seq == b.note.seen\n", New: "	seq := b.lastSeq.Load()\n	rests := seq == b.note.seen || seq > b.synced.Load()\n",
		Package: bufferDir, Tests: "^TestNoteOnlyAtRest$",
	},
	{
		Name: "note-ignored", Contract: "C2", Breaks: "recovery does not believe the note of the last FLUSH",
		File: "volumedriver/writebuffer/note.go",
		Old:  "			r.synced = max(r.synced, n.seq)\n", New: "			_ = n.seq\n",
		Package: bufferDir, Tests: "^TestNote$",
	},
	{
		Name: "torn-start-believed", Contract: "C2", Breaks: "a log whose oldest segment is damaged begins anew, whatever was flushed behind it",
		File: "volumedriver/writebuffer/options.go",
		Old:  "r.LastSeq < from && r.Synced <= from", New: "r.LastSeq < from",
		Package: "volumedriver", Tests: "^TestDamagedHeader$",
	},
	{
		Name: "reused-file-read-as-old-segment", Contract: "C6", Breaks: "a read of a segment whose file was taken meanwhile returns what is there now",
		File: "volumedriver/writebuffer/read.go",
		Old:  "if err == nil && seg.removed.Load() {", New: "if err == nil && seg.removed.Load() && len(p) == 0 {",
		Package: bufferDir, Tests: "^TestReadDuringReuse$",
	},
	{
		Name: "remains-of-older-segment-end-the-log", Contract: "C2", Breaks: "what an older segment left behind the records of a reused file cuts the log, with the segments that follow",
		File: "volumedriver/writebuffer/recover.go",
		Old:  "found.header.version < segmentVersion {", New: "found.header.version <= segmentVersion {",
		Package: bufferDir, Tests: "^TestCrashEverywhere$",
	},
	{
		Name: "zeroes-over-records", Contract: "C2", Breaks: "space ahead of the log's end begins in the page that the last records end in",
		File: "volumedriver/writebuffer/ahead.go",
		Old:  "	from := alignUp(s.size)\n	left", New: "	from := s.size &^ (pageSize - 1)\n	left",
		Package: bufferDir, Tests: "^TestAheadBehindSmallRecords$",
	},
}
