package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"scoria/cmd/scoria/internal/admin"
)

// version is set by the linker (-X main.version=...); otherwise the build info tells it.
var version = ""

func versionString() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "devel"
}

func newVersionCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Tell the version of this binary", Args: cobra.NoArgs, PreRunE: g.checkOutput,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := map[string]string{"version": versionString(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			return g.print(cmd, v, func() table {
				return table{rows: [][]string{{"scoria " + v["version"] + " (" + v["go"] + ", " + v["platform"] + ")"}}}
			})
		},
	}
}

func newStatusCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Tell whether everything is well; exit code 6 when it is not", Args: cobra.NoArgs, PreRunE: g.checkOutput,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := g.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if err := g.print(cmd, s, func() table { return statusTable(s) }); err != nil {
				return err
			}
			if s.Health != "ok" {
				return errDegraded
			}
			return nil
		},
	}
}

func statusTable(s admin.Status) table {
	t := table{rows: [][]string{
		{"health", s.Health},
	}}
	for _, p := range s.Problems {
		t.rows = append(t.rows, []string{"problem", p})
	}
	t.rows = append(t.rows, []string{"version", s.Version}, []string{"data", s.Data}, []string{"running since", when(s.Started)})
	for _, u := range s.NBD {
		t.rows = append(t.rows, []string{"nbd", u})
	}
	t.rows = append(t.rows,
		[]string{"volumes", fmt.Sprintf("%d, %d open, %d connections", s.Volumes, s.OpenVolumes, s.Connections)},
		[]string{"write buffer", fmt.Sprintf("%s of %s to be drained, %s cached", size(s.Buffer.Dirty), size(s.Buffer.Limit), size(s.Buffer.Cached))},
	)
	for _, k := range s.Maintenance.Tasks {
		t.rows = append(t.rows, []string{k.Name, fmt.Sprintf("%d done (%s), %d left, last run %s", k.Done, size(k.Bytes), k.Left, when(k.Finished))})
	}
	for _, o := range s.OSDs {
		text := fmt.Sprintf("%s, %s of %s used", o.State, size(o.Used), size(o.Capacity))
		if o.Problem != "" {
			text += ": " + o.Problem
		}
		t.rows = append(t.rows, []string{fmt.Sprintf("osd %d", o.ID), text})
	}
	return t
}
