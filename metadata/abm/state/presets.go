package state

import (
	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/internal/pbconv"
	"scoria/metadata/proto/abmpb"
	"scoria/metadata/proto/metapb"
)

func (s store) createPreset(_ int64, req *abmpb.PresetRequest) (proto.Message, error) {
	p := pbconv.ToPreset(req.GetPreset())
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if s.tx.Get(nameKey(tPreset, p.Name)) != nil {
		return nil, metadata.Errorf(metadata.KindExists, "preset %q already exists", p.Name)
	}
	n := count(s.tx, tPreset)
	if n >= maxPresets {
		return nil, metadata.Errorf(metadata.KindLimit, "%d presets exist, no more are allowed", n)
	}
	p.Version = 1
	p.Default = p.Default || n == 0 // there is always a default
	return nil, s.savePreset(p)
}

// savePreset stores a preset; when it is the default, the others are not.
func (s store) savePreset(p metadata.Preset) error {
	if p.Default {
		all, err := list[metapb.Preset](s.tx, tPreset)
		if err != nil {
			return err
		}
		for _, other := range all {
			if other.GetDefault() && other.GetName() != p.Name {
				other.Default = false
				if err := s.save(nameKey(tPreset, other.GetName()), other); err != nil {
					return err
				}
			}
		}
	}
	return s.save(nameKey(tPreset, p.Name), pbconv.FromPreset(p))
}

// updatePreset changes policies, inline limit and (to true only) Default. What objects
// already stored depend on must be given unchanged, or as 0.
func (s store) updatePreset(_ int64, req *abmpb.PresetRequest) (proto.Message, error) {
	in := pbconv.ToPreset(req.GetPreset())
	rec, ok, err := load[metapb.Preset](s.tx, nameKey(tPreset, in.Name))
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, metadata.Errorf(metadata.KindNotFound, "no preset %q", in.Name)
	}
	p := pbconv.ToPreset(rec)
	if in.ChunkSize != 0 && in.ChunkSize != p.ChunkSize ||
		in.Compression != 0 && in.Compression != p.Compression ||
		in.Encryption != 0 && in.Encryption != p.Encryption {
		return nil, metadata.Errorf(metadata.KindInvalid,
			"preset %q: chunk size, compression and encryption cannot change: create another preset", in.Name)
	}
	p.Policies, p.InlineLimit = in.Policies, in.InlineLimit
	p.Default = p.Default || in.Default
	if err := p.Validate(); err != nil {
		return nil, err
	}
	p.Version++
	return nil, s.savePreset(p)
}

func (s store) deletePreset(_ int64, req *abmpb.DeletePresetRequest) (proto.Message, error) {
	rec, ok, err := load[metapb.Preset](s.tx, nameKey(tPreset, req.GetName()))
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, metadata.Errorf(metadata.KindNotFound, "no preset %q", req.GetName())
	case rec.GetDefault():
		return nil, metadata.Errorf(metadata.KindState, "preset %q is the default: make another the default first", req.GetName())
	}
	namespaces, err := list[abmpb.Namespace](s.tx, tNamespace)
	if err != nil {
		return nil, err
	}
	for _, ns := range namespaces {
		if ns.GetPreset() == req.GetName() {
			return nil, metadata.Errorf(metadata.KindState, "preset %q is used by namespace %q", req.GetName(), ns.GetName())
		}
	}
	s.tx.Delete(nameKey(tPreset, req.GetName()))
	return nil, nil
}

func (s store) addNSMHost(_ int64, req *abmpb.AddNSMHostRequest) (proto.Message, error) {
	in := req.GetHost()
	if err := metadata.ValidateName("NSM host", in.GetId()); err != nil {
		return nil, err
	}
	if len(in.GetAddrs()) == 0 || len(in.GetAddrs()) > 16 {
		return nil, metadata.Errorf(metadata.KindInvalid, "NSM host %q has %d addresses: give 1 to 16", in.GetId(), len(in.GetAddrs()))
	}
	for _, a := range in.GetAddrs() {
		if err := checkText("address", a); err != nil {
			return nil, err
		}
	}
	key := nameKey(tHost, in.GetId())
	host, ok, err := load[abmpb.NSMHost](s.tx, key)
	if err != nil {
		return nil, err
	}
	if !ok {
		if n := count(s.tx, tHost); n >= maxHosts {
			return nil, metadata.Errorf(metadata.KindLimit, "%d NSM hosts exist, no more are allowed", n)
		}
		host = &abmpb.NSMHost{Id: in.GetId()}
	}
	host.Addrs, host.Lost = in.GetAddrs(), in.GetLost()
	return nil, s.save(key, host)
}

// checkText bounds an address or the like, which must not be empty.
func checkText(what, text string) error {
	if text == "" || len(text) > maxText {
		return metadata.Errorf(metadata.KindInvalid, "%s of %d bytes: give 1 to %d", what, len(text), maxText)
	}
	return nil
}
