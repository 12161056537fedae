package system

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
)

// listen opens HOST:PORT or unix:PATH. A unix socket that nobody listens on any more (left
// by a killed server) is replaced; one that is in use, or a file of another kind, is not.
func listen(addr string) (net.Listener, error) {
	path, ok := strings.CutPrefix(addr, "unix:")
	if !ok {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("listen on %q (want HOST:PORT or unix:PATH): %w", addr, err)
		}
		return ln, nil
	}
	if path == "" {
		return nil, fmt.Errorf("listen on %q: the path of the socket is missing", addr)
	}
	ln, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && staleSocket(path) {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the socket %s that nobody listens on: %w", path, err)
		}
		ln, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return ln, nil
}

func staleSocket(path string) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Type() != os.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close() // somebody listens; nothing was sent
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// uri returns how a client names the volume at a listener ("" names the server).
func uri(ln net.Listener, volume string) string {
	if ln.Addr().Network() == "unix" {
		return "nbd+unix:///" + volume + "?socket=" + ln.Addr().String()
	}
	return "nbd://" + ln.Addr().String() + "/" + volume
}
