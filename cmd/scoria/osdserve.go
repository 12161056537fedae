package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"scoria/alba/osd"
)

func newOSDServe() *cobra.Command {
	var dir, listen, capacity, logLevel string
	cmd := &cobra.Command{
		Use: "serve --dir DIR --listen HOST:PORT", Short: "Run one disk server as its own process", Args: cobra.NoArgs,
		Long: `Run one disk server as its own process. A gateway uses it by 'scoria serve --osd HOST:PORT'.
There is no authentication yet: listen on loopback or a trusted network only.`,
		Example: "  scoria osd serve --dir /disk0/osd --listen 127.0.0.1:10820",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usageError("--dir is missing: where does the disk server keep its data?")
			}
			n, err := parseSize(capacity)
			if err != nil {
				return fmt.Errorf("--capacity: %w", err)
			}
			logger, err := newLogger(cmd.ErrOrStderr(), logLevel)
			if err != nil {
				return err
			}
			ln, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("listen on %q (want HOST:PORT): %w", listen, err)
			}
			store, err := osd.Open(dir, osd.Options{Capacity: n, Logger: logger})
			if err != nil {
				return errors.Join(err, ln.Close())
			}
			srv := osd.NewServer(store, store.UUID(), osd.ServerOptions{Logger: logger})
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "disk server %s serves %s on %s\nready\n", store.UUID(), dir, ln.Addr()); err != nil {
				logger.Warn("start-up lines not printed", "err", err)
			}
			return errors.Join(serveOSD(cmd.Context(), srv, ln), store.Close())
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the disk server; made if there is none")
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:10820", "address to serve on, HOST:PORT")
	cmd.Flags().StringVar(&capacity, "capacity", "0", "space it may use; 0: what its file system has")
	cmd.Flags().StringVar(&logLevel, "log-level", "warn", "debug, info, warn or error")
	return cmd
}

// serveOSD serves until ctx ends, then finishes what is under way.
func serveOSD(ctx context.Context, srv *osd.Server, ln net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	notify("READY=1")
	select {
	case err := <-done:
		return errors.Join(err, srv.Close())
	case <-ctx.Done():
	}
	notify("STOPPING=1")
	stop, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	err := errors.Join(srv.Shutdown(stop), srv.Close())
	if serr := <-done; serr != nil && !errors.Is(serr, osd.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}
