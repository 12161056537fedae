package main

import (
	"context"
	"errors"
	"strconv"
	"sync"
)

// Of the volumes of a fairness run all but one are modest: one request at a time, so many a second.
const (
	fairVolumes = 16
	modestRate  = 100
	greedyDepth = 64
)

// runFair measures 15 modest volumes, alone and beside one whose client writes as much as it can.
func (s *session) runFair(ctx context.Context, o *options) (err error) {
	s.env.size = o.size
	defer s.cache(o.size)()
	sys, err := s.system(ctx, "fair", false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.stop()) }()
	sh, err := s.volumes(ctx, sys, fairVolumes)
	if err != nil {
		return err
	}
	s.note(sh.t)
	for round := range s.rounds {
		for _, base := range rotate([]string{"rw4k-q1", "rr4k-q1"}, round) {
			for _, greedy := range []bool{false, true} {
				if err := s.fair(ctx, sh, base, greedy, round); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *session) fair(ctx context.Context, sh shape, base string, greedy bool, round int) error {
	r, err := rowByName(base)
	if err != nil {
		return err
	}
	r.name = "fair-" + base + "-alone"
	modest := load{row: r, uris: sh.uris[1:], size: sh.size, secs: s.secs, extra: []string{"--rate_iops=" + strconv.Itoa(modestRate)}}
	var wg sync.WaitGroup
	var other error
	if greedy {
		modest.row.name = "fair-" + base + "-greedy"
		g, err := rowByName("rw4k-q32")
		if err != nil {
			return err
		}
		l := load{row: g.named("greedy", greedyDepth), uris: sh.uris[:1], size: sh.size, secs: s.secs + 2} // to its end the others are not alone
		wg.Go(func() { _, other = l.run(ctx) })
	}
	v, err := s.measure(ctx, sh.t, modest)
	wg.Wait()
	if err = errors.Join(err, other); err != nil {
		s.fail(sh.t, modest.row.name, round, err)
		return ctx.Err()
	}
	s.keep(sh.t, modest.row.name, round, v)
	return sh.t.drain(ctx)
}
