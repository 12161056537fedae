package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"scoria/cmd/scoria/internal/admin"
	"scoria/cmd/scoria/internal/dump"
)

// dumped is a dump as -o json and yaml print it.
type dumped struct {
	File  string   `json:"file"`
	Kind  string   `json:"kind"`
	Lines []string `json:"lines"`
}

func newDumpCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "dump FILE", Short: "Write a file of a data directory as text", Args: cobra.ExactArgs(1), PreRunE: g.checkOutput,
		Long: `Write a file of a data directory as text: segments of the write buffer, volume heads and states, TLogs,
map checkpoints and packs, segments and identities of disk servers, metadata (NODE, raft.db, state.db,
snapshots) and scoria.json. It reads the file only, and needs no server. Metadata databases cannot be
read while a server has them open.`,
		Example: "  scoria dump data/gateway/volumes/1/state\n  scoria dump data/nsm-0/state.db",
		RunE: func(cmd *cobra.Command, args []string) error {
			if g.output == "table" { // may be large: nothing is kept
				out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
				_, err := dump.File(out, args[0])
				return errors.Join(dumpError(err), out.Flush())
			}
			var text strings.Builder
			kind, err := dump.File(&limitWriter{&text, maxDump}, args[0])
			if err != nil {
				return dumpError(err)
			}
			return g.print(cmd, dumped{args[0], kind, strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")}, nil)
		},
	}
}

// dumpError makes a file that is not ours a wrong command line, and gives one that is not
// there its exit code.
func dumpError(err error) error {
	switch {
	case errors.Is(err, dump.ErrUnknown):
		return fmt.Errorf("%w%w", err, hidden{errUsage})
	case errors.Is(err, fs.ErrNotExist):
		return &admin.Error{Code: admin.CodeNotFound, Message: err.Error()}
	}
	return err
}

// maxDump bounds a dump as JSON or YAML, which is kept in memory, in bytes.
const maxDump = 256 << 20

var errDumpTooLarge = errors.New("the dump is too large for -o json and yaml; use -o table")

type limitWriter struct {
	w    io.Writer
	left int
}

func (l *limitWriter) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, errDumpTooLarge
	}
	l.left -= len(p)
	return l.w.Write(p)
}
