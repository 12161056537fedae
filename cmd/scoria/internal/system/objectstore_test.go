package system

import (
	"bytes"
	"errors"
	"testing"

	"scoria/alba"
	"scoria/alba/albatest"
	"scoria/internal/blocksum"
	"scoria/volumedriver"
)

// TestObjectStoreAdapter: owner epochs and ingest sums get from the volume driver to the
// object store, and its errors back.
func TestObjectStoreAdapter(t *testing.T) {
	cl := albatest.New(t, albatest.Config{Client: alba.Options{BlockCacheBytes: -1}})
	ns := uint64(cl.Namespace("v"))
	s := objectStore{client: cl.Client}
	ctx := t.Context()
	data := bytes.Repeat([]byte("scoria!!"), 1024)
	sums := blocksum.Sums(nil, data)
	put := func(epoch uint64) error {
		return s.Apply(ctx, ns, volumedriver.Txn{Epoch: epoch, Puts: []volumedriver.Put{{Name: "sco/000000001", Data: data, Sums: sums}}})
	}
	if err := put(5); err != nil {
		t.Fatal(err)
	}
	if err := put(4); !errors.Is(err, volumedriver.ErrFenced) {
		t.Errorf("put under an older epoch: %v", err)
	}
	read := func(sums []uint32) error {
		return s.Read(ctx, ns, []volumedriver.Slice{{Name: "sco/000000001", Data: make([]byte, len(data)), Sums: sums}})
	}
	if err := read(sums); err != nil {
		t.Errorf("read: %v", err)
	}
	other := append([]uint32{sums[0] + 1}, sums[1:]...)
	if err := read(other); !errors.Is(err, volumedriver.ErrCorrupt) {
		t.Errorf("read of what was never stored: %v", err)
	}
}
