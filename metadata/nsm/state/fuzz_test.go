package state_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"scoria/metadata"
	"scoria/metadata/fsm"
	"scoria/metadata/internal/pbconv"
	"scoria/metadata/metatest"
	"scoria/metadata/nsm/state"
	"scoria/metadata/proto/nsmpb"
)

type seed struct {
	typ  uint8
	body []byte
}

// seedCommands are valid commands that fill all tables.
func seedCommands(t testing.TB) []seed {
	t.Helper()
	msg := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	manifest := func(m metadata.Manifest) []byte {
		b, err := metadata.EncodeManifest(&m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	moved := metatest.Manifest("b", metatest.ObjectID(2), 2, 1, 1, 7, 2, 3)
	moved.Version, moved.Chunks[0].Fragments[0].Version = 1, 1
	id := metatest.ObjectID(1)
	return []seed{
		{state.CmdCreateNamespace, msg(&nsmpb.CreateNamespaceRequest{Id: 1, Preset: pbconv.FromPreset(metatest.Preset("p"))})},
		{state.CmdApply, msg(&nsmpb.TxnRequest{Namespace: 1, Fence: 3, Puts: [][]byte{
			manifest(metatest.Manifest("a", metatest.ObjectID(1), 2, 1, 1, 1, 2, 3)),
			manifest(metatest.Manifest("b", metatest.ObjectID(2), 2, 1, 1, 1, 2, 3)),
			manifest(metatest.Inline("c", metatest.ObjectID(3), "inline")),
		}})},
		{state.CmdApply, msg(&nsmpb.TxnRequest{Namespace: 1, Fence: 3, Deletes: []string{"a"},
			Asserts: []*nsmpb.Assert{{Name: "a", Exists: true, ObjectId: id[:]}}})},
		{state.CmdUpdateManifest, msg(&nsmpb.UpdateManifestRequest{Namespace: 1, Manifest: manifest(moved), GcEpoch: 1})},
		{state.CmdDeleteQueueDone, msg(&nsmpb.DeleteQueueRequest{Done: []*nsmpb.QueuedDelete{{Namespace: 1, Osd: 1, ObjectId: id[:]}}})},
		{state.CmdGCEpochs, msg(&nsmpb.GCEpochsRequest{Namespace: 1, Open: true, CloseBelow: 1})},
	}
}

// FuzzCommand feeds commands of any content to a filled state: nothing may panic, a
// command that fails must leave nothing, and the state must stay in step with itself.
func FuzzCommand(f *testing.F) {
	for _, c := range seedCommands(f) {
		f.Add(c.typ, c.body)
	}
	f.Add(uint8(state.CmdDeleteNamespace), []byte{8, 1})
	f.Fuzz(func(t *testing.T, typ uint8, body []byte) {
		mem := fsm.NewMem()
		for i, c := range append(seedCommands(t), seed{typ, body}) {
			if c.typ == 0 {
				return
			}
			envelope, err := fsm.Seal(fsm.Command{Type: c.typ, Version: state.CommandVersion, Body: c.body})
			if err != nil {
				t.Skip(err)
			}
			before := mem.Len()
			r, err := fsm.Execute(state.Machine{}, mem, uint64(i+1), envelope)
			if err == nil && r.Err() != nil && mem.Len() != before {
				t.Fatalf("a failed command changed the state: %v", r.Err())
			}
		}
		if err := state.Audit(mem); err != nil {
			t.Fatal(err)
		}
	})
}
