package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"scoria/internal/units"
)

// table is how a command prints for people: a header and rows, or (without header) pairs.
type table struct {
	header []string
	rows   [][]string
}

// print writes v as JSON or YAML, or the table, as -o says.
func (g *globals) print(cmd *cobra.Command, v any, t func() table) error {
	w := cmd.OutOrStdout()
	switch g.output {
	case "table":
		return t().write(w)
	case "json":
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return fmt.Errorf("print as JSON: %w", err)
		}
		_, err = fmt.Fprintf(w, "%s\n", b)
		return err
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return fmt.Errorf("print as YAML: %w", err)
		}
		_, err = w.Write(b)
		return err
	}
	return usageError("-o %q: want table, json or yaml", g.output)
}

func (t table) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if t.header != nil {
		if _, err := fmt.Fprintln(tw, strings.Join(t.header, "\t")); err != nil {
			return err
		}
	}
	for _, r := range t.rows {
		if _, err := fmt.Fprintln(tw, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// checkOutput refuses an unknown -o before anything is done.
func (g *globals) checkOutput(*cobra.Command, []string) error {
	switch g.output {
	case "table", "json", "yaml":
		return nil
	}
	return usageError("-o %q: want table, json or yaml", g.output)
}

func size(n uint64) string { return units.FormatSize(n) }

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
