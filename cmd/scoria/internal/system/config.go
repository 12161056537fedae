package system

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"
)

// Config says how to run a one-machine system. The zero value of a field means the default
// that its comment names.
type Config struct {
	Data  string   // data directory; "./data"
	NBD   []string // HOST:PORT or unix:PATH; 127.0.0.1:10809
	Admin string   // HOST:PORT; 127.0.0.1:10800
	// OSDs is the number of disk servers in this process, when the data directory is new; 6.
	// An existing one keeps its number.
	OSDs int
	// RemoteOSDs are addresses HOST:PORT of disk servers of their own (`scoria osd serve`),
	// used in place of those in the process.
	RemoteOSDs []string
	// Dirs moves parts of the data directory: "abm", "nsm-0", "osd-3", "gateway" → path.
	Dirs map[string]string

	WriteBuffer int64  // bytes on disk of the write buffer; 1 GiB
	MapCache    int64  // bytes of RAM for cluster maps; 256 MiB
	BlockCache  int64  // bytes of RAM for blocks read from disk servers; 64 MiB
	OSDCapacity uint64 // bytes that each in-process disk server may use; 0: what the file system has

	DrainDelay  time.Duration // age at which dirty data goes to the disk servers; 30 s, < 0: only when it must
	SpaceWait   time.Duration // how long a write waits for a full file system before ENOSPC; 30 s, < 0: not
	Maintenance time.Duration // between rounds of maintenance; 10 s
	RepairAge   time.Duration // age from which objects that lack fragments are repaired; 1 min
	DiskCheck   time.Duration // between looks at disk servers with addresses of their own, which may be new or changed; 5 s

	Version string
	Logger  *slog.Logger
}

// ErrConfig marks a Config that makes no sense.
var ErrConfig = errors.New("configuration")

const (
	defaultOSDs  = 6
	maxOSDs      = 64
	defaultNBD   = "127.0.0.1:10809"
	defaultAdmin = "127.0.0.1:10800"
)

func (c *Config) ensureDefaults() error {
	if c.Data == "" {
		c.Data = "data"
	}
	if len(c.NBD) == 0 {
		c.NBD = []string{defaultNBD}
	}
	if c.Admin == "" {
		c.Admin = defaultAdmin
	}
	if c.OSDs == 0 {
		c.OSDs = defaultOSDs
	}
	if c.OSDs < 1 || c.OSDs > maxOSDs {
		return fmt.Errorf("%w: %d disk servers: want 1 to %d", ErrConfig, c.OSDs, maxOSDs)
	}
	if c.WriteBuffer == 0 {
		c.WriteBuffer = 1 << 30
	}
	if c.WriteBuffer < 64<<20 {
		return fmt.Errorf("%w: write buffer of %d bytes: want at least 64 MiB", ErrConfig, c.WriteBuffer)
	}
	if c.DiskCheck == 0 {
		c.DiskCheck = 5 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for part, path := range c.Dirs {
		if !knownPart(part) {
			return fmt.Errorf("%w: no part of the data directory is called %q: want abm, nsm-0, gateway or osd-N", ErrConfig, part)
		}
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%w: the directory of %s must be given as an absolute path", ErrConfig, part)
		}
	}
	return nil
}

func knownPart(name string) bool {
	var n int
	if k, err := fmt.Sscanf(name, "osd-%d", &n); err == nil && k == 1 {
		return n >= 0 && n < maxOSDs && name == fmt.Sprintf("osd-%d", n)
	}
	return name == "abm" || name == "nsm-0" || name == "gateway"
}
