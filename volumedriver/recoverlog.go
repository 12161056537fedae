package volumedriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/sco"
	"scoria/volumedriver/writebuffer"
)

// openLog opens the local log behind what map checkpoint and TLogs have.
func (o *opening) openLog(ctx context.Context, s *state, base, maxSCO uint64) error {
	v := o.v
	committed, committedSCO := uint64(0), uint64(0)
	if o.head != nil {
		committed, committedSCO = o.head.Seq, o.head.SCO
	}
	from := max(base, committed)
	o.buf.FromSeq, o.buf.Disposable, o.buf.MinSCO = from, committedSCO, maxSCO+1
	buf, found, err := writebuffer.Open(ctx, o.buf, o.replay)
	if errors.Is(err, writebuffer.ErrCorrupt) || errors.Is(err, writebuffer.ErrGap) {
		// A segment that is only a read cache need not have been synced, and may be what is
		// damaged. What else there is must open without any of them.
		if dropped, derr := o.dropCache(committedSCO); derr != nil {
			return derr
		} else if dropped > 0 {
			v.cmap, v.apply.seq = o.discardMap(), 0
			if err := o.openMap(s.Map); err != nil {
				return err
			}
			if o.head != nil {
				if err := o.replayTLogs(ctx); err != nil {
					return err
				}
			}
			buf, found, err = writebuffer.Open(ctx, o.buf, o.replay)
		}
	}
	switch {
	case err == nil:
		v.buf = buf
	case errors.Is(err, fs.ErrNotExist) && base <= committed,
		errors.Is(err, writebuffer.ErrCorrupt) && base <= committed && found.EndsBefore(from),
		errors.Is(err, writebuffer.ErrGap) && s.Drained:
		// The log lost its end with the machine's power, but only what the object store
		// has, and what nobody had flushed.
		o.buf.MinSCO = max(maxSCO, found.LastSCO) + 1
		if v.buf, err = o.freshLog(ctx, from+1); err != nil {
			return err
		}
		v.log.Info("the local log ends before the published head, and begins anew behind it", "head", committed, "log", found.LastSeq)
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, writebuffer.ErrStale), o.salvage:
		return fmt.Errorf("%w: %w", errUnusable, err)
	case errors.Is(err, writebuffer.ErrCorrupt), errors.Is(err, writebuffer.ErrGap):
		return fmt.Errorf("local log %s: records that had been flushed are damaged; salvage the volume to go on with what is before them: %w: %w", o.buf.Dir, ErrCorrupt, err)
	default:
		return fmt.Errorf("local log: %w", err)
	}
	if found.LostSynced {
		v.lost = fmt.Sprintf("flushed records behind %d were damaged in the local log: %s", found.LastSeq, found.Cut)
		v.log.Error("data lost", "what", v.lost)
	} else if found.Cut != "" {
		v.log.Info("the local log was cut", "record", found.LastSeq, "bytes", found.CutBytes, "reason", found.Cut)
	}
	return nil
}

// discardMap closes the map, into which a part of the log may have been replayed.
func (o *opening) discardMap() *clustermap.Map {
	o.d.ignore(o.v.cmap.Close())
	return nil
}

// dropCache removes the log's segments up to an SCO that the head covers.
func (o *opening) dropCache(upTo uint64) (dropped int, err error) {
	list, err := o.d.opts.FS.ReadDir(o.buf.Dir)
	if err != nil {
		return 0, fmt.Errorf("local log: %w", err)
	}
	for _, e := range list {
		name := e.Name()
		number, ok := sco.ParseHex(strings.TrimSuffix(strings.TrimPrefix(name, "sco-"), ".log"), 9)
		if !ok || number > upTo {
			continue
		}
		if err := o.d.opts.FS.Remove(filepath.Join(o.buf.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return dropped, fmt.Errorf("local log: %w", err)
		}
		dropped++
	}
	return dropped, nil
}

// freshLog replaces the log by an empty one.
func (o *opening) freshLog(ctx context.Context, first uint64) (*writebuffer.Buffer, error) {
	if err := writebuffer.RemoveAll(ctx, o.buf.FS, o.buf.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the old local log: %w", err)
	}
	buf, err := writebuffer.Create(ctx, o.buf, first)
	if err != nil {
		return nil, fmt.Errorf("create the local log: %w", err)
	}
	return buf, nil
}
