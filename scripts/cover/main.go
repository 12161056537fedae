// Command cover reads the output of `go test -json` and prints what people need of it:
// the summary line of each package, the output of what failed, what was skipped and
// why, and the number of tests and the coverage of each tree. It exits with 1 if
// anything failed.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

func main() {
	profile := flag.String("profile", "", "coverage profile that the tests wrote")
	flag.Parse()
	failed, err := run(os.Stdin, os.Stdout, *profile)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cover:", err)
		os.Exit(2)
	}
	if failed {
		os.Exit(1)
	}
}

// event is one line of `go test -json`.
type event struct {
	Action, Package, Test, Output string
}

// tally counts the tests and statements of one tree.
type tally struct {
	passed, failed, skipped int
	statements, covered     int
}

func run(in io.Reader, out io.Writer, profile string) (failed bool, err error) {
	trees := make(map[string]*tally)
	output := make(map[string][]string) // by package and test
	var skipped []string
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return true, err
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			fmt.Fprintf(out, "%s", line) //nolint:errcheck // the terminal
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "output", "build-output":
			output[key] = append(output[key], e.Output)
		case "pass", "fail", "skip":
			failed = failed || e.Action == "fail"
			if e.Test != "" {
				treeOf(trees, e.Package).count(e.Action)
			}
			switch {
			case e.Action == "fail", e.Test == "":
				printOutput(out, e, output[key])
			case e.Action == "skip":
				skipped = append(skipped, fmt.Sprintf("  %s %s: %s", e.Package, e.Test, reason(output[key])))
			}
			delete(output, key)
			if e.Test == "" {
				printUnfinished(out, output, e)
			}
		case "build-fail":
			failed = true
		}
	}
	for key, lines := range output { // of builds that failed
		if strings.HasSuffix(key, "\x00") {
			fmt.Fprint(out, strings.Join(lines, "")) //nolint:errcheck // the terminal
		}
	}
	if len(skipped) > 0 {
		fmt.Fprintf(out, "\nskipped %d:\n%s\n", len(skipped), strings.Join(skipped, "\n")) //nolint:errcheck // the terminal
	}
	if err := coverage(trees, profile); err != nil {
		return true, err
	}
	table(out, trees)
	return failed, nil
}

// printOutput prints what a failed test said, or the summary line of a package.
func printOutput(out io.Writer, e event, lines []string) {
	for _, l := range lines {
		if e.Test != "" || strings.HasPrefix(l, "ok ") || strings.HasPrefix(l, "FAIL") || strings.HasPrefix(l, "panic") || e.Action == "fail" {
			fmt.Fprint(out, l) //nolint:errcheck // the terminal
		}
	}
}

// printUnfinished prints what tests said that had not ended with their package: a hung test,
// with the stacks of all goroutines.
func printUnfinished(out io.Writer, output map[string][]string, e event) {
	for _, key := range slices.Sorted(maps.Keys(output)) {
		if pkg, test, _ := strings.Cut(key, "\x00"); pkg == e.Package && e.Action == "fail" {
			fmt.Fprintf(out, "--- UNFINISHED: %s\n%s", test, strings.Join(output[key], "")) //nolint:errcheck // the terminal
			delete(output, key)
		}
	}
}

// reason is the message of t.Skip.
func reason(lines []string) string {
	for _, l := range lines {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "=== ") && !strings.HasPrefix(l, "--- ") {
			return l
		}
	}
	return "no reason given"
}

func treeOf(trees map[string]*tally, pkg string) *tally {
	_, rest, _ := strings.Cut(pkg, "/")
	name, _, _ := strings.Cut(rest, "/")
	if trees[name] == nil {
		trees[name] = new(tally)
	}
	return trees[name]
}

func (t *tally) count(action string) {
	switch action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
	case "skip":
		t.skipped++
	}
}

// coverage adds the statements of a profile. Generated messages do not count.
func coverage(trees map[string]*tally, profile string) error {
	f, err := os.Open(profile)
	if profile == "" || errors.Is(err, fs.ErrNotExist) {
		return nil // the build failed: the tests have said so
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	s := bufio.NewScanner(f)
	for s.Scan() {
		name, rest, ok := strings.Cut(s.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) != 3 || strings.HasSuffix(name, ".pb.go") {
			continue // the mode line
		}
		n, err1 := strconv.Atoi(fields[1])
		hits, err2 := strconv.Atoi(fields[2])
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("%s: %q: %w", profile, s.Text(), err)
		}
		t := treeOf(trees, name)
		t.statements += n
		if hits > 0 {
			t.covered += n
		}
	}
	return s.Err()
}

func table(out io.Writer, trees map[string]*tally) {
	var all tally
	fmt.Fprintf(out, "\n%-14s %7s %7s %8s %9s\n", "tree", "passed", "failed", "skipped", "coverage") //nolint:errcheck // the terminal
	row := func(name string, t tally) {
		percent := "-"
		if t.statements > 0 {
			percent = fmt.Sprintf("%.1f %%", 100*float64(t.covered)/float64(t.statements))
		}
		fmt.Fprintf(out, "%-14s %7d %7d %8d %9s\n", name, t.passed, t.failed, t.skipped, percent) //nolint:errcheck // the terminal
	}
	for _, name := range slices.Sorted(maps.Keys(trees)) {
		t := *trees[name]
		row(name, t)
		all.passed += t.passed
		all.failed += t.failed
		all.skipped += t.skipped
		all.statements += t.statements
		all.covered += t.covered
	}
	row("all", all)
}
