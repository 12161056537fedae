package main

import (
	"errors"
	"os"
	"strings"
	"testing"
)

const root = "../.."

// Every mutant can be applied to the sources as they are: whoever changes code that a
// mutant stands on learns of it here, not in the next long run.
func TestMutantsApply(t *testing.T) {
	seen := make(map[string]bool)
	for _, m := range mutants() {
		if err := m.validate(); err != nil {
			t.Error(err)
		}
		if _, err := m.apply(root); err != nil {
			t.Error(err)
		}
		if seen[m.Name] {
			t.Errorf("there are two mutants %s", m.Name)
		}
		seen[m.Name] = true
	}
}

// RESULT.md, which TRUST.md points at, tells of the mutants that there are, and of no survivor.
func TestResultIsOfThisTable(t *testing.T) {
	b, err := os.ReadFile("RESULT.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Count(string(b), "\n| ") - 1 // but for the head
	for _, m := range mutants() {
		if !strings.Contains(string(b), "\n| "+m.Name+" | "+m.Contract+" |") {
			t.Errorf("RESULT.md does not have %s: run make mutants", m.Name)
		}
	}
	if n := len(mutants()); rows != n {
		t.Errorf("RESULT.md has %d rows, the table %d: run make mutants", rows, n)
	}
	if strings.Contains(string(b), notKilled) {
		t.Error("RESULT.md has a survivor")
	}
}

// A run goes on where the last one ended: new mutants first, then those whose sources have changed.
func TestTableGoesOn(t *testing.T) {
	dir := t.TempDir()
	all := []Mutant{
		{Name: "known", Contract: "C1", Breaks: "a | b", File: "x/a.go", Package: "x"}, {Name: "changed", Contract: "C2", Breaks: "-", File: "x/a.go", Package: "x", Old: "1"},
		{Name: "survivor", Contract: "C2", Breaks: "-", File: "x/a.go", Package: "x"}, {Name: "fresh", Contract: "C2", Breaks: "-", File: "x/a.go", Package: "x"},
	}
	if err := errors.Join(os.Mkdir(dir+"/x", 0o700), os.WriteFile(dir+"/x/a.go", []byte("package x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	tab := &table{file: dir + "/R.md", commit: "c0ffee", rows: map[string]row{}, prints: fingerprints{root: dir, dirs: map[string]string{}}}
	for i := range all[:3] {
		all[i].Breaks = strings.ReplaceAll(all[i].Breaks, "|", "or") // a row has cells
		print, err := tab.prints.of(&all[i])
		if err != nil {
			t.Fatal(err)
		}
		tab.rows[all[i].Name] = rowOf(&Result{Mutant: all[i], Killed: i < 2, By: "TestX", Seconds: 3.6}, tab.commit, print)
	}
	all[1].Old = "2"
	text := markdown(all, tab.rows, func(m *Mutant) string { p, _ := tab.prints.of(m); return p })
	if !strings.Contains(text, "4 mutants, 2 killed; of 1 of these the sources") {
		t.Errorf("heading: %s", text)
	}
	got := parse(text)
	if len(got) != 3 || got["known"] != tab.rows["known"] || got["survivor"].by != notKilled || got["known"].seconds != 4 {
		t.Errorf("read back: %+v", got)
	}
	tab.rows = got
	left, err := tab.missing(all)
	var names []string
	for _, m := range left {
		names = append(names, m.Name)
	}
	if want := "survivor fresh changed"; err != nil || strings.Join(names, " ") != want {
		t.Errorf("left: %v, %v; want %s", names, err, want)
	}
	if err := os.WriteFile(dir+"/x/b.go", []byte("package x"), 0o600); err != nil {
		t.Fatal(err)
	}
	tab.prints.dirs = map[string]string{}
	if left, err = tab.missing(all); err != nil || len(left) != 4 {
		t.Errorf("after a file was added: %v, %v", left, err)
	}
}

func TestApplyRefuses(t *testing.T) {
	for name, m := range map[string]Mutant{
		"gone":       {File: "scripts/mutants/main_test.go", Old: "no" + " such text", New: "x"},
		"ambiguous":  {File: "scripts/mutants/main_test.go", Old: "func ", New: "x"},
		"no Go":      {File: "scripts/mutants/main_test.go", Old: "func " + "TestApplyRefuses", New: "("},
		"no file":    {File: "scripts/mutants/none.go", Old: "a", New: "b"},
		"other tree": {File: "none/none.go", Old: "a", New: "b"},
	} {
		m.Name = "m"
		if _, err := m.apply(root); err == nil {
			t.Errorf("%s: was applied", name)
		}
	}
}

func TestVerdict(t *testing.T) {
	cause := errors.New("exit status 1")
	for _, c := range []struct{ out, by, problem string }{
		{"=== RUN   TestA\n--- PASS: TestA (0.00s)\n=== RUN   TestB\n    x.go:1: bad\n--- FAIL: TestB (0.00s)\nFAIL\n", "TestB", ""},
		{"=== RUN   TestA\n=== RUN   TestA/sub\n    --- FAIL: TestA/sub (0.00s)\n--- FAIL: TestA (0.00s)\nFAIL\n", "TestA", ""},
		{"=== RUN   TestA\n=== RUN   TestA/sub\n\npanic: oh\n\ngoroutine 7\n", "TestA (panic)", ""},
		{"=== RUN   TestA\n\npanic: test timed out after 1m0s\n", "", "out of time"},
		{"=== RUN   TestA\n--- FAIL: TestA (60.00s)\npanic: test timed out after 1m0s\n", "", "out of time"},
		{"signal: killed\n", "", "no verdict"},
	} {
		by, err := verdict([]byte(c.out), cause)
		if by != c.by || (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%q: %q, %v; want %q, %q", c.out, by, err, c.by, c.problem)
		}
	}
}

// Samples that begin at different numbers reach every mutant in the end.
func TestChoose(t *testing.T) {
	all := []Mutant{{Name: "a"}, {Name: "b"}, {Name: "c", File: "x/y.go"}}
	for start, first := range map[int]string{0: "a", 1: "b", 5: "c"} {
		got, err := choose(all, "", start)
		if err != nil || len(got) != 3 || got[0].Name != first {
			t.Errorf("start %d: %v, %v", start, got, err)
		}
	}
	if got, err := choose(all, "^x/", 0); err != nil || len(got) != 1 || got[0].Name != "c" {
		t.Errorf("by file: %v, %v", got, err)
	}
	for _, bad := range []string{"(", "none"} {
		if _, err := choose(all, bad, 0); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if _, err := choose(all, "", -1); err == nil {
		t.Error("a negative start was accepted")
	}
}

// Mutants that a test of this package kills, and does not: the check of the checker.
func TestCheck(t *testing.T) {
	if testing.Short() {
		t.Skip("builds test binaries")
	}
	top, err := moduleRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := &runner{root: top, tmp: t.TempDir(), timeout: 60e9, passes: make(map[string]error)}
	m := Mutant{Name: "seal", Contract: "C6", Breaks: "-", File: "internal/blocksum/blocksum.go", Package: "internal/blocksum", Tests: "^TestSealTellsPlacesApart$"}
	m.Old = "return sum ^ mix(place)"
	for _, c := range []struct{ new, tests, want string }{
		{"return sum ^ mix(0)", m.Tests, ""},
		{"return sum ^ mix(0)", "^TestKnownValue$", "SURVIVED"},
		{"return none", m.Tests, "undefined: none"},
		{"return sum", "^TestNone$", "no test"},
	} {
		m.New, m.Tests = c.new, c.tests
		res := r.check(t.Context(), &m)
		if res.Killed != (c.want == "") || !strings.Contains(res.Problem, c.want) {
			t.Errorf("%q: %+v, want %q", c.new, res, c.want)
		}
	}
}
