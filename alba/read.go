package alba

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"scoria/alba/codec"
	"scoria/internal/blocksum"
	"scoria/metadata"
)

// Limits of reads.
const (
	maxSlices  = 4096
	cacheSlice = 64 << 10 // slices above this many bytes do not go through the block cache
	getBatch   = 256      // manifests asked for in one request
)

// Slice asks for a part of an object.
type Slice struct {
	Name string
	Off  uint64
	Data []byte // filled in full; best aligned to 4096 bytes in memory where it is large
	// Sums, if not nil, are the plain CRC32C that the blocks of Data must have; Off is a
	// multiple of 4096 then, and the end too or the end of the object.
	Sums []uint32
}

// Read fills all slices, verified. fs.ErrNotExist when an object is absent, ErrUnreadable
// when a block cannot be rebuilt, ErrUnavailable when too few servers answer, ErrInvalid
// for a range outside the object. On an error the content of all Data is undefined.
func (c *Client) Read(ctx context.Context, ns metadata.NamespaceID, slices []Slice) error {
	if err := c.checkOpen(); err != nil {
		return err
	}
	if len(slices) > maxSlices {
		return fmt.Errorf("%d slices, limit %d: %w", len(slices), maxSlices, ErrInvalid)
	}
	sp, err := c.spaces.get(ctx, ns)
	if err != nil {
		return border(err)
	}
	c.stats.slices.Add(uint64(len(slices)))
	r := newReader(c, sp)
	defer r.free()
	objs, cached, err := c.resolve(ctx, sp, r.objs[:0], slices)
	if err != nil {
		return border(err)
	}
	r.objs = objs
	err = r.read(ctx, slices, objs)
	for try := 0; err != nil && cached && try < 2; try++ {
		// The object may have been replaced, moved or repaired since its manifest was cached.
		var changed bool
		objs, changed, cached, err = c.again(ctx, sp, slices, objs, err)
		if !changed {
			break
		}
		r.reset()
		err = r.read(ctx, slices, objs)
	}
	return border(err)
}

// again looks the manifests up anew after a failure. Without a change err stands.
func (c *Client) again(ctx context.Context, sp *space, slices []Slice, objs []*object, err error) (next []*object, changed, cached bool, _ error) {
	if errors.Is(err, ErrInvalid) || ctx.Err() != nil {
		return objs, false, false, err
	}
	for i := range slices {
		c.manifests.Forget(sp.id, slices[i].Name)
	}
	next, cached, lookErr := c.resolve(ctx, sp, nil, slices)
	if lookErr != nil {
		return objs, false, false, lookErr
	}
	for i := range next {
		if next[i].ObjectID != objs[i].ObjectID || next[i].Version != objs[i].Version {
			changed = true
		}
	}
	return next, changed, cached, err
}

// TryRead fills a slice from memory, without waiting or allocating; false when it cannot.
func (c *Client) TryRead(ns metadata.NamespaceID, s Slice) bool {
	o, ok, _ := c.manifests.Get(ns, s.Name)
	if !ok || s.Off > o.Size || uint64(len(s.Data)) > o.Size-s.Off {
		return false
	}
	if plainInlineObject(o) {
		if s.Sums != nil {
			return false
		}
		copy(s.Data, o.Inline[s.Off:])
		return true
	}
	return o.Inline == nil && c.fromCache(o, &s)
}

func plainInlineObject(o *object) bool { return o.Inline != nil && o.sealer == nil }

// fromCache fills a slice from the block cache, all or nothing.
func (c *Client) fromCache(o *object, s *Slice) bool {
	if len(s.Data) > cacheSlice {
		return false
	}
	pos, end := s.Off, s.Off+uint64(len(s.Data))
	for i := 0; pos < end; i++ {
		index, at := pos/codec.BlockSize, pos%codec.BlockSize
		b := c.blocks.Get(&o.ObjectID, uint32(index))
		if b == nil || at >= uint64(len(b.Data)) || (s.Sums != nil && (i >= len(s.Sums) || b.Sum != s.Sums[i])) {
			return false
		}
		pos += uint64(copy(s.Data[pos-s.Off:], b.Data[at:]))
	}
	c.stats.hits.Add(1)
	return true
}

// resolve appends the object of each slice to dst; cached tells whether any came from the cache.
func (c *Client) resolve(ctx context.Context, sp *space, dst []*object, slices []Slice) (objs []*object, cached bool, err error) {
	var misses map[string]cacheToken
	objs = dst
	for i := range slices {
		o, ok, t := c.manifests.Get(sp.id, slices[i].Name)
		if ok {
			cached = true
		} else {
			if misses == nil {
				misses = map[string]cacheToken{}
			}
			misses[slices[i].Name] = t
		}
		objs = append(objs, o)
	}
	c.stats.manifestHits.Add(uint64(len(slices) - len(misses)))
	if misses == nil {
		return objs, cached, nil
	}
	c.stats.manifestMisses.Add(uint64(len(misses)))
	names := make([]string, 0, len(misses))
	for n := range misses {
		names = append(names, n)
	}
	found := make(map[string]*object, len(names))
	for len(names) > 0 {
		n := min(len(names), getBatch)
		ms, err := sp.api.Get(ctx, sp.id, names[:n])
		if err != nil {
			return objs, cached, fmt.Errorf("manifests: %w", err)
		}
		if len(ms) != n {
			return objs, cached, fmt.Errorf("NSM gave %d manifests for %d names: %w", len(ms), n, metadata.ErrInternal)
		}
		for i, m := range ms {
			if m == nil {
				return objs, cached, fmt.Errorf("object %q in namespace %d: %w", names[i], sp.id, fs.ErrNotExist)
			}
			o, err := c.newObject(sp, m)
			if err != nil {
				return objs, cached, err
			}
			found[names[i]] = o
			c.manifests.Offer(sp.id, names[i], o, o.weight(), misses[names[i]])
		}
		names = names[n:]
	}
	for i := range objs {
		if objs[i] == nil {
			objs[i] = found[slices[i].Name]
		}
	}
	return objs, cached, nil
}

// Stat returns the newest manifest of an object: fs.ErrNotExist.
func (c *Client) Stat(ctx context.Context, ns metadata.NamespaceID, name string) (*metadata.Manifest, error) {
	_, o, err := c.newest(ctx, ns, name)
	if err != nil {
		return nil, border(err)
	}
	return clonePlaces(o.Manifest), nil
}

// newest asks the NSM, not the cache.
func (c *Client) newest(ctx context.Context, ns metadata.NamespaceID, name string) (*space, *object, error) {
	if err := c.checkOpen(); err != nil {
		return nil, nil, err
	}
	sp, err := c.spaces.get(ctx, ns)
	if err != nil {
		return nil, nil, err
	}
	ms, err := sp.api.Get(ctx, ns, []string{name})
	if err != nil {
		return nil, nil, fmt.Errorf("manifest of %q: %w", name, err)
	}
	if len(ms) != 1 || ms[0] == nil {
		return nil, nil, fmt.Errorf("object %q in namespace %d: %w", name, ns, fs.ErrNotExist)
	}
	o, err := c.newObject(sp, ms[0])
	return sp, o, err
}

// Get returns the newest content of an object of at most limit bytes, verified as a
// whole. ErrInvalid when it is larger.
func (c *Client) Get(ctx context.Context, ns metadata.NamespaceID, name string, limit int) ([]byte, error) {
	sp, o, err := c.newest(ctx, ns, name)
	if err != nil {
		return nil, border(err)
	}
	if limit < 0 || o.Size > uint64(limit) {
		return nil, fmt.Errorf("object %q has %d bytes, at most %d are wanted: %w", name, o.Size, limit, ErrInvalid)
	}
	data := make([]byte, o.Size)
	r := newReader(c, sp)
	defer r.free()
	r.direct = true // what is cached may be wrong, and only the whole can tell
	if err := r.read(ctx, []Slice{{Name: name, Data: data}}, []*object{o}); err != nil {
		return nil, border(err)
	}
	sum := blocksum.Of(data)
	if sum == o.Checksum {
		return data, nil
	}
	wrong := fmt.Errorf("object %q (%v): crc %08x, manifest says %08x: %w", name, o.ObjectID, sum, o.Checksum, ErrUnreadable)
	if err := r.doubt(ctx, 0, len(r.pieces)); err != nil {
		return nil, border(fmt.Errorf("%w (%w)", wrong, err))
	}
	for i := range r.patches {
		if err := r.unpack(&r.patches[i]); err != nil {
			return nil, border(fmt.Errorf("%w (%w)", wrong, err))
		}
	}
	if blocksum.Of(data) != o.Checksum {
		return nil, wrong
	}
	return data, nil
}

// List returns objects in order of name that start with prefix and come behind after, at most limit (≤ 1000).
func (c *Client) List(ctx context.Context, ns metadata.NamespaceID, prefix, after string, limit int) ([]metadata.ObjectInfo, error) {
	if err := c.checkOpen(); err != nil {
		return nil, err
	}
	sp, err := c.spaces.get(ctx, ns)
	if err != nil {
		return nil, border(err)
	}
	list, err := sp.api.List(ctx, ns, prefix, after, limit)
	return list, border(err)
}
