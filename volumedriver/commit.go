package volumedriver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"scoria/internal/blocksum"
	"scoria/internal/vfs"
	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/sco"
	"scoria/volumedriver/tlog"
	"scoria/volumedriver/writebuffer"
)

func plainSum(b []byte) uint32 { return blocksum.Of(b) }

// lastCommittedSCO returns the last SCO that the published head covers.
func (v *Volume) lastCommittedSCO() uint64 {
	v.drain.head.Lock()
	defer v.drain.head.Unlock()
	return v.drain.head.SCO
}

// headCopy returns the published head, to be changed.
func (v *Volume) headCopy() (h Head, exists bool) {
	v.drain.head.Lock()
	defer v.drain.head.Unlock()
	h = v.drain.head.Head
	h.TLogs = slices.Clone(h.TLogs)
	return h, v.drain.head.exists
}

// commit makes a run of uploaded SCOs part of the volume in the object store: one
// transaction stores their TLog and a head that names it, and with it the newest map
// checkpoint that the head then covers. Afterwards the SCOs are only a read cache here.
// Only one commit runs at a time.
func (v *Volume) commit(run []writebuffer.ClosedSCO) error {
	began := time.Now()
	last := run[len(run)-1]
	old, _ := v.headCopy()
	h := old
	h.TLogs = slices.Clone(old.TLogs)
	h.Epoch, h.Size, h.Seq, h.SCO, h.TLog = v.epoch, v.size.Load(), last.LastSeq, last.Number, old.TLog+1
	h.MaxSCO = max(h.MaxSCO, last.Number)
	sections := make([][]byte, len(run))
	for i := range run {
		sections[i] = run[i].Entries
	}
	object, err := tlog.AppendObject(nil, h.TLog, v.epoch, sections)
	if err != nil {
		err = fmt.Errorf("volume %s: TLog %d: %w", v.Name(), h.TLog, err)
		v.trouble.set("commit", err) // a bug: nothing can be done about it here
		v.fail(err)
		return err
	}
	h.TLogs = append(h.TLogs, TLogRef{Number: h.TLog, FirstSeq: run[0].FirstSeq, LastSeq: last.LastSeq, LastSCO: last.Number, Bytes: uint64(len(object))})
	txn := Txn{Epoch: v.epoch, Deletes: slices.Clone(v.garbage), Puts: []Put{{Name: sco.TLogName(h.TLog), Data: aligned(object)}}}
	packs, err := v.adoptCheckpoint(&old, &h, &txn)
	if err != nil {
		return err
	}
	if err := v.publish(&h, txn); err != nil {
		return err
	}
	v.garbage = nil
	if seq, err := recordSeq(h.Map); err == nil {
		v.published(seq)
	}
	for _, number := range packs {
		v.packs.setUploaded(number, false) // deleted
	}
	v.buf.MarkDisposable(last.Number)
	v.stats.commits.Add(1)
	v.noteCommitted(began)
	v.settleLog()
	if len(h.TLogs) > v.d.opts.CheckpointTLogs {
		v.wantCheckpoint()
	}
	v.drain.news.tell()
	return nil
}

// settleLog syncs the log in the background when the write buffer needs the room of what
// was committed: it removes cached segments only in front of a synced one.
func (v *Volume) settleLog() {
	s := v.d.pool.Stats()
	if s.TotalBytes < s.HardBytes/2 || v.settling.Swap(true) {
		return
	}
	started := v.spawn(func() {
		defer v.settling.Store(false)
		if err := v.buf.SyncEnd(v.ctx); err != nil && v.ctx.Err() == nil {
			v.trouble.set("sync the local log", err)
		}
	})
	if !started {
		v.settling.Store(false)
	}
}

// aligned returns b in memory that starts at a multiple of 4096.
func aligned(b []byte) []byte {
	a := vfs.AlignedBuffer(len(b))
	copy(a, b)
	return a
}

// publish stores a head with what else belongs to its transaction, and remembers it.
func (v *Volume) publish(h *Head, txn Txn) error {
	data, err := h.Encode()
	if err != nil {
		err = fmt.Errorf("volume %s: head: %w", v.Name(), err)
		v.fail(err)
		return err
	}
	txn.Puts = append(txn.Puts, Put{Name: sco.HeadName, Data: aligned(data)})
	err = v.insist("publish the volume head", func(ctx context.Context) error {
		return v.d.opts.Store.Apply(ctx, v.ns, txn)
	})
	if err != nil {
		return err
	}
	v.drain.head.Lock()
	v.drain.head.Head, v.drain.head.exists = *h, true
	v.drain.head.Unlock()
	return nil
}

// adoptCheckpoint puts the newest local map checkpoint into head h, if h covers it and the
// old head has an older one: its packs are stored first, the TLogs that it makes superfluous
// and the packs that only the old one used are deleted by the transaction. It returns the
// numbers of the latter.
func (v *Volume) adoptCheckpoint(old, h *Head, txn *Txn) (gone []uint32, err error) {
	found := v.checkpointUpTo(h.Seq)
	if found.record == nil {
		return nil, nil
	}
	record, seq := found.record, found.seq
	was, err := recordPacks(old.Map)
	if err != nil {
		return nil, v.badRecord(err)
	}
	now, err := recordPacks(record)
	if err != nil {
		return nil, v.badRecord(err)
	}
	for _, number := range v.packs.missing(now) {
		if err := v.uploadPack(number); err != nil {
			return nil, err
		}
	}
	h.Map = record
	for len(h.TLogs) > 0 && h.TLogs[0].LastSeq <= seq {
		if name := sco.TLogName(h.TLogs[0].Number); name == txn.Puts[0].Name {
			txn.Puts = txn.Puts[1:] // its records are all in the checkpoint
		} else {
			txn.Deletes = append(txn.Deletes, name)
		}
		h.TLogs = h.TLogs[1:]
	}
	for _, number := range was {
		if !slices.Contains(now, number) {
			gone = append(gone, number)
			txn.Deletes = append(txn.Deletes, sco.PackName(number))
		}
	}
	return gone, nil
}

// badRecord stops a volume whose own checkpoint record does not decode.
func (v *Volume) badRecord(err error) error {
	err = fmt.Errorf("volume %s: map checkpoint: %w: %w", v.Name(), ErrCorrupt, err)
	v.fail(err)
	return err
}

// recordPacks lists the packs that a checkpoint record refers to.
func recordPacks(record []byte) ([]uint32, error) {
	if len(record) == 0 {
		return nil, nil
	}
	info, err := clustermap.DecodeRecord(record)
	if err != nil {
		return nil, err
	}
	packs := make([]uint32, len(info.Packs))
	for i, p := range info.Packs {
		packs[i] = p.Number
	}
	return packs, nil
}

// recordSeq returns the sequence number of a checkpoint record; an empty one has 0.
func recordSeq(record []byte) (uint64, error) {
	if len(record) == 0 {
		return 0, nil
	}
	info, err := clustermap.DecodeRecord(record)
	return info.Seq, err
}

// uploadPack stores a map pack.
func (v *Volume) uploadPack(number uint32) error {
	var data []byte
	err := v.insist(fmt.Sprintf("load map pack %d", number), func(context.Context) (err error) {
		data, err = v.packs.content(number)
		return err
	})
	if err != nil {
		return err
	}
	err = v.insist(fmt.Sprintf("store map pack %d", number), func(ctx context.Context) error {
		return v.d.opts.Store.Apply(ctx, v.ns, Txn{Epoch: v.epoch, Puts: []Put{{Name: sco.PackName(number), Data: data}}})
	})
	if err != nil {
		return err
	}
	v.packs.setUploaded(number, true)
	v.stats.uploadedBytes.Add(uint64(len(data)))
	return nil
}
