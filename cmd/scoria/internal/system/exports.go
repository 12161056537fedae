package system

import (
	"context"
	"fmt"
	"io/fs"
	"strings"

	"scoria/nbd"
	"scoria/volumedriver"
)

// exports resolves NBD export names: a name is a volume's. `volume@snapshot` will be
// resolved here too.
type exports struct{ driver *volumedriver.Driver }

var (
	_ nbd.Exports   = exports{}
	_ nbd.Device    = (*volumedriver.Volume)(nil)
	_ nbd.TryReader = (*volumedriver.Volume)(nil)
	_ nbd.TryWriter = (*volumedriver.Volume)(nil)
)

func (e exports) Open(ctx context.Context, name string) (*nbd.Export, func(), error) {
	if volume, snapshot, ok := strings.Cut(name, "@"); ok {
		return nil, nil, fmt.Errorf("volume %q has no snapshot %q: %w", volume, snapshot, fs.ErrNotExist)
	}
	h, err := e.driver.OpenVolume(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	exp := &nbd.Export{Name: name, Description: "Scoria volume", Device: h.Volume, PreferredBlock: volumedriver.ClusterSize, FastZero: true}
	return exp, func() { _ = h.Close() }, nil // Close never fails
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
