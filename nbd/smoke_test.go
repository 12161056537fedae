package nbd_test

import (
	"bytes"
	"testing"

	"scoria/nbd"
	"scoria/nbd/nbdtest"
)

func TestMemoryIsADevice(t *testing.T) {
	nbdtest.TestDevice(t, func(*testing.T) nbd.Device { return nbdtest.NewMemory(1 << 20) })
	t.Run("slow paths", func(t *testing.T) {
		nbdtest.TestDevice(t, func(*testing.T) nbd.Device {
			m := nbdtest.NewMemory(1<<20 + 4096 + 17)
			m.Decline(true)
			return m
		})
	})
}

func TestReadWrite(t *testing.T) {
	for name, decline := range map[string]bool{"inline": false, "by workers": true} {
		t.Run(name, func(t *testing.T) {
			m := nbdtest.NewMemory(64 << 20)
			m.Decline(decline)
			w := disk(t, m, nil)
			for _, c := range []*nbdtest.Client{w.attach(), w.attachStructured()} {
				for _, n := range []int{1, 512, 4096, 65536, 65537, 1 << 20, 32 << 20} {
					want := pattern(n, byte(n))
					w.must(c.WriteAt(want, 12345, n%2 == 0))
					got := make([]byte, n)
					w.must(c.ReadAt(got, 12345))
					if !bytes.Equal(got, want) {
						t.Fatalf("%d bytes differ", n)
					}
				}
				w.must(c.Flush())
				w.must(c.Disconnect())
			}
		})
	}
}
