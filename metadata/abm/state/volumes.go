package state

import (
	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/proto/abmpb"
)

// maxLease bounds leases, in nanoseconds: one day.
const maxLease = int64(24 * 3600 * 1e9)

func (s store) createVolume(now int64, req *abmpb.CreateVolumeRequest) (proto.Message, error) {
	if err := metadata.ValidateVolumeName(req.GetName()); err != nil {
		return nil, err
	}
	if err := metadata.ValidateVolumeSize(req.GetSize()); err != nil {
		return nil, err
	}
	if s.tx.Get(nameKey(tVolumeByName, req.GetName())) != nil {
		return nil, metadata.Errorf(metadata.KindExists, "volume %q already exists", req.GetName())
	}
	ns, err := s.loadNamespace(req.GetNamespace())
	if err != nil {
		return nil, err
	}
	if ns.GetState() != uint32(metadata.NamespaceActive) {
		return nil, metadata.Errorf(metadata.KindState, "namespace %d is not active", ns.GetId())
	}
	if other, ok := loadID(s.tx, idKey(tVolumeByNS, ns.GetId())); ok {
		return nil, metadata.Errorf(metadata.KindExists, "namespace %d already belongs to volume %d", ns.GetId(), other)
	}
	if req.GetPreset() != "" && req.GetPreset() != ns.GetPreset() {
		return nil, metadata.Errorf(metadata.KindInvalid, "volume %q asks for preset %q, its namespace has %q", req.GetName(), req.GetPreset(), ns.GetPreset())
	}
	c, err := counters(s.tx)
	if err != nil {
		return nil, err
	}
	c.VolumeId++
	v := &abmpb.Volume{
		Id: c.GetVolumeId(), Name: req.GetName(), Namespace: ns.GetId(), Size: req.GetSize(),
		Preset: ns.GetPreset(), Created: now,
	}
	if err := s.saveCounters(c); err != nil {
		return nil, err
	}
	s.tx.Put(nameKey(tVolumeByName, v.GetName()), idValue(v.GetId()))
	s.tx.Put(idKey(tVolumeByNS, ns.GetId()), idValue(v.GetId()))
	return v, s.saveVolume(v)
}

// saveVolume stores a record without the lease, which is the owner's.
func (s store) saveVolume(v *abmpb.Volume) error {
	until := v.GetLeaseUntil()
	v.LeaseUntil = 0
	err := s.save(idKey(tVolume, v.GetId()), v)
	v.LeaseUntil = until
	return err
}

func (s store) loadVolume(id uint64) (*abmpb.Volume, error) {
	v, ok, err := load[abmpb.Volume](s.tx, idKey(tVolume, id))
	if err == nil && !ok {
		err = metadata.Errorf(metadata.KindNotFound, "no volume %d", id)
	}
	return v, err
}

// liveVolume is loadVolume for what is not done to volumes that are being deleted.
func (s store) liveVolume(id uint64) (*abmpb.Volume, error) {
	v, err := s.loadVolume(id)
	if err == nil && v.GetDeleting() {
		err = metadata.Errorf(metadata.KindState, "volume %q is being deleted", v.GetName())
	}
	return v, err
}

func (s store) loadOwner(name string) (*abmpb.Owner, error) {
	o, ok, err := load[abmpb.Owner](s.tx, nameKey(tOwner, name))
	if err == nil && !ok {
		o = &abmpb.Owner{}
	}
	return o, err
}

func (s store) saveOwner(name string, o *abmpb.Owner) error {
	if o.GetVolumes() == 0 {
		s.tx.Delete(nameKey(tOwner, name))
		return nil
	}
	return s.save(nameKey(tOwner, name), o)
}

// leave takes a volume off its owner's count.
func (s store) leave(v *abmpb.Volume) error {
	if v.GetOwner() == "" {
		return nil
	}
	o, err := s.loadOwner(v.GetOwner())
	if err != nil {
		return err
	}
	if o.GetVolumes() > 0 {
		o.Volumes--
	}
	name := v.GetOwner()
	v.Owner, v.LeaseUntil = "", 0
	return s.saveOwner(name, o)
}

func checkLease(lease int64) error {
	if lease <= 0 || lease > maxLease {
		return metadata.Errorf(metadata.KindInvalid, "lease of %d ns is not within 1 ns..24 h", lease)
	}
	return nil
}

func (s store) acquireVolume(now int64, req *abmpb.AcquireVolumeRequest) (proto.Message, error) {
	if err := metadata.ValidateName("owner", req.GetOwner()); err != nil {
		return nil, err
	}
	if err := checkLease(req.GetLease()); err != nil {
		return nil, err
	}
	v, err := s.liveVolume(req.GetId())
	if err != nil {
		return nil, err
	}
	if v.GetOwner() != "" && v.GetOwner() != req.GetOwner() && !req.GetForce() {
		o, err := s.loadOwner(v.GetOwner())
		if err != nil {
			return nil, err
		}
		if o.GetUntil() > now {
			return nil, metadata.Errorf(metadata.KindOwned, "volume %q is owned by gateway %q until %s",
				v.GetName(), v.GetOwner(), metadata.NanosToTime(o.GetUntil()).Format("15:04:05 UTC"))
		}
	}
	if err := s.leave(v); err != nil {
		return nil, err
	}
	o, err := s.loadOwner(req.GetOwner())
	if err != nil {
		return nil, err
	}
	o.Volumes++
	o.Until = max(o.GetUntil(), now+req.GetLease())
	if err := s.saveOwner(req.GetOwner(), o); err != nil {
		return nil, err
	}
	v.Epoch++
	if v.GetLastOwner() != req.GetOwner() {
		v.LastOwner, v.OwnerSince = req.GetOwner(), v.GetEpoch()
	}
	v.Owner, v.LeaseUntil = req.GetOwner(), o.GetUntil()
	return v, s.saveVolume(v)
}

func (s store) releaseVolume(_ int64, req *abmpb.ReleaseVolumeRequest) (proto.Message, error) {
	v, err := s.loadVolume(req.GetId())
	if err != nil {
		return nil, err
	}
	if v.GetEpoch() != req.GetEpoch() {
		return nil, stale(v, req.GetEpoch())
	}
	if v.GetOwner() == "" {
		return nil, nil
	}
	if err := s.leave(v); err != nil {
		return nil, err
	}
	return nil, s.saveVolume(v)
}

func stale(v *abmpb.Volume, epoch uint64) error {
	return metadata.Errorf(metadata.KindFenced, "volume %q: epoch %d is not the newest (%d): another owner took over", v.GetName(), epoch, v.GetEpoch())
}

func (s store) resizeVolume(_ int64, req *abmpb.ResizeVolumeRequest) (proto.Message, error) {
	if err := metadata.ValidateVolumeSize(req.GetSize()); err != nil {
		return nil, err
	}
	v, err := s.liveVolume(req.GetId())
	if err != nil {
		return nil, err
	}
	switch {
	case v.GetEpoch() != req.GetEpoch():
		return nil, stale(v, req.GetEpoch())
	case req.GetSize() < v.GetSize():
		return nil, metadata.Errorf(metadata.KindInvalid, "volume %q has %d bytes and cannot shrink to %d", v.GetName(), v.GetSize(), req.GetSize())
	case req.GetSize() == v.GetSize():
		return nil, nil
	}
	v.Size = req.GetSize()
	return nil, s.saveVolume(v)
}

func (s store) renameVolume(_ int64, req *abmpb.RenameVolumeRequest) (proto.Message, error) {
	if err := metadata.ValidateVolumeName(req.GetName()); err != nil {
		return nil, err
	}
	v, err := s.liveVolume(req.GetId())
	if err != nil {
		return nil, err
	}
	if v.GetName() == req.GetName() {
		return nil, nil
	}
	if s.tx.Get(nameKey(tVolumeByName, req.GetName())) != nil {
		return nil, metadata.Errorf(metadata.KindExists, "volume %q already exists", req.GetName())
	}
	s.tx.Delete(nameKey(tVolumeByName, v.GetName()))
	s.tx.Put(nameKey(tVolumeByName, req.GetName()), idValue(v.GetId()))
	v.Name = req.GetName()
	return nil, s.saveVolume(v)
}

func (s store) markVolumeDeleting(now int64, req *abmpb.VolumeIDRequest) (proto.Message, error) {
	v, err := s.loadVolume(req.GetId())
	if err != nil {
		return nil, err
	}
	if v.GetDeleting() {
		return nil, nil
	}
	if v.GetOwner() != "" {
		o, err := s.loadOwner(v.GetOwner())
		if err != nil {
			return nil, err
		}
		if o.GetUntil() > now {
			return nil, metadata.Errorf(metadata.KindOwned, "volume %q is in use by gateway %q: release it first", v.GetName(), v.GetOwner())
		}
		if err := s.leave(v); err != nil {
			return nil, err
		}
	}
	v.Deleting = true
	s.tx.Delete(nameKey(tVolumeByName, v.GetName()))
	return nil, s.saveVolume(v)
}

func (s store) removeVolume(_ int64, req *abmpb.VolumeIDRequest) (proto.Message, error) {
	v, err := s.loadVolume(req.GetId())
	if err != nil {
		return nil, err
	}
	if !v.GetDeleting() {
		return nil, metadata.Errorf(metadata.KindState, "volume %q is not being deleted", v.GetName())
	}
	s.tx.Delete(idKey(tVolumeByNS, v.GetNamespace()))
	s.tx.Delete(idKey(tVolume, v.GetId()))
	return nil, nil
}

// renewOwner extends an owner's lease. An owner of nothing has none.
func (s store) renewOwner(now int64, req *abmpb.RenewOwnerRequest) (proto.Message, error) {
	if err := metadata.ValidateName("owner", req.GetOwner()); err != nil {
		return nil, err
	}
	if err := checkLease(req.GetLease()); err != nil {
		return nil, err
	}
	o, err := s.loadOwner(req.GetOwner())
	if err != nil || o.GetVolumes() == 0 {
		return nil, err
	}
	o.Until = max(o.GetUntil(), now+req.GetLease())
	return nil, s.saveOwner(req.GetOwner(), o)
}

// takeLease takes, renews or (lease ≤ 0) gives back a named lease.
func (s store) takeLease(now int64, req *abmpb.TakeLeaseRequest) (proto.Message, error) {
	if err := metadata.ValidateName("lease", req.GetName()); err != nil {
		return nil, err
	}
	if err := metadata.ValidateName("lease holder", req.GetHolder()); err != nil {
		return nil, err
	}
	key := nameKey(tLease, req.GetName())
	l, ok, err := load[abmpb.Lease](s.tx, key)
	if err != nil {
		return nil, err
	}
	held := ok && l.GetUntil() > now
	switch {
	case held && l.GetHolder() != req.GetHolder():
		return &abmpb.TakeLeaseReply{Holder: l.GetHolder()}, nil
	case req.GetLease() <= 0:
		s.tx.Delete(key)
		return &abmpb.TakeLeaseReply{}, nil
	}
	if err := checkLease(req.GetLease()); err != nil {
		return nil, err
	}
	if !ok {
		if n := count(s.tx, tLease); n >= maxLeases {
			return nil, metadata.Errorf(metadata.KindLimit, "%d leases exist, no more are allowed", n)
		}
	}
	l = &abmpb.Lease{Name: req.GetName(), Holder: req.GetHolder(), Until: now + req.GetLease()}
	return &abmpb.TakeLeaseReply{Holder: l.GetHolder()}, s.save(key, l)
}
