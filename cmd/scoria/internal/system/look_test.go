package system

import (
	"strings"
	"testing"

	"scoria/alba/maintenance"
	"scoria/cmd/scoria/internal/admin"
)

// TestProblems: whatever is degraded makes a problem of its own, and health is "ok" only
// without any.
func TestProblems(t *testing.T) {
	well := func() *sample {
		return &sample{osds: []admin.OSD{{ID: 1, State: "claimed", Capacity: 1 << 40, Used: 1 << 30}, {ID: 2, State: "gone", Problem: "of old", Full: true}}}
	}
	vols := []admin.Volume{{Name: "v", State: "open"}}
	if p := problems(well(), vols); len(p) > 0 {
		t.Errorf("all is well, and yet: %q", p)
	}
	for want, spoil := range map[string]func(s *sample, vols []admin.Volume){
		"disk server 1: lost":                func(s *sample, _ []admin.Volume) { s.osds[0].Problem = "lost" },
		"disk server 1 has given other data": func(s *sample, _ []admin.Volume) { s.osds[0].WrongFragments = 2 },
		"disk server 1 is full":              func(s *sample, _ []admin.Volume) { s.osds[0].Full = true },
		"nearly full":                        func(s *sample, _ []admin.Volume) { s.osds[0].Used = s.osds[0].Capacity },
		"volume v: fenced":                   func(_ *sample, vols []admin.Volume) { vols[0].Problem = "fenced" },
		"cannot be renewed":                  func(s *sample, _ []admin.Volume) { s.driver.Lease = "no answer" },
		"maintenance (scrub): no": func(s *sample, _ []admin.Volume) {
			s.maintenance.Tasks = []admin.Task{{Name: "scrub", LastError: "no"}}
		},
		"not known yet": func(s *sample, _ []admin.Volume) {
			s.maintenance.Tasks = []admin.Task{{Name: string(maintenance.TaskRepair)}}
		},
		"3 objects lack fragments": func(s *sample, _ []admin.Volume) {
			s.maintenance.Tasks = []admin.Task{{Name: string(maintenance.TaskRepair), Left: 3}}
		},
		"less protection": func(s *sample, _ []admin.Volume) { s.maintenance.Fallback = 1 },
		"beyond repair": func(s *sample, _ []admin.Volume) {
			s.maintenance.Unreadable = []admin.UnreadableObject{{Namespace: 1, Name: "o"}}
		},
	} {
		s, v := well(), []admin.Volume{vols[0]}
		spoil(s, v)
		if p := problems(s, v); len(p) != 1 || !strings.Contains(p[0], want) {
			t.Errorf("%q: %q", want, p)
		}
	}
}
