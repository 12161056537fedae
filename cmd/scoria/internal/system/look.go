package system

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"sync"
	"time"

	"scoria/alba"
	"scoria/alba/maintenance"
	"scoria/alba/osd"
	"scoria/cmd/scoria/internal/admin"
	"scoria/metadata"
	"scoria/nbd"
	"scoria/volumedriver"
)

// This file is the admin interface's view of the object store and of the whole system.

// infoTimeout bounds how long a disk server may take to say how it is.
const infoTimeout = 3 * time.Second

// nearlyFull is the part of a disk server's capacity that should stay free: a tenth.
const nearlyFull = 10

// sample is what status and metrics are made of, taken at one time.
type sample struct {
	nbd         nbd.Stats
	driver      volumedriver.DriverStats
	alba        alba.Stats
	maintenance admin.Maintenance
	osds        []admin.OSD
	volumes     int
	problems    []string
}

func (s *System) sample() *sample {
	ctx, cancel := context.WithTimeout(s.bg, 2*infoTimeout)
	defer cancel()
	out := &sample{nbd: s.nbd.Stats(), driver: s.driver.Stats(), alba: s.client.Stats(), maintenance: adminMaintenance(s.agent.Status())}
	var err error
	if out.osds, err = s.OSDs(ctx); err != nil {
		out.problems = append(out.problems, "disk servers cannot be listed: "+err.Error())
	}
	ctx, cancel = context.WithTimeout(s.bg, infoTimeout) // of its own: a disk server that hangs says nothing about volumes
	defer cancel()
	vols, err := s.Volumes(ctx)
	if err != nil {
		out.problems = append(out.problems, "volumes cannot be listed: "+err.Error())
	}
	out.volumes = len(vols)
	out.problems = append(out.problems, problems(out, vols)...)
	return out
}

// problems lists what is not as it should be. Nothing degraded may be missing here.
func problems(s *sample, vols []admin.Volume) []string {
	var out []string
	for _, o := range s.osds {
		if o.State == "gone" {
			continue
		}
		if o.Problem != "" {
			out = append(out, fmt.Sprintf("disk server %s: %s", osdLabel(o), o.Problem))
		}
		if o.WrongFragments > 0 {
			out = append(out, fmt.Sprintf("disk server %s has given other data than was stored there, with checksums that fit: %d fragments, which are made anew from others; do not trust it",
				osdLabel(o), o.WrongFragments))
		}
		switch {
		case o.Full:
			out = append(out, fmt.Sprintf("disk server %s is full", osdLabel(o)))
		case o.Capacity > 0 && o.Used > o.Capacity-o.Capacity/nearlyFull:
			out = append(out, fmt.Sprintf("disk server %s is nearly full: %d of %d bytes are used", osdLabel(o), o.Used, o.Capacity))
		}
	}
	for _, v := range vols {
		if v.Problem != "" {
			out = append(out, fmt.Sprintf("volume %s: %s", v.Name, v.Problem))
		}
	}
	if s.driver.Lease != "" {
		out = append(out, "ownership of volumes cannot be renewed: "+s.driver.Lease)
	}
	for _, t := range s.maintenance.Tasks {
		if t.LastError != "" {
			out = append(out, fmt.Sprintf("maintenance (%s): %s", t.Name, t.LastError))
		}
		if t.Name != string(maintenance.TaskRepair) {
			continue
		}
		switch {
		case t.Left > 0:
			out = append(out, fmt.Sprintf("%d objects lack fragments and wait for repair", t.Left))
		case t.Runs == 0 && !t.Elsewhere: // what was degraded before this start still is
			out = append(out, "it is not known yet whether objects lack fragments: the first look since the start is under way")
		}
	}
	if n := s.maintenance.Fallback; n > 0 {
		out = append(out, fmt.Sprintf("%d objects were stored with less protection than the disk servers allow now, and wait to be made anew", n))
	}
	for _, u := range s.maintenance.Unreadable {
		out = append(out, fmt.Sprintf("object %s of namespace %d is damaged beyond repair: %s", u.Name, u.Namespace, u.Problem))
	}
	return out
}

func osdLabel(o admin.OSD) string {
	if o.ID != 0 {
		return strconv.FormatUint(uint64(o.ID), 10)
	}
	if o.UUID != "" {
		return o.UUID
	}
	return o.Addr
}

// firstLook is how long status waits for the first look at what needs repair since the start.
const firstLook = 2 * time.Second

// Status implements admin.Store.
func (s *System) Status(ctx context.Context) (admin.Status, error) {
	timer := time.NewTimer(firstLook)
	defer timer.Stop()
	select {
	case <-s.agent.Looked():
	case <-timer.C: // that it is not known is told
	case <-ctx.Done():
		return admin.Status{}, ctx.Err()
	case <-s.bg.Done():
	}
	sm := s.sample()
	st := admin.Status{
		Version: s.cfg.Version, Data: s.Data(), Started: s.started, Ready: s.notReady() == nil, Health: "ok", Problems: sm.problems,
		NBD: s.URIs(""), Volumes: sm.volumes, OpenVolumes: sm.driver.OpenVolumes, Connections: int(sm.nbd.Connections), OSDs: sm.osds,
		Buffer: admin.Buffer{
			Limit: uint64(sm.driver.Pool.HardBytes), Dirty: uint64(sm.driver.Pool.DirtyBytes),
			Cached: uint64(max(sm.driver.Pool.TotalBytes-sm.driver.Pool.DirtyBytes, 0)),
		},
		Maintenance: sm.maintenance,
	}
	if len(sm.problems) > 0 {
		st.Health = "degraded"
	} else {
		st.Problems = []string{}
	}
	return st, nil
}

func adminMaintenance(st maintenance.Status) admin.Maintenance {
	out := admin.Maintenance{Tasks: []admin.Task{}, Unreadable: []admin.UnreadableObject{}, Fallback: st.Fallback}
	for _, name := range maintenance.Tasks() {
		t := st.Tasks[name]
		out.Tasks = append(out.Tasks, admin.Task{
			Name: string(name), Running: t.Running, Finished: t.Finished, Runs: t.Runs, Errors: t.Errors, LastError: t.LastError,
			Done: t.Done, Bytes: t.Bytes, Left: t.Left, Failed: t.Failed, Elsewhere: t.Elsewhere,
		})
	}
	for _, u := range st.Unreadable {
		out.Unreadable = append(out.Unreadable, admin.UnreadableObject{Namespace: uint64(u.Namespace), Name: u.Name, Problem: u.Text})
	}
	return out
}

var osdStates = map[metadata.OSDState]string{
	metadata.OSDAvailable: "available", metadata.OSDClaimed: "claimed", metadata.OSDDecommissioning: "decommissioning",
	metadata.OSDLost: "lost", metadata.OSDGone: "gone",
}

// OSDs implements admin.Store. All disk servers are asked at the same time, each with a time
// limit of its own; one that does not answer is listed with what the ABM knows of it, and the
// problem.
func (s *System) OSDs(ctx context.Context) ([]admin.OSD, error) {
	recs, err := s.abm.ListOSDs(ctx)
	if err != nil {
		return nil, adminError(driverError(err))
	}
	left, err := s.leftOnLost(ctx, recs)
	if err != nil {
		return nil, adminError(driverError(err))
	}
	out := make([]admin.OSD, len(recs), len(recs)+len(s.disks.known()))
	var asked sync.WaitGroup
	for i, r := range recs {
		o := &out[i]
		*o = admin.OSD{ID: uint32(r.ID), UUID: r.UUID, Node: r.Node, Addr: r.Addr, State: osdStates[r.State], Capacity: r.Capacity, Used: r.Used, Full: r.Full, LastSeen: r.LastSeen}
		switch r.State {
		case metadata.OSDLost:
			if n := left[r.ID]; n > 0 {
				o.Problem = fmt.Sprintf("lost; %d fragments that it held are being made anew elsewhere", n)
			}
		case metadata.OSDGone:
		default:
			asked.Go(func() { s.askOSD(ctx, r, o) })
		}
	}
	asked.Wait()
	for _, d := range s.client.Disks() {
		if i := slices.IndexFunc(out, func(o admin.OSD) bool { return o.ID == uint32(d.ID) }); i >= 0 {
			out[i].WrongFragments = uint64(d.Wrong)
		}
	}
	for _, k := range s.disks.known() { // those that have never got as far as the ABM, and those that are refused
		strange, uuid, err := s.disks.view(k)
		if strange || !slices.ContainsFunc(recs, func(r metadata.OSD) bool { return r.Addr == k.addr }) {
			o := admin.OSD{UUID: uuid, Addr: k.addr, State: "unknown", Problem: k.name + " is not running"}
			if err != nil {
				o.Problem = err.Error()
			}
			out = append(out, o)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out, nil
}

// leftOnLost counts the fragments that lost disk servers held and that are not yet elsewhere.
// One on which nothing is left is no problem any more, though it stays listed.
func (s *System) leftOnLost(ctx context.Context, recs []metadata.OSD) (map[metadata.OSDID]uint64, error) {
	if !slices.ContainsFunc(recs, func(r metadata.OSD) bool { return r.State == metadata.OSDLost }) {
		return nil, nil
	}
	return s.fragments(ctx)
}

// fragments counts those that each disk server holds.
func (s *System) fragments(ctx context.Context) (map[metadata.OSDID]uint64, error) {
	infos, err := s.nsm.Namespaces(ctx)
	if err != nil {
		return nil, err
	}
	left := make(map[metadata.OSDID]uint64)
	for _, i := range infos {
		for id, u := range i.PerOSD {
			left[id] += u.Fragments
		}
	}
	return left, nil
}

func (s *System) askOSD(ctx context.Context, r metadata.OSD, o *admin.OSD) {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	api, err := s.parts.OSD(r)
	var info osd.Info
	if err == nil {
		info, err = api.Info(ctx)
	}
	if err != nil {
		o.Problem = err.Error()
		return
	}
	o.Capacity, o.Used, o.Full, o.Keys, o.Problem = info.Capacity, info.Used, info.Full, info.Keys, info.Failed
	o.LastSeen = time.Now()
	o.Applies, o.Syncs, o.Reads = info.Stats.Applies, info.Stats.Syncs, info.Stats.Reads
	o.BytesWritten, o.BytesRead, o.CorruptBlocks = info.Stats.BytesWritten, info.Stats.BytesRead, info.Stats.CorruptBlocks
}

var (
	compressions = map[metadata.Compression]string{metadata.CompressNone: "none", metadata.CompressS2: "s2", metadata.CompressZstd: "zstd"}
	encryptions  = map[metadata.Encryption]string{metadata.EncryptNone: "none", metadata.EncryptAES256GCM: "aes-256-gcm"}
)

// reverse finds the key of a name; "" stands for otherwise.
func reverse[K comparable](m map[K]string, name string, otherwise K) (K, bool) {
	if name == "" {
		return otherwise, true
	}
	for k, v := range m {
		if v == name {
			return k, true
		}
	}
	return otherwise, false
}

// Presets implements admin.Store.
func (s *System) Presets(ctx context.Context) ([]admin.Preset, error) {
	ps, err := s.abm.Presets(ctx)
	if err != nil {
		return nil, adminError(driverError(err))
	}
	out := make([]admin.Preset, len(ps))
	for i, p := range ps {
		out[i] = admin.Preset{
			Name: p.Name, Version: p.Version, ChunkSize: p.ChunkSize, InlineLimit: p.InlineLimit,
			Compression: compressions[p.Compression], Encryption: encryptions[p.Encryption], Default: p.Default,
		}
		for _, q := range p.Policies {
			out[i].Policies = append(out[i].Policies, admin.Policy{K: q.K, M: q.M, C: q.C, X: q.X})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// CreatePreset implements admin.Store.
func (s *System) CreatePreset(ctx context.Context, in admin.Preset) error {
	comp, ok := reverse(compressions, in.Compression, metadata.CompressNone)
	if !ok {
		return &admin.Error{Code: admin.CodeInvalid, Message: fmt.Sprintf("compression %q: want none, s2 or zstd", in.Compression)}
	}
	enc, ok := reverse(encryptions, in.Encryption, metadata.EncryptNone)
	if !ok {
		return &admin.Error{Code: admin.CodeInvalid, Message: fmt.Sprintf("encryption %q: want none or aes-256-gcm", in.Encryption)}
	}
	p := metadata.Preset{Name: in.Name, Version: 1, ChunkSize: in.ChunkSize, InlineLimit: in.InlineLimit, Compression: comp, Encryption: enc, Default: in.Default}
	for _, q := range in.Policies {
		p.Policies = append(p.Policies, metadata.Policy{K: q.K, M: q.M, C: q.C, X: q.X})
	}
	return adminError(driverError(s.abm.CreatePreset(ctx, p)))
}

var namespaceStates = map[metadata.NamespaceState]string{
	metadata.NamespaceCreating: "creating", metadata.NamespaceActive: "active", metadata.NamespaceDeleting: "deleting",
}

// Namespaces implements admin.Store.
func (s *System) Namespaces(ctx context.Context) ([]admin.Namespace, error) {
	recs, err := s.abm.ListNamespaces(ctx)
	if err != nil {
		return nil, adminError(driverError(err))
	}
	out := make([]admin.Namespace, len(recs))
	for i, r := range recs {
		out[i], err = s.adminNamespace(ctx, r, false)
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Namespace implements admin.Store.
func (s *System) Namespace(ctx context.Context, name string) (admin.Namespace, error) {
	r, err := s.findNamespace(ctx, name)
	if err != nil {
		return admin.Namespace{}, err
	}
	return s.adminNamespace(ctx, r, true)
}

// findNamespace finds a namespace by its name or number, or by the name of its volume.
func (s *System) findNamespace(ctx context.Context, name string) (metadata.Namespace, error) {
	r, err := s.abm.Namespace(ctx, name)
	if err == nil || !errors.Is(err, metadata.ErrNotFound) {
		return r, adminError(driverError(err))
	}
	id, perr := strconv.ParseUint(name, 10, 64)
	if v, verr := s.abm.Volume(ctx, name); verr == nil {
		id, perr = uint64(v.Namespace), nil
	}
	if perr == nil {
		if r, err := s.abm.NamespaceByID(ctx, metadata.NamespaceID(id)); err == nil {
			return r, nil
		}
	}
	return r, &admin.Error{Code: admin.CodeNotFound, Message: fmt.Sprintf("there is no namespace %q", name), Hint: "see scoria namespace list; a volume's name is understood too"}
}

func (s *System) adminNamespace(ctx context.Context, r metadata.Namespace, all bool) (admin.Namespace, error) {
	n := admin.Namespace{ID: uint64(r.ID), Name: r.Name, Preset: r.Preset, NSM: r.NSM, State: namespaceStates[r.State], Created: r.Created}
	infos, err := s.nsm.Namespaces(ctx, r.ID)
	if errors.Is(err, metadata.ErrNotFound) || (err == nil && len(infos) == 0) {
		return n, nil // being made, or all but gone
	}
	if err != nil {
		return n, adminError(driverError(err))
	}
	i := infos[0]
	n.Objects, n.LogicalBytes, n.StoredBytes, n.Epoch = i.Objects, i.LogicalBytes, i.StoredBytes, uint64(i.Fence)
	if !all {
		return n, nil
	}
	for _, b := range i.Buckets {
		n.Buckets = append(n.Buckets, admin.Bucket{K: b.K, M: b.M, Placed: b.Placed, MayLose: b.Placed - b.K, Objects: b.Objects})
	}
	for id, u := range i.PerOSD {
		n.PerOSD = append(n.PerOSD, admin.NamespaceOSD{OSD: uint32(id), Fragments: u.Fragments, Bytes: u.Bytes, QueuedDeletes: u.QueuedDeletes})
	}
	sort.Slice(n.PerOSD, func(a, b int) bool { return n.PerOSD[a].OSD < n.PerOSD[b].OSD })
	return n, nil
}

// Objects implements admin.Store.
func (s *System) Objects(ctx context.Context, namespace, prefix, after string, limit int) ([]admin.Object, error) {
	r, err := s.findNamespace(ctx, namespace)
	if err != nil {
		return nil, err
	}
	infos, err := s.nsm.List(ctx, r.ID, prefix, after, limit)
	if err != nil {
		return nil, adminError(driverError(err))
	}
	out := make([]admin.Object, len(infos))
	for i, o := range infos {
		out[i] = admin.Object{Name: o.Name, ObjectID: o.ObjectID.String(), Size: o.Size, Created: o.Created, Inline: o.Inline, Policy: o.Policy.String(), Missing: o.Missing}
	}
	return out, nil
}

// Object implements admin.Store.
func (s *System) Object(ctx context.Context, namespace, name string) (admin.Object, error) {
	r, err := s.findNamespace(ctx, namespace)
	if err != nil {
		return admin.Object{}, err
	}
	ms, err := s.nsm.Get(ctx, r.ID, []string{name})
	if err != nil {
		return admin.Object{}, adminError(driverError(err))
	}
	if len(ms) == 0 || ms[0] == nil {
		return admin.Object{}, &admin.Error{Code: admin.CodeNotFound, Message: fmt.Sprintf("namespace %s has no object %q", r.Name, name), Hint: "see scoria object list " + namespace}
	}
	m := ms[0]
	o := admin.Object{Name: m.Name, ObjectID: m.ObjectID.String(), Size: m.Size, Created: m.Created, Inline: m.Chunks == nil, Policy: m.Policy.String()}
	for _, c := range m.Chunks {
		ch := admin.Chunk{Size: c.Size, Packed: c.Packed, FragmentLen: c.FragmentLen}
		missing := 0
		for _, f := range c.Fragments {
			if f.OSD == 0 {
				missing++
			}
			ch.Fragments = append(ch.Fragments, admin.Fragment{OSD: uint32(f.OSD), Version: f.Version, Digest: fmt.Sprintf("%08x", f.Digest)})
		}
		o.Missing = max(o.Missing, missing)
		o.Chunks = append(o.Chunks, ch)
	}
	return o, nil
}
