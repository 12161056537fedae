package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"scoria/cmd/scoria/internal/attach"
)

func newAttachCommand(g *globals) *cobra.Command {
	var o attach.Options
	var nbd string
	var once bool
	cmd := &cobra.Command{
		Use: "attach VOLUME|URI [/dev/nbdN]", Short: "Make a block device of this machine's kernel out of a volume",
		Long: `Make a block device of this machine's kernel out of a volume. VOLUME is a name at the server
of --nbd, or a URI (nbd://HOST/VOLUME, nbd+unix:///VOLUME?socket=PATH). Needs root and the nbd module.

The command stays and replaces connections that die; I/O waits meanwhile, up to --dead-timeout.
Ctrl-C detaches. With --once it returns at once, and nobody reconnects.`,
		Example: "  scoria attach demo /dev/nbd0 --connections 4\n  scoria attach nbd://storage1/demo --once",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := attach.ParseTarget(args[0], nbd)
			if err != nil {
				return usageError("%v", err)
			}
			o.Target, o.Index = t, -1
			if len(args) == 2 {
				if o.Index, err = attach.ParseDevice(args[1]); err != nil {
					return usageError("%v", err)
				}
			}
			if o.Connections < 1 || o.Connections > 16 {
				return usageError("--connections %d: want 1 to 16", o.Connections)
			}
			if o.DeadTimeout < time.Second {
				return usageError("--dead-timeout %v: want at least 1s", o.DeadTimeout)
			}
			return runAttach(cmd, o, once)
		},
	}
	cmd.Flags().StringVar(&nbd, "nbd", "127.0.0.1:10809", "NBD server for a bare volume name, HOST:PORT or unix:PATH")
	cmd.Flags().IntVar(&o.Connections, "connections", 1, "connections, 1 to 16")
	cmd.Flags().Uint64Var(&o.BlockSize, "block-size", 512, "logical block size of the device, 512, 1024, 2048 or 4096")
	cmd.Flags().DurationVar(&o.DeadTimeout, "dead-timeout", time.Minute, "how long I/O waits for a lost server before it fails")
	cmd.Flags().BoolVar(&once, "once", false, "return when attached, do not reconnect later")
	return cmd
}

func runAttach(cmd *cobra.Command, o attach.Options, once bool) error {
	o.Log = func(format string, args ...any) {
		fmt.Fprintf(cmd.ErrOrStderr(), "scoria attach: "+format+"\n", args...) //nolint:errcheck // nowhere else to tell
	}
	d, err := attach.Attach(cmd.Context(), o)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), d.Path); err != nil {
		return err
	}
	if once {
		return nil
	}
	err = d.Keep(cmd.Context())
	if errors.Is(err, context.Canceled) { // Ctrl-C or SIGTERM
		n, perr := attach.ParseDevice(d.Path)
		return errors.Join(perr, attach.Detach(n))
	}
	return err
}

func newDetachCommand() *cobra.Command {
	return &cobra.Command{
		Use: "detach /dev/nbdN", Short: "End a block device made by attach; unmount it first", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			n, err := attach.ParseDevice(args[0])
			if err != nil {
				return usageError("%v", err)
			}
			return attach.Detach(n)
		},
	}
}
