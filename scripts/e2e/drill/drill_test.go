package main

import (
	"strings"
	"testing"
	"time"
)

// TestReport: what was wrong or skipped must show.
func TestReport(t *testing.T) {
	r := newReport(options{seed: 7})
	r.Rounds = []result{
		{Fault: "flood", Acknowledged: 5, Stall: 2 * time.Second},
		{Fault: "flood", Acknowledged: 6, Stall: time.Second, Wrong: 1},
		{Fault: "fire", Skipped: true},
	}
	r.Lacks = []string{"fire: no matches"}
	text := r.end().text()
	for _, want := range []string{"flood                                     2        11         2s", "fire                                 SKIPPED", "not here: fire: no matches", "2 rounds of 2 faults", "lost or wrong: 1 (seed 7)"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// TestChosen: a rig gets its own faults only, and each fault is on some rig.
func TestChosen(t *testing.T) {
	seen := make(map[string]bool)
	for _, kind := range []string{"inside", "processes", "guest"} {
		for _, f := range (options{}).chosen(kind) {
			if f.kind != "" && f.kind != kind {
				t.Errorf("%s on %s", f.name, kind)
			}
			seen[f.name] = true
		}
	}
	for _, f := range faults() {
		if !seen[f.name] || f.bound == 0 {
			t.Errorf("%s: on no rig, or without a bound", f.name)
		}
	}
	if n := len(options{only: "cut clients,part all"}.chosen("processes")); n != 2 {
		t.Errorf("%d faults chosen, want 2", n)
	}
}
