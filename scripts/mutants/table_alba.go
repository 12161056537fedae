package main

const (
	albaDir  = "alba"
	maintDir = "alba/maintenance"
	osdDir   = "alba/osd"
)

// albaMutants break the object store's client and its maintenance.
var albaMutants = []Mutant{
	{
		Name: "manifest-names-unstored-fragments", Contract: "C5", Breaks: "a fragment whose disk failed is in the manifest all the same",
		File: "alba/upload.go",
		Old:  "		cancel()\n		if err == nil {\n			st.osd = id\n", New: "		cancel()\n		if err == nil || errors.Is(err, osd.ErrUnavailable) {\n			st.osd, err = id, nil\n",
		Package: albaDir, Tests: "^TestPutWithFailingDisks$",
	},
	{
		Name: "too-few-fragments-accepted", Contract: "C5", Breaks: "failed fragments count towards the c that a put needs",
		File: "alba/upload.go",
		Old:  "		if n-len(errs) < u.policy.C {\n", New: "		if n-len(errs) < u.policy.K {\n",
		Package: albaDir, Tests: "^TestTooFewFragments$",
	},
	{
		Name: "more-than-m-lost-is-invented", Contract: "C6", Breaks: "with fewer than k fragments a read goes on with zeroes",
		File: "alba/rebuild.go",
		Old:  "	if have >= k {\n		return nil\n	}\n", New: "	for i := range g.shards {\n		if have < k && len(g.shards[i]) == 0 && !g.skip[i] {\n			g.shards[i] = make([]byte, g.n)\n			have++\n		}\n	}\n	if have >= k {\n		return nil\n	}\n",
		Package: albaDir, Tests: "^TestBeyondMIsReportedNotInvented$",
	},
	{
		Name: "ingest-sums-ignored", Contract: "C6", Breaks: "a disk that returns other data with sums that fit is believed",
		File: "alba/fetch.go",
		Old:  "	if p.want != nil && !slices.Equal(p.want, r.Sums) {", New: "	if p.want != nil && len(p.want) != len(r.Sums) {",
		Package: albaDir, Tests: "^TestWrongButConsistentFragment$",
	},
	{
		Name: "whole-object-unverified", Contract: "C6", Breaks: "an object read as a whole is not held against its checksum",
		File: "alba/read.go",
		Old:  "	if sum == o.Checksum {\n", New: "	if sum == o.Checksum || limit > 0 {\n",
		Package: albaDir, Tests: "^TestGetLeavesLiarsOut$",
	},
	{
		Name: "repair-keeps-to-liars", Contract: "C6", Breaks: "repair that met a wrong fragment does not leave it out of its next attempt",
		File: "alba/repair.go",
		Old:  "		for _, i := range w.frags {\n", New: "		if len(w.frags) > 0 {\n			return err\n		}\n		for _, i := range w.frags {\n",
		Package: albaDir, Tests: "^TestRepairLeavesLiarsOut$",
	},
	{
		Name: "liar-is-not-told", Contract: "C6", Breaks: "no note is taken of the disk server that lied",
		File: "alba/liars.go",
		Old:  "	if !known && len(k.mu.wrong) < maxWrong {\n", New: "	if !known && len(k.mu.wrong) < 0 {\n",
		Package: albaDir, Tests: "^TestReadTellsLiars$",
	},
	{
		Name: "liar-as-source", Contract: "C6", Breaks: "what is read again after a wrong result is computed from the liars too",
		File: "alba/rebuild.go",
		Old:  "	for _, i := range p.liars {\n		g.skip[i] = true\n	}\n", New: "",
		Package: albaDir, Tests: "^TestGetLeavesLiarsOut$",
	},
	{
		Name: "repair-writes-unverified", Contract: "C6", Breaks: "repair stores a rebuilt fragment without holding it against its digest",
		File: "alba/repair.go",
		Old:  "		if d := codec.Digest(sums[i]); d != ch.Fragments[i].Digest {", New: "		if d := codec.Digest(sums[i]); d != ch.Fragments[i].Digest && len(need) == 0 {",
		Package: albaDir, Tests: "^TestRepairVerifiesWhatItWrites$",
	},
	{
		Name: "two-fragments-on-one-disk", Contract: "C5", Breaks: "placement puts two fragments of a chunk on one disk server",
		File: "alba/placement/placement.go",
		Old:  "		node.cands = slices.Delete(node.cands, i, i+1)\n", New: "",
		Package: "alba/placement", Tests: "^TestChooseRules$",
	},
	{
		Name: "too-many-fragments-on-one-node", Contract: "C5", Breaks: "placement ignores how many fragments a node may hold",
		File: "alba/placement/placement.go",
		Old:  "	least := x\n", New: "	least := x + 1\n	x++\n",
		Package: "alba/placement", Tests: "^TestChooseRules$",
	},
	{
		Name: "nonce-per-namespace", Contract: "C6", Breaks: "all objects of a namespace are encrypted with one key, so nonces repeat",
		File: "alba/codec/pack.go",
		Old:  "hkdf.Key(sha256.New, key, id[:], ", New: "hkdf.Key(sha256.New, key, nil, ",
		Package: "alba/codec", Tests: "^TestNoncesDoNotRepeat$",
	},
	{
		Name: "nonce-without-chunk", Contract: "C6", Breaks: "units of different chunks are encrypted with the same nonce",
		File: "alba/codec/pack.go",
		Old:  "	binary.BigEndian.PutUint32(nonce[0:], uint32(chunk))\n", New: "",
		Package: "alba/codec", Tests: "^TestNoncesDoNotRepeat$",
	},
	{
		Name: "gc-takes-open-epoch", Contract: "C5", Breaks: "garbage collection sweeps tags of an epoch that is still open",
		File: "alba/maintenance/gc.go",
		Old:  "	from, to := alba.TagRange(ns, before)\n", New: "	from, to := alba.TagRange(ns, before+2)\n",
		Package: maintDir, Tests: "^TestOpenUploadsAreNotCollected$",
	},
	{
		Name: "gc-does-not-close-epochs", Contract: "C5", Breaks: "garbage collection sweeps an epoch under which manifests may still come",
		File: "alba/maintenance/gc.go",
		Old:  "api.GCEpochs(ctx, ns, nsm.GCOp{CloseBelow: st.epoch})", New: "api.GCEpochs(ctx, ns, nsm.GCOp{})",
		Package: maintDir, Tests: "^TestCollectionBeforeCommit$",
	},
	{
		Name: "gc-ignores-manifests", Contract: "C5", Breaks: "garbage collection deletes fragments that a manifest refers to",
		File: "alba/maintenance/gc.go",
		Old:  "	return f.OSD == id && f.Version == version\n", New: "	return f.OSD == id && f.Version == version && m.Version > 1\n",
		Package: maintDir, Tests: "^TestOpenUploadsAreNotCollected$",
	},
	{
		Name: "delete-queue-entry-removed-first", Contract: "C5", Breaks: "deletes leave the queue although the disk server did not do them",
		File: "alba/maintenance/deletes.go",
		Old:  "			if err := a.deleteFragments(ctx, o.ID, list); err != nil {\n				return err\n			}\n", New: "			if err := a.deleteFragments(ctx, o.ID, list); err != nil {\n				a.log.Warn(\"delete\", \"err\", err)\n			}\n",
		Package: maintDir, Tests: "^TestDeleteQueue$",
	},
	{
		Name: "unreadable-object-not-listed", Contract: "C6", Breaks: "an object that cannot be repaired is not told of",
		File: "alba/maintenance/status.go",
		Old:  "	if len(a.mu.status.Unreadable) < maxUnreadable {\n", New: "	if len(a.mu.status.Unreadable) > maxUnreadable {\n",
		Package: maintDir, Tests: "^TestUnreadableIsListed$",
	},
}

// osdMutants break the disk server.
var osdMutants = []Mutant{
	{
		Name: "batch-acknowledged-before-sync", Contract: "C5", Breaks: "a disk server acknowledges a batch that is not durable",
		File: "alba/osd/syncer.go",
		Old:  "		if err := g.seg.f.Sync(); err != nil {\n", New: "		if err := error(nil); err != nil {\n",
		Package: osdDir, Tests: "^TestPowerLoss$",
	},
	{
		Name: "torn-values-accepted", Contract: "C6", Breaks: "recovery of a disk server takes a record whose values are torn",
		File: "alba/osd/recover.go",
		Old:  "		if r.Seq > durable {\n", New: "		if r.Seq > durable && len(ops) == 0 {\n",
		Package: osdDir, Tests: "^TestPowerLoss$",
	},
	{
		Name: "batch-not-atomic", Contract: "C5", Breaks: "after a crash a disk server has the first half of a batch",
		File: "alba/osd/recover.go",
		Old:  "			if ok, err := l.valuesIntact(ops); err != nil || !ok {\n				return false, err\n			}\n", New: "			if ok, err := l.valuesIntact(ops); err != nil || !ok {\n				ops = ops[:len(ops)/2]\n			}\n",
		Package: osdDir, Tests: "^TestPowerLoss$",
	},
	{
		Name: "index-ahead-of-data", Contract: "C6", Breaks: "the index of a disk server is changed before the data is durable",
		File: "alba/osd/syncer.go",
		Old:  "	err := s.sync(groups)\n	for _, g := range groups {\n", New: "	for _, g := range groups {\n		if g.err == nil && len(g.ops) > 0 {\n			_ = s.index.apply(g.rec, g.header, g.ops)\n			_ = s.index.flush()\n		}\n	}\n	err := s.sync(groups)\n	for _, g := range groups {\n",
		Package: osdDir, Tests: "^TestPowerLoss$",
	},
	{
		Name: "disk-asserts-ignored", Contract: "C4", Breaks: "a disk server does not check the asserts of a batch",
		File: "alba/osd/writer.go",
		Old:  "		if err := w.check(&r.batch.Asserts[i]); err != nil {\n			return err\n		}\n", New: "		_ = w.check(&r.batch.Asserts[i])\n",
		Package: osdDir, Tests: "^TestStoreConforms$",
	},
	{
		Name: "asserts-miss-writes-in-flight", Contract: "C4", Breaks: "asserts do not see batches that are written and not yet in the index",
		File: "alba/osd/writer.go",
		Old:  "	if known, exists, equal := s.over.check(a); known {\n", New: "	if known, exists, equal := s.over.check(a); known && len(a.Key) == 0 {\n",
		Package: osdDir, Tests: "^TestStoreConforms$",
	},
	{
		Name: "range-delete-off-by-one", Contract: "C5", Breaks: "a range delete takes the key at its end too",
		File: "alba/osd/read.go",
		Old:  "		items, err := s.List(ctx, from, to, MaxList)\n", New: "		items, err := s.List(ctx, from, append(append([]byte(nil), to...), 0), MaxList)\n",
		Package: osdDir, Tests: "^TestStoreConforms$",
	},
	{
		Name: "disk-read-unverified", Contract: "C6", Breaks: "a disk server does not check what it reads from the disk",
		File: "alba/osd/read.go",
		Old:  "		if blocksum.Of(buf[:n]) != want {\n", New: "		if n == 0 && blocksum.Of(buf[:n]) != want {\n",
		Package: osdDir, Tests: "^TestRot$",
	},
	{
		Name: "lost-acknowledged-record-is-silent", Contract: "C6", Breaks: "a disk server cuts its log at a damaged record that was acknowledged",
		File: "alba/osd/recover.go",
		Old:  "			if ok && r.Seq > end.next && r.Durable >= end.next {\n", New: "			if ok && r.Seq > end.next && r.Durable >= r.Seq {\n",
		Package: osdDir, Tests: "^TestLostRecordIsTold$",
	},
	{
		Name: "failed-sync-is-forgotten", Contract: "C2", Breaks: "a disk server goes on after a failed sync",
		File: "alba/osd/syncer.go",
		Old:  "			err = fmt.Errorf(\"sync segment %d: %w\", g.seg.info.No, err)\n			s.fail(err)\n", New: "			err = fmt.Errorf(\"sync segment %d: %w\", g.seg.info.No, err)\n",
		Package: osdDir, Tests: "^TestFailedDisk$",
	},
	{
		Name: "count-allocated-unchecked", Contract: "C7", Breaks: "a count from a wire or disk is allocated although the body cannot hold so many",
		File: "internal/frame/frame.go",
		Old:  "limit < 0 || n > uint64(limit) || n > uint64(len(d.b))/uint64(max(size, 1))", New: "limit < 0 || n > uint64(limit)",
		Package: "internal/frame", Tests: "^TestDecoderLimits$",
	},
	{
		Name: "frame-length-checked-late", Contract: "C7", Breaks: "a frame is allocated before its length is held against the limit",
		File: "internal/frame/frame.go",
		Old:  "	if h.Length > maxLength {\n", New: "	if h.Length > maxLength && len(b) > HeaderSize {\n",
		Package: "internal/frame", Tests: "^TestLengthIsCheckedFirst$",
	},
}
