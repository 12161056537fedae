package alba

import (
	"fmt"
	"log/slog"
	"time"

	"scoria/alba/osd"
	"scoria/metadata"
	"scoria/metadata/abm"
	"scoria/metadata/nsm"
)

// Options shape a Client. ABM, NSM and OSD are needed, zero means the default for the rest.
type Options struct {
	ABM abm.API
	// NSM and OSD return a handle for a host or a disk server. They do not wait for the other
	// side to answer. They are called again when the address in the record has changed, and
	// the handles stay theirs: the Client does not close them. A Read or Apply of an OSD
	// handle that returned, for whatever reason, does not touch the caller's memory any more.
	NSM func(metadata.NSMHost) (nsm.API, error)
	OSD func(metadata.OSD) (osd.API, error)

	BlockCacheBytes    int64 // RAM for plain 4 KiB blocks; 64 MiB; < 0: none
	ManifestCacheBytes int64 // RAM for manifests; 64 MiB
	UploadBytes        int64 // memory of uploads that are under way, beside their data; 256 MiB
	ReadBytes          int64 // memory of reconstructions that are under way; 128 MiB

	ReadTimeout  time.Duration // of one request to an OSD; 10 s
	WriteTimeout time.Duration // of one batch to an OSD; 30 s
	// Slack is how long a put waits for the fragments beyond c, plus a fifth of the time it took so far; 50 ms.
	Slack time.Duration
	// HedgeMin and HedgeMax bound the adaptive time after which a slow read is also made from
	// other fragments; 5 ms and 1 s.
	HedgeMin, HedgeMax time.Duration
	ProbeInterval      time.Duration // before the first probe of an OSD that failed, doubled up to a minute; 500 ms
	OSDRefresh         time.Duration // age of the list of OSDs; 10 s
	NamespaceRefresh   time.Duration // age of presets and GC epochs; 60 s
	TagFlush           time.Duration // longest a finished GC tag waits for a batch to ride on; 30 s
	RepairQueue        int           // objects waiting for repair after a bad read; 1024

	Logger *slog.Logger // nil: quiet
}

func orDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// withDefaults checks the options and fills the defaults in.
func (o Options) withDefaults() (Options, error) {
	if o.ABM == nil || o.NSM == nil || o.OSD == nil {
		return o, fmt.Errorf("a client needs ABM, NSM and OSD: %w", ErrInvalid)
	}
	orDefault(&o.BlockCacheBytes, 64<<20)
	orDefault(&o.ManifestCacheBytes, 64<<20)
	orDefault(&o.UploadBytes, 256<<20)
	orDefault(&o.ReadBytes, 128<<20)
	orDefault(&o.ReadTimeout, 10*time.Second)
	orDefault(&o.WriteTimeout, 30*time.Second)
	orDefault(&o.Slack, 50*time.Millisecond)
	orDefault(&o.HedgeMin, 5*time.Millisecond)
	orDefault(&o.HedgeMax, time.Second)
	orDefault(&o.ProbeInterval, 500*time.Millisecond)
	orDefault(&o.OSDRefresh, 10*time.Second)
	orDefault(&o.NamespaceRefresh, time.Minute)
	orDefault(&o.TagFlush, 30*time.Second)
	orDefault(&o.RepairQueue, 1024)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}
