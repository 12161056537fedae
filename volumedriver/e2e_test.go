package volumedriver_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"scoria/internal/vfs"
	"scoria/volumedriver"
	"scoria/volumedriver/volumetest"
)

func TestWriteReadReopen(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	store := volumetest.NewStore()
	reg := volumetest.NewRegistry(store)
	fsys := vfs.NewMem(vfs.MemOptions{})
	opts := volumedriver.Options{FS: fsys, Dir: "/gw", Store: store, Registry: reg, GatewayID: "g1", SCOClusters: 16, TLogSCOs: 4}
	for round := range 3 {
		d, err := volumedriver.Open(ctx, opts)
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			if _, err := d.Create(ctx, "vol", 1<<20, ""); err != nil {
				t.Fatal(err)
			}
		}
		h, err := d.OpenVolume(ctx, "vol")
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 300000)
		volumetest.Fill(p, 1, 0)
		got := make([]byte, len(p))
		if round > 0 {
			if err := h.ReadAt(ctx, got, 777); err != nil || !bytes.Equal(got, p) {
				t.Fatalf("round %d: read back: %v", round, err)
			}
		}
		if err := h.WriteAt(ctx, p, 777, false); err != nil {
			t.Fatal(err)
		}
		if err := h.ReadAt(ctx, got, 777); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("read: %v", err)
		}
		if err := h.Drain(ctx, nil); err != nil {
			t.Fatal(err)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if round == 1 {
			opts.FS = vfs.NewMem(vfs.MemOptions{}) // the local directory is gone
		}
	}
}
