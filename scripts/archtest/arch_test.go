package archtest

import (
	"go/ast"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

func treeOf(dir string) (tree, bool) {
	var best tree
	for _, t := range trees {
		if within(dir, t.folder) && len(t.folder) > len(best.folder) {
			best = t
		}
	}
	return best, best.folder != ""
}

// violation returns why a file may not import a package of the module; "" if it may.
func violation(f *file, imported string) string {
	from, ok := treeOf(f.dir)
	if !ok {
		return "no rule for this folder: the top level is cmd, nbd, volumedriver, alba, metadata, internal, scripts"
	}
	to := strings.TrimPrefix(imported, module+"/")
	switch {
	case within(to, from.folder):
		return ""
	case within(to, "cmd"):
		return "nobody imports cmd: it joins the trees"
	case withinAny(to, from.may), f.test && withinAny(to, from.tests):
		return ""
	}
	return from.why
}

func TestArrows(t *testing.T) {
	arrows := 0
	for _, f := range load(t) {
		for p, pos := range f.imports {
			if p != module && !within(p, module) {
				continue
			}
			arrows++
			if why := violation(f, p); why != "" {
				t.Errorf("%s: %s imports %s\n\twhy not: %s", at(pos), f.dir, p, why)
			}
		}
	}
	t.Logf("%d imports of our own packages", arrows)
}

// TestRulesBite: the rules refuse what DESIGN.md forbids and allow what it draws.
func TestRulesBite(t *testing.T) {
	for _, c := range []struct {
		from, to string
		test, ok bool
	}{
		{"nbd", "nbd/internal/wire", false, true}, {"nbd", "internal/vfs", false, false}, {"nbd", "volumedriver", false, false},
		{"nbd", "internal/simnet", true, true}, {"volumedriver", "internal/vfs", false, true}, {"volumedriver/sco", "alba", false, false},
		{"volumedriver", "metadata", false, false}, {"volumedriver", "nbd", true, false}, {"alba/osd", "metadata", false, true},
		{"alba", "volumedriver", false, false}, {"metadata/abm", "metadata", false, true}, {"metadata/raftnode", "alba", false, false},
		{"internal/vfs", "internal/units", false, true}, {"internal/vfs", "metadata", false, false}, {"cmd/scoria", "alba", false, true},
		{"scripts/bench", "cmd/scoria", false, false}, {"scripts/e2e/crash", "nbd", false, false}, {"extra", "nbd", false, false},
	} {
		f := &file{dir: c.from, test: c.test}
		if got := violation(f, module+"/"+c.to) == ""; got != c.ok {
			t.Errorf("%s imports %s (test %t): allowed %t, want %t", c.from, c.to, c.test, got, c.ok)
		}
	}
}

func TestFences(t *testing.T) {
	for _, f := range load(t) {
		for p, pos := range f.imports {
			for _, fence := range fences {
				inside := withinAny(f.dir, fence.only)
				if within(p, fence.path) && !inside && !(f.test && fence.tests) {
					t.Errorf("%s: %s imports %s\n\twhy not: %s", at(pos), f.dir, p, fence.why)
				}
			}
		}
	}
}

func TestPurity(t *testing.T) {
	for _, f := range load(t) {
		why, ok := pure[f.dir]
		if !ok || f.test || f.generated {
			continue
		}
		for p, pos := range f.imports {
			if withinAny(p, impure) {
				t.Errorf("%s: %s is pure and imports %s\n\twhy not: %s", at(pos), f.dir, p, why)
			}
		}
		inspect(f, func(c *ast.CallExpr) {
			if name, ok := strings.CutPrefix(callOf(f, c), "time."); ok && slices.Contains(impureCalls, name) {
				t.Errorf("%s: %s is pure and calls time.%s\n\twhy not: %s", at(c.Pos()), f.dir, name, why)
			}
		})
	}
}

func TestNoTestPackagesInCode(t *testing.T) {
	for _, f := range load(t) {
		if f.test || isTestPackage(f.dir) || slices.ContainsFunc(strings.Split(f.dir, "/"), isTestPackage) {
			continue
		}
		for p, pos := range f.imports {
			if isTestPackage(p) {
				t.Errorf("%s: code imports the test package %s: it would be shipped", at(pos), p)
			}
		}
	}
}

func TestNoInit(t *testing.T) {
	for _, f := range load(t) {
		if f.test || f.generated {
			continue
		}
		inspect(f, func(d *ast.FuncDecl) {
			if d.Recv == nil && d.Name.Name == "init" {
				t.Errorf("%s: init(): what happens on import cannot be ordered, configured or tested; use an explicit table or call", at(d.Pos()))
			}
		})
		for _, i := range f.ast.Imports {
			if i.Name != nil && i.Name.Name == "_" && i.Path.Value != `"embed"` {
				t.Errorf("%s: import of %s for its side effects: register explicitly", at(i.Pos()), i.Path.Value)
			}
		}
	}
}

func TestNoSleepInTests(t *testing.T) {
	for _, f := range load(t) {
		if !f.test {
			continue
		}
		bubble := f.imports["testing/synctest"].IsValid() // in a bubble Sleep is the clock, and costs no time
		inspect(f, func(c *ast.CallExpr) {
			if callOf(f, c) == "time.Sleep" && !bubble {
				t.Errorf("%s: time.Sleep in a test: wait for the event (channel, synctest, polling with a deadline)", at(c.Pos()))
			}
		})
	}
}

func TestPackagesAreDocumented(t *testing.T) {
	for dir, files := range packages(load(t)) {
		documented := slices.ContainsFunc(files, func(f *file) bool { return f.ast.Doc != nil || f.generated })
		if !documented {
			t.Errorf("%s: no package comment: say what the package is for (\"Package %s ...\")", dir, files[0].ast.Name.Name)
		}
	}
}

func TestTreesHaveDesigns(t *testing.T) {
	for _, dir := range designed {
		if _, err := os.Stat(path.Join("../..", dir, "DESIGN.md")); err != nil {
			t.Errorf("%s: no DESIGN.md: say why it is as it is, and what was refused (%v)", dir, err)
		}
	}
}

// TestRulesNameWhatExists fails when a package that a rule names has gone.
func TestRulesNameWhatExists(t *testing.T) {
	dirs := make(map[string]bool)
	for dir := range packages(load(t)) {
		for d := dir; d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	named := map[string]bool{}
	for _, tr := range trees {
		named[tr.folder] = true
	}
	for _, fe := range fences {
		for _, d := range fe.only {
			named[d] = true
		}
	}
	for d := range pure {
		named[d] = true
	}
	for d := range named {
		if !dirs[d] && !planned[d] {
			t.Errorf("a rule names %s, which does not exist: it was moved or misspelt, and the rule no longer guards anything", d)
		}
	}
	for d := range planned {
		if dirs[d] {
			t.Logf("%s exists: take it out of the list of planned packages", d)
		}
	}
}
