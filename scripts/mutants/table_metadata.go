package main

const raftDir = "metadata/raftnode"

// metadataMutants break the metadata services and the Raft node below them.
var metadataMutants = []Mutant{
	{
		Name: "fence-ignored", Contract: "C4", Breaks: "the NSM takes transactions of a stale owner epoch",
		File: "metadata/nsm/state/state.go",
		Old:  "	case req.GetFence() < ns.GetFence():\n", New: "	case req.GetFence() > 1<<62:\n",
		Package: "metadata/nsm/state", Tests: "^TestModel$",
	},
	{
		Name: "fence-not-raised", Contract: "C4", Breaks: "a newer owner epoch does not shut out the older one",
		File: "metadata/nsm/state/state.go",
		Old:  "		ns.Fence = req.GetFence()\n", New: "",
		Package: "metadata/nsm/state", Tests: "^TestModel$",
	},
	{
		Name: "nsm-assert-ignored", Contract: "C4", Breaks: "the NSM does not check that an object is the one asserted",
		File: "metadata/nsm/state/state.go",
		Old:  "	if want != (metadata.ObjectID{}) && string(id) != string(want[:]) {\n", New: "	if want != (metadata.ObjectID{}) && string(id) == \"\" {\n",
		Package: "metadata/metatest", Tests: "^TestFakeNSM$",
	},
	{
		Name: "closed-epoch-accepted", Contract: "C5", Breaks: "the NSM takes a manifest whose fragments garbage collection may have removed",
		File: "metadata/nsm/state/state.go",
		Old:  "	case uint64(epoch) < ns.GetGcMin():\n", New: "	case uint64(epoch) == 0:\n",
		Package: "metadata/metatest", Tests: "^TestFakeNSM$",
	},
	{
		Name: "object-id-used-again", Contract: "C5", Breaks: "the NSM takes an object whose fragments wait to be deleted",
		File: "metadata/nsm/state/change.go",
		Old:  "			if f.OSD != 0 && c.isQueued(m.ObjectID, i, j, f) {\n", New: "			if f.OSD == 0 && c.isQueued(m.ObjectID, i, j, f) {\n",
		Package: "metadata/metatest", Tests: "^TestFakeNSM$",
	},
	{
		Name: "update-of-other-version", Contract: "C5", Breaks: "a repair overwrites the places that another one has set",
		File: "metadata/nsm/state/change.go",
		Old:  "	case m.Version != old.Version+1:\n", New: "	case m.Version <= 0:\n",
		Package: "metadata/nsm/state", Tests: "^TestModel$",
	},
	{
		Name: "buckets-not-updated", Contract: "C5", Breaks: "disk safety counters do not follow the manifests",
		File: "metadata/nsm/state/change.go",
		Old:  "	c.count(b, sign)\n", New: "	if sign > 0 {\n		c.count(b, sign)\n	}\n",
		Package: "metadata/nsm/state", Tests: "^TestModel$",
	},
	{
		Name: "replaced-fragments-not-queued", Contract: "C5", Breaks: "fragments of a replaced object are never deleted",
		File: "metadata/nsm/state/change.go",
		Old:  "			if f.OSD != 0 {\n				c.enqueue(m.ObjectID, i, j, f)\n			}\n", New: "			if f.OSD != 0 && f.Version > 0 {\n				c.enqueue(m.ObjectID, i, j, f)\n			}\n",
		Package: "metadata/nsm/state", Tests: "^TestModel$",
	},
	{
		Name: "osd-index-not-updated", Contract: "C5", Breaks: "the index of objects by disk server loses entries, so repair misses them",
		File: "metadata/nsm/state/change.go",
		Old:  "		c.index(osdObjectKey(c.ns, osd, m.ObjectID), sign)\n", New: "		c.index(osdObjectKey(c.ns, osd, m.ObjectID), min(sign, int64(osd)-3))\n",
		Package: "metadata/nsm/state", Tests: "^TestModel$",
	},
	{
		Name: "owner-epoch-not-raised", Contract: "C4", Breaks: "a new owner of a volume gets the epoch of the old one",
		File: "metadata/abm/state/volumes.go",
		Old:  "	v.Epoch++\n", New: "	v.Epoch = max(v.Epoch, 1)\n",
		Package: "metadata/metatest", Tests: "^TestFakeABM$",
	},
	{
		Name: "lease-ignored", Contract: "C4", Breaks: "a volume is given away while its owner's lease runs",
		File: "metadata/abm/state/volumes.go",
		Old:  "		if o.GetUntil() > now {\n			return nil, metadata.Errorf(metadata.KindOwned, \"volume %q is owned", New: "		if o.GetUntil() > now && now < 0 {\n			return nil, metadata.Errorf(metadata.KindOwned, \"volume %q is owned",
		Package: "metadata/metatest", Tests: "^TestFakeABM$",
	},
	{
		Name: "stale-owner-releases", Contract: "C4", Breaks: "a stale owner can release the volume of the new one",
		File: "metadata/abm/state/volumes.go",
		Old:  "	if v.GetEpoch() != req.GetEpoch() {\n", New: "	if v.GetEpoch() < req.GetEpoch() {\n",
		Package: "metadata/metatest", Tests: "^TestFakeABM$",
	},
	{
		Name: "retry-applied-twice", Contract: "C3", Breaks: "a retried command is applied again",
		File: "metadata/fsm/fsm.go",
		Old:  "		if r, known := window.lookup(cmd.Request.Seq); known {\n", New: "		if r, known := window.lookup(cmd.Request.Seq); known && cmd.Request.Seq == 0 {\n",
		Package: raftDir, Tests: "^TestRetriedRequestIsAppliedOnce$",
	},
	{
		Name: "failed-command-leaves-traces", Contract: "C3", Breaks: "what a failing command had written stays",
		File: "metadata/fsm/fsm.go",
		Old:  "	default:\n		u.rollback()\n", New: "	default:\n",
		Package: raftDir, Tests: "^TestSoloKeepsItsState$",
	},
	{
		Name: "unknown-command-skipped", Contract: "C3", Breaks: "a node passes over a command that it does not know",
		File: "metadata/fsm/fsm.go",
		Old:  "	case errors.Is(err, ErrUnknownCommand) && !cmd.Skippable:\n", New: "	case errors.Is(err, ErrUnknownCommand) && cmd.Skippable:\n",
		Package: raftDir, Tests: "^TestUnknownCommandHaltsTheNode$",
	},
	{
		Name: "stale-leader-reads", Contract: "C4", Breaks: "a leader that was replaced goes on answering reads",
		File: "metadata/raftnode/node.go",
		Old:  "	} else if !n.opts.Solo {\n", New: "	} else if n.opts.Solo {\n",
		Package: raftDir, Tests: "^TestIsolatedLeaderDoesNotAnswer$",
	},
	{
		Name: "raft-log-not-synced", Contract: "C2", Breaks: "a metadata command is acknowledged before the Raft log is durable",
		File: "metadata/raftnode/node.go",
		Old:  "raftboltdb.New(raftboltdb.Options{Path: path, ", New: "raftboltdb.New(raftboltdb.Options{Path: path, NoSync: true, ",
		Package: raftDir, Tests: "^TestPowerLossEverywhere$",
	},
	{
		Name: "unsynced-state-trusted", Contract: "C3", Breaks: "the state file is taken as it is after a power loss",
		File: "metadata/raftnode/dir.go",
		Old:  "	return string(b) == d.bootID, nil\n", New: "	return len(b) > 0, nil\n",
		Package: raftDir, Tests: "^TestTornStateIsNotTrusted$",
	},
	{
		Name: "snapshot-claims-later-index", Contract: "C3", Breaks: "a restored snapshot claims commands that it does not hold, so they are passed over",
		File: "metadata/raftnode/snapshot.go",
		Old:  "putApplied(tx, snap.Applied)", New: "putApplied(tx, snap.Applied+2)",
		Package: raftDir, Tests: "^TestPowerLossEverywhere$",
	},
	{
		Name: "snapshot-names-not-synced", Contract: "C3", Breaks: "the log is shortened before the files of the snapshot are durable by their names",
		File: "metadata/raftnode/snapshot.go",
		Old:  "if err := vfs.OS.SyncDir(s.dir); err != nil {", New: "if _, err := vfs.OS.Stat(s.dir); err != nil {",
		Package: raftDir, Tests: "^TestPowerLossEverywhere$",
	},
	{
		Name: "log-made-behind-node-file", Contract: "C2", Breaks: "a node's log is made after the file that says that there is a node: torn, it looks like damage",
		File: "metadata/raftnode/dir.go",
		Old:  "if err := vfs.OS.Rename(d.file(newLogFile), path); errors.Is(err, fs.ErrNotExist) {", New: "if err := d.makeLog(); err != nil {\n\t\t\treturn err\n\t\t}\n\t\tif err := vfs.OS.Rename(d.file(newLogFile), path); errors.Is(err, fs.ErrNotExist) {",
		Package: raftDir, Tests: "^TestDirectoryErrors$",
	},
	{
		Name: "half-bootstrap-believed", Contract: "C2", Breaks: "a bootstrap that power cut in the middle counts as done: no leader, ever",
		File: "metadata/raftnode/node.go",
		Old:  "term > 1, nil", New: "term > 0, nil",
		Package: raftDir, Tests: "^TestPowerLossEverywhere$",
	},
}

// systemMutants break what joins the trees, and what the operator is told.
var systemMutants = []Mutant{
	{
		Name: "owner-epoch-lost-on-the-way", Contract: "C4", Breaks: "the owner epoch does not get from the volume driver to the NSM",
		File: "cmd/scoria/internal/system/objectstore.go",
		Old:  "alba.Txn{Fence: metadata.Epoch(txn.Epoch), ", New: "alba.Txn{",
		Package: "cmd/scoria/internal/system", Tests: "^TestObjectStoreAdapter$",
	},
	{
		Name: "ingest-sums-lost-on-the-way", Contract: "C6", Breaks: "the sums of the ingest do not get to the object store's reads",
		File: "cmd/scoria/internal/system/objectstore.go",
		Old:  "		as[i] = alba.Slice{Name: sl.Name, Off: sl.Off, Data: sl.Data, Sums: sl.Sums}\n", New: "		as[i] = alba.Slice{Name: sl.Name, Off: sl.Off, Data: sl.Data}\n",
		Package: "cmd/scoria/internal/system", Tests: "^TestObjectStoreAdapter$",
	},
	{
		Name: "status-hides-lost-disk", Contract: "C2", Breaks: "status does not tell of disk servers that have a problem",
		File: "cmd/scoria/internal/system/look.go",
		Old:  "		if o.Problem != \"\" {\n", New: "		if o.Problem == \"\\x00\" {\n",
		Package: "cmd/scoria/internal/system", Tests: "^TestProblems$",
	},
	{
		Name: "status-hides-degraded-volume", Contract: "C2", Breaks: "status is well although a volume is not",
		File: "cmd/scoria/internal/system/look.go",
		Old:  "		if v.Problem != \"\" {\n", New: "		if v.Problem == \"\\x00\" {\n",
		Package: "cmd/scoria/internal/system", Tests: "^TestProblems$",
	},
}
