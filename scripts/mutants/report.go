package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// line is a result for the terminal.
func line(r *Result) string {
	if r.Killed {
		return fmt.Sprintf("killed  %s  %-40s %5.1f s  by %s %s", r.Contract, r.Name, r.Seconds, r.Package, r.By)
	}
	return fmt.Sprintf("NOT KILLED  %s  %s: %s\n  %s, tests %s in %s", r.Contract, r.Name, r.Problem, r.File, r.Tests, r.Package)
}

// row is a line of RESULT.md: what became of a mutant, and of which sources that is true.
type row struct {
	by      string // package and test that killed it; notKilled
	seconds int
	commit  string // that was checked out, with "+" when files were changed
	sources string // fingerprint of what decides about it
}

// notKilled stands in the table where a test should be named.
const notKilled = "**not killed**"

const cells = 7 // of a row

// parse reads the rows of a RESULT.md, by name of the mutant. What is no row is left out.
func parse(text string) map[string]row {
	rows := map[string]row{}
	for l := range strings.Lines(text) {
		c := strings.Split(strings.Trim(strings.TrimSpace(l), "|"), " | ")
		if len(c) != cells {
			continue
		}
		seconds, err := strconv.Atoi(c[4])
		if err != nil { // the head
			continue
		}
		rows[strings.TrimSpace(c[0])] = row{by: c[3], seconds: seconds, commit: c[5], sources: strings.TrimSpace(c[6])}
	}
	return rows
}

// markdown is the table of all mutants; those that have no row are not in it.
func markdown(all []Mutant, rows map[string]row, now func(*Mutant) string) string {
	var b strings.Builder
	killed, old := 0, 0
	for i := range all {
		if r, ok := rows[all[i].Name]; ok && r.by != notKilled {
			killed++
			if r.sources != now(&all[i]) {
				old++
			}
		}
	}
	fmt.Fprintf(&b, "# Mutants\n\nWhat `make mutants` found: %d mutants, %d killed; of %d of these the sources or the tests have changed since (`make mutants` runs them again). "+
		"TRUST.md says what this is.\n*At*: the commit that was checked out (+: with changes). *Sources*: fingerprint of the mutant and of the Go files beside it and beside its tests.\n\n", len(all), killed, old)
	b.WriteString("| mutant | contract | what it breaks | killed by | s | at | sources |\n|---|---|---|---|---|---|---|\n")
	for i := range all {
		m := &all[i]
		if r, ok := rows[m.Name]; ok {
			fmt.Fprintf(&b, "| %s | %s | %s (`%s`) | %s | %d | %s | %s |\n", m.Name, m.Contract, m.Breaks, m.File, r.by, r.seconds, r.commit, r.sources)
		}
	}
	return b.String()
}

// rowOf is the row of a result.
func rowOf(r *Result, commit, sources string) row {
	out := row{by: notKilled, seconds: int(r.Seconds + 0.5), commit: commit, sources: sources}
	if r.Killed {
		out.by = "`" + r.Package + "` " + r.By
	}
	return out
}

// fingerprints computes what a row is true of. Folders are read once.
type fingerprints struct {
	root string
	dirs map[string]string
}

// of is the fingerprint of a mutant: its texts and tests, the folder of its file and that of its
// tests. Code further away decides too, but not often, and a row names its commit.
func (f *fingerprints) of(m *Mutant) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %q %q\n", m.File, m.Old, m.New, m.Package, m.Tests)
	for _, dir := range []string{filepath.Dir(m.File), m.Package} {
		sum, err := f.dir(dir)
		if err != nil {
			return "", fmt.Errorf("fingerprint of mutant %s: %w", m.Name, err)
		}
		fmt.Fprintln(h, sum)
	}
	return hex.EncodeToString(h.Sum(nil))[:10], nil
}

func (f *fingerprints) dir(dir string) (string, error) {
	if s, ok := f.dirs[dir]; ok {
		return s, nil
	}
	h := sha256.New()
	list, err := fs.Glob(os.DirFS(filepath.Join(f.root, dir)), "*.go")
	if err != nil {
		return "", err
	}
	for _, name := range list {
		b, err := os.ReadFile(filepath.Join(f.root, dir, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(b))
	}
	s := hex.EncodeToString(h.Sum(nil))
	f.dirs[dir] = s
	return s, nil
}

// commit names what is checked out.
func commit(ctx context.Context, root string) string {
	git := func(args ...string) string {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Dir = root
		out, err := cmd.Output()
		if err != nil {
			return "?" // no repository: the fingerprint tells
		}
		return strings.TrimSpace(string(out))
	}
	name := git("rev-parse", "--short=8", "HEAD")
	if git("status", "--porcelain", "--untracked-files=no", "--", "*.go") != "" {
		name += "+"
	}
	return name
}
