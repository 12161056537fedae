package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"scoria/alba"
	"scoria/alba/osd"
	"scoria/internal/vfs"
	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/nsm"
	nsmstate "scoria/metadata/nsm/state"
	"scoria/volumedriver"
	"scoria/volumedriver/clustermap"
	"scoria/volumedriver/sco"
)

// finalCheck is a check of the system at rest, everything drained and healed.
type finalCheck struct {
	name string
	do   func(w *world) error
}

var finalChecks = []finalCheck{
	{"content", (*world).checkContent},
	{"objects that volumes name (C5)", (*world).checkObjects},
	{"index, buckets and counters of the namespace manager", (*world).checkAudit},
	{"fragments: all there, nothing else there (C5)", (*world).checkFragments},
	{"content after the loss of the gateway's disk", (*world).checkFromStore},
	{"damage beyond what policies bear", (*world).checkBeyond},
}

// checkContent: each volume holds exactly what its clients have written.
func (w *world) checkContent() error {
	for _, v := range w.volumes() {
		lanes := v.all()
		content, err := w.readVolume(v, lanes)
		if err != nil {
			return err
		}
		for i, l := range lanes {
			if err := l.model.Check(0, content[i]); err != nil {
				return fmt.Errorf("%w: volume %s, client %d at %d: %w", errWrong, v.name, i, l.base, err)
			}
		}
	}
	return nil
}

// checkFromStore takes the gateway's disk away: what was drained is all there is, and it is all there.
func (w *world) checkFromStore() error {
	if err := w.quiet(); err != nil {
		return err
	}
	if err := w.gw.stop(w.ctx); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	w.gw.wipe()
	w.wiped = true
	if err := w.gw.start(w.ctx, 0, nil); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	return w.checkContent()
}

func (w *world) checkAudit() error {
	return w.meta.nsm.Read(w.ctx, nsmstate.Audit)
}

// nsm asks the namespace manager past all faults.
func (w *world) nsm() *nsm.Service { return nsm.NewService(w.meta.nsm) }

// manifests returns all manifests of a namespace.
func (w *world) manifests(ns metadata.NamespaceID) (map[string]*metadata.Manifest, error) {
	out := map[string]*metadata.Manifest{}
	for after := ""; ; {
		infos, err := w.nsm().List(w.ctx, ns, "", after, 500)
		if err != nil {
			return nil, err
		}
		if len(infos) == 0 {
			return out, nil
		}
		var names []string
		for _, o := range infos {
			names = append(names, o.Name)
		}
		ms, err := w.nsm().Get(w.ctx, ns, names)
		if err != nil {
			return nil, err
		}
		for _, m := range ms {
			out[m.Name] = m
		}
		after = names[len(names)-1]
	}
}

// checkObjects holds the objects of each volume against its head: nothing that it names is
// missing, nothing else is there but SCOs.
func (w *world) checkObjects() error {
	vs, err := w.operator().ListVolumes(w.ctx)
	if err != nil {
		return err
	}
	if len(vs) != len(w.volumes()) {
		return fmt.Errorf("%d volumes, want %d", len(vs), len(w.volumes()))
	}
	client, end, err := w.client()
	if err != nil {
		return err
	}
	defer end()
	for _, v := range vs {
		ms, err := w.manifests(v.Namespace)
		if err != nil {
			return err
		}
		if ms[sco.HeadName] == nil {
			if len(ms) > 0 {
				return fmt.Errorf("volume %s has no head, and %d objects", v.Name, len(ms))
			}
			continue
		}
		data, err := client.Get(w.ctx, v.Namespace, sco.HeadName, 64<<20)
		if err != nil {
			return err
		}
		if err := checkHead(data, ms); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

func checkHead(data []byte, ms map[string]*metadata.Manifest) error {
	h, err := volumedriver.DecodeHead(data)
	if err != nil {
		return err
	}
	want := map[string]bool{sco.HeadName: true}
	for _, t := range h.TLogs {
		want[sco.TLogName(t.Number)] = true
	}
	if len(h.Map) > 0 {
		info, err := clustermap.DecodeRecord(h.Map)
		if err != nil {
			return err
		}
		for _, p := range info.Packs {
			want[sco.PackName(p.Number)] = true
		}
	}
	for name := range ms {
		typ, number, err := sco.Parse(name)
		if err != nil || typ == sco.SCO && number > h.SCO || typ != sco.SCO && !want[name] {
			return fmt.Errorf("object %s is left over (%v)", name, err)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		return fmt.Errorf("objects are missing: %v", want)
	}
	return nil
}

// client returns an ALBA client of the checker's own.
func (w *world) client() (*alba.Client, func(), error) {
	c, err := alba.New(alba.Options{
		ABM: w.operator(), NSM: func(metadata.NSMHost) (nsm.API, error) { return w.nsm(), nil },
		OSD: func(o metadata.OSD) (osd.API, error) {
			for _, d := range w.disks {
				if d.uuid == o.UUID {
					return d.store, nil
				}
			}
			return nil, osd.ErrUnavailable
		},
	})
	if err != nil {
		return nil, nil, err
	}
	return c, func() { _ = c.Close() }, nil
}

// fragments lists the keys of a kind that each disk holds.
func (w *world) fragments(ctx context.Context, d *disk, kind alba.KeyKind) ([]osd.Item, error) {
	from, to := []byte{byte(kind)}, []byte{byte(kind) + 1}
	var out []osd.Item
	for {
		items, err := d.store.List(ctx, from, to, osd.MaxList)
		if err != nil || len(items) == 0 {
			return out, err
		}
		out = append(out, items...)
		from = append(bytes.Clone(items[len(items)-1].Key), 0)
	}
}

// checkFragments: every fragment that a manifest names is on its disk, and verifies; no disk
// holds anything else, once the garbage collection has had its time.
func (w *world) checkFragments() error {
	begin := time.Now()
	for {
		err := w.compareFragments()
		if err == nil || errors.Is(err, errWrong) || w.ctx.Err() != nil {
			return err
		}
		if time.Since(begin) > cleanWithin {
			return fmt.Errorf("after %v: %w", cleanWithin, err)
		}
		w.events(time.Now().Add(10 * time.Second))
	}
}

// verify lets a disk server check all its values.
func verify(ctx context.Context, d *disk) (all []osd.Bad, err error) {
	for from := []byte(nil); ; {
		bad, _, next, err := d.store.Verify(ctx, from, nil)
		all = append(all, bad...)
		if err != nil || next == nil {
			return all, err
		}
		from = next
	}
}

// cleanWithin is how long garbage may stay: two collections and their grace, at least.
const cleanWithin = 10 * time.Minute

// liveFragments lists the keys that manifests name, by disk.
func (w *world) liveFragments() (map[uint32]map[string]bool, error) {
	live := map[uint32]map[string]bool{}
	spaces, err := w.operator().ListNamespaces(w.ctx)
	if err != nil {
		return nil, err
	}
	if len(spaces) != len(w.volumes()) {
		return nil, fmt.Errorf("%d namespaces for %d volumes", len(spaces), len(w.volumes()))
	}
	for _, s := range spaces {
		ms, err := w.manifests(s.ID)
		if err != nil {
			return nil, err
		}
		for _, m := range ms {
			for c, ch := range m.Chunks {
				for f, fr := range ch.Fragments {
					if fr.OSD == 0 {
						return nil, fmt.Errorf("%w: object %s, chunk %d: fragment %d is nowhere, and status says that all is well", errWrong, m.Name, c, f)
					}
					if live[uint32(fr.OSD)] == nil {
						live[uint32(fr.OSD)] = map[string]bool{}
					}
					k := alba.FragmentKey{Namespace: s.ID, ObjectID: m.ObjectID, Chunk: uint16(c), Fragment: uint8(f), Version: fr.Version}
					live[uint32(fr.OSD)][string(k.Bytes(alba.KeyData))] = true
				}
			}
		}
	}
	return live, nil
}

func (w *world) compareFragments() error {
	live, err := w.liveFragments()
	if err != nil {
		return err
	}
	for _, d := range w.disks {
		bad, err := verify(w.ctx, d)
		if err != nil || len(bad) > 0 {
			return fmt.Errorf("%s: %d damaged values: %v, %w", d.host, len(bad), bad, err)
		}
		items, err := w.fragments(w.ctx, d, alba.KeyData)
		if err != nil {
			return err
		}
		have := map[string]bool{}
		for _, it := range items {
			have[string(it.Key)] = true
		}
		for k := range live[d.id] {
			if !have[k] {
				return fmt.Errorf("%w: %s lacks the fragment %x that a manifest names", errWrong, d.host, k)
			}
		}
		for k := range have {
			if !live[d.id][k] {
				return fmt.Errorf("%s holds the fragment %x that nothing names", d.host, k)
			}
		}
		for kind, may := range map[alba.KeyKind]int{alba.KeyTag: 0, alba.KeyProbe: 1} {
			left, err := w.fragments(w.ctx, d, kind)
			if err != nil {
				return err
			}
			if len(left) > may {
				return fmt.Errorf("%s holds %d keys of kind %d, %x for one", d.host, len(left), kind, left[0].Key)
			}
		}
	}
	return nil
}

var (
	_ = fsm.NewMem
	_ = fs.ErrNotExist
	_ = vfs.CrashKept
)
