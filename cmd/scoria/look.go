package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"scoria/cmd/scoria/internal/admin"
	"scoria/internal/units"
)

// The commands that look into the object store: preset, namespace, object, osd.

func newPresetCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "preset", Short: "List, show and create presets", PersistentPreRunE: g.checkOutput}
	cmd.AddCommand(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List presets", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ps, err := g.client().Presets(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd, ps, func() table { return presetTable(ps) })
		},
	}, &cobra.Command{
		Use: "show NAME", Short: "Tell all of a preset", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ps, err := g.client().Presets(cmd.Context())
			if err != nil {
				return err
			}
			for _, p := range ps {
				if p.Name == args[0] {
					return g.print(cmd, p, func() table { return presetTable([]admin.Preset{p}) })
				}
			}
			return &admin.Error{Code: admin.CodeNotFound, Message: fmt.Sprintf("there is no preset %q", args[0]), Hint: "see scoria preset list"}
		},
	}, newPresetCreate(g))
	return cmd
}

func presetTable(ps []admin.Preset) table {
	t := table{header: []string{"NAME", "VERSION", "POLICIES (k,m,c,x)", "CHUNK", "INLINE", "COMPRESSION", "ENCRYPTION", "DEFAULT"}}
	for _, p := range ps {
		var pol []string
		for _, q := range p.Policies {
			pol = append(pol, fmt.Sprintf("(%d,%d,%d,%d)", q.K, q.M, q.C, q.X))
		}
		t.rows = append(t.rows, []string{p.Name, fmt.Sprint(p.Version), strings.Join(pol, " "), size(uint64(p.ChunkSize)), size(uint64(p.InlineLimit)), p.Compression, p.Encryption, strconv.FormatBool(p.Default)})
	}
	return t
}

func newPresetCreate(g *globals) *cobra.Command {
	var policies []string
	var chunk, inline, compression, encryption string
	cmd := &cobra.Command{
		Use: "create NAME --policy K,M,C,X [--policy ...]", Short: "Make a preset", Args: cobra.ExactArgs(1),
		Long: `Make a preset. Policies are tried in the order given: K data and M parity fragments, of which
C must be stored before a write counts as done, at most X of them on one node.`,
		Example: "  scoria preset create safe --policy 4,2,5,6 --policy 2,2,3,4 --compression zstd --encryption aes-256-gcm",
		RunE: func(cmd *cobra.Command, args []string) error {
			p := admin.Preset{Name: args[0], Compression: compression, Encryption: encryption}
			for _, s := range policies {
				q, err := parsePolicy(s)
				if err != nil {
					return err
				}
				p.Policies = append(p.Policies, q)
			}
			if len(p.Policies) == 0 {
				return usageError("--policy is missing: give at least one, such as 4,2,5,6")
			}
			for _, f := range []struct {
				text string
				into *uint32
			}{{chunk, &p.ChunkSize}, {inline, &p.InlineLimit}} {
				n, err := units.ParseSize(f.text)
				if err != nil || n > 1<<30 {
					return usageError("size %q: want at most 1GiB (%v)", f.text, err)
				}
				*f.into = uint32(n)
			}
			return g.client().CreatePreset(cmd.Context(), p)
		},
	}
	cmd.Flags().StringArrayVar(&policies, "policy", nil, "a policy K,M,C,X; repeat it for fallbacks")
	cmd.Flags().StringVar(&chunk, "chunk-size", "8MiB", "bytes of data per chunk")
	cmd.Flags().StringVar(&inline, "inline-limit", "16KiB", "objects up to this size live in their manifest")
	cmd.Flags().StringVar(&compression, "compression", "none", "none, s2 or zstd")
	cmd.Flags().StringVar(&encryption, "encryption", "none", "none or aes-256-gcm")
	return cmd
}

func parsePolicy(s string) (admin.Policy, error) {
	parts := strings.Split(strings.Trim(s, "() "), ",")
	if len(parts) != 4 {
		return admin.Policy{}, usageError("policy %q: want four numbers K,M,C,X", s)
	}
	var n [4]int
	for i, p := range parts {
		v, err := strconv.Atoi(strings.TrimSpace(p))
		if err != nil {
			return admin.Policy{}, usageError("policy %q: %q is not a number", s, p)
		}
		n[i] = v
	}
	return admin.Policy{K: n[0], M: n[1], C: n[2], X: n[3]}, nil
}

func newNamespaceCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "namespace", Short: "List and show namespaces (one per volume)", PersistentPreRunE: g.checkOutput}
	cmd.AddCommand(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List namespaces", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ns, err := g.client().Namespaces(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd, ns, func() table {
				t := table{header: []string{"ID", "NAME", "PRESET", "NSM", "STATE", "OBJECTS", "LOGICAL", "STORED"}}
				for _, n := range ns {
					t.rows = append(t.rows, []string{fmt.Sprint(n.ID), n.Name, n.Preset, n.NSM, n.State, fmt.Sprint(n.Objects), size(n.LogicalBytes), size(n.StoredBytes)})
				}
				return t
			})
		},
	}, &cobra.Command{
		Use: "show NAME", Short: "Tell all of a namespace", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := g.client().Namespace(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return g.print(cmd, n, func() table {
				t := table{rows: [][]string{
					{"id", fmt.Sprint(n.ID)}, {"name", n.Name}, {"preset", n.Preset}, {"nsm", n.NSM}, {"state", n.State}, {"created", when(n.Created)},
					{"objects", fmt.Sprint(n.Objects)}, {"logical", size(n.LogicalBytes)}, {"stored", size(n.StoredBytes)}, {"owner epoch", fmt.Sprint(n.Epoch)},
				}}
				for _, b := range n.Buckets {
					t.rows = append(t.rows, []string{fmt.Sprintf("%d+%d, %d stored", b.K, b.M, b.Placed), fmt.Sprintf("%d objects, may lose %d more", b.Objects, b.MayLose)})
				}
				for _, o := range n.PerOSD {
					t.rows = append(t.rows, []string{fmt.Sprintf("osd %d", o.OSD), fmt.Sprintf("%d fragments, %s, %d to delete", o.Fragments, size(o.Bytes), o.QueuedDeletes)})
				}
				return t
			})
		},
	})
	return cmd
}

func newObjectCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "object", Short: "List and show objects of a namespace", PersistentPreRunE: g.checkOutput}
	var prefix, after string
	var limit int
	list := &cobra.Command{
		Use: "list NAMESPACE", Aliases: []string{"ls"}, Short: "List objects", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			os, err := g.client().Objects(cmd.Context(), args[0], prefix, after, limit)
			if err != nil {
				return err
			}
			return g.print(cmd, os, func() table {
				t := table{header: []string{"NAME", "SIZE", "POLICY", "MISSING", "CREATED", "OBJECT ID"}}
				for _, o := range os {
					policy := o.Policy
					if o.Inline {
						policy = "inline"
					}
					t.rows = append(t.rows, []string{o.Name, size(o.Size), policy, strconv.Itoa(o.Missing), when(o.Created), o.ObjectID})
				}
				return t
			})
		},
	}
	list.Flags().StringVar(&prefix, "prefix", "", "only names that start so (sco/, tlog/, map/, head)")
	list.Flags().StringVar(&after, "after", "", "only names behind this one")
	list.Flags().IntVar(&limit, "limit", 1000, "at most so many, 1 to 1000")
	cmd.AddCommand(list, &cobra.Command{
		Use: "show NAMESPACE NAME", Short: "Tell where an object's fragments are", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := g.client().Object(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			return g.print(cmd, o, func() table {
				t := table{rows: [][]string{{"name", o.Name}, {"object id", o.ObjectID}, {"size", size(o.Size)}, {"created", when(o.Created)}, {"policy", o.Policy}, {"inline", strconv.FormatBool(o.Inline)}}}
				for i, c := range o.Chunks {
					var places []string
					for _, f := range c.Fragments {
						if f.OSD == 0 {
							places = append(places, "missing")
							continue
						}
						places = append(places, fmt.Sprintf("osd %d v%d", f.OSD, f.Version))
					}
					t.rows = append(t.rows, []string{fmt.Sprintf("chunk %d", i), fmt.Sprintf("%s packed to %s, fragments of %s: %s", size(uint64(c.Size)), size(uint64(c.Packed)), size(uint64(c.FragmentLen)), strings.Join(places, ", "))})
				}
				return t
			})
		},
	})
	return cmd
}

func newOSDCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "osd", Short: "List and show disk servers, run one", PersistentPreRunE: g.checkOutput}
	cmd.AddCommand(newOSDServe())
	cmd.AddCommand(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List disk servers", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			os, err := g.client().OSDs(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd, os, func() table { return osdTable(os) })
		},
	}, &cobra.Command{
		Use: "show ID|UUID", Short: "Tell all of a disk server", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			os, err := g.client().OSDs(cmd.Context())
			if err != nil {
				return err
			}
			for _, o := range os {
				if o.UUID == args[0] || fmt.Sprint(o.ID) == args[0] {
					return g.print(cmd, o, func() table { return osdDetails(o) })
				}
			}
			return &admin.Error{Code: admin.CodeNotFound, Message: fmt.Sprintf("there is no disk server %q", args[0]), Hint: "see scoria osd list"}
		},
	})
	return cmd
}

func osdTable(os []admin.OSD) table {
	t := table{header: []string{"ID", "STATE", "USED", "CAPACITY", "FULL", "ADDRESS", "NODE", "PROBLEM"}}
	for _, o := range os {
		t.rows = append(t.rows, []string{fmt.Sprint(o.ID), o.State, size(o.Used), size(o.Capacity), strconv.FormatBool(o.Full), o.Addr, o.Node, orDash(o.Problem)})
	}
	return t
}

func osdDetails(o admin.OSD) table {
	return table{rows: [][]string{
		{"id", fmt.Sprint(o.ID)}, {"uuid", o.UUID}, {"node", o.Node}, {"address", o.Addr}, {"state", o.State}, {"problem", orDash(o.Problem)},
		{"used", fmt.Sprintf("%s of %s", size(o.Used), size(o.Capacity))}, {"full", strconv.FormatBool(o.Full)}, {"keys", fmt.Sprint(o.Keys)}, {"last seen", when(o.LastSeen)},
		{"batches", fmt.Sprintf("%d in %d syncs", o.Applies, o.Syncs)}, {"written", size(o.BytesWritten)}, {"reads", fmt.Sprintf("%d, %s", o.Reads, size(o.BytesRead))}, {"corrupt blocks", fmt.Sprint(o.CorruptBlocks)}, {"wrong fragments", fmt.Sprint(o.WrongFragments)},
	}}
}
