package alba

import (
	"context"
	"fmt"
	"slices"

	"scoria/alba/codec"
	"scoria/internal/blocksum"
)

// This file finds fragments that are wrong though the checksums of their disk server fit: it
// answers with other bytes than it was given. Manifests hold a digest of each fragment, so each
// can be judged by itself, however many of them lie. That takes reading them as a whole, and is
// done only when something did not come out as it was stored.

// maxWrong bounds how many fragments are remembered of a disk that lies.
const maxWrong = 100

// liars reads all fragments of a chunk that can be read, and returns those that are not what
// was stored. They are noted, and queued for repair when queue is set.
func (c *Client) liars(ctx context.Context, p piece, queue bool) (wrong []int, err error) {
	ch := &p.o.Chunks[p.chunk]
	for i := range ch.Fragments {
		d := c.disks.get(ch.Fragments[i].OSD)
		if ch.Fragments[i].OSD == 0 || d == nil || d.gone() {
			continue
		}
		digest, err := c.digest(ctx, p, i)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil || digest == ch.Fragments[i].Digest {
			continue
		}
		wrong = append(wrong, i)
		p.frag = i
		c.noteWrong(&p)
		if queue {
			c.queueRepair(&p)
		}
	}
	return wrong, nil
}

// digest reads a fragment as a whole and returns the digest of what its disk has.
func (c *Client) digest(ctx context.Context, p piece, frag int) (uint32, error) {
	n := int(p.o.Chunks[p.chunk].FragmentLen)
	sums := make([]uint32, 0, n/codec.BlockSize)
	err := c.readFragment(ctx, p, frag, func(_ int, b []byte) { sums = blocksum.Sums(sums, b) })
	return codec.Digest(sums), err
}

// readFragment reads a fragment from its OSD, and calls f for each of its parts in turn.
func (c *Client) readFragment(ctx context.Context, p piece, frag int, f func(off int, b []byte)) error {
	p.frag = -1
	n := int(p.o.Chunks[p.chunk].FragmentLen)
	g := &gather{c: c, p: p}
	for at := 0; at < n; at += rebuildStep {
		rctx, cancel := context.WithTimeout(ctx, c.opts.ReadTimeout)
		r := g.one(rctx, frag, uint64(at), min(rebuildStep, n-at))
		cancel()
		if r.err != nil {
			return r.err
		}
		f(at, r.buf.B)
		r.buf.Free()
	}
	return nil
}

// noteWrong takes note of a disk that gave a fragment which is not what was stored, with sums that fit.
func (c *Client) noteWrong(p *piece) {
	f := p.o.Chunks[p.chunk].Fragments[p.frag]
	k := c.disks.get(f.OSD)
	if k == nil {
		return
	}
	key := p.key()
	k.mu.Lock()
	known := slices.Contains(k.mu.wrong, key)
	if !known && len(k.mu.wrong) < maxWrong {
		k.mu.wrong = append(k.mu.wrong, key)
	}
	k.mu.Unlock()
	if !known {
		c.opts.Logger.Warn("OSD has other data than it was given, with checksums that fit", "osd", f.OSD, "object", p.o.Name, "key", key.String())
	}
}

// doubt reads the pieces once more after what was read is wrong as a whole: those whose fragments
// are not what was stored are made from others that are. An error when nothing is found wrong.
func (r *reader) doubt(ctx context.Context, first, last int) error {
	wrong := map[int][]int{}
	found := false
	for i := first; i < last; i++ {
		p := &r.pieces[i]
		list, known := wrong[p.chunk]
		if !known {
			var err error
			if list, err = r.c.liars(ctx, *p, true); err != nil {
				return err
			}
			wrong[p.chunk] = list
		}
		found = found || len(list) > 0
	}
	if !found {
		return fmt.Errorf("every fragment that can be read is what was stored: %w", ErrUnreadable)
	}
	for i := first; i < last; i++ {
		p := &r.pieces[i]
		p.liars = wrong[p.chunk]
		if p.bad = slices.Contains(p.liars, p.frag); p.bad {
			r.c.stats.corrupt.Add(1)
			p.err = r.c.rebuildPiece(ctx, p, p.buf)
		} else { // it may have been computed from one that is wrong
			p.err = nil
			r.c.fetchGroup(ctx, []*piece{p})
		}
		if p.err != nil {
			return p.err
		}
	}
	return nil
}
