package state_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"scoria/metadata/abm/state"
	"scoria/metadata/fsm"
	"scoria/metadata/internal/pbconv"
	"scoria/metadata/metatest"
	"scoria/metadata/proto/abmpb"
)

type seed struct {
	typ uint8
	msg proto.Message
}

// seeds are commands that fill all tables.
func seeds() []seed {
	return []seed{
		{state.CmdInitBackend, &abmpb.InitBackendRequest{Id: "backend"}},
		{state.CmdCreatePreset, &abmpb.PresetRequest{Preset: pbconv.FromPreset(metatest.Preset("p"))}},
		{state.CmdAddNSMHost, &abmpb.AddNSMHostRequest{Host: &abmpb.NSMHost{Id: "h", Addrs: []string{"a:1"}}}},
		{state.CmdSeenOSD, &abmpb.SeenOSDRequest{Osd: &abmpb.OSD{Uuid: "u", Node: "n", Addr: "a:1"}}},
		{state.CmdClaimOSD, &abmpb.ClaimOSDRequest{Uuid: "u"}},
		{state.CmdCreateNamespace, &abmpb.CreateNamespaceRequest{Name: "n"}},
		{state.CmdSetNamespaceState, &abmpb.SetNamespaceStateRequest{Id: 1, State: 2}},
		{state.CmdCreateVolume, &abmpb.CreateVolumeRequest{Name: "v", Namespace: 1, Size: 4096}},
		{state.CmdAcquireVolume, &abmpb.AcquireVolumeRequest{Id: 1, Owner: "g", Lease: 1e9}},
		{state.CmdTakeLease, &abmpb.TakeLeaseRequest{Name: "l", Holder: "g", Lease: 1e9}},
	}
}

// FuzzCommand feeds commands of any content to a filled state: nothing may panic, and a
// command that fails must leave nothing.
func FuzzCommand(f *testing.F) {
	for _, s := range append(seeds(),
		seed{state.CmdReleaseVolume, &abmpb.ReleaseVolumeRequest{Id: 1, Epoch: 1}},
		seed{state.CmdResizeVolume, &abmpb.ResizeVolumeRequest{Id: 1, Epoch: 1, Size: 8192}},
		seed{state.CmdRenameVolume, &abmpb.RenameVolumeRequest{Id: 1, Name: "w"}},
		seed{state.CmdMarkVolumeDeleting, &abmpb.VolumeIDRequest{Id: 1}},
		seed{state.CmdSetOSDState, &abmpb.SetOSDStateRequest{Id: 1, State: 4}},
		seed{state.CmdUpdatePreset, &abmpb.PresetRequest{Preset: pbconv.FromPreset(metatest.Preset("p"))}},
	) {
		body, err := proto.Marshal(s.msg)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(s.typ, body)
	}
	f.Fuzz(func(t *testing.T, typ uint8, body []byte) {
		mem := fsm.NewMem()
		for i, s := range seeds() {
			b, err := proto.Marshal(s.msg)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := execute(mem, i, s.typ, b); err != nil || r.Err() != nil {
				t.Fatalf("seed %d: %v, %v", i, r.Err(), err)
			}
		}
		if typ == 0 {
			return
		}
		before := contents(mem)
		r, err := execute(mem, 100, typ, body)
		if (err != nil || r.Err() != nil) && contents(mem) != before {
			t.Fatalf("a failed command changed the state: %v, %v", r.Err(), err)
		}
		mem.Scan(nil, nil, func(k, v []byte) bool {
			_ = state.Machine{}.DescribePair(k, v) // must not panic
			return true
		})
		_ = state.Machine{}.DescribeCommand(fsm.Command{Type: typ, Body: body})
	})
}

func execute(mem *fsm.Mem, index int, typ uint8, body []byte) (fsm.Result, error) {
	b, err := fsm.Seal(fsm.Command{Type: typ, Version: state.CommandVersion, Now: 1e9, Body: body})
	if err != nil {
		return fsm.Result{}, err
	}
	return fsm.Execute(state.Machine{}, mem, uint64(index+1), b)
}

func contents(mem *fsm.Mem) string {
	var b []byte
	mem.Scan(nil, nil, func(k, v []byte) bool {
		b = append(append(append(append(b, k...), 0), v...), 0)
		return true
	})
	return string(b)
}
