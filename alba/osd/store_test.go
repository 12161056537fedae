package osd_test

import (
	"testing"

	"scoria/alba/osd"
	"scoria/alba/osd/osdtest"
	"scoria/internal/vfs"
)

func open(t *testing.T, dir string, o osd.Options) *osd.Store {
	t.Helper()
	s, err := osd.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func TestStoreConforms(t *testing.T) {
	t.Run("OS", func(t *testing.T) {
		osdtest.Run(t, func(t *testing.T) osd.API {
			return open(t, t.TempDir(), osd.Options{SegmentSize: 4 << 20})
		})
	})
	t.Run("Mem", func(t *testing.T) {
		osdtest.Run(t, func(t *testing.T) osd.API {
			return open(t, "/osd", osd.Options{FS: vfs.NewMem(vfs.MemOptions{}), SegmentSize: 1 << 20, FlushBytes: 1 << 20, ReapBytes: 256 << 10})
		})
	})
}
