package nbd_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"scoria/nbd"
	"scoria/nbd/internal/wire"
	"scoria/nbd/nbdtest"
)

// mangle makes something between garbage and a well-formed session, with payloads below
// longest.
func mangle(rnd *rand.Rand, longest int) []byte {
	b := []byte{0, 0, 0, byte(rnd.IntN(5))}
	if rnd.IntN(4) > 0 {
		b[3] = 3
	}
	for range rnd.IntN(4) {
		id := uint32(rnd.IntN(13))
		p := wire.AppendMetaRequest(nil, wire.MetaRequest{Name: "disk", Queries: []string{"base:allocation"}})
		if rnd.IntN(2) == 0 {
			p = wire.AppendExportRequest(nil, wire.ExportRequest{Name: "disk", Infos: []uint16{3}})
		}
		if rnd.IntN(3) == 0 {
			p = nil
		}
		b = wire.AppendOption(b, id, p)
	}
	if rnd.IntN(2) == 0 {
		b = wire.AppendOption(b, wire.OptStructuredReply, nil)
	}
	extended := rnd.IntN(3) == 0
	if extended {
		b = wire.AppendOption(b, wire.OptExtendedHeaders, nil)
		b = wire.AppendOption(b, wire.OptSetMetaContext, wire.AppendMetaRequest(nil, wire.MetaRequest{Name: "disk", Queries: []string{"base:allocation"}}))
	}
	b = wire.AppendOption(b, wire.OptGo, wire.AppendExportRequest(nil, wire.ExportRequest{Name: "disk"}))
	for range rnd.IntN(40) {
		r := wire.Request{Flags: uint16(rnd.IntN(40)), Type: uint16(rnd.IntN(10)), Cookie: rnd.Uint64(), Offset: rnd.Uint64N(1 << 21), Length: uint64(rnd.IntN(longest))}
		switch rnd.IntN(6) {
		case 0:
			r.Offset, r.Length = rnd.Uint64(), uint64(rnd.Uint32())
		case 1, 2:
			r.Type, r.Flags = 1, 0
		}
		if extended {
			b = appendExtended(b, r, rnd)
			continue
		}
		b = wire.AppendRequest(b, r)
		if r.Type == wire.CmdWrite && r.Length < 1<<19 {
			b = append(b, make([]byte, r.Length)...)
		}
	}
	if rnd.IntN(2) == 0 {
		for range 1 + rnd.IntN(4) {
			b[rnd.IntN(len(b))] ^= byte(1 << rnd.IntN(8))
		}
	}
	return b[:rnd.IntN(len(b)+1)]
}

// appendExtended appends r as an extended request, more often than not a well-formed one.
func appendExtended(b []byte, r wire.Request, rnd *rand.Rand) []byte {
	var payload []byte
	switch {
	case r.Type == wire.CmdBlockStatus && rnd.IntN(2) == 0:
		payload = wire.AppendStatusRequest(nil, wire.StatusRequest{Length: r.Length, IDs: []uint32{1, 2, 1}[:1+rnd.IntN(3)]})
		r.Length = uint64(len(payload))
		r.Flags |= wire.CmdFlagPayloadLen
	case r.Type == wire.CmdWrite || r.Flags&wire.CmdFlagPayloadLen != 0:
		if r.Flags |= wire.CmdFlagPayloadLen; r.Length < 1<<19 {
			payload = make([]byte, r.Length)
		}
	}
	return append(wire.AppendExtRequest(b, r), payload...)
}

// Hostile clients for a while: no crash, bounded memory, and a well-behaved client never
// notices. SCORIA_STRESS=1 makes it a minute.
func TestHostileClients(t *testing.T) {
	length := 1500 * time.Millisecond
	if os.Getenv("SCORIA_STRESS") != "" {
		length = time.Minute
	}
	m, victim := nbdtest.NewMemory(1<<20), nbdtest.NewMemory(1<<20)
	w := serve(t, nbd.ExportMap{"disk": {Device: m, FastZero: true}, "victim": {Device: victim}}, func(o *nbd.Options) { o.MaxBytes, o.MaxConnBytes = 128<<20, 64<<20 })
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	end := time.Now().Add(length)
	var wg sync.WaitGroup
	for i := range uint64(4) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, i))
			for time.Now().Before(end) {
				nc, err := net.Dial("unix", w.addr)
				if err != nil {
					t.Error(err)
					return
				}
				nc.SetDeadline(time.Now().Add(time.Second))
				go func() { // reads or does not
					if rnd := i % 2; rnd == 0 {
						io.Copy(io.Discard, nc)
					}
				}()
				m.Decline(rnd.IntN(2) == 0)
				b := mangle(rnd, 1<<18)
				for len(b) > 0 {
					n := min(len(b), 1+rnd.IntN(1<<rnd.IntN(20)))
					if _, err := nc.Write(b[:n]); err != nil {
						break
					}
					b = b[n:]
				}
				nc.Close()
			}
		})
	}
	c := w.dial()
	c.Conn.SetDeadline(end.Add(20 * time.Second))
	w.must(c.Go("victim"))
	for i := byte(0); time.Now().Before(end); i++ {
		w.must(c.WriteAt(pattern(8192, i), 512, i%7 == 0))
		got := make([]byte, 8192)
		w.must(c.ReadAt(got, 512))
		if !bytes.Equal(got, pattern(8192, i)) {
			t.Fatal("the well-behaved client reads something else")
		}
	}
	wg.Wait()
	w.must(c.Disconnect())
	until(t, "all is given back", func() bool {
		s := w.srv.Stats()
		return s.Connections == 0 && s.Waiting == 0 && s.BytesFree == 128<<20
	})
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	if ms.HeapInuse > 512<<20 {
		t.Errorf("%d MiB in use afterwards", ms.HeapInuse>>20)
	}
	t.Logf("%+v", w.srv.Stats())
}

// pipeConn is a connection whose client said everything beforehand.
type pipeConn struct {
	net.Conn
	in *bytes.Reader
}

func (p pipeConn) Read(b []byte) (int, error)       { return p.in.Read(b) }
func (p pipeConn) Write(b []byte) (int, error)      { return len(b), nil }
func (p pipeConn) Close() error                     { return nil }
func (p pipeConn) SetDeadline(time.Time) error      { return nil }
func (p pipeConn) SetReadDeadline(time.Time) error  { return nil }
func (p pipeConn) SetWriteDeadline(time.Time) error { return nil }
func (p pipeConn) RemoteAddr() net.Addr             { return nil }
func (p pipeConn) LocalAddr() net.Addr              { return nil }

// FuzzSession feeds whole sessions to a server. Whatever comes, it ends, gives everything
// back and leaves the rest of the device alone.
func FuzzSession(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 40 { // a third of them with extended headers
		f.Add(mangle(rnd, 200)) // short ones, for the fuzzer mutates byte by byte
	}
	m := nbdtest.NewMemory(1 << 16)
	f.Fuzz(func(t *testing.T, session []byte) {
		srv, err := nbd.NewServer(nbd.Options{Exports: nbd.ExportMap{"disk": {Device: m}}, StallTimeout: -1})
		if err != nil {
			t.Fatal(err)
		}
		_ = srv.ServeConn(t.Context(), pipeConn{in: bytes.NewReader(session)})
		srv.Close()
		if s := srv.Stats(); s.BytesFree != 1<<30 || s.Connections != 0 || s.Waiting != 0 {
			t.Fatalf("%+v", s)
		}
	})
}
