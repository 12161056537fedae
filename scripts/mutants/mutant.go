package main

import (
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Mutant is one way to break a contract: a text of a source file and what stands there
// instead, and the tests of which at least one must fail then.
type Mutant struct {
	Name     string // short, in words joined by hyphens
	Contract string // C1 to C8 of TRUST.md
	Breaks   string // what is done wrong
	File     string // from the top of the module
	Old, New string // Old occurs exactly once in File
	Package  string // of the tests, from the top of the module
	Tests    string // regular expression for -test.run
}

// mutants lists all of them, tree by tree.
func mutants() []Mutant {
	return slices.Concat(nbdMutants, bufferMutants, volumeMutants, albaMutants, osdMutants, metadataMutants, systemMutants)
}

// apply returns the changed source of the mutant's file.
func (m *Mutant) apply(root string) ([]byte, error) {
	src, err := os.ReadFile(filepath.Join(root, m.File))
	if err != nil {
		return nil, fmt.Errorf("mutant %s: %w", m.Name, err)
	}
	if n := strings.Count(string(src), m.Old); n != 1 {
		return nil, fmt.Errorf("mutant %s: its old text is %d times in %s, it must be there once: bring the table up to date", m.Name, n, m.File)
	}
	changed := []byte(strings.Replace(string(src), m.Old, m.New, 1))
	if _, err := parser.ParseFile(token.NewFileSet(), m.File, changed, parser.SkipObjectResolution); err != nil {
		return nil, fmt.Errorf("mutant %s: %w", m.Name, err)
	}
	return changed, nil
}

var nameForm = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// validate checks the fields that apply does not look at.
func (m *Mutant) validate() error {
	_, err := regexp.Compile(m.Tests)
	switch {
	case err != nil:
		return fmt.Errorf("mutant %s: %w", m.Name, err)
	case !nameForm.MatchString(m.Name) || m.Breaks == "" || strings.Contains(m.Breaks, " | ") || m.Old == m.New || !strings.HasPrefix(m.Tests, "^Test"):
		return fmt.Errorf("mutant %q: name, breaks, texts or tests are not in form", m.Name)
	case len(m.Contract) != 2 || m.Contract[0] != 'C' || m.Contract[1] < '1' || m.Contract[1] > '8':
		return fmt.Errorf("mutant %s: there is no contract %q", m.Name, m.Contract)
	}
	return nil
}
