package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// table is RESULT.md on the disk: a run goes on where the last one ended. Without a file it
// takes everything and keeps nothing.
type table struct {
	file   string
	commit string
	prints fingerprints
	rows   map[string]row
}

func openTable(ctx context.Context, file, root string) (*table, error) {
	t := &table{file: file, prints: fingerprints{root: root, dirs: map[string]string{}}}
	if file == "" {
		return t, nil
	}
	t.commit = commit(ctx, root)
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	t.rows = parse(string(b))
	return t, nil
}

// missing returns the mutants of which the table does not tell how they fare now. New ones
// come first: those have never been shown to be noticed.
func (t *table) missing(all []Mutant) ([]Mutant, error) {
	if t.file == "" {
		return all, nil
	}
	var fresh, stale []Mutant
	for i := range all {
		r, ok := t.rows[all[i].Name]
		print, err := t.prints.of(&all[i])
		switch {
		case err != nil:
			return nil, err
		case !ok || r.by == notKilled:
			fresh = append(fresh, all[i])
		case r.sources != print:
			stale = append(stale, all[i])
		}
	}
	return append(fresh, stale...), nil
}

// add notes a result and writes the table, so that a run may be ended at any time.
func (t *table) add(r *Result) error {
	if t.file == "" {
		return nil
	}
	print, err := t.prints.of(&r.Mutant)
	if err != nil {
		return err
	}
	t.rows[r.Name] = rowOf(r, t.commit, print)
	text := markdown(mutants(), t.rows, func(m *Mutant) string {
		p, err := t.prints.of(m)
		if err != nil {
			return fmt.Sprint(err) // no fingerprint: the row is told to be old
		}
		return p
	})
	tmp := t.file + ".new"
	return errors.Join(os.WriteFile(tmp, []byte(text), 0o644), os.Rename(tmp, t.file))
}
