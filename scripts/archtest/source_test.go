package archtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// file is one Go source file of the module.
type file struct {
	name      string // slash-separated, from the module's root
	dir       string // folder of its package
	test      bool
	generated bool
	lines     int
	ast       *ast.File
	imports   map[string]token.Pos
}

var fset = token.NewFileSet()

// sources parses the module once for all tests.
var sources = sync.OnceValues(func() ([]*file, error) {
	const root = "../.."
	var files []*file
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() && name != root && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || slices.Contains([]string{"testdata", "bin", "data", "dist", "build"}, base)) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(base, ".go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		tree, err := parser.ParseFile(fset, rel, text, parser.ParseComments)
		if err != nil {
			return err
		}
		f := &file{name: rel, dir: path.Dir(rel), test: strings.HasSuffix(base, "_test.go"), generated: ast.IsGenerated(tree),
			lines: bytes.Count(text, []byte("\n")), ast: tree, imports: make(map[string]token.Pos)}
		for _, i := range tree.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			f.imports[p] = i.Pos()
		}
		files = append(files, f)
		return nil
	})
	return files, err
})

func load(t *testing.T) []*file {
	t.Helper()
	files, err := sources()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d Go files found: wrong folder", len(files))
	}
	return files
}

// packages returns the code files by package folder; folders with tests only have none.
func packages(files []*file) map[string][]*file {
	m := make(map[string][]*file)
	for _, f := range files {
		if !f.test {
			m[f.dir] = append(m[f.dir], f)
		}
	}
	return m
}

// within tells whether a path is folder or below it.
func within(p, folder string) bool { return p == folder || strings.HasPrefix(p, folder+"/") }

func withinAny(p string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return within(p, f) })
}

// isTestPackage tells whether a package exists for tests: nbdtest, testing, httptest.
func isTestPackage(p string) bool {
	base := path.Base(p)
	return p == "testing" || within(p, "testing") || strings.HasSuffix(base, "test") && base != "archtest"
}

func at(p token.Pos) string { return fset.Position(p).String() }

// inspect visits the nodes of type N.
func inspect[N ast.Node](f *file, visit func(N)) {
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if n, ok := n.(N); ok {
			visit(n)
		}
		return true
	})
}

// callOf returns "pkg.Name" of a call of a package's function, where pkg is the import path.
func callOf(f *file, c *ast.CallExpr) string {
	sel, ok := c.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	id, ok := sel.X.(*ast.Ident)
	if !ok {
		return ""
	}
	for _, i := range f.ast.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			return ""
		}
		if i.Name != nil && i.Name.Name == id.Name || i.Name == nil && path.Base(p) == id.Name {
			return p + "." + sel.Sel.Name
		}
	}
	return ""
}
