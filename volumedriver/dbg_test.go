package volumedriver_test

import (
	"log/slog"
	"os"
	"testing"

	"scoria/internal/vfs"
	"scoria/volumedriver/volumetest"
)

func TestDbg(t *testing.T) {
	o := smallOptions()
	o.Logger = slog.New(slog.NewTextHandler(os.Stdout, nil))
	for range 20 {
		volumetest.Run(t, volumetest.Plan{Seed: 15067849035917580127, Rounds: 4, Steps: 150, Clusters: 256, CrashFS: 30, Loss: vfs.CrashLost, Options: o})
	}
}
