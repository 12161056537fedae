// Command mutants breaks the contracts of TRUST.md on purpose, one after the other, and shows
// that the tests notice: a test that cannot fail proves nothing.
//
// Each mutant of the table replaces one text of one source file by go's -overlay, so
// the sources stay as they are. Its tests must pass without it and at least one must fail
// with it; a build failure, a time-out or a text that is not found (any more) is an
// error of the check and no kill.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.match, "run", "", "only mutants whose name or file matches this regular expression")
	flag.DurationVar(&o.budget, "budget", 0, "begin no mutant after this time; 0: no limit")
	flag.IntVar(&o.start, "start", 0, "begin with this mutant of the table, counted round and round; each run of CI takes another")
	flag.StringVar(&o.table, "table", "", "keep the results in this file, and run only those mutants of which it does not tell how they fare with the sources as they are")
	flag.DurationVar(&o.timeout, "timeout", 2*time.Minute, "of one run of tests")
	flag.BoolVar(&o.list, "list", false, "list the mutants only")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, &o); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

type options struct {
	match, table    string
	budget, timeout time.Duration
	start           int
	list            bool
}

func run(ctx context.Context, o *options) (err error) {
	chosen, err := choose(mutants(), o.match, o.start)
	if err != nil {
		return err
	}
	if o.list {
		for i := range chosen {
			fmt.Printf("%-40s %s  %s\n", chosen[i].Name, chosen[i].Contract, chosen[i].Breaks)
		}
		return nil
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	t, err := openTable(ctx, o.table, root)
	if err != nil {
		return err
	}
	if chosen, err = t.missing(chosen); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	r := &runner{root: root, tmp: tmp, timeout: o.timeout, passes: make(map[string]error)}
	began := time.Now()
	done, survivors := 0, 0
	for i := range chosen {
		if o.budget > 0 && time.Since(began) > o.budget {
			break
		}
		res := r.check(ctx, &chosen[i])
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := t.add(&res); err != nil {
			return err
		}
		if done++; !res.Killed {
			survivors++
		}
		fmt.Println(line(&res))
	}
	fmt.Printf("%d of %d mutants, %d killed, %.0f s\n", done, len(chosen), done-survivors, time.Since(began).Seconds())
	if survivors > 0 {
		return fmt.Errorf("%d mutants were not killed: the tests do not prove what they should", survivors)
	}
	return nil
}

// moduleRoot is the folder of go.mod.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// choose picks the mutants that match, beginning with number start, round and round.
func choose(all []Mutant, match string, start int) ([]Mutant, error) {
	re, err := regexp.Compile(match)
	if err != nil {
		return nil, err
	}
	var out []Mutant
	for i := range all {
		if re.MatchString(all[i].Name) || re.MatchString(all[i].File) {
			out = append(out, all[i])
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no mutant matches %q", match)
	}
	start %= len(out)
	if start < 0 {
		return nil, fmt.Errorf("start must not be negative")
	}
	return append(out[start:len(out):len(out)], out[:start]...), nil
}
