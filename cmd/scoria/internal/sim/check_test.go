package sim

import (
	"errors"
	"fmt"
	"time"

	"scoria/nbd/nbdtest"
)

// readVolume reads what the lanes of a volume have, again and again while there is an excuse for failures.
func (w *world) readVolume(v *volume, lanes []*lane) ([][]byte, error) {
	for begin := time.Now(); ; sleep(time.Second) {
		content, err := w.tryRead(v, lanes)
		if err == nil || w.ctx.Err() != nil {
			return content, err
		}
		w.log.Info("volume not read", "volume", v.name, "err", err)
		if w.excuse() == "" && time.Since(begin) > 2*grace {
			return nil, fmt.Errorf("volume %s cannot be read though nothing is wrong: %w", v.name, err)
		}
	}
}

func (w *world) tryRead(v *volume, lanes []*lane) ([][]byte, error) {
	c, err := w.dialNBD(w.ctx, v.name)
	if err != nil {
		return nil, err
	}
	dev, err := nbdtest.NewRemote(func() (*nbdtest.Client, error) { return c, nil })
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	var content [][]byte
	for _, l := range lanes {
		p := make([]byte, l.model.Size())
		if err := dev.ReadAt(w.ctx, p, l.base); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		content = append(content, p)
	}
	return content, dev.Close()
}

// checkRecovered holds a volume against its past (C1, C2, C3) after the gateway has come
// back: each client's part must be a state of it that is late enough, and together they must
// be a prefix: what began after something was acknowledged is not there without it.
func (w *world) checkRecovered(v *volume, what loss) error {
	lanes := v.all()
	content, err := w.readVolume(v, lanes)
	if err != nil || w.ctx.Err() != nil {
		return err
	}
	present, absent := int64(0), int64(1)<<62
	for i, l := range lanes {
		l.disconnect()
		atLeast := l.acked.Load()
		switch what {
		case lossPower:
			atLeast = max(l.flushed.Load(), l.drained.Load())
		case lossDisk:
			atLeast = l.drained.Load()
		}
		began, ended := l.began, l.ended
		first, err := l.model.Prefix(content[i], int(atLeast))
		if err == nil {
			if first > 0 {
				present = max(present, began[first-1])
			}
			var last int
			if last, err = l.model.Last(content[i], int(atLeast)); err == nil && last < len(ended) && ended[last] != 0 {
				absent = min(absent, ended[last])
			}
		}
		if err != nil {
			return fmt.Errorf("%w after a crash (%d): volume %s, client %d at %d (acknowledged %d, flushed %d, drained %d): %w", errWrong, what, v.name, l.n, l.base,
				l.acked.Load(), l.flushed.Load(), l.drained.Load(), err)
		}
		if err := l.resume(content[i], int(atLeast)); err != nil {
			return err
		}
		if what != lossKept { // what was read from a disk after a power loss is on that disk
			l.flushed.Store(l.acked.Load())
		}
		if what == lossDisk {
			l.drained.Store(l.acked.Load())
		}
	}
	if present > absent {
		return fmt.Errorf("%w: volume %s is no prefix of its writes: one that began at %d is there, one acknowledged at %d is not", errWrong, v.name, present, absent)
	}
	return nil
}
