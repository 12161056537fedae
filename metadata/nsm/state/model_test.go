package state_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sort"
	"testing"

	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/metatest"
	"scoria/metadata/nsm"
	"scoria/metadata/nsm/state"
)

// model is a namespace as simply as can be: objects by name, queued fragments as a set.
type model struct {
	fence     metadata.Epoch
	objects   map[string]*metadata.Manifest
	queue     map[nsm.QueuedDelete]bool
	low, next metadata.GCEpoch
}

// TestModel runs random operations against the service and the model; after each some,
// the two must agree, and the audit must find everything derived in step.
func TestModel(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { runModel(t, seed, 600) })
	}
}

func runModel(t *testing.T, seed uint64, steps int) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	host := fsm.NewMemHost(state.Machine{})
	api := nsm.NewService(host)
	ctx := t.Context()
	if err := api.CreateNamespace(ctx, 1, metatest.Preset("p")); err != nil {
		t.Fatal(err)
	}
	m := &model{objects: map[string]*metadata.Manifest{}, queue: map[nsm.QueuedDelete]bool{}, low: 1, next: 2}
	for step := range steps {
		var err error
		switch p := rnd.IntN(100); {
		case p < 60:
			err = m.txn(t, api, rnd)
		case p < 80:
			err = m.update(t, api, rnd)
		case p < 92:
			err = m.drain(t, api, rnd)
		default:
			err = m.gc(t, api, rnd)
		}
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if step%20 == 0 || step == steps-1 {
			m.compare(t, api, host)
		}
	}
}

// osds draws distinct OSDs out of ten, holes (0) among them.
func osds(rnd *rand.Rand, n, holes int) []metadata.OSDID {
	out := make([]metadata.OSDID, n)
	for i, p := range rnd.Perm(10)[:n] {
		out[i] = metadata.OSDID(p + 1)
	}
	for range holes {
		out[rnd.IntN(n)] = 0
	}
	return out
}

func (m *model) randomPut(rnd *rand.Rand) metadata.Manifest {
	name, id := fmt.Sprint("o", rnd.IntN(30)), metatest.ObjectID(rnd.Uint64())
	if rnd.IntN(5) == 0 {
		return metatest.Inline(name, id, fmt.Sprint(rnd.Uint64()))
	}
	k, par := 2+rnd.IntN(3), rnd.IntN(3)
	p := metatest.Manifest(name, id, k, par, 1+rnd.IntN(3), osds(rnd, k+par, rnd.IntN(2))...)
	p.GCEpoch = m.low + metadata.GCEpoch(rnd.IntN(3))
	return p
}

// txn runs a random transaction; the model decides by itself what must come of it.
func (m *model) txn(t *testing.T, api nsm.API, rnd *rand.Rand) error {
	var txn nsm.Txn
	var wants error
	if rnd.IntN(10) == 0 {
		txn.Fence = m.fence + metadata.Epoch(rnd.IntN(3)) - min(m.fence, 1)
	} else {
		txn.Fence = m.fence
	}
	if txn.Fence < m.fence {
		wants = metadata.ErrFenced
	}
	for range rnd.IntN(3) {
		name := fmt.Sprint("o", rnd.IntN(30))
		a := nsm.Assert{Name: name, Exists: m.objects[name] != nil}
		if a.Exists && rnd.IntN(2) == 0 {
			a.ObjectID = m.objects[name].ObjectID
		}
		if rnd.IntN(6) == 0 {
			a.Exists = !a.Exists
			a.ObjectID = metadata.ObjectID{}
			wants = first(wants, metadata.ErrAssertFailed)
		}
		txn.Asserts = append(txn.Asserts, a)
	}
	touched := map[string]bool{}
	for range rnd.IntN(3) {
		name := fmt.Sprint("o", rnd.IntN(30))
		if touched[name] {
			wants = first(wants, metadata.ErrInvalid)
		}
		touched[name] = true
		txn.Deletes = append(txn.Deletes, name)
	}
	for range rnd.IntN(4) {
		p := m.randomPut(rnd)
		if touched[p.Name] {
			wants = first(wants, metadata.ErrInvalid)
		}
		touched[p.Name] = true
		wants = first(wants, m.judge(&p))
		txn.Puts = append(txn.Puts, p)
	}
	if err := api.Apply(t.Context(), 1, txn); !errors.Is(err, wants) {
		return fmt.Errorf("txn %+v: %v, the model wants %v", txn, err, wants)
	}
	if wants != nil {
		return nil
	}
	m.fence = txn.Fence
	for _, name := range txn.Deletes {
		m.drop(name)
	}
	for i := range txn.Puts {
		m.drop(txn.Puts[i].Name)
		m.objects[txn.Puts[i].Name] = &txn.Puts[i]
	}
	return nil
}

func first(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (m *model) judge(p *metadata.Manifest) error {
	if p.Inline != nil {
		return nil
	}
	switch {
	case p.GCEpoch < m.low:
		return metadata.ErrStaleGCEpoch
	case p.GCEpoch >= m.next:
		return metadata.ErrInvalid
	}
	for _, c := range p.Chunks {
		n := 0
		for _, f := range c.Fragments {
			if f.OSD != 0 {
				n++
			}
		}
		if n < p.Policy.K {
			return metadata.ErrInvalid
		}
	}
	return nil
}

func (m *model) drop(name string) {
	old := m.objects[name]
	delete(m.objects, name)
	if old != nil {
		m.enqueue(old, func(int, int) bool { return true })
	}
}

func (m *model) enqueue(old *metadata.Manifest, which func(chunk, fragment int) bool) {
	for i, c := range old.Chunks {
		for j, f := range c.Fragments {
			if f.OSD != 0 && which(i, j) {
				m.queue[nsm.QueuedDelete{Namespace: 1, OSD: f.OSD, ObjectID: old.ObjectID, Chunk: uint16(i), Fragment: uint8(j), Version: f.Version}] = true
			}
		}
	}
}

// update moves, removes and adds fragments of a random object.
func (m *model) update(t *testing.T, api nsm.API, rnd *rand.Rand) error {
	names := m.names()
	if len(names) == 0 {
		return nil
	}
	old := m.objects[names[rnd.IntN(len(names))]]
	if old.Inline != nil {
		return nil
	}
	next := *old
	next.Version++
	next.Chunks = nil
	changed := map[[2]int]bool{}
	for i, c := range old.Chunks {
		fs := append([]metadata.Fragment(nil), c.Fragments...)
		places := osds(rnd, len(fs), 1)
		moveAll := rnd.IntN(2) == 0
		for j := range fs {
			if moveAll {
				fs[j].OSD, fs[j].Version = places[j], next.Version
				changed[[2]int{i, j}] = true
			} else if rnd.IntN(6) == 0 && fs[j].OSD != 0 {
				fs[j].OSD, fs[j].Version = 0, 0
				changed[[2]int{i, j}] = true
			}
		}
		c.Fragments = fs
		next.Chunks = append(next.Chunks, c)
	}
	var wants error
	if rnd.IntN(8) == 0 {
		next.Version++
		wants = metadata.ErrAssertFailed
	}
	if err := api.UpdateManifest(t.Context(), 1, &next, m.next-1); !errors.Is(err, wants) {
		return fmt.Errorf("update of %s: %v, the model wants %v", old.Name, err, wants)
	}
	if wants == nil {
		m.enqueue(old, func(i, j int) bool { return changed[[2]int{i, j}] })
		m.objects[old.Name] = &next
	}
	return nil
}

// drain finishes some deletes of a random OSD.
func (m *model) drain(t *testing.T, api nsm.API, rnd *rand.Rand) error {
	osd := metadata.OSDID(rnd.IntN(10) + 1)
	list, err := api.DeleteQueue(t.Context(), nsm.DeleteQueueRequest{OSD: osd, Limit: 1 + rnd.IntN(20)})
	if err != nil {
		return err
	}
	for _, q := range list {
		if !m.queue[q] {
			return fmt.Errorf("queue has %+v, the model has not", q)
		}
		delete(m.queue, q)
	}
	_, err = api.DeleteQueue(t.Context(), nsm.DeleteQueueRequest{OSD: osd, Done: list})
	return err
}

func (m *model) gc(t *testing.T, api nsm.API, rnd *rand.Rand) error {
	op := nsm.GCOp{Open: rnd.IntN(2) == 0, CloseBelow: m.low + metadata.GCEpoch(rnd.IntN(2))}
	if op.Open {
		m.next++
	}
	m.low = max(m.low, min(op.CloseBelow, m.next-1))
	low, next, err := api.GCEpochs(t.Context(), 1, op)
	if err != nil || low != m.low || next != m.next {
		return fmt.Errorf("epochs %d, %d, %v; the model has %d, %d", low, next, err, m.low, m.next)
	}
	return nil
}

func (m *model) names() []string {
	names := make([]string, 0, len(m.objects))
	for n := range m.objects {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// compare compares all that can be asked for, and audits the state.
func (m *model) compare(t *testing.T, api nsm.API, host *fsm.MemHost) {
	t.Helper()
	if err := host.Read(t.Context(), state.Audit); err != nil {
		t.Fatal(err)
	}
	names := m.names()
	got, err := api.Get(t.Context(), 1, names)
	if err != nil {
		t.Fatal(err)
	}
	var logical, stored uint64
	perOSD := map[metadata.OSDID]nsm.OSDUsage{}
	for i, name := range names {
		o := m.objects[name]
		if got[i] == nil || got[i].ObjectID != o.ObjectID || got[i].Version != o.Version {
			t.Fatalf("object %s: %+v, the model has %+v", name, got[i], o)
		}
		logical += o.Size
		stored += uint64(len(o.Inline))
		for _, c := range o.Chunks {
			for _, f := range c.Fragments {
				if f.OSD != 0 {
					u := perOSD[f.OSD]
					u.Fragments, u.Bytes = u.Fragments+1, u.Bytes+uint64(c.FragmentLen)
					perOSD[f.OSD] = u
					stored += uint64(c.FragmentLen)
				}
			}
		}
	}
	for q := range m.queue {
		u := perOSD[q.OSD]
		u.QueuedDeletes++
		perOSD[q.OSD] = u
	}
	infos, err := api.Namespaces(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	in := infos[0]
	if in.Objects != uint64(len(names)) || in.LogicalBytes != logical || in.StoredBytes != stored || in.Fence != m.fence {
		t.Fatalf("namespace %+v, the model has %d objects, %d logical, %d stored, fence %d", in, len(names), logical, stored, m.fence)
	}
	if fmt.Sprint(in.PerOSD) != fmt.Sprint(perOSD) {
		t.Fatalf("usage\n%v, the model has\n%v", in.PerOSD, perOSD)
	}
	m.compareIndex(t, api, names)
}

// compareIndex asks for the objects of each OSD. The audit derives its index with the code
// under test, so only a model can tell that this code forgets somebody.
func (m *model) compareIndex(t *testing.T, api nsm.API, names []string) {
	t.Helper()
	for id := metadata.OSDID(1); id <= 10; id++ {
		var want, got []string
		for _, name := range names {
			if holdsAny(m.objects[name], id) {
				want = append(want, name)
			}
		}
		reply, err := api.Scan(t.Context(), nsm.ScanRequest{Namespace: 1, OSD: id, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range reply.Manifests {
			got = append(got, o.Name)
		}
		sort.Strings(got)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("objects on OSD %d: %v, the model has %v", id, got, want)
		}
	}
}

func holdsAny(o *metadata.Manifest, id metadata.OSDID) bool {
	for _, c := range o.Chunks {
		for _, f := range c.Fragments {
			if f.OSD == id {
				return true
			}
		}
	}
	return false
}

// TestAuditFindsDamage spoils each derived table in turn.
func TestAuditFindsDamage(t *testing.T) {
	mem := fsm.NewMem()
	apply := func(typ uint8, body []byte) {
		t.Helper()
		if _, err := (state.Machine{}).Apply(mem, fsm.Command{Type: typ, Version: state.CommandVersion, Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range seedCommands(t) {
		apply(c.typ, c.body)
	}
	if err := state.Audit(mem); err != nil {
		t.Fatal(err)
	}
	var keys []string
	mem.Scan(nil, nil, func(k, _ []byte) bool { keys = append(keys, string(k)); return true })
	tables := map[byte]bool{}
	for _, k := range keys {
		tables[k[0]] = true
		value := append([]byte{}, mem.Get([]byte(k))...)
		mem.Delete([]byte(k))
		if state.Audit(mem) == nil && k[0] != 5 { // a queue entry by itself is derived from the past: its count tells
			t.Errorf("key %x of table %d is missing, and the audit finds nothing", k, k[0])
		}
		mem.Put([]byte(k), value)
	}
	if len(tables) != 8 {
		t.Fatalf("only tables %v were tried", tables)
	}
}
