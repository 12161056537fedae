package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"scoria/nbd"
	"scoria/nbd/internal/wire"
	"scoria/nbd/nbdtest"
)

// The tests named TestRuleNN are the rules of the protocol as a server has to keep them, in
// the order of a connection: greeting, option frames, options, TLS, flags, requests,
// structured replies, the end.

func (w *world) raw() net.Conn {
	w.t.Helper()
	nc, err := net.Dial("unix", w.addr)
	w.must(err)
	w.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(time.Minute))
	return nc
}

// closed fails the test unless the server closes the connection without another byte.
func closed(t *testing.T, r io.Reader) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read %d bytes, %v; want a closed connection", n, err)
	} else if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Fatalf("connection stays open: %v", err)
	}
}

// refused fails the test unless err is the option error typ.
func refused(t *testing.T, err error, typ uint32) {
	t.Helper()
	if e, ok := errors.AsType[*nbdtest.OptionError](err); !ok || e.Type != typ {
		t.Fatalf("got %v, want option error %d", err, typ&^wire.RepErrBit)
	}
}

// inStep fails the test unless the handshake still works.
func (w *world) inStep(c *nbdtest.Client) {
	w.t.Helper()
	w.must(c.Go("disk"))
	w.must(c.ReadAt(make([]byte, 512), 0))
}

func memory() *nbdtest.Memory { return nbdtest.NewMemory(1 << 20) }

func TestRule01Greeting(t *testing.T) {
	w := disk(t, memory(), nil)
	b := make([]byte, 18)
	if _, err := io.ReadFull(w.raw(), b); err != nil || string(b) != "NBDMAGICIHAVEOPT\x00\x03" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestRule02ClientFlags(t *testing.T) {
	w := disk(t, memory(), nil)
	for _, flags := range []uint32{4, 1 << 31, 7, ^uint32(0)} {
		c := nbdtest.Raw(w.raw())
		w.must(c.Greet(flags))
		closed(t, c.Conn)
	}
	w.stillServes()
}

func TestRule03OldNewstyle(t *testing.T) {
	w := disk(t, memory(), nil)
	c := nbdtest.Raw(w.raw())
	w.must(c.Greet(0))
	_, err := c.Option(wire.OptStartTLS, nil)
	refused(t, err, wire.RepErrPolicy)
	w.must(c.ExportName("disk")) // with the 124 zero bytes, which the client checks
	w.must(c.ReadAt(make([]byte, 512), 0))
}

func TestRule04SlowPeers(t *testing.T) {
	w := serve(t, nbd.ExportMap{"disk": {Name: "disk", Device: memory()}}, func(o *nbd.Options) { o.MaxHandshakes = 4 })
	t.Run("one byte at a time", func(t *testing.T) {
		nc := w.raw()
		c := nbdtest.Raw(oneByte{nc})
		w.must(c.Greet(3))
		w.must(c.Go("disk"))
		w.must(c.WriteAt(pattern(600, 1), 3, false))
		got := make([]byte, 600)
		w.must(c.ReadAt(got, 3))
		if !bytes.Equal(got, pattern(600, 1)) {
			t.Fatal("data differs")
		}
	})
	t.Run("silent peers", func(t *testing.T) {
		var silent []net.Conn
		for range 9 {
			nc := w.raw()
			_, err := io.ReadFull(nc, make([]byte, 18))
			w.must(err)
			silent = append(silent, nc)
		}
		w.stillServes()
		closed(t, silent[0]) // the oldest had to go
		if s := w.srv.Stats(); s.Handshakes > 4 || s.Refused < 5 {
			t.Fatalf("%+v", s)
		}
	})
}

// oneByte writes byte by byte.
type oneByte struct{ net.Conn }

func (o oneByte) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := o.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

func TestRule05OptionMagic(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.dial()
	_, err := c.Conn.Write(make([]byte, 16))
	w.must(err)
	closed(t, c.Conn)
	w.stillServes()
}

func TestRule06OptionReplies(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.dial()
	for _, id := range []uint32{wire.OptStructuredReply, wire.OptList} {
		_, err := c.Option(id, nil) // the client checks magic, echo, empty ACK
		w.must(err)
	}
	_, err := c.Option(0xdeadbeef, []byte("x"))
	refused(t, err, wire.RepErrUnsup) // the client checks that the message is a string of the protocol
	c.Structured = true
	w.inStep(c)
}

func TestRule07ExactLength(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.dial()
	for _, p := range [][]byte{
		{0, 0, 0, 200, 'd', 'i', 's', 'k', 0, 0}, // inner length longer than the option
		append(wire.AppendExportRequest(nil, wire.ExportRequest{Name: "disk"}), 1, 2, 3),
		{0, 0}, {},
	} {
		for _, id := range []uint32{wire.OptInfo, wire.OptGo} {
			_, err := c.Option(id, p)
			refused(t, err, wire.RepErrInvalid)
		}
	}
	w.inStep(c)
}

func TestRule08UnknownOptions(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.dial()
	for _, id := range []uint32{0, wire.OptPeekExport, 12, 1 << 31, ^uint32(0)} {
		_, err := c.Option(id, []byte("whatever is in here"))
		refused(t, err, wire.RepErrUnsup)
	}
	w.inStep(c)
}

func TestRule09HugeOption(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.dial()
	_, err := c.Option(wire.OptInfo, make([]byte, 1<<20))
	refused(t, err, wire.RepErrTooBig)
	_, err = c.Option(77, make([]byte, wire.MaxOptionPayload))
	refused(t, err, wire.RepErrUnsup)
	w.inStep(c)
	t.Run("claimed only", func(t *testing.T) {
		c := w.dial()
		b := binary.BigEndian.AppendUint64(nil, wire.MagicOption)
		b = binary.BigEndian.AppendUint32(b, wire.OptExportName)
		_, err := c.Conn.Write(binary.BigEndian.AppendUint32(b, 1<<32-1))
		w.must(err)
		closed(t, c.Conn)
	})
}

func TestRule10ManyOptions(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.dial()
	one := wire.AppendOption(nil, 99, nil)
	go func() {
		for chunk := bytes.Repeat(one, 1000); ; {
			if _, err := c.Conn.Write(chunk); err != nil {
				return
			}
		}
	}()
	n, err := io.Copy(io.Discard, c.Conn)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Fatalf("never cut off; %d bytes of replies", n)
	}
	w.stillServes()
}

func TestRule11Strings(t *testing.T) {
	long := strings.Repeat("ä", 2048)
	w := serve(t, nbd.ExportMap{"disk": {Name: "disk", Device: memory()}, long: {Name: long, Device: memory()}}, nil)
	c := w.dial()
	for _, name := range []string{"a\x00b", "\xff\xfe", strings.Repeat("x", 4097)} {
		refused(t, c.Info(name), wire.RepErrInvalid)
	}
	w.must(c.Info(long))
	names, err := c.List()
	if err != nil || !slices.Contains(names, long) {
		t.Fatalf("%d names, %v", len(names), err)
	}
	w.inStep(c)
}

func TestRule12ExportName(t *testing.T) {
	w := disk(t, memory(), nil)
	for _, flags := range []uint32{0, 1, 2, 3} { // the client checks the padding
		c := nbdtest.Raw(w.raw())
		w.must(c.Greet(flags))
		w.must(c.ExportName("disk"))
		if c.Size != 1<<20 || c.Flags&wire.FlagSendDF != 0 {
			t.Fatalf("size %d, flags %#x", c.Size, c.Flags)
		}
		w.must(c.ReadAt(make([]byte, 512), 0))
	}
	c := w.dial()
	_, err := c.Option(wire.OptStructuredReply, nil)
	w.must(err)
	w.must(c.ExportName("disk"))
	if c.Flags&wire.FlagSendDF == 0 {
		t.Fatal("no SEND_DF though structured replies were agreed")
	}
	c = w.dial()
	if err := c.ExportName("nothing"); err == nil {
		t.Fatal("unknown export was served")
	}
}

func TestRule13Abort(t *testing.T) {
	w := disk(t, memory(), nil)
	for _, payload := range []string{"", "bye"} {
		c := w.dial()
		_, err := c.Option(wire.OptAbort, []byte(payload))
		w.must(err)
		closed(t, c.Conn)
	}
	c := w.dial()
	_, err := c.Conn.Write(wire.AppendOption(nil, wire.OptAbort, nil))
	w.must(err)
	w.must(c.Close())
	w.stillServes()
}

// exports is a set of exports with a will of its own.
type exports struct {
	nbd.ExportMap
	open func(ctx context.Context, name string) error
	list error
	used atomic.Int64 // opened and not released
}

func (e *exports) Open(ctx context.Context, name string) (*nbd.Export, func(), error) {
	if e.open != nil {
		if err := e.open(ctx, name); err != nil {
			return nil, nil, err
		}
	}
	x, _, err := e.ExportMap.Open(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	e.used.Add(1)
	return x, func() { e.used.Add(-1) }, nil
}

func (e *exports) List(ctx context.Context) ([]nbd.ExportInfo, error) {
	if e.list != nil {
		return nil, e.list
	}
	return e.ExportMap.List(ctx)
}

func TestRule14List(t *testing.T) {
	many := nbd.ExportMap{}
	for i := range 3000 {
		name := fmt.Sprintf("volume-%04d", i)
		many[name] = &nbd.Export{Name: name, Description: strings.Repeat("d", 50), Device: memory1}
	}
	w := serve(t, many, nil)
	c := w.dial()
	names, err := c.List()
	if err != nil || len(names) != 3000 || names[2999] != "volume-2999" {
		t.Fatalf("%d names, %v", len(names), err)
	}
	_, err = c.Option(wire.OptList, []byte("x"))
	refused(t, err, wire.RepErrInvalid)
	w.must(c.Abort())

	w = serve(t, nbd.ExportMap{}, nil)
	if names, err := w.dial().List(); err != nil || len(names) != 0 {
		t.Fatalf("%v, %v", names, err)
	}
	w = serve(t, &exports{list: fs.ErrPermission}, nil)
	_, err = w.dial().List()
	refused(t, err, wire.RepErrPolicy)
	w = serve(t, &exports{list: io.ErrUnexpectedEOF}, nil)
	_, err = w.dial().List()
	refused(t, err, wire.RepErrPlatform)
}

var memory1 = nbdtest.NewMemory(4096)

func TestRule15And27To30StartTLS(t *testing.T) {
	// Without TLS, rules 27 to 30 come down to: TLS is never demanded, STARTTLS is refused
	// in step as often as it is asked for, and nothing is forgotten by it.
	w := disk(t, memory(), nil)
	c := w.dial()
	_, err := c.Option(wire.OptStructuredReply, nil)
	w.must(err)
	_, err = c.Contexts(true, "disk", "base:allocation")
	w.must(err)
	for range 3 {
		_, err = c.Option(wire.OptStartTLS, nil)
		refused(t, err, wire.RepErrPolicy)
	}
	_, err = c.Option(wire.OptStartTLS, []byte("x"))
	refused(t, err, wire.RepErrInvalid)
	c.Structured = true
	w.must(c.Go("disk"))
	_, err = c.Do(wire.CmdBlockStatus, 0, 0, 4096, nil)
	w.must(err)
	w.must(c.Disconnect())
}

func TestRule16InfoPayload(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.dial()
	good := wire.AppendExportRequest(nil, wire.ExportRequest{Name: "disk", Infos: []uint16{0, 3}})
	for cut := range good {
		_, err := c.Option(wire.OptInfo, good[:cut])
		refused(t, err, wire.RepErrInvalid)
	}
	_, err := c.Option(wire.OptInfo, good)
	w.must(err)
	w.inStep(c)
}

func infos(t *testing.T, c *nbdtest.Client, id uint32, name string, ask ...uint16) map[uint16][]byte {
	t.Helper()
	replies, err := c.Option(id, wire.AppendExportRequest(nil, wire.ExportRequest{Name: name, Infos: ask}))
	if err != nil {
		t.Fatal(err)
	}
	m := map[uint16][]byte{}
	for _, r := range replies {
		m[binary.BigEndian.Uint16(r.Payload)] = r.Payload[2:]
	}
	return m
}

func TestRule17Info(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.dial()
	m := infos(t, c, wire.OptInfo, "disk")
	if len(m) != 1 || binary.BigEndian.Uint64(m[wire.InfoExport]) != 1<<20 {
		t.Fatalf("nothing asked: %x", m)
	}
	m = infos(t, c, wire.OptInfo, "disk", wire.InfoName, wire.InfoDescription, 9999, wire.InfoBlockSize)
	if len(m) != 4 || string(m[wire.InfoName]) != "disk" || string(m[wire.InfoDescription]) != "a disk for tests" {
		t.Fatalf("all asked: %v", m)
	}
	m = infos(t, c, wire.OptInfo, "", wire.InfoName) // the default export has a name of its own
	if string(m[wire.InfoName]) != "disk" {
		t.Fatalf("default export: %v", m)
	}
	w.inStep(c)
}

func TestRule18UnknownExport(t *testing.T) {
	e := &exports{ExportMap: nbd.ExportMap{"disk": {Name: "disk", Device: memory()}, "other": {Name: "other", Device: nbdtest.NewMemory(8192)}}}
	e.open = func(_ context.Context, name string) error {
		switch name {
		case "secret":
			return fmt.Errorf("%s: %w", name, fs.ErrPermission)
		case "broken":
			return errors.New("backend away")
		}
		return nil
	}
	w := serve(t, e, nil)
	c := w.dial()
	w.must(c.Info("other"))
	if used := e.used.Load(); used != 0 {
		t.Fatalf("%d exports in use after INFO", used)
	}
	refused(t, c.Go("no-such-name"), wire.RepErrUnknown)
	refused(t, c.Go("secret"), wire.RepErrPolicy)
	refused(t, c.Go("broken"), wire.RepErrUnknown)
	w.must(c.Go("disk"))
	if c.Size != 1<<20 {
		t.Fatalf("GO got %d bytes", c.Size)
	}
	if used := e.used.Load(); used != 1 {
		t.Fatalf("%d exports in use", used)
	}
	w.must(c.Disconnect())
	w.must(w.srv.Shutdown(t.Context()))
	if used := e.used.Load(); used != 0 {
		t.Fatalf("%d exports in use at the end", used)
	}
}

func TestRule19InfoThenGo(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.dial()
	ask := []uint16{wire.InfoName, wire.InfoDescription, wire.InfoBlockSize}
	a, b := infos(t, c, wire.OptInfo, "disk", ask...), infos(t, c, wire.OptGo, "disk", ask...)
	for k := range a {
		if !bytes.Equal(a[k], b[k]) || len(a) != len(b) {
			t.Fatalf("INFO %x, GO %x", a, b)
		}
	}
	w.must(c.ReadAt(make([]byte, 512), 0)) // starts at once, no padding
}

func TestRule20BlockSizes(t *testing.T) {
	for _, min := range []uint32{0, 1, 512, 4096, 65536} {
		w := disk(t, nbdtest.NewMemory(1<<20+100), func(e *nbd.Export) { e.MinBlock = min })
		c := w.dial()
		w.must(c.Go("disk"))
		m := max(min, 1)
		if c.MinBlock != m || c.PreferredBlock < max(512, m) || c.PreferredBlock&(c.PreferredBlock-1) != 0 || c.MaxLen < 1<<20 || c.MaxLen < c.PreferredBlock {
			t.Fatalf("minimum %d: %d %d %d", min, c.MinBlock, c.PreferredBlock, c.MaxLen)
		}
		if c.Size%uint64(m) != 0 || c.Size+uint64(m) <= 1<<20+100 {
			t.Fatalf("minimum %d: size %d", min, c.Size)
		}
	}
	for _, e := range []nbd.Export{{MinBlock: 3}, {MinBlock: 1 << 17}, {PreferredBlock: 100}, {MinBlock: 8192, PreferredBlock: 4096}} {
		w := disk(t, memory(), func(x *nbd.Export) { x.MinBlock, x.PreferredBlock = e.MinBlock, e.PreferredBlock })
		refused(t, w.dial().Go("disk"), wire.RepErrUnknown)
	}
}

func TestRule21UnalignedRequests(t *testing.T) {
	m := memory()
	w := disk(t, m, func(e *nbd.Export) { e.MinBlock = 512 })
	c := w.dial()
	w.must(c.ExportName("disk")) // a client that cannot ask for block sizes
	if err := c.WriteAt(pattern(100, 1), 0, false); nbdtest.ErrnoOf(err) != 22 {
		t.Fatalf("unaligned length: %v", err)
	}
	if err := c.WriteAt(pattern(512, 1), 100, false); nbdtest.ErrnoOf(err) != 22 {
		t.Fatalf("unaligned offset: %v", err)
	}
	if !bytes.Equal(m.Bytes(), make([]byte, 1<<20)) {
		t.Fatal("a refused write changed data")
	}
	w.must(c.WriteAt(pattern(512, 1), 512, false))
}

func TestRule22StructuredReply(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.dial()
	_, err := c.Option(wire.OptStructuredReply, []byte{1})
	refused(t, err, wire.RepErrInvalid)
	w.must(c.Info("disk"))
	if c.Flags&wire.FlagSendDF != 0 {
		t.Fatal("a refused STRUCTURED_REPLY counted")
	}
	for range 2 {
		_, err := c.Option(wire.OptStructuredReply, nil)
		w.must(err)
	}
	c.Structured = true
	w.inStep(c)
}

func TestRule23MetaContextPayload(t *testing.T) {
	w := disk(t, memory(), nil)
	c := w.dial()
	good := wire.AppendMetaRequest(nil, wire.MetaRequest{Name: "disk", Queries: []string{"base:allocation"}})
	_, err := c.Option(wire.OptSetMetaContext, good)
	refused(t, err, wire.RepErrInvalid) // before STRUCTURED_REPLY
	_, err = c.Option(wire.OptStructuredReply, nil)
	w.must(err)
	for _, id := range []uint32{wire.OptSetMetaContext, wire.OptListMetaContext} {
		for cut := range good {
			_, err := c.Option(id, good[:cut])
			refused(t, err, wire.RepErrInvalid)
		}
		_, err = c.Option(id, append(good, 0))
		refused(t, err, wire.RepErrInvalid)
		_, err = c.Option(id, wire.AppendMetaRequest(nil, wire.MetaRequest{Name: "nothing"}))
		refused(t, err, wire.RepErrUnknown)
	}
	c.Structured = true
	w.inStep(c)
}

// marks is a further context: the first 64 KiB have flag 7, the rest 8.
func marks(e *nbd.Export) {
	e.Contexts = []nbd.MetaContext{{Name: "test:marks", Extents: func(_ context.Context, off, length uint64, yield func(uint64, uint32) bool) error {
		if off < 65536 && !yield(65536-off, 7) {
			return nil
		}
		yield(length, 8)
		return nil
	}}}
}

func TestRule24ListMetaContext(t *testing.T) {
	w := disk(t, memory(), marks)
	c := w.dial()
	_, err := c.Option(wire.OptStructuredReply, nil)
	w.must(err)
	for query, want := range map[string]int{"": 2, "base:": 1, "test:": 1, "base:allocation": 1, "test:marks": 1, "foo:": 0, "base:all": 0, "base": 0, "qemu:dirty-bitmap:x": 0} {
		var queries []string
		if query != "" {
			queries = []string{query}
		}
		if ids, err := c.Contexts(false, "disk", queries...); err != nil || len(ids) != want {
			t.Errorf("query %q: %v, %v", query, ids, err)
		}
	}
	c.Structured = true
	w.inStep(c)
}

func TestRule25SetMetaContext(t *testing.T) {
	w := serve(t, nbd.ExportMap{"disk": {Name: "disk", Device: memory()}, "other": {Name: "other", Device: memory()}}, nil)
	status := func(c *nbdtest.Client) error {
		w.must(c.Go("disk"))
		_, err := c.Do(wire.CmdBlockStatus, 0, 0, 4096, nil)
		return err
	}
	set := func(c *nbdtest.Client, export string, queries ...string) map[string]uint32 {
		ids, err := c.Contexts(true, export, queries...)
		w.must(err)
		return ids
	}
	for name, do := range map[string]func(c *nbdtest.Client){
		"base: selects nothing":    func(c *nbdtest.Client) { set(c, "disk", "base:") },
		"no query selects nothing": func(c *nbdtest.Client) { set(c, "disk") },
		"unknown is ignored":       func(c *nbdtest.Client) { set(c, "disk", "foo:bar") },
		"a later one replaces":     func(c *nbdtest.Client) { set(c, "disk", "base:allocation"); set(c, "disk") },
		"a failed one replaces": func(c *nbdtest.Client) {
			set(c, "disk", "base:allocation")
			c.Contexts(true, "nothing", "base:allocation")
		},
		"another export's are void": func(c *nbdtest.Client) { set(c, "other", "base:allocation") },
		"a malformed one replaces too": func(c *nbdtest.Client) {
			set(c, "disk", "base:allocation")
			c.Option(wire.OptSetMetaContext, []byte{1})
		},
		"one for another export forgets": func(c *nbdtest.Client) { set(c, "disk", "base:allocation"); set(c, "other", "base:allocation") },
	} {
		c := w.dial()
		_, err := c.Negotiate("disk")
		w.must(err)
		do(c)
		if err := status(c); nbdtest.ErrnoOf(err) != 22 {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := w.dial()
	ids, err := c.Negotiate("disk", "foo:bar", "base:allocation", "base:allocation")
	if err != nil || len(ids) != 1 {
		t.Fatalf("%v, %v", ids, err)
	}
	w.must(status(c))
}
