package sim

import (
	"errors"
	"fmt"
	"time"

	"scoria/nbd/nbdtest"
)

// beyondEvery is how many seeds go by between those that end with more damage than the policy bears.
const beyondEvery = 3

// checkBeyond makes more disks unreadable than the policy bears. Reads may fail then, but never
// lie, and status tells. When the disks come back (it was the cable) nothing is lost.
func (w *world) checkBeyond() error {
	if w.plan.Seed%beyondEvery != 0 {
		return nil
	}
	if err := w.gw.stop(w.ctx); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if err := w.gw.start(w.ctx, 0, nil); err != nil { // with empty caches
		return fmt.Errorf("start: %w", err)
	}
	bad := w.disks[:len(w.disks)-int(w.plan.Preset.Policies[0].K)+1]
	for _, d := range bad {
		d.damage.setAll(true)
		w.troubleAt(d.host, time.Hour)
	}
	failed := 0
	for _, v := range w.volumes() {
		n, err := w.readPieces(v)
		if err != nil {
			return err
		}
		failed += n
	}
	w.note("reads failed beyond what policies bear", failed)
	begin := time.Now()
	for failed > 0 {
		st, err := w.gw.sys.Status(w.ctx)
		if err != nil || st.Health != "ok" {
			break
		}
		if time.Since(begin) > 10*time.Minute {
			return fmt.Errorf("%d reads failed, and status says that all is well", failed)
		}
		w.events(time.Now().Add(5 * time.Second))
	}
	w.events(time.Now().Add(5 * time.Minute)) // repair, scrub and collection have had their chance to spoil something
	for _, d := range bad {
		d.damage.setAll(false)
		w.mu.Lock()
		w.mu.trouble[d.host] = time.Now().Add(2 * grace)
		w.mu.Unlock()
	}
	if err := w.checkContent(); err != nil {
		return fmt.Errorf("after the disks came back: %w", err)
	}
	w.quiesce()
	return nil
}

// readPieces reads a volume a piece at a time; each is right or fails.
func (w *world) readPieces(v *volume) (failed int, err error) {
	const piece = 16 * cluster
	var c *nbdtest.Client
	for _, l := range v.all() {
		for off := uint64(0); off < l.model.Size() && w.ctx.Err() == nil; off += piece {
			if c == nil {
				if c, err = w.dialNBD(w.ctx, v.name); err != nil {
					return failed + 1, nil // its head cannot be read
				}
			}
			p := make([]byte, min(piece, l.model.Size()-off))
			var refused *nbdtest.RequestError
			err := c.ReadAt(p, l.base+off)
			switch {
			case err == nil:
				if err := l.model.Check(off, p); err != nil {
					return failed, fmt.Errorf("%w: volume %s at %d, with too many disks unreadable: %w", errWrong, v.name, l.base, err)
				}
			case errors.As(err, &refused):
				failed++
			default:
				return failed, fmt.Errorf("volume %s: the connection broke: %w", v.name, err)
			}
		}
	}
	if c != nil {
		err = c.Disconnect()
	}
	return failed, err
}
