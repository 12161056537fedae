package state

import (
	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/proto/abmpb"
	"scoria/metadata/proto/metapb"
)

// BackendID returns the identity of the backend, "" before it has one.
func BackendID(r fsm.Reader) (string, error) {
	c, err := counters(r)
	return c.GetBackendId(), err
}

// Presets lists the presets by name.
func Presets(r fsm.Reader) ([]*metapb.Preset, error) { return list[metapb.Preset](r, tPreset) }

// NSMHosts lists the NSM hosts by id.
func NSMHosts(r fsm.Reader) ([]*abmpb.NSMHost, error) { return list[abmpb.NSMHost](r, tHost) }

// OSDs lists the OSDs by UUID.
func OSDs(r fsm.Reader) ([]*abmpb.OSD, error) { return list[abmpb.OSD](r, tOSD) }

// Namespaces lists all namespaces by id.
func Namespaces(r fsm.Reader) ([]*abmpb.Namespace, error) {
	return list[abmpb.Namespace](r, tNamespace)
}

// NamespaceByName returns the active namespace of this name.
func NamespaceByName(r fsm.Reader, name string) (*abmpb.Namespace, error) {
	id, ok := loadID(r, nameKey(tNamespaceByName, name))
	if !ok {
		return nil, metadata.Errorf(metadata.KindNotFound, "no namespace %q", name)
	}
	return NamespaceByID(r, id)
}

// NamespaceByID returns a namespace in any state.
func NamespaceByID(r fsm.Reader, id uint64) (*abmpb.Namespace, error) {
	ns, ok, err := load[abmpb.Namespace](r, idKey(tNamespace, id))
	if err == nil && !ok {
		err = metadata.Errorf(metadata.KindNotFound, "no namespace %d", id)
	}
	return ns, err
}

// Volumes lists all volumes by id, also those being deleted.
func Volumes(r fsm.Reader) ([]*abmpb.Volume, error) {
	vs, err := list[abmpb.Volume](r, tVolume)
	if err != nil {
		return nil, err
	}
	for _, v := range vs {
		if err := fillLease(r, v); err != nil {
			return nil, err
		}
	}
	return vs, nil
}

// VolumeByName returns the volume of this name that is not being deleted.
func VolumeByName(r fsm.Reader, name string) (*abmpb.Volume, error) {
	id, ok := loadID(r, nameKey(tVolumeByName, name))
	if !ok {
		return nil, metadata.Errorf(metadata.KindNotFound, "no volume %q", name)
	}
	v, ok, err := load[abmpb.Volume](r, idKey(tVolume, id))
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, metadata.Errorf(metadata.KindCorrupt, "volume %q has no record", name)
	}
	return v, fillLease(r, v)
}

// fillLease sets the lease of a volume, which is its owner's.
func fillLease(r fsm.Reader, v *abmpb.Volume) error {
	if v.GetOwner() == "" {
		return nil
	}
	o, _, err := load[abmpb.Owner](r, nameKey(tOwner, v.GetOwner()))
	v.LeaseUntil = o.GetUntil()
	return err
}
