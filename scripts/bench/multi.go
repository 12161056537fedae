package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// multiDepth is the number of requests in flight of all connections together; more
// connections than that have one each.
const multiDepth = 64

// multiRows are what many connections do: the last is a storm of FLUSHes.
var multiRows = []struct{ row, short string }{{"rr4k-q32", "rr4k"}, {"rw4k-q32", "rw4k"}, {"rw4k-q1-f1", "flush"}}

// shape is a way to spread requests over volumes and connections.
type shape struct {
	name string
	t    *target
	uris []string // one connection each
	size int64    // of each volume
}

// runMulti compares many connections to a volume, and many volumes, with one of each, on
// one system.
func (s *session) runMulti(ctx context.Context, o *options) (err error) {
	s.env.size = o.size
	defer s.cache(o.size * int64(len(o.multiVolumes)))()
	sys, err := s.system(ctx, "multi", false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.stop()) }()
	var shapes []shape
	for _, n := range o.multiVolumes {
		sh, err := s.volumes(ctx, sys, n)
		if err != nil {
			return err
		}
		shapes = append(shapes, sh)
	}
	for _, n := range o.multiConnections {
		sh := shapes[0]
		sh.name, sh.uris = fmt.Sprintf("connections%d", n), slices.Repeat(sh.uris[:1], n)
		shapes = append(shapes, sh)
	}
	s.note(shapes[0].t)
	for round := range s.rounds {
		for _, m := range multiRows {
			for _, sh := range rotate(shapes, round) {
				if err := s.spread(ctx, sh, m.row, m.short, round); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// volumes makes n prefilled volumes that together have the size of an image.
func (s *session) volumes(ctx context.Context, sys *scoria, n int) (shape, error) {
	sh := shape{name: fmt.Sprintf("volumes%d", n), size: max(s.env.size/int64(n), 4<<20) &^ (1<<20 - 1)}
	var names []string
	for i := range n {
		name := fmt.Sprintf("m%d-%d", n, i)
		if err := sys.create(ctx, name, sh.size); err != nil {
			return sh, err
		}
		names, sh.uris = append(names, name), append(sh.uris, sys.uri(name, false))
	}
	sh.t = sys.target(names[0], false)
	sh.t.drain = func(ctx context.Context) error { return sys.drainAll(ctx, names) }
	r := row{name: "prefill", rw: "write", block: "1m", depth: 1, once: true, large: true}
	_, err := s.measure(ctx, sh.t, load{row: r, uris: sh.uris, size: sh.size})
	return sh, err
}

// spread runs a row once with its requests spread over the connections of a shape.
func (s *session) spread(ctx context.Context, sh shape, base, short string, round int) error {
	r, err := rowByName(base)
	if err != nil {
		return err
	}
	distinct := slices.Compact(slices.Clone(sh.uris))
	r = r.named(sh.name+"-"+short, max(1, multiDepth/len(sh.uris)))
	return s.onceOn(ctx, sh.t, r, round, load{uris: sh.uris, size: sh.size}, distinct)
}

// drainAll drains volumes, all at the same time, and waits for it.
func (s *scoria) drainAll(ctx context.Context, volumes []string) error {
	for _, how := range [][]string{nil, {"--wait"}} {
		for _, v := range volumes {
			if err := s.run(ctx, append([]string{"volume", "drain", v}, how...)...); err != nil {
				return err
			}
		}
	}
	return nil
}
