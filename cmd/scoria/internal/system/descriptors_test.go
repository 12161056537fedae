package system

import (
	"errors"
	"testing"
)

// TestConnectionLimit: clients get no descriptors that the system itself needs.
func TestConnectionLimit(t *testing.T) {
	for _, c := range []struct {
		descriptors uint64
		disks, want int
	}{
		{1 << 20, 6, maxConnections},
		{524288, 0, maxConnections},
		{4096, 6, (4096 - ownDescriptors - 6*diskDescriptors) / 2},
		{1024, 6, (1024 - ownDescriptors - 6*diskDescriptors) / 2},
		{512, 64, 32}, // more disk servers than there is room for: still reachable
	} {
		got, err := connectionLimit(c.descriptors, c.disks)
		if err != nil || got != c.want {
			t.Errorf("%d descriptors, %d disks: %d connections, %v; want %d", c.descriptors, c.disks, got, err, c.want)
		}
	}
	if _, err := connectionLimit(minDescriptors-1, 6); !errors.Is(err, ErrConfig) {
		t.Errorf("too few descriptors: %v", err)
	}
}
