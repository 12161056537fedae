package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"scoria/nbd"
	"scoria/volumedriver"
)

// exports resolves NBD export names: a name is a volume's. `volume@snapshot` will be
// resolved here too.
type exports struct {
	driver   *volumedriver.Driver
	failures *failures
}

var (
	_ nbd.Exports    = exports{}
	_ nbd.Device     = (*volumedriver.Volume)(nil)
	_ nbd.HoleReader = (*volumedriver.Volume)(nil)
	_ nbd.TryWriter  = (*volumedriver.Volume)(nil)
)

func (e exports) Open(ctx context.Context, name string) (*nbd.Export, func(), error) {
	if name == "" {
		return nil, nil, e.noName(ctx)
	}
	if volume, snapshot, ok := strings.Cut(name, "@"); ok {
		return nil, nil, &nbd.NameError{Text: fmt.Sprintf("volume %q has no snapshot %q", volume, snapshot)}
	}
	if err := volumedriver.CheckName(name); err != nil {
		return nil, nil, &nbd.NameError{Text: "no such volume; " + err.Error()}
	}
	h, err := e.driver.OpenVolume(ctx, name)
	if ctx.Err() == nil {
		e.failures.note(name, err)
	}
	if err != nil {
		return nil, nil, err
	}
	exp := &nbd.Export{Name: name, Description: "Scoria volume", Device: h.Volume, PreferredBlock: volumedriver.ClusterSize, FastZero: true}
	return exp, func() { _ = h.Close() }, nil // Close never fails
}

// namedVolumes is how many volumes are named to a client that named none.
const namedVolumes = 8

// noName refuses the empty name, by which clients ask for a default. There is none, not even
// when there is one volume only: a client that comes back after that volume was replaced by
// another would go on writing to the wrong one.
func (e exports) noName(ctx context.Context) error {
	recs, err := e.driver.List(ctx)
	if err != nil {
		return err
	}
	text := "name a volume, as in nbd://HOST/VOLUME; there is none yet"
	if len(recs) > 0 {
		var names []string
		for _, r := range recs[:min(len(recs), namedVolumes)] {
			names = append(names, r.Name)
		}
		text = "name a volume, as in nbd://HOST/VOLUME; there are: " + strings.Join(names, ", ")
		if more := len(recs) - len(names); more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
	}
	return &nbd.NameError{Text: text}
}

func (e exports) List(ctx context.Context) ([]nbd.ExportInfo, error) {
	recs, err := e.driver.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]nbd.ExportInfo, len(recs))
	for i, r := range recs {
		out[i] = nbd.ExportInfo{Name: r.Name, Description: "Scoria volume"}
	}
	return out, nil
}

// maxFailures bounds how many volumes' failures are remembered.
const maxFailures = 1000

// failures remembers why volumes could not be opened at the last try, so that status tells it
// also when no client tries any more.
type failures struct {
	mu sync.Mutex
	by map[string]string // by volume name
}

// note remembers the outcome of opening a volume.
func (f *failures) note(volume string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		delete(f.by, volume)
		return
	}
	if f.by == nil {
		f.by = make(map[string]string)
	}
	if _, known := f.by[volume]; known || len(f.by) < maxFailures {
		f.by[volume] = err.Error()
	}
}

// of returns why a volume could not be opened, "" if it could or nobody tried.
func (f *failures) of(volume string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.by[volume]
}
