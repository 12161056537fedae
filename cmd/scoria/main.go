// Command scoria is all of Scoria in one static binary: `scoria serve` runs a whole
// one-machine system (ALBA manager, namespace manager, disk servers, gateway, maintenance),
// the other commands administer a running one or look into files.
//
// main and the files beside it only wire: the system is put together in internal/system,
// the admin interface is in internal/admin, everything else in the trees.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"scoria/cmd/scoria/internal/admin"
	"scoria/cmd/scoria/internal/system"
)

// Exit codes, documented in the help of the root command.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitUnavailable = 5
	exitDegraded    = 6
)

// errUsage marks errors of the command line itself.
var errUsage = errors.New("usage")

// errDegraded is returned by `status` when the system answers but is not healthy.
var errDegraded = errors.New("the system is degraded")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run runs one command line and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "scoria: %v\n", err) //nolint:errcheck // nowhere else to tell
	code := exitCode(err)
	if code == exitUsage {
		fmt.Fprintf(stderr, "See '%s --help'.\n", cmd.CommandPath()) //nolint:errcheck // likewise
	}
	return code
}

func exitCode(err error) int {
	var e *admin.Error
	switch {
	case errors.Is(err, errUsage), errors.Is(err, system.ErrConfig):
		return exitUsage
	case errors.Is(err, errDegraded):
		return exitDegraded
	case errors.As(err, &e):
		switch e.Code {
		case admin.CodeInvalid:
			return exitUsage
		case admin.CodeNotFound:
			return exitNotFound
		case admin.CodeExists, admin.CodeBusy:
			return exitConflict
		case admin.CodeUnavailable:
			return exitUnavailable
		}
	}
	return exitFailure
}

// globals are the flags that every command has.
type globals struct {
	admin  string
	output string
}

func newRootCommand() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "scoria",
		Short: "Network block devices: thin volumes over NBD, kept erasure coded on disk servers",
		Long: `Scoria serves thin volumes over NBD and keeps their data erasure coded on disk servers.

  scoria serve                               run a whole system on this machine, under ./data
  scoria volume create demo --size 10GiB     make a volume; it is served as nbd://127.0.0.1/demo
  scoria status                              is everything well?

Exit codes: 0 done; 1 failed; 2 wrong command line or refused as invalid; 3 no such thing;
4 exists already or in use; 5 the server cannot be reached or is not ready; 6 (status only) degraded.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&g.admin, "admin", envOr("SCORIA_ADMIN", "127.0.0.1:10800"), "admin address of the server, HOST:PORT (environment: SCORIA_ADMIN)")
	root.PersistentFlags().StringVarP(&g.output, "output", "o", "table", "how to print: table, json or yaml")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError("%v", err) })
	root.AddCommand(
		newServeCommand(g), newVolumeCommand(g), newPresetCommand(g), newNamespaceCommand(g),
		newObjectCommand(g), newOSDCommand(g), newStatusCommand(g), newAttachCommand(g), newDetachCommand(),
		newDumpCommand(g), newVersionCommand(g),
	)
	markUsageErrors(root)
	return root
}

// markUsageErrors makes wrong arguments of every command usage errors. A command that only has
// subcommands shows its help when none is named.
func markUsageErrors(cmd *cobra.Command) {
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("unknown command %q for %q", args[0], c.CommandPath())
			}
			return c.Help()
		}
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError("%v", err)
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		markUsageErrors(c)
	}
}

func usageError(format string, args ...any) error {
	return fmt.Errorf("%s%w", fmt.Sprintf(format, args...), hidden{errUsage})
}

// hidden wraps an error without adding to the text.
type hidden struct{ err error }

func (hidden) Error() string   { return "" }
func (h hidden) Unwrap() error { return h.err }

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func (g *globals) client() *admin.Client { return admin.NewClient(g.admin) }
