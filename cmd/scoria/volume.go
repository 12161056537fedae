package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"scoria/cmd/scoria/internal/admin"
	"scoria/internal/units"
)

func newVolumeCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "volume", Short: "Create, list, show, resize, rename, delete and drain volumes",
		PersistentPreRunE: g.checkOutput,
	}
	cmd.AddCommand(newVolumeCreate(g), newVolumeList(g), newVolumeShow(g), newVolumeResize(g), newVolumeRename(g), newVolumeDelete(g), newVolumeDrain(g))
	return cmd
}

func parseSize(s string) (uint64, error) {
	n, err := units.ParseSize(s)
	if err != nil {
		return 0, usageError("size: %v", err)
	}
	return n, nil
}

func newVolumeCreate(g *globals) *cobra.Command {
	var sizeText, preset string
	cmd := &cobra.Command{
		Use: "create NAME --size SIZE", Short: "Make a thin volume", Args: cobra.ExactArgs(1),
		Example: "  scoria volume create demo --size 10GiB",
		RunE: func(cmd *cobra.Command, args []string) error {
			if sizeText == "" {
				return usageError("--size is missing: how large is the volume to be (10GiB, 512M, 4T)?")
			}
			n, err := parseSize(sizeText)
			if err != nil {
				return err
			}
			v, err := g.client().CreateVolume(cmd.Context(), admin.CreateVolume{Name: args[0], Size: n, Preset: preset})
			if err != nil {
				return err
			}
			return g.print(cmd, v, func() table { return volumeDetails(v) })
		},
	}
	cmd.Flags().StringVar(&sizeText, "size", "", "size, in bytes or with k, M, G, T (powers of 1024); rounded up to 4096 bytes, at most 64 TiB")
	cmd.Flags().StringVar(&preset, "preset", "", "preset of its namespace (default: the default preset)")
	return cmd
}

func newVolumeList(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List volumes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			vs, err := g.client().Volumes(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd, vs, func() table {
				t := table{header: []string{"NAME", "SIZE", "PRESET", "STATE", "CLIENTS", "DIRTY", "PROBLEM"}}
				for _, v := range vs {
					t.rows = append(t.rows, []string{v.Name, size(v.Size), v.Preset, v.State, strconv.Itoa(v.Clients), size(v.DirtyBytes), orDash(v.Problem)})
				}
				return t
			})
		},
	}
}

func newVolumeShow(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Tell all of a volume", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := g.client().Volume(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return g.print(cmd, v, func() table { return volumeDetails(v) })
		},
	}
}

func volumeDetails(v admin.Volume) table {
	t := table{rows: [][]string{
		{"name", v.Name},
		{"id", fmt.Sprint(v.ID)},
		{"size", fmt.Sprintf("%s (%d bytes)", size(v.Size), v.Size)},
		{"holds data", size(v.Mapped)},
		{"preset", v.Preset},
		{"namespace", fmt.Sprint(v.Namespace)},
		{"created", when(v.Created)},
		{"state", v.State},
		{"problem", orDash(v.Problem)},
		{"durability", v.Durability},
		{"owner", fmt.Sprintf("%s (epoch %d)", orDash(v.Owner), v.Epoch)},
		{"clients", strconv.Itoa(v.Clients)},
		{"not yet on disk servers", size(v.DirtyBytes)},
		{"newest write", fmt.Sprintf("%d, drained up to %d", v.LastSeq, v.DrainedSeq)},
	}}
	for _, u := range v.URIs {
		t.rows = append(t.rows, []string{"served as", u})
	}
	return t
}

func newVolumeResize(g *globals) *cobra.Command {
	var sizeText string
	cmd := &cobra.Command{
		Use: "resize NAME --size SIZE", Short: "Grow a volume, also while it is in use", Args: cobra.ExactArgs(1),
		Long: `Grow a volume, also while it is in use. Shrinking is refused.

NBD has no message that tells a connected client: reconnect nbd-client, or use block_resize in QEMU.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if sizeText == "" {
				return usageError("--size is missing: how large is the volume to be?")
			}
			n, err := parseSize(sizeText)
			if err != nil {
				return err
			}
			v, err := g.client().UpdateVolume(cmd.Context(), args[0], admin.UpdateVolume{Size: n})
			if err != nil {
				return err
			}
			return g.print(cmd, v, func() table { return volumeDetails(v) })
		},
	}
	cmd.Flags().StringVar(&sizeText, "size", "", "new size, in bytes or with k, M, G, T (powers of 1024)")
	return cmd
}

func newVolumeRename(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "rename NAME NEW", Short: "Give a volume another name; connected clients stay connected", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := g.client().UpdateVolume(cmd.Context(), args[0], admin.UpdateVolume{Name: args[1]})
			if err != nil {
				return err
			}
			return g.print(cmd, v, func() table { return volumeDetails(v) })
		},
	}
}

func newVolumeDelete(g *globals) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Delete a volume and all its data", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.client().DeleteVolume(cmd.Context(), args[0], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also while clients are connected; they get errors")
	return cmd
}

func newVolumeDrain(g *globals) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "drain NAME", Short: "Bring all that was written so far to the disk servers", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			show := func(p admin.DrainProgress) {
				if g.output == "table" {
					fmt.Fprintf(cmd.ErrOrStderr(), "\r%s of %s left   ", size(p.Left), size(p.Total)) //nolint:errcheck // progress only
				}
			}
			if err := g.client().Drain(cmd.Context(), args[0], wait, show); err != nil {
				return err
			}
			text := "drain of " + args[0] + " started"
			if wait {
				text = args[0] + " is drained"
				if g.output == "table" {
					fmt.Fprintln(cmd.ErrOrStderr()) //nolint:errcheck // ends the progress line
				}
			}
			return g.print(cmd, map[string]any{"volume": args[0], "drained": wait}, func() table { return table{rows: [][]string{{text}}} })
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "return when it is done, and show progress")
	return cmd
}
