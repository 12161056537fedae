package nbd_test

import (
	"bytes"
	"strings"
	"testing"

	"scoria/nbd"
	"scoria/nbd/internal/wire"
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
				for _, n := range []int{1, 512, 4096, 65536, 65537, 1 << 20, 5 << 20} {
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

// The whole way, from a client to a device and back, keeps the contract of a device.
func TestServerIsADevice(t *testing.T) {
	for name, decline := range map[string]bool{"inline": false, "workers": true, "inline, extended": false, "workers, extended": true} {
		t.Run(name, func(t *testing.T) {
			negotiate := (*nbdtest.Client).Negotiate
			if strings.HasSuffix(name, "extended") {
				negotiate = (*nbdtest.Client).NegotiateExtended
			}
			nbdtest.TestDevice(t, func(t *testing.T) nbd.Device {
				m := nbdtest.NewMemory(1<<20 + 777)
				m.Decline(decline)
				w := disk(t, m, nil)
				r, err := nbdtest.NewRemote(func() (*nbdtest.Client, error) {
					c, err := nbdtest.Dial("unix", w.addr)
					if err == nil {
						_, err = negotiate(c, "disk", "base:allocation")
					}
					if err == nil {
						err = c.Go("disk")
					}
					return c, err
				})
				w.must(err)
				t.Cleanup(func() { w.must(r.Close()) })
				return r
			})
		})
	}
}

// Replies that a client does not take are bounded, whatever it asks.
func TestUntakenStatusIsBounded(t *testing.T) {
	m := nbdtest.NewMemory(16 << 20)
	for off := uint64(0); off < m.Size(); off += 8192 {
		if err := m.WriteAt(t.Context(), []byte{1}, off, false); err != nil {
			t.Fatal(err)
		}
	}
	w := serve(t, nbd.ExportMap{"disk": {Name: "disk", Device: m}}, func(o *nbd.Options) { o.MaxPayload, o.MaxConnBytes, o.MaxBytes = 1<<20, 2<<20, 8<<20 })
	c := w.attachStructured()
	for range 600 { // 20 MB of replies
		c.Queue(wire.CmdBlockStatus, 0, 0, 16<<20, nil)
	}
	w.must(c.Send())
	until(t, "the server stops", func() bool { return w.srv.Stats().BytesFree < 7<<20 })
	w.stillServes()
	if s := w.srv.Stats(); s.BytesFree < 6<<20 || s.BlockStatus.Requests > 100 {
		t.Errorf("%+v", s)
	}
	for range 600 {
		r, err := c.Receive()
		w.must(err)
		if len(r.Status[1]) != 4096 {
			t.Fatalf("%d extents", len(r.Status[1]))
		}
	}
	w.must(c.Disconnect())
}
