package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"scoria/cmd/scoria/internal/system"
)

// stopTimeout bounds how long requests that are under way may take after a signal to stop.
const stopTimeout = 30 * time.Second

func newServeCommand(g *globals) *cobra.Command {
	var cfg system.Config
	var dirs []string
	var buffer, mapCache, blockCache, osdCapacity, logLevel string
	cmd := &cobra.Command{
		Use: "serve", Short: "Run a whole Scoria on this machine", Args: cobra.NoArgs,
		Long: `Run a whole Scoria on this machine, in one process under one data directory: ALBA manager (abm/),
namespace manager (nsm-0/), disk servers (osd-0/ ...), gateway with its write buffer (gateway/), maintenance.

Each of these directories may be a link to another disk, or be moved by --dir. What is written is acknowledged
when this machine's kernel has it, and durable after FLUSH; it reaches the disk servers within half a minute.
SIGTERM or Ctrl-C stops it: clients get their answers, everything is flushed, nothing is lost.`,
		Example: "  scoria serve --data /var/lib/scoria --nbd 127.0.0.1:10809 --nbd unix:/run/scoria.sock\n  scoria serve --dir osd-0=/disk0/osd --dir osd-1=/disk1/osd",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Version = versionString()
			cfg.Admin = g.admin
			for _, d := range dirs {
				part, path, ok := strings.Cut(d, "=")
				if !ok {
					return usageError("--dir %q: want PART=PATH, such as osd-0=/disk0/osd", d)
				}
				abs, err := filepath.Abs(path)
				if err != nil {
					return fmt.Errorf("--dir %q: %w", d, err)
				}
				if cfg.Dirs == nil {
					cfg.Dirs = make(map[string]string)
				}
				cfg.Dirs[part] = abs
			}
			var capacity int64
			for _, f := range []struct {
				name, text string
				into       *int64
			}{{"write-buffer", buffer, &cfg.WriteBuffer}, {"map-cache", mapCache, &cfg.MapCache}, {"block-cache", blockCache, &cfg.BlockCache}, {"osd-capacity", osdCapacity, &capacity}} {
				n, err := parseSize(f.text)
				if err != nil {
					return fmt.Errorf("--%s: %w", f.name, err)
				}
				if n > 1<<62 {
					return usageError("--%s %s is too large", f.name, f.text)
				}
				*f.into = int64(n)
			}
			cfg.OSDCapacity = uint64(capacity)
			logger, err := newLogger(cmd.ErrOrStderr(), logLevel)
			if err != nil {
				return err
			}
			cfg.Logger = logger
			return runServe(cmd.Context(), cmd.OutOrStdout(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Data, "data", "./data", "data directory")
	f.StringArrayVar(&cfg.NBD, "nbd", []string{"127.0.0.1:10809"}, "where to serve NBD, HOST:PORT or unix:PATH; may be given more than once")
	f.IntVar(&cfg.OSDs, "osds", 6, "disk servers in this process, when the data directory is new, 1 to 64")
	f.StringArrayVar(&cfg.RemoteOSDs, "osd", nil, "address HOST:PORT of a disk server of its own (scoria osd serve), in place of those in this process; may be given more than once")
	f.StringArrayVar(&dirs, "dir", nil, "PART=PATH: where abm, nsm-0, gateway or osd-N is, if not in the data directory; may be given more than once")
	f.StringVar(&buffer, "write-buffer", "1GiB", "disk space of the write buffer")
	f.StringVar(&mapCache, "map-cache", "256MiB", "memory for cluster maps, of all volumes")
	f.StringVar(&blockCache, "block-cache", "64MiB", "memory for blocks read from disk servers")
	f.StringVar(&osdCapacity, "osd-capacity", "0", "space that each disk server in this process may use; 0: what its file system has")
	f.DurationVar(&cfg.RepairAge, "repair-age", time.Minute, "age from which an object that lacks fragments is repaired; younger ones may still get them")
	f.StringVar(&logLevel, "log-level", "warn", "debug, info, warn or error")
	return cmd
}

func newLogger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, usageError("--log-level %q: want debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}

func runServe(ctx context.Context, out io.Writer, cfg system.Config) error {
	s, err := system.Start(ctx, cfg)
	if err != nil {
		return err
	}
	if err := announce(ctx, out, s); err != nil {
		cfg.Logger.Warn("start-up lines not printed", "err", err)
	}
	notify("READY=1")
	var ended error
	select {
	case <-ctx.Done():
	case ended = <-s.Failed():
	}
	notify("STOPPING=1")
	stop, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := s.Close(stop); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return ended
}

func announce(ctx context.Context, w io.Writer, s *system.System) error {
	ps, err := s.Presets(ctx)
	if err != nil {
		return err
	}
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "scoria %s serves %s\n", versionString(), s.Data())
	for _, u := range s.URIs("VOLUME") {
		fmt.Fprintf(&b, "  volumes       %s\n", u)
	}
	fmt.Fprintf(&b, "  admin         http://%s\n", s.AdminAddr())
	fmt.Fprintf(&b, "  disk servers  %d\n", len(st.OSDs))
	for _, p := range ps {
		if p.Default {
			fmt.Fprintf(&b, "  preset        %s: policies (k,m,c,x)", p.Name)
			for _, q := range p.Policies {
				fmt.Fprintf(&b, " (%d,%d,%d,%d)", q.K, q.M, q.C, q.X)
			}
			b.WriteString("\n")
		}
	}
	for _, p := range st.Problems {
		fmt.Fprintf(&b, "  DEGRADED      %s\n", p)
	}
	b.WriteString("ready\n")
	_, err = io.WriteString(w, b.String())
	return err
}

// notify tells systemd how the service is, if it asked (sd_notify(3)).
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.Dial("unixgram", path)
	if err != nil {
		return // systemd notices by its own time-out
	}
	_, _ = c.Write([]byte(state)) // likewise
	_ = c.Close()
}
