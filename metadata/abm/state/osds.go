package state

import (
	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/proto/abmpb"
)

// osdMoves are the allowed changes of state by an operator.
var osdMoves = map[[2]metadata.OSDState]bool{
	{metadata.OSDClaimed, metadata.OSDDecommissioning}: true,
	{metadata.OSDClaimed, metadata.OSDLost}:            true,
	{metadata.OSDDecommissioning, metadata.OSDClaimed}: true,
	{metadata.OSDDecommissioning, metadata.OSDLost}:    true,
	{metadata.OSDDecommissioning, metadata.OSDGone}:    true,
	{metadata.OSDLost, metadata.OSDClaimed}:            true,
	{metadata.OSDLost, metadata.OSDGone}:               true,
}

func (s store) loadOSD(id uint32) (*abmpb.OSD, error) {
	uuid := s.tx.Get(osdKey(id))
	if uuid == nil {
		return nil, metadata.Errorf(metadata.KindNotFound, "no OSD %d", id)
	}
	o, ok, err := load[abmpb.OSD](s.tx, nameKey(tOSD, string(uuid)))
	if err == nil && !ok {
		err = metadata.Errorf(metadata.KindCorrupt, "OSD %d has no record", id)
	}
	return o, err
}

func (s store) seenOSD(now int64, req *abmpb.SeenOSDRequest) (proto.Message, error) {
	in := req.GetOsd()
	if err := metadata.ValidateName("OSD", in.GetUuid()); err != nil {
		return nil, err
	}
	if err := metadata.ValidateName("node", in.GetNode()); err != nil {
		return nil, err
	}
	if err := checkText("OSD address", in.GetAddr()); err != nil {
		return nil, err
	}
	if len(in.GetErrorText()) > maxText {
		return nil, metadata.Errorf(metadata.KindInvalid, "OSD error text of %d bytes is over %d", len(in.GetErrorText()), maxText)
	}
	key := nameKey(tOSD, in.GetUuid())
	o, ok, err := load[abmpb.OSD](s.tx, key)
	if err != nil {
		return nil, err
	}
	if !ok {
		if n := count(s.tx, tOSD); n >= maxOSDs {
			return nil, metadata.Errorf(metadata.KindLimit, "%d OSDs are known, no more are allowed", n)
		}
		o = &abmpb.OSD{Uuid: in.GetUuid(), State: uint32(metadata.OSDAvailable)}
	}
	o.Node, o.Addr = in.GetNode(), in.GetAddr()
	o.Capacity, o.Used, o.Full = in.GetCapacity(), in.GetUsed(), in.GetFull()
	seen := in.GetLastSeen()
	if seen == 0 {
		seen = now
	}
	o.LastSeen = max(o.GetLastSeen(), seen)
	o.LastRead = max(o.GetLastRead(), in.GetLastRead())
	o.LastWrite = max(o.GetLastWrite(), in.GetLastWrite())
	if in.GetLastError() >= o.GetLastError() && in.GetErrorText() != "" {
		o.ErrorText = in.GetErrorText()
	}
	o.LastError = max(o.GetLastError(), in.GetLastError())
	return o, s.save(key, o)
}

func (s store) claimOSD(_ int64, req *abmpb.ClaimOSDRequest) (proto.Message, error) {
	key := nameKey(tOSD, req.GetUuid())
	o, ok, err := load[abmpb.OSD](s.tx, key)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, metadata.Errorf(metadata.KindNotFound, "no OSD %q was seen", req.GetUuid())
	}
	switch metadata.OSDState(o.GetState()) {
	case metadata.OSDClaimed:
		return o, nil
	case metadata.OSDAvailable:
	default:
		return nil, metadata.Errorf(metadata.KindState, "OSD %q was claimed before and is leaving or gone", req.GetUuid())
	}
	c, err := counters(s.tx)
	if err != nil {
		return nil, err
	}
	c.OsdId++
	if err := s.saveCounters(c); err != nil {
		return nil, err
	}
	o.Id, o.State = c.GetOsdId(), uint32(metadata.OSDClaimed)
	s.tx.Put(osdKey(o.GetId()), []byte(o.GetUuid()))
	return o, s.save(key, o)
}

func (s store) setOSDState(_ int64, req *abmpb.SetOSDStateRequest) (proto.Message, error) {
	o, err := s.loadOSD(req.GetId())
	if err != nil {
		return nil, err
	}
	if o.GetState() == req.GetState() {
		return nil, nil
	}
	if req.GetState() > uint32(metadata.OSDGone) ||
		!osdMoves[[2]metadata.OSDState{metadata.OSDState(o.GetState()), metadata.OSDState(req.GetState())}] {
		return nil, metadata.Errorf(metadata.KindState, "OSD %d cannot go from state %d to %d", req.GetId(), o.GetState(), req.GetState())
	}
	o.State = req.GetState()
	return nil, s.save(nameKey(tOSD, o.GetUuid()), o)
}
