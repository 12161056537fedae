package metatest

import (
	"path/filepath"
	"strings"
	"testing"

	"scoria/metadata"
	"scoria/metadata/abm"
	abmstate "scoria/metadata/abm/state"
	"scoria/metadata/nsm"
	nsmstate "scoria/metadata/nsm/state"
	"scoria/metadata/raftnode"
)

func describers(kind string) raftnode.Describer {
	return map[string]raftnode.Describer{"abm": abmstate.Machine{}, "nsm": nsmstate.Machine{}}[kind]
}

// TestDump fills a node of each kind, and looks for what was put in into every file's dump.
func TestDump(t *testing.T) {
	dirs := map[string]string{"abm": t.TempDir(), "nsm": t.TempDir()}
	a := Solo(t, dirs["abm"], abmstate.Machine{})
	withNamespace(t, abm.NewService(a), "findme")
	n := Solo(t, dirs["nsm"], nsmstate.Machine{})
	api := nsm.NewService(n)
	newNamespace(t, api, 1)
	put(t, api, 1, Manifest("findme", ObjectID(1), 2, 1, 1, 1, 2, 3), Manifest("gone", ObjectID(2), 2, 1, 1, 1, 2, 3))
	want(t, api.Apply(t.Context(), 1, nsm.Txn{Deletes: []string{"gone"}}), nil)
	for _, node := range []*raftnode.Node{a, n} {
		want(t, node.Snapshot(t.Context()), nil)
		want(t, node.Close(), nil)
	}
	for kind, dir := range dirs {
		snapshots, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
		want(t, err, nil)
		if len(snapshots) != 1 {
			t.Fatalf("snapshots of %s: %v", kind, snapshots)
		}
		for file, text := range map[string]string{
			filepath.Join(dir, "NODE"): kind, filepath.Join(dir, "raft.db"): "findme",
			filepath.Join(dir, "state.db"): "findme", snapshots[0]: "findme",
		} {
			var out strings.Builder
			want(t, raftnode.Dump(&out, file, describers), nil)
			if !strings.Contains(out.String(), text) || strings.Contains(out.String(), "unknown") || strings.Contains(out.String(), "damaged") {
				t.Errorf("dump of %s:\n%s", file, out.String())
			}
			out.Reset()
			want(t, raftnode.Dump(&out, file, nil), nil)
		}
	}
	if err := raftnode.Dump(&strings.Builder{}, filepath.Join(dirs["abm"], "absent"), describers); metadata.KindOf(err) == 0 {
		t.Error("dump of a file that is not there")
	}
}
