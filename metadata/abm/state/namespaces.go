package state

import (
	"bytes"

	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/proto/abmpb"
	"scoria/metadata/proto/metapb"
)

// choosePreset loads the named preset, the default one when name is empty.
func (s store) choosePreset(name string) (*metapb.Preset, error) {
	if name != "" {
		p, ok, err := load[metapb.Preset](s.tx, nameKey(tPreset, name))
		if err == nil && !ok {
			err = metadata.Errorf(metadata.KindNotFound, "no preset %q", name)
		}
		return p, err
	}
	all, err := list[metapb.Preset](s.tx, tPreset)
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if p.GetDefault() {
			return p, nil
		}
	}
	return nil, metadata.Errorf(metadata.KindNotFound, "there is no default preset: create one or name one")
}

// chooseHost picks the NSM host with the fewest namespaces.
func (s store) chooseHost() (*abmpb.NSMHost, error) {
	hosts, err := list[abmpb.NSMHost](s.tx, tHost)
	if err != nil {
		return nil, err
	}
	var best *abmpb.NSMHost
	for _, h := range hosts {
		if !h.GetLost() && (best == nil || h.GetNamespaces() < best.GetNamespaces()) {
			best = h
		}
	}
	if best == nil {
		return nil, metadata.Errorf(metadata.KindState, "no NSM host is registered and alive: add one first")
	}
	return best, nil
}

func (s store) createNamespace(now int64, req *abmpb.CreateNamespaceRequest) (proto.Message, error) {
	if err := metadata.ValidateName("namespace", req.GetName()); err != nil {
		return nil, err
	}
	if s.tx.Get(nameKey(tNamespaceByName, req.GetName())) != nil {
		return nil, metadata.Errorf(metadata.KindExists, "namespace %q already exists", req.GetName())
	}
	preset, err := s.choosePreset(req.GetPreset())
	if err != nil {
		return nil, err
	}
	host, err := s.chooseHost()
	if err != nil {
		return nil, err
	}
	c, err := counters(s.tx)
	if err != nil {
		return nil, err
	}
	c.NamespaceId++
	ns := &abmpb.Namespace{
		Id: c.GetNamespaceId(), Name: req.GetName(), Preset: preset.GetName(), Nsm: host.GetId(),
		State: uint32(metadata.NamespaceCreating), Created: now,
	}
	if preset.GetEncryption() != uint32(metadata.EncryptNone) {
		if len(req.GetKey()) != 32 {
			return nil, metadata.Errorf(metadata.KindInternal, "namespace %q: key of %d bytes, want 32", req.GetName(), len(req.GetKey()))
		}
		ns.Key, ns.KeyId = bytes.Clone(req.GetKey()), 1
	}
	host.Namespaces++
	if err := s.saveCounters(c); err != nil {
		return nil, err
	}
	if err := s.save(nameKey(tHost, host.GetId()), host); err != nil {
		return nil, err
	}
	return ns, s.save(idKey(tNamespace, ns.GetId()), ns)
}

func (s store) loadNamespace(id uint64) (*abmpb.Namespace, error) {
	ns, ok, err := load[abmpb.Namespace](s.tx, idKey(tNamespace, id))
	if err == nil && !ok {
		err = metadata.Errorf(metadata.KindNotFound, "no namespace %d", id)
	}
	return ns, err
}

func (s store) setNamespaceState(_ int64, req *abmpb.SetNamespaceStateRequest) (proto.Message, error) {
	ns, err := s.loadNamespace(req.GetId())
	if err != nil {
		return nil, err
	}
	from, to := ns.GetState(), req.GetState()
	byName := nameKey(tNamespaceByName, ns.GetName())
	switch {
	case from == to:
		return nil, nil
	case from == uint32(metadata.NamespaceCreating) && to == uint32(metadata.NamespaceActive):
		if s.tx.Get(byName) != nil {
			return nil, metadata.Errorf(metadata.KindExists, "namespace %q was created by somebody else meanwhile", ns.GetName())
		}
		s.tx.Put(byName, idValue(ns.GetId()))
	case from == uint32(metadata.NamespaceActive) && to == uint32(metadata.NamespaceDeleting):
		s.tx.Delete(byName)
	case from == uint32(metadata.NamespaceCreating) && to == uint32(metadata.NamespaceDeleting):
	default:
		return nil, metadata.Errorf(metadata.KindState, "namespace %d cannot go from state %d to %d", req.GetId(), from, to)
	}
	ns.State = to
	return nil, s.save(idKey(tNamespace, ns.GetId()), ns)
}

func (s store) removeNamespace(_ int64, req *abmpb.RemoveNamespaceRequest) (proto.Message, error) {
	ns, err := s.loadNamespace(req.GetId())
	if err != nil {
		return nil, err
	}
	if ns.GetState() != uint32(metadata.NamespaceDeleting) {
		return nil, metadata.Errorf(metadata.KindState, "namespace %d is not being deleted", req.GetId())
	}
	if v, ok := loadID(s.tx, idKey(tVolumeByNS, ns.GetId())); ok {
		return nil, metadata.Errorf(metadata.KindState, "namespace %d is used by volume %d: remove the volume first", req.GetId(), v)
	}
	host, ok, err := load[abmpb.NSMHost](s.tx, nameKey(tHost, ns.GetNsm()))
	if err != nil {
		return nil, err
	}
	if ok && host.GetNamespaces() > 0 {
		host.Namespaces--
		if err := s.save(nameKey(tHost, host.GetId()), host); err != nil {
			return nil, err
		}
	}
	s.tx.Delete(idKey(tNamespace, ns.GetId()))
	return nil, nil
}
