package osd

import "fmt"

// runSyncer is the goroutine that makes groups durable and visible, and answers them, in order.
func (s *Store) runSyncer() {
	var groups []*group
	for g := range s.written {
		groups = append(groups[:0], g)
	more:
		for len(groups) < maxInFlight {
			select {
			case g, ok := <-s.written:
				if !ok {
					break more
				}
				groups = append(groups, g)
			default:
				break more
			}
		}
		s.finish(groups)
		clear(groups)
	}
}

// finish syncs the segments of the groups once each, brings the groups into the index and answers.
func (s *Store) finish(groups []*group) {
	err := s.sync(groups)
	for _, g := range groups {
		switch {
		case g.drain != nil:
			close(g.drain)
			continue
		case g.retire != nil:
			s.upkeep.retire(g.retire)
			continue
		}
		wrote := g.seg != nil && g.err == nil
		if g.err == nil {
			g.err = err
		}
		if g.err == nil {
			g.err = s.failedErr()
		}
		if g.err == nil && len(g.ops) > 0 {
			s.durable.Store(g.rec.Seq)
			if aerr := s.index.apply(g.rec, g.header, g.ops); aerr != nil {
				s.fail(aerr)
				g.err = fmt.Errorf("%w: %w", aerr, ErrUnavailable)
			}
			s.upkeep.count(g.header + int64(g.rec.Values))
			s.nudge()
		}
		s.over.settle(g.rec.Seq, g.ops)
		if wrote {
			s.space.inFlight.Add(-(g.header + int64(g.rec.Values)))
		}
		s.answer(g)
	}
}

// sync makes what the groups wrote durable. After an error nothing is known about any of them,
// and trying again would not tell: the kernel reports a lost write once.
func (s *Store) sync(groups []*group) error {
	var last *segment
	for _, g := range groups {
		if g.seg == nil || g.seg == last || g.err != nil {
			continue
		}
		last = g.seg
		s.stats.syncs.Add(1)
		if err := g.seg.f.Sync(); err != nil {
			err = fmt.Errorf("sync segment %d: %w", g.seg.info.No, err)
			s.fail(err)
			return fmt.Errorf("%w: %w", err, ErrUnavailable)
		}
	}
	return nil
}

// answer tells the callers of a group its end. Their memory is theirs again.
func (s *Store) answer(g *group) {
	if g.err == nil && len(g.reqs) > 0 {
		s.stats.groups.Add(1)
	}
	for _, r := range g.reqs {
		if r.err = g.err; r.err == nil {
			s.stats.applies.Add(1)
			s.stats.puts.Add(uint64(len(r.batch.Puts)))
			s.stats.deletes.Add(uint64(len(r.batch.Deletes)))
			for i := range r.batch.Puts {
				s.stats.bytesWritten.Add(uint64(len(r.batch.Puts[i].Value)))
			}
		}
		close(r.done)
	}
	for _, r := range g.denied {
		if g.err != nil && s.failure.Load() != nil {
			r.err = g.err // it was decided by what may be lost
		}
		close(r.done)
	}
}
