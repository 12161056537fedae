package archtest

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// TestHouseNumbers reports the numbers of each tree and fails where one is over its bound.
func TestHouseNumbers(t *testing.T) {
	type numbers struct {
		files, functions    []int
		code, test          int
		exported, commented int
		long                int
	}
	all := new(numbers)
	byTree := map[string]*numbers{}
	for _, f := range load(t) {
		if f.generated {
			continue
		}
		top, _, _ := strings.Cut(f.dir, "/")
		if byTree[top] == nil {
			byTree[top] = new(numbers)
		}
		for _, n := range []*numbers{all, byTree[top]} {
			if f.test {
				n.test += f.lines
				continue
			}
			n.code += f.lines
			n.files = append(n.files, f.lines)
			total, commented := exported(f)
			n.exported += total
			n.commented += commented
			for _, l := range functions(f) {
				n.functions = append(n.functions, l)
				if l > longFunction {
					n.long++
				}
			}
		}
		if !f.test {
			checkFile(t, f)
		}
	}
	byTree["all"] = all
	for name, n := range byTree {
		if len(n.files) == 0 || len(n.functions) == 0 {
			continue
		}
		share := float64(n.long) / float64(len(n.functions))
		docs := 1.0
		if n.exported > 0 {
			docs = float64(n.commented) / float64(n.exported)
		}
		t.Logf("%-13s %4d files, lines p50 %d p90 %d; %5d functions, lines p50 %d p90 %d, %.1f %% over %d; exported documented %.0f %%; test:code %.2f",
			name, len(n.files), percentile(n.files, 50), percentile(n.files, 90), len(n.functions), percentile(n.functions, 50),
			percentile(n.functions, 90), 100*share, longFunction, 100*docs, float64(n.test)/float64(n.code))
		if p := percentile(n.files, 90); p > maxFileP90 && len(n.files) > 10 {
			t.Errorf("%s: 90th percentile of file lengths is %d lines, at most %d", name, p, maxFileP90)
		}
		if name != "all" {
			continue
		}
		if share > maxLongShare {
			t.Errorf("%.1f %% of the functions have more than %d lines, at most %.1f %%", 100*share, longFunction, 100*maxLongShare)
		}
		if docs < minExportedDoc {
			t.Errorf("%.0f %% of the exported names are documented, at least %.0f %%", 100*docs, 100*minExportedDoc)
		}
	}
}

func checkFile(t *testing.T, f *file) {
	if f.lines > maxFile {
		t.Errorf("%s has %d lines, at most %d: it holds more than one thing", f.name, f.lines, maxFile)
	}
	inspect(f, func(d *ast.FuncDecl) {
		if l := length(d); l > maxFunction {
			t.Errorf("%s: %s has %d lines, at most %d", at(d.Pos()), d.Name.Name, l, maxFunction)
		}
	})
	inspect(f, func(s *ast.TypeSpec) {
		if i, ok := s.Type.(*ast.InterfaceType); ok && i.Methods.NumFields() > maxInterface {
			t.Errorf("%s: interface %s has %d methods, at most %d: every fake and wrapper must carry them", at(s.Pos()), s.Name.Name, i.Methods.NumFields(), maxInterface)
		}
	})
}

func length(d *ast.FuncDecl) int {
	return fset.Position(d.End()).Line - fset.Position(d.Pos()).Line + 1
}

func functions(f *file) []int {
	var list []int
	inspect(f, func(d *ast.FuncDecl) { list = append(list, length(d)) })
	return list
}

// exported counts exported top-level names, and those with a comment. The comment of a
// group counts for its members.
func exported(f *file) (total, commented int) {
	count := func(name *ast.Ident, docs ...*ast.CommentGroup) {
		if !name.IsExported() {
			return
		}
		total++
		if slices.ContainsFunc(docs, func(d *ast.CommentGroup) bool { return d != nil }) {
			commented++
		}
	}
	for _, d := range f.ast.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil || receiverExported(d) {
				count(d.Name, d.Doc)
			}
		case *ast.GenDecl:
			if d.Tok == token.IMPORT {
				continue
			}
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					count(s.Name, d.Doc, s.Doc, s.Comment)
				case *ast.ValueSpec:
					for _, name := range s.Names {
						count(name, d.Doc, s.Doc, s.Comment)
					}
				}
			}
		}
	}
	return total, commented
}

func receiverExported(d *ast.FuncDecl) bool {
	e := d.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

func percentile(list []int, p int) int {
	s := slices.Sorted(slices.Values(list))
	return s[(len(s)-1)*p/100]
}
