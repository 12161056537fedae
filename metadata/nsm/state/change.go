package state

import (
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/internal/pbconv"
	"scoria/metadata/proto/nsmpb"
)

// change collects what a command does to one namespace's counters, and writes each once.
// rec is nil when the record itself does not change.
type change struct {
	tx      fsm.Tx
	ns      uint64
	rec     *nsmpb.Namespace
	perOSD  map[uint32]*delta
	buckets map[bucket]int64
}

// delta is a change of an OSD's usage.
type delta struct{ fragments, bytes, queued int64 }

func newChange(tx fsm.Tx, rec *nsmpb.Namespace) *change {
	return &change{tx: tx, ns: rec.GetId(), rec: rec}
}

func (c *change) usage(osd uint32) *delta {
	if c.perOSD == nil {
		c.perOSD = make(map[uint32]*delta)
	}
	d := c.perOSD[osd]
	if d == nil {
		d = &delta{}
		c.perOSD[osd] = d
	}
	return d
}

func (c *change) count(b bucket, n int64) {
	if c.buckets == nil {
		c.buckets = make(map[bucket]int64)
	}
	c.buckets[b] += n
}

// put inserts a new object, in place of one of the same name.
func (c *change) put(m *metadata.Manifest, encoded []byte) error {
	if err := c.checkPut(m); err != nil {
		return err
	}
	if err := c.drop(m.Name); err != nil {
		return err
	}
	c.tx.Put(nameKey(c.ns, m.Name), m.ObjectID[:])
	c.add(m, encoded)
	return nil
}

func (c *change) checkPut(m *metadata.Manifest) error {
	if err := m.Validate(); err != nil {
		return err
	}
	if m.Version != 0 {
		return metadata.Errorf(metadata.KindInvalid, "object %q is put with version %d, want 0", m.Name, m.Version)
	}
	if c.tx.Get(manifestKey(c.ns, m.ObjectID)) != nil {
		return metadata.Errorf(metadata.KindExists, "object %q: object id %v is in use: each upload needs a fresh one", m.Name, m.ObjectID)
	}
	if m.Inline != nil {
		return nil
	}
	if err := checkGC(c.rec, m.GCEpoch); err != nil {
		return err
	}
	for i := range m.Chunks {
		if n := m.Chunks[i].Placed(); n < m.Policy.K {
			return metadata.Errorf(metadata.KindInvalid, "object %q: chunk %d has %d fragments stored, at least %d are needed", m.Name, i, n, m.Policy.K)
		}
		for j, f := range m.Chunks[i].Fragments {
			if f.OSD != 0 && c.isQueued(m.ObjectID, i, j, f) {
				return metadata.Errorf(metadata.KindExists, "object %q: object id %v was used before, its fragments are being deleted", m.Name, m.ObjectID)
			}
		}
	}
	return nil
}

func (c *change) queued(id metadata.ObjectID, chunk, fragment int, f metadata.Fragment) queued {
	return queued{c.ns, uint32(f.OSD), id, uint16(chunk), uint8(fragment), f.Version}
}

func (c *change) isQueued(id metadata.ObjectID, chunk, fragment int, f metadata.Fragment) bool {
	return c.tx.Get(queueKey(c.queued(id, chunk, fragment, f))) != nil
}

// drop removes an object by name, if there is one; its fragments go to the delete queues.
func (c *change) drop(name string) error {
	key := nameKey(c.ns, name)
	b := c.tx.Get(key)
	if b == nil {
		return nil
	}
	id, err := pbconv.ObjectID(b)
	if err != nil {
		return metadata.Errorf(metadata.KindCorrupt, "name %q: %v", name, err)
	}
	m, err := readManifest(c.tx, c.ns, id)
	if err != nil {
		return err
	}
	if m == nil {
		return metadata.Errorf(metadata.KindCorrupt, "name %q: its manifest %v is missing", name, id)
	}
	c.tx.Delete(key)
	c.remove(m)
	for i := range m.Chunks {
		for j, f := range m.Chunks[i].Fragments {
			if f.OSD != 0 {
				c.enqueue(m.ObjectID, i, j, f)
			}
		}
	}
	return nil
}

func (c *change) enqueue(id metadata.ObjectID, chunk, fragment int, f metadata.Fragment) {
	key := queueKey(c.queued(id, chunk, fragment, f))
	if c.tx.Get(key) == nil {
		c.tx.Put(key, []byte{})
		c.usage(uint32(f.OSD)).queued++
	}
}

// dropQueue removes up to limit entries of an OSD's queue and returns how many there were.
func (c *change) dropQueue(osd uint32, limit int) int {
	var keys [][]byte
	prefix := queuePrefix(osd, c.ns)
	c.tx.Scan(prefix, fsm.PrefixEnd(prefix), func(k, _ []byte) bool {
		if len(keys) >= limit {
			return false
		}
		keys = append(keys, append([]byte(nil), k...))
		return true
	})
	for _, k := range keys {
		c.tx.Delete(k)
	}
	c.usage(osd).queued -= int64(len(keys))
	return len(keys)
}

// add stores a manifest and all that is derived from it.
func (c *change) add(m *metadata.Manifest, encoded []byte) {
	c.tx.Put(manifestKey(c.ns, m.ObjectID), encoded)
	c.derive(m, 1)
}

// remove deletes a manifest and all that is derived from it, but its name.
func (c *change) remove(m *metadata.Manifest) {
	c.tx.Delete(manifestKey(c.ns, m.ObjectID))
	c.derive(m, -1)
}

// derive adds (sign 1) or removes (sign -1) index entries and counts of a manifest.
func (c *change) derive(m *metadata.Manifest, sign int64) {
	c.rec.Objects += uint64(sign)
	c.rec.LogicalBytes += uint64(sign) * m.Size
	c.rec.StoredBytes += uint64(sign) * m.StoredBytes()
	if m.Inline != nil {
		return
	}
	b := bucketOf(m)
	c.count(b, sign)
	c.index(bucketKey(c.ns, b, m.ObjectID), sign)
	for osd, d := range placesOf(m) {
		u := c.usage(osd)
		u.fragments += sign * d.fragments
		u.bytes += sign * d.bytes
		c.index(osdObjectKey(c.ns, osd, m.ObjectID), sign)
	}
}

func (c *change) index(key []byte, sign int64) {
	if sign > 0 {
		c.tx.Put(key, []byte{})
	} else {
		c.tx.Delete(key)
	}
}

// placesOf sums the fragments of an object by OSD.
func placesOf(m *metadata.Manifest) map[uint32]delta {
	places := make(map[uint32]delta)
	for i := range m.Chunks {
		for _, f := range m.Chunks[i].Fragments {
			if f.OSD != 0 {
				d := places[uint32(f.OSD)]
				d.fragments++
				d.bytes += int64(m.Chunks[i].FragmentLen)
				places[uint32(f.OSD)] = d
			}
		}
	}
	return places
}

// flush writes the counters. A counter at zero is not kept.
func (c *change) flush() error {
	be := binary.BigEndian
	for _, osd := range sortedKeys(c.perOSD) {
		key, d := usageKey(c.ns, osd), c.perOSD[osd]
		var f, n, q uint64
		if b := c.tx.Get(key); len(b) == 24 {
			f, n, q = be.Uint64(b), be.Uint64(b[8:]), be.Uint64(b[16:])
		}
		f, n, q = f+uint64(d.fragments), n+uint64(d.bytes), q+uint64(d.queued)
		if int64(f) < 0 || int64(n) < 0 || int64(q) < 0 {
			return metadata.Errorf(metadata.KindCorrupt, "namespace %d: usage of OSD %d falls below 0", c.ns, osd)
		}
		if f|n|q == 0 {
			c.tx.Delete(key)
		} else {
			c.tx.Put(key, be.AppendUint64(be.AppendUint64(be.AppendUint64(nil, f), n), q))
		}
	}
	for b, d := range c.buckets {
		key := bucketCountKey(c.ns, b)
		var n uint64
		if v := c.tx.Get(key); len(v) == 8 {
			n = be.Uint64(v)
		}
		if n += uint64(d); int64(n) < 0 {
			return metadata.Errorf(metadata.KindCorrupt, "namespace %d: bucket %v falls below 0", c.ns, b)
		} else if n == 0 {
			c.tx.Delete(key)
		} else {
			c.tx.Put(key, be.AppendUint64(nil, n))
		}
	}
	if c.rec == nil {
		return nil
	}
	return saveNamespace(c.tx, c.rec)
}

// updateManifest replaces the places of an object's fragments.
func updateManifest(tx fsm.Tx, req *nsmpb.UpdateManifestRequest) (proto.Message, error) {
	ns, err := liveNamespace(tx, req.GetNamespace())
	if err != nil {
		return nil, err
	}
	m, err := metadata.DecodeManifest(req.GetManifest())
	if err != nil {
		return nil, metadata.Errorf(metadata.KindInvalid, "update: %v", err)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	old, err := readManifest(tx, ns.GetId(), m.ObjectID)
	if err != nil {
		return nil, err
	}
	if err := checkUpdate(old, m); err != nil {
		return nil, err
	}
	c := newChange(tx, ns)
	fresh := false
	for i := range m.Chunks {
		for j, f := range m.Chunks[i].Fragments {
			was := old.Chunks[i].Fragments[j]
			if f.OSD == was.OSD && f.Version == was.Version {
				continue
			}
			if was.OSD != 0 {
				c.enqueue(m.ObjectID, i, j, was)
			}
			if f.OSD == 0 {
				continue
			}
			fresh = true
			if c.isQueued(m.ObjectID, i, j, f) {
				return nil, metadata.Errorf(metadata.KindInvalid, "object %q: fragment %d of chunk %d on OSD %d version %d is being deleted: write it under version %d",
					m.Name, j, i, f.OSD, f.Version, m.Version)
			}
		}
	}
	if fresh {
		if err := checkGC(ns, metadata.GCEpoch(req.GetGcEpoch())); err != nil {
			return nil, err
		}
	}
	c.remove(old)
	c.add(m, req.GetManifest())
	return nil, c.flush()
}

// checkUpdate compares all but the places.
func checkUpdate(old, m *metadata.Manifest) error {
	switch {
	case old == nil:
		return metadata.Errorf(metadata.KindAssertFailed, "object %q (%v) does not exist any more", m.Name, m.ObjectID)
	case m.Version != old.Version+1:
		return metadata.Errorf(metadata.KindAssertFailed, "object %q has version %d, the update %d", m.Name, old.Version, m.Version)
	case len(m.Chunks) != len(old.Chunks) || m.Inline != nil || old.Inline != nil:
		return metadata.Errorf(metadata.KindAssertFailed, "object %q: the update has %d chunks instead of %d", m.Name, len(m.Chunks), len(old.Chunks))
	}
	if !m.SameData(old) {
		return metadata.Errorf(metadata.KindAssertFailed, "object %q: the update changes more than places", m.Name)
	}
	return nil
}
