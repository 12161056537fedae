package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// line is a result for the terminal.
func line(r *Result) string {
	if r.Killed {
		return fmt.Sprintf("killed  %s  %-40s %5.1f s  by %s %s", r.Contract, r.Name, r.Seconds, r.Package, r.By)
	}
	return fmt.Sprintf("NOT KILLED  %s  %s: %s\n  %s, tests %s in %s", r.Contract, r.Name, r.Problem, r.File, r.Tests, r.Package)
}

// report writes the files that were asked for.
func report(o *options, results []Result) error {
	var errs []error
	if o.json != "" {
		b, err := json.MarshalIndent(results, "", "\t")
		if err != nil {
			return err
		}
		errs = append(errs, os.WriteFile(o.json, append(b, '\n'), 0o644))
	}
	if o.markdown != "" {
		errs = append(errs, os.WriteFile(o.markdown, []byte(markdown(results)), 0o644))
	}
	return errors.Join(errs...)
}

// notKilled stands in the table where a test should be named.
const notKilled = "**not killed**"

// markdown is the results as a table.
func markdown(results []Result) string {
	var b strings.Builder
	killed := 0
	for i := range results {
		if results[i].Killed {
			killed++
		}
	}
	fmt.Fprintf(&b, "# Mutants\n\nWhat `make mutants` found: %d mutants, %d killed. TRUST.md says what this is.\n\n", len(results), killed)
	b.WriteString("| mutant | contract | what it breaks | killed by | s |\n|---|---|---|---|---|\n")
	for i := range results {
		r := &results[i]
		by := notKilled
		if r.Killed {
			by = "`" + r.Package + "` " + r.By
		}
		fmt.Fprintf(&b, "| %s | %s | %s (`%s`) | %s | %.0f |\n", r.Name, r.Contract, r.Breaks, r.File, by, r.Seconds)
	}
	return b.String()
}
