package system

import (
	"fmt"
	"strings"
	"testing"

	"scoria/alba"
	"scoria/alba/osd"
)

// TestLyingDiskServer: a disk server that has other data than it was given, with checksums that
// fit, in every fragment: reads are right, repair makes all of them anew, and status names it.
func TestLyingDiskServer(t *testing.T) {
	r := newRig(t)
	stored(r)
	r.start()
	spaces, err := r.sys.abm.ListNamespaces(t.Context())
	must(t, err)
	infos, err := r.sys.nsm.List(t.Context(), spaces[0].ID, "sco/", "", 1)
	must(t, err)
	scos, err := r.sys.nsm.Get(t.Context(), spaces[0].ID, []string{infos[0].Name})
	must(t, err)
	liar := scos[0].Chunks[0].Fragments[0].OSD // which readers ask, since it has data and not parity
	var disk osd.API
	osds, err := r.sys.abm.ListOSDs(t.Context())
	must(t, err)
	for _, o := range osds {
		if o.ID == liar {
			disk, err = r.sys.parts.OSD(o)
			must(t, err)
		}
	}
	infos, err = r.sys.nsm.List(t.Context(), spaces[0].ID, "", "", 1000)
	must(t, err)
	lies := 0
	for _, info := range infos {
		ms, err := r.sys.nsm.Get(t.Context(), spaces[0].ID, []string{info.Name})
		must(t, err)
		for c, ch := range ms[0].Chunks {
			for f, fr := range ch.Fragments {
				if fr.OSD != liar {
					continue
				}
				key := alba.FragmentKey{Namespace: spaces[0].ID, ObjectID: ms[0].ObjectID, Chunk: uint16(c), Fragment: uint8(f), Version: fr.Version}
				must(t, disk.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: key.Bytes(alba.KeyData), Value: make([]byte, ch.FragmentLen)}}}))
				lies++
			}
		}
	}
	if lies == 0 {
		t.Fatal("no fragment is on the disk server that was to lie")
	}
	r.degraded(false)
	r.checkStored()
	st := r.degraded(true)
	if want := fmt.Sprintf("disk server %d has given other data than was stored there", liar); !strings.Contains(strings.Join(st.Problems, "\n"), want) {
		t.Errorf("status does not tell %q: %q", want, st.Problems)
	}
	for _, o := range st.OSDs {
		if got := o.WrongFragments > 0; got != (o.ID == uint32(liar)) {
			t.Errorf("disk server %d is said to have %d wrong fragments", o.ID, o.WrongFragments)
		}
	}
}
