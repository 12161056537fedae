package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/proto/nsmpb"
)

// maxFindings bounds what Audit reports.
const maxFindings = 20

// Audit recomputes everything that is derived from manifests, names and queues, and
// compares it with what is stored: per-OSD index, bucket index, counters, usage. It returns
// nil when all is in step, else what differs. It keeps the derived keys of one namespace
// in memory.
func Audit(r fsm.Reader) error {
	a := &audit{r: r}
	known := make(map[uint64]bool)
	r.Scan([]byte{tNamespace}, []byte{tNamespace + 1}, func(k, v []byte) bool {
		ns := &nsmpb.Namespace{}
		if len(k) != prefixLen || proto.Unmarshal(v, ns) != nil || ns.GetId() != binary.BigEndian.Uint64(k[1:]) {
			return a.found("namespace record %x is damaged", k)
		}
		known[ns.GetId()] = true
		a.namespace(ns)
		return len(a.findings) < maxFindings
	})
	r.Scan([]byte{tName}, []byte{0xf0}, func(k, _ []byte) bool {
		at := 1
		if k[0] == tQueue {
			at = 5
		}
		if len(k) < at+8 || !known[binary.BigEndian.Uint64(k[at:])] {
			return a.found("key %x belongs to no namespace", k)
		}
		return true
	})
	return errors.Join(a.findings...)
}

type audit struct {
	r        fsm.Reader
	findings []error
}

// found notes a difference and tells whether to go on.
func (a *audit) found(format string, args ...any) bool {
	a.findings = append(a.findings, metadata.Errorf(metadata.KindCorrupt, "audit: "+format, args...))
	return len(a.findings) < maxFindings
}

// namespace rebuilds one namespace in memory, from its manifests, names and queues.
func (a *audit) namespace(ns *nsmpb.Namespace) {
	id := ns.GetId()
	model := fsm.NewMem()
	rec := proto.CloneOf(ns)
	rec.Objects, rec.LogicalBytes, rec.StoredBytes = 0, 0, 0
	c := newChange(model, rec)
	prefix := nsPrefix(tManifest, id, 0)
	a.r.Scan(prefix, fsm.PrefixEnd(prefix), func(k, v []byte) bool {
		m, err := metadata.DecodeManifest(v)
		if err == nil {
			err = m.Validate()
		}
		if err != nil || !bytes.Equal(k, manifestKey(id, m.ObjectID)) {
			return a.found("manifest %x: %v", k, err)
		}
		if name := a.r.Get(nameKey(id, m.Name)); !bytes.Equal(name, m.ObjectID[:]) {
			return a.found("object %q: its name leads to %x, not to %v", m.Name, name, m.ObjectID)
		}
		model.Put(nameKey(id, m.Name), m.ObjectID[:])
		c.add(m, v)
		return true
	})
	a.r.Scan([]byte{tQueue}, []byte{tQueue + 1}, func(k, _ []byte) bool {
		q, ok := parseQueueKey(k)
		if ok && q.ns != id {
			return true
		}
		if !ok {
			return a.found("queue entry %x", k)
		}
		if m, err := readManifest(a.r, id, q.id); err != nil || m != nil && holds(m, q) {
			return a.found("fragment %+v is both live and to be deleted (%v)", q, err)
		}
		c.usage(q.osd).queued++
		return true
	})
	if err := c.flush(); err != nil {
		a.found("%v", err)
	}
	for _, table := range []byte{tName, tManifest, tOSDObject, tBucket, tBucketCount, tUsage} {
		a.compare(model, nsPrefix(table, id, 0))
	}
	if !proto.Equal(rec, ns) {
		a.found("namespace %d counts {%v}, its manifests make {%v}", id, ns, rec)
	}
}

// holds tells whether a manifest has the fragment of a queue entry.
func holds(m *metadata.Manifest, q queued) bool {
	if int(q.chunk) >= len(m.Chunks) || int(q.fragment) >= len(m.Chunks[q.chunk].Fragments) {
		return false
	}
	f := m.Chunks[q.chunk].Fragments[q.fragment]
	return uint32(f.OSD) == q.osd && f.Version == q.version
}

// compare compares the keys under a prefix with those of the model.
func (a *audit) compare(model *fsm.Mem, prefix []byte) {
	n := 0
	a.r.Scan(prefix, fsm.PrefixEnd(prefix), func(k, v []byte) bool {
		n++
		w := model.Get(k)
		if w == nil {
			return a.found("key %x is stored, but not derived", k)
		}
		if !bytes.Equal(v, w) {
			return a.found("key %x: %x is stored, %x derived", k, v, w)
		}
		return true
	})
	m := 0
	model.Scan(prefix, fsm.PrefixEnd(prefix), func(k, _ []byte) bool {
		m++
		if a.r.Get(k) == nil {
			return a.found("key %x is derived, but not stored", k)
		}
		return true
	})
	if n != m && len(a.findings) == 0 {
		a.findings = append(a.findings, fmt.Errorf("audit: %d keys under %x, %d derived: %w", n, prefix, m, metadata.ErrCorrupt))
	}
}
