package main

const volumeDir = "volumedriver"

// volumeMutants break the volume driver: order, what is logged, what is checked, what is
// published when.
var volumeMutants = []Mutant{
	{
		Name: "block-status-reads-all-pages", Contract: "C8", Breaks: "BLOCK STATUS reads the pages of parts that are known to be full",
		File: "volumedriver/clustermap/extents.go",
		Old:  "	case s.ref.count == span(level):\n", New: "	case s.ref.count == span(level) && left == 0:\n",
		Package: "volumedriver/clustermap", Tests: "^TestExtentsSkipSubtrees$",
	},
	{
		Name: "records-applied-in-wrong-order", Contract: "C3", Breaks: "the records of a batch are applied to the map last one first",
		File: "volumedriver/volume.go",
		Old: `	for i := range entries {
		v.applyLocked(&entries[i])
`, New: `	for i := len(entries) - 1; i >= 0; i-- {
		v.applyLocked(&entries[i])
`,
		Package: volumeDir, Tests: "^TestCrash$",
	},
	{
		Name: "fua-without-sync", Contract: "C2", Breaks: "a write with FUA is acknowledged without a sync",
		File: "volumedriver/write.go",
		Old: `		v.stats.writeBytes.Add(uint64(len(p)))
	}
	if fua {
`, New: `		v.stats.writeBytes.Add(uint64(len(p)))
	}
	if fua && v.epoch == 0 {
`,
		Package: volumeDir, Tests: "^TestCrash$",
	},
	{
		Name: "trim-takes-partial-clusters", Contract: "C6", Breaks: "TRIM drops clusters of which it covers a part only",
		File: "volumedriver/write.go",
		Old: `	first, end := (off+ClusterSize-1)/ClusterSize, (off+length)/ClusterSize
	if first < end {`, New: `	first, end := off/ClusterSize, (off+length+ClusterSize-1)/ClusterSize
	if first < end {`,
		Package: volumeDir, Tests: "^TestUnalignedTrimAndZeroes$",
	},
	{
		Name: "trim-not-logged", Contract: "C1", Breaks: "TRIM and WRITE ZEROES change the map, but not the log",
		File: "volumedriver/write.go",
		Old: `		b.clear(addr, n)
	} else {`, New: `		v.apply.Lock()
		v.cmap.Clear(addr, n)
		v.apply.Unlock()
	} else {`,
		Package: volumeDir, Tests: "^TestCrash$",
	},
	{
		Name: "ragged-edge-not-rechecked", Contract: "C6", Breaks: "an unaligned write goes on although its cluster changed under it",
		File: "volumedriver/write.go",
		Old:  `now[0] != edges[i].entry {`, New: `now[0] != edges[i].entry && now[0].Loc == 0 {`,
		Package: volumeDir, Tests: "^TestSubClusterWrites$",
	},
	{
		Name: "local-read-unverified", Contract: "C6", Breaks: "what is read from the local log is not held against its checksum",
		File:    "volumedriver/read.go",
		Old:     `		if verify(part[k*ClusterSize:(k+1)*ClusterSize], addr+uint64(i), j.entries[i]) {`,
		New:     `		if len(part) > 0 {`,
		Package: volumeDir, Tests: "^TestDamagedLog$",
	},
	{
		Name: "fast-read-unverified", Contract: "C6", Breaks: "the read that need not wait does not check what it got",
		File:    "volumedriver/read.go",
		Old:     `		if !verify(part[i*ClusterSize:(i+1)*ClusterSize], addr+uint64(i), entries[i]) {`,
		New:     `		if len(part) == i-len(entries) {`,
		Package: volumeDir, Tests: "^TestLyingStore$",
	},
	{
		Name: "store-read-unverified", Contract: "C6", Breaks: "what the object store returns is believed",
		File:    "volumedriver/read.go",
		Old:     `			if blocksum.Of(s.Data[i*ClusterSize:(i+1)*ClusterSize]) != sum {`,
		New:     `			if sum == 0 && blocksum.Of(s.Data) == 1 {`,
		Package: volumeDir, Tests: "^TestLyingStore$",
	},
	{
		Name: "unreadable-reads-as-zeroes", Contract: "C6", Breaks: "a cluster that is lost reads as zeroes instead of an error",
		File: "volumedriver/read.go",
		Old: `				err = fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			return err`, New: `				err = fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			clear(p)
			return nil`,
		Package: volumeDir, Tests: "^TestMissingAndDamagedObjects$",
	},
	{
		Name: "checksum-without-address", Contract: "C6", Breaks: "checksums are not sealed with the address",
		File: "internal/blocksum/blocksum.go",
		Old:  "return sum ^ mix(place)", New: "return sum ^ mix(0)",
		Package: "internal/blocksum", Tests: "^TestSealTellsPlacesApart$",
	},
	{
		Name: "head-before-tlog", Contract: "C5", Breaks: "the head is published before the TLog that it names",
		File: "volumedriver/commit.go",
		Old: `	txn.Puts = append(txn.Puts, Put{Name: sco.HeadName, Data: aligned(data)})
`, New: `	if err := v.insist("publish the head alone", func(ctx context.Context) error {
		return v.d.opts.Store.Apply(ctx, v.ns, Txn{Epoch: txn.Epoch, Puts: []Put{{Name: sco.HeadName, Data: aligned(data)}}})
	}); err != nil {
		return err
	}
`,
		Package: volumeDir, Tests: "^TestCrashEveryOperation$",
	},
	{
		Name: "commit-of-missing-sco", Contract: "C5", Breaks: "a TLog is published of which an SCO was never stored",
		File:    "volumedriver/drain.go",
		Old:     "	if len(l.next) > 0 && (l.next[0].Clusters == 0 || l.next[0].Uploaded) {",
		New:     "	if len(l.next) > 0 && (l.next[0].Clusters == 0 || l.next[0].Uploaded || l.next[0].Number%4 == 3) {",
		Package: volumeDir, Tests: "^TestWriteReadReopen$|^TestCrash$",
	},
	{
		Name: "disposable-before-commit", Contract: "C5", Breaks: "SCOs count as a read cache before the head has them",
		File: "volumedriver/commit.go",
		Old: `	if err := v.publish(&h, txn); err != nil {
		return err
	}
	v.garbage = nil
`, New: `	v.buf.MarkDisposable(last.Number)
	if err := v.publish(&h, txn); err != nil {
		return err
	}
	v.garbage = nil
`,
		Package: volumeDir, Tests: "^TestNothingUncommittedIsEvicted$",
	},
	{
		Name: "checkpoint-ahead-of-log", Contract: "C3", Breaks: "a map checkpoint is saved before the log it was made of is durable",
		File: "volumedriver/checkpoint.go",
		Old: `	if !v.awaitCommit(ctx, seq) {
		if err := v.buf.Sync(ctx); err != nil {
			return fmt.Errorf("map checkpoint: %w", err)
		}
	}
`, New: "	v.awaitCommit(ctx, seq)\n",
		Package: volumeDir, Tests: "^TestCrash$",
	},
	{
		Name: "checkpoint-names-later-record", Contract: "C3", Breaks: "a map checkpoint claims a record that it does not hold",
		File: "volumedriver/checkpoint.go",
		Old: `	v.apply.Lock()
	seq := v.apply.seq
	c, err := v.cmap.BeginCheckpoint(seq)
`, New: `	v.apply.Lock()
	seq := v.apply.seq + 1
	c, err := v.cmap.BeginCheckpoint(seq)
`,
		Package: volumeDir, Tests: "^TestCrash$",
	},
	{
		Name: "map-pack-not-synced", Contract: "C3", Breaks: "the pages of a map checkpoint are not synced before the state names them",
		File: "volumedriver/packs.go",
		Old: `	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		size, err = f.Size()`, New: `	if err == nil {
		size, err = f.Size()`,
		Package: volumeDir, Tests: "^TestCrash$",
	},
	{
		Name: "tlogs-dropped-too-early", Contract: "C5", Breaks: "a TLog is deleted of which the map checkpoint has a part only",
		File: "volumedriver/commit.go",
		Old:  "	for len(h.TLogs) > 0 && h.TLogs[0].LastSeq <= seq {", New: "	for len(h.TLogs) > 0 && h.TLogs[0].FirstSeq <= seq {",
		Package: volumeDir, Tests: "^TestCrash$",
	},
	{
		Name: "fenced-commit-insists", Contract: "C4", Breaks: "a commit that was refused as stale is made again under the next epoch",
		File: "volumedriver/commit.go",
		Old: `	err = v.insist("publish the volume head", func(ctx context.Context) error {
		return v.d.opts.Store.Apply(ctx, v.ns, txn)
	})`, New: `	err = v.insist("publish the volume head", func(ctx context.Context) error {
		err := v.d.opts.Store.Apply(ctx, v.ns, txn)
		if err != nil {
			txn.Epoch++
			err = v.d.opts.Store.Apply(ctx, v.ns, txn)
		}
		return err
	})`,
		Package: volumeDir, Tests: "^TestFencedCommit$",
	},
	{
		Name: "takeover-without-fence", Contract: "C4", Breaks: "a new owner reads the head before the old one is shut out",
		File: "volumedriver/recover.go",
		Old:  "	if err := o.d.opts.Store.Apply(ctx, o.rec.Namespace, Txn{Epoch: o.rec.Epoch}); err != nil {", New: "	if err := o.d.opts.Store.Apply(ctx, o.rec.Namespace, Txn{Epoch: o.rec.Epoch - 1}); err != nil {",
		Package: volumeDir, Tests: "^TestFencing$",
	},
	{
		Name: "stale-local-log-used", Contract: "C4", Breaks: "a gateway goes on from its local log although others owned the volume since",
		File: "volumedriver/recover.go",
		Old:  "	case s.Epoch < o.rec.OwnerSince || s.Epoch > o.rec.Epoch:", New: "	case s.Epoch > o.rec.Epoch:",
		Package: volumeDir, Tests: "^TestStaleDirectory$",
	},
	{
		Name: "loss-not-told", Contract: "C2", Breaks: "records that a takeover lost are not told of",
		File: "volumedriver/recover.go",
		Old:  "	if o.before != \"\" {\n		v.lost =", New: "	if o.before == \"\\x00\" {\n		v.lost =",
		Package: volumeDir, Tests: "^TestFencing$",
	},
	{
		Name: "orphans-kept", Contract: "C5", Breaks: "objects that a crashed commit left are not removed",
		File: "volumedriver/commit.go",
		Old:  "	txn := Txn{Epoch: v.epoch, Deletes: slices.Clone(v.garbage), ", New: "	txn := Txn{Epoch: v.epoch, ",
		Package: volumeDir, Tests: "^TestOrphansOfPowerLoss$",
	},
	{
		Name: "given-up-range-lock-kept", Contract: "C7", Breaks: "who gives up waiting for a range keeps the locks that he has",
		File: "volumedriver/rangelock.go",
		Old:  "			l.unlock(taken)\n			return err\n", New: "			return err\n",
		Package: "volumedriver", Tests: "^TestRangeLockGivesUp$",
	},
	{
		Name: "short-read-taken-for-whole", Contract: "C6", Breaks: "a read that the kernel did in part counts as done",
		File: "internal/vfs/readmany.go",
		Old:  "	if r.Err != nil || r.N == len(r.Buf) {\n", New: "	if r.Err != nil || r.N > 0 {\n",
		Package: "internal/vfs", Tests: "^TestFinishShortRead$",
	},
	{
		Name: "slow-admin-peers-stay", Contract: "C7", Breaks: "silent peers of the admin port make no room",
		File: "cmd/scoria/internal/admin/crowd.go",
		Old:  "	if e := c.quiet.Front(); e != nil {\n", New: "	if e := c.quiet.Front(); e != nil && c.limit < 0 {\n",
		Package: "cmd/scoria/internal/admin", Tests: "^TestSlowClients$",
	},
}
