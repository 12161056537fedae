package attach

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scoria/nbd"
	"scoria/nbd/nbdtest"
)

// one serves a single device under a name.
type one struct {
	name string
	dev  nbd.Device
}

func (o one) Open(_ context.Context, name string) (*nbd.Export, func(), error) {
	if name != o.name {
		return nil, nil, fmt.Errorf("no volume %q: %w", name, fs.ErrNotExist)
	}
	return &nbd.Export{Name: name, Device: o.dev}, func() {}, nil
}

func (o one) List(context.Context) ([]nbd.ExportInfo, error) {
	return []nbd.ExportInfo{{Name: o.name}}, nil
}

// serve runs an NBD server and returns where.
func serve(t *testing.T, network string) Target {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := nbd.NewServer(nbd.Options{Exports: one{"vol", nbdtest.NewMemory(1 << 20)}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, nbd.ErrServerClosed) {
			t.Error(err)
		}
	})
	return Target{Network: network, Address: ln.Addr().String(), Volume: "vol"}
}

func TestConnect(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		target := serve(t, network)
		f, exp, err := Connect(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		if exp.Size != 1<<20 || !exp.MultiConn() || exp.MinBlock == 0 {
			t.Errorf("export %+v", exp)
		}
		// The descriptor is in the transmission phase: a READ is answered.
		req := binary.BigEndian.AppendUint32(nil, 0x25609513)
		req = append(req, make([]byte, 12)...)        // flags, type READ, cookie
		req = append(req, make([]byte, 8)...)         // offset
		req = binary.BigEndian.AppendUint32(req, 512) // length
		if _, err := f.Write(req); err != nil {
			t.Fatal(err)
		}
		reply := make([]byte, 16+512)
		if _, err := io.ReadFull(f, reply); err != nil || binary.BigEndian.Uint32(reply) != 0x67446698 || binary.BigEndian.Uint32(reply[4:]) != 0 {
			t.Errorf("READ is answered by %x, %v", reply[:16], err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		target.Volume = "absent"
		if _, _, err := Connect(t.Context(), target); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("an absent volume: %v", err)
		}
		files, _, err := dialAll(t.Context(), Options{Target: Target{Network: network, Address: target.Address, Volume: "vol"}, Connections: 4})
		if err != nil || len(files) != 4 {
			t.Errorf("%d connections, %v", len(files), err)
		}
		closeAll(files)
	}
	if _, _, err := Connect(t.Context(), Target{Network: "unix", Address: "/nowhere", Volume: "v"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no server: %v", err)
	}
	long := serve(t, "tcp")
	long.Volume = strings.Repeat("x", 5000)
	if _, _, err := Connect(t.Context(), long); err == nil {
		t.Error("a name over the protocol's limit is accepted")
	}
}

// TestConnectEnds: a server that says nothing holds nobody beyond ctx, also not by a cancel.
func TestConnectEnds(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := Connect(ctx, Target{Network: "tcp", Address: ln.Addr().String(), Volume: "v"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent server: %v", err)
	}
	// A listener of its own: how far the first Connect got on the other one is open.
	ln, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	served := make(chan error, 1)
	go func() { // cancels once the client is in the middle of the handshake
		c, err := ln.Accept()
		if err == nil {
			defer c.Close()
			if _, err = c.Write(greeting(flagFixed)); err == nil {
				_, err = io.ReadFull(c, make([]byte, 20)) // its request: it now waits for the reply
			}
		}
		cancel()
		if err == nil {
			_, err = io.Copy(io.Discard, c) // until the client hangs up
		}
		served <- err
	}()
	if _, _, err := Connect(ctx, Target{Network: "tcp", Address: ln.Addr().String(), Volume: "v"}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("server: %v", err)
	}
}

// talk is a server that has said all its lines before, and takes whatever is sent.
type talk struct {
	io.Reader
	io.Writer
}

func greeting(flags uint16) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicServer)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	return binary.BigEndian.AppendUint16(b, flags)
}

func reply(typ uint32, body ...byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicReply)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

func export(size uint64) []byte {
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, size)
	return reply(repInfo, binary.BigEndian.AppendUint16(b, flagMultiConn|1)...)
}

func blocks(minimum uint32) []byte {
	b := binary.BigEndian.AppendUint16(nil, infoBlock)
	for _, v := range []uint32{minimum, 4096, 32 << 20} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return reply(repInfo, b...)
}

func TestHostileServers(t *testing.T) {
	hello := greeting(flagFixed | flagNoZeroes)
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	huge := reply(repInfo)
	binary.BigEndian.PutUint32(huge[16:], 1<<31)
	for name, c := range map[string]struct {
		said []byte
		want string // "" : accepted
	}{
		"good":              {cat(hello, export(1<<20), blocks(512), reply(repAck)), ""},
		"unknown info":      {cat(hello, reply(repInfo, 0, 99, 1, 2, 3), export(1<<20), reply(repAck)), ""},
		"nothing":           {nil, "greeting"},
		"cut greeting":      {hello[:9], "greeting"},
		"http":              {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), "newstyle"},
		"oldstyle":          {cat([]byte("NBDMAGIC"), []byte{0, 0, 0x42, 0x02, 0x81, 0x86, 0x12, 0x53, 0, 0}), "newstyle"},
		"not fixed":         {cat(greeting(flagNoZeroes), export(1), reply(repAck)), "too old"},
		"refused":           {cat(hello, reply(repErrBit|6, []byte("no such volume")...)), "no such volume"},
		"cut reply":         {cat(hello, export(1)[:30]), "read reply"},
		"wrong magic":       {cat(hello, make([]byte, 20)), "out of step"},
		"huge reply":        {cat(hello, huge), "limit"},
		"no size":           {cat(hello, reply(repAck)), "size"},
		"size 0":            {cat(hello, export(0), reply(repAck)), "size"},
		"size over int64":   {cat(hello, export(1<<63), reply(repAck)), "size"},
		"short export info": {cat(hello, reply(repInfo, 0, 0, 1), reply(repAck)), "size"},
		"block size 0":      {cat(hello, export(1<<20), blocks(0), reply(repAck)), "block"},
		"block size 3":      {cat(hello, export(1<<20), blocks(3), reply(repAck)), "block"},
		"block size 64KiB":  {cat(hello, export(1<<20), blocks(64<<10), reply(repAck)), "block"},
		"endless":           {cat(hello, bytes.Repeat(export(1<<20), maxOptionReplies+1)), "over"},
	} {
		exp, err := negotiate(talk{bytes.NewReader(c.said), io.Discard}, "v")
		switch {
		case c.want == "" && (err != nil || exp.Size != 1<<20):
			t.Errorf("%s: %+v, %v", name, exp, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %+v, %v; want %q", name, exp, err, c.want)
		}
	}
}

func FuzzNegotiate(f *testing.F) {
	hello := greeting(flagFixed)
	f.Add(append(hello, export(1<<20)...))
	f.Add(append(append(hello, blocks(512)...), reply(repAck)...))
	f.Fuzz(func(t *testing.T, said []byte) {
		exp, err := negotiate(talk{bytes.NewReader(said), io.Discard}, "v")
		if err == nil && (exp.Size == 0 || exp.MinBlock == 0 || exp.MinBlock > 4096) {
			t.Errorf("accepted %+v", exp)
		}
	})
}

func TestParseTarget(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Target
	}{
		{"demo", Target{"tcp", "host:1", "demo"}},
		{"nbd://storage/demo", Target{"tcp", "storage:10809", "demo"}},
		{"nbd://storage:7/demo", Target{"tcp", "storage:7", "demo"}},
		{"nbd://[::1]/demo", Target{"tcp", "[::1]:10809", "demo"}},
		{"nbd+unix:///demo?socket=/run/s", Target{"unix", "/run/s", "demo"}},
	} {
		if got, err := ParseTarget(c.in, "host:1"); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", c.in, got, err)
		}
	}
	if got, err := ParseTarget("demo", "unix:/run/s"); err != nil || got != (Target{"unix", "/run/s", "demo"}) {
		t.Errorf("unix fallback: %+v, %v", got, err)
	}
	for _, bad := range []string{"", "http://x/y", "nbd://x", "nbd://x/", "nbd:///demo", "nbd+unix:///demo", "nbd+unix://?socket=/s", "nbd://%zz/demo"} {
		if got, err := ParseTarget(bad, "host:1"); err == nil {
			t.Errorf("%q is accepted: %+v", bad, got)
		}
	}
}

func TestParseDevice(t *testing.T) {
	for in, want := range map[string]int{"/dev/nbd0": 0, "nbd15": 15, "3": 3} {
		if got, err := ParseDevice(in); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "/dev/sda", "/dev/nbd", "/dev/nbd-1", "/dev/nbd0p1", "nbd+1", "99999999"} {
		if got, err := ParseDevice(bad); err == nil {
			t.Errorf("%q is accepted as %d", bad, got)
		}
	}
}

func TestSeconds(t *testing.T) {
	for in, want := range map[time.Duration]uint64{time.Second: 1, 1500 * time.Millisecond: 2, time.Minute: 60} {
		if got := seconds(in); got != want {
			t.Errorf("%v: %d", in, got)
		}
	}
}

// FuzzParseTarget: an address is refused or names a volume at an address of a known kind.
func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"v", "nbd://host/v", "nbd://[::1]:1/v", "nbd+unix:///v?socket=/s", "nbd://", "://", "/dev/nbd3", "%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		x, err := ParseTarget(s, "127.0.0.1:10809")
		if err == nil && (x.Volume == "" || x.Address == "" || x.Network != "tcp" && x.Network != "unix") {
			t.Fatalf("%q became %+v", s, x)
		}
		if n, err := ParseDevice(s); err == nil && (n < 0 || n >= 1<<20) {
			t.Fatalf("%q became device %d", s, n)
		}
	})
}
