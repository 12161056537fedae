package nbd_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"testing"

	"scoria/nbd"
	"scoria/nbd/internal/wire"
	"scoria/nbd/nbdtest"
)

// Extended headers are an extension of the protocol that no packaged client speaks yet, so
// these tests are the second opinion; TestRule26Bytes holds the bytes as the text has them.

// attachExtended is attach with extended headers and the contexts of "disk".
func (w *world) attachExtended(contexts ...string) (*nbdtest.Client, map[string]uint32) {
	w.t.Helper()
	c := w.dial()
	ids, err := c.NegotiateExtended("disk", contexts...)
	w.must(err)
	w.must(c.Go("disk"))
	return c, ids
}

func TestRule26Negotiation(t *testing.T) {
	w := serve(t, nbd.ExportMap{"disk": {Name: "disk", Device: memory()}, "other": {Name: "other", Device: memory()}}, nil)
	c := w.dial()
	_, err := c.Option(wire.OptExtendedHeaders, []byte{0})
	refused(t, err, wire.RepErrInvalid)
	_, err = c.Option(wire.OptStructuredReply, nil) // allowed first, and then replaced
	w.must(err)
	for range 2 {
		_, err = c.Option(wire.OptExtendedHeaders, nil)
		w.must(err)
	}
	_, err = c.Option(wire.OptStructuredReply, nil) // there is no way back
	refused(t, err, wire.RepErrExtHeaderReqd)
	c.Extended = true
	ids, err := c.Contexts(true, "disk", "base:allocation") // extended headers imply what they need
	if err != nil || ids["base:allocation"] != 1 {
		t.Fatalf("%v, %v", ids, err)
	}
	for export, want := range map[string]uint16{"disk": wire.FlagSendDF | wire.FlagStatusPayload, "other": wire.FlagSendDF} {
		w.must(c.Info(export)) // the contexts are those of disk
		if got := c.Flags & (wire.FlagSendDF | wire.FlagStatusPayload); got != want {
			t.Errorf("INFO of %s: flags %#x", export, c.Flags)
		}
	}
	w.must(c.Go("disk"))
	if c.Flags&wire.FlagStatusPayload == 0 {
		t.Errorf("GO: flags %#x, INFO had others", c.Flags)
	}
	w.must(c.ReadAt(make([]byte, 512), 0))
	w.must(c.Disconnect())

	c = w.dial()
	_, err = c.Option(wire.OptExtendedHeaders, nil)
	w.must(err)
	if err := c.ExportName("disk"); err == nil {
		t.Error("EXPORT_NAME after EXTENDED_HEADERS is served")
	}
	closed(t, c.Conn)
	for name, contexts := range map[string]bool{"structured": true, "plain": false} {
		c := w.dial()
		if contexts {
			_, err = c.Negotiate("disk", "base:allocation")
			w.must(err)
		}
		if w.must(c.Go("disk")); c.Flags&wire.FlagStatusPayload != 0 {
			t.Errorf("%s replies: flags %#x", name, c.Flags)
		}
	}
}

// Either side uses one kind of header only, and a length that is a payload's is read to its end.
func TestRule26Requests(t *testing.T) {
	m := memory()
	w := disk(t, m, nil)
	for name, send := range map[string]func() *nbdtest.Client{
		"compact request": func() *nbdtest.Client { c, _ := w.attachExtended(); c.Extended = false; return c },
		"extended request without the option": func() *nbdtest.Client {
			c := w.attach()
			c.Extended = true
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := send()
			c.Queue(wire.CmdRead, 0, 0, 512, nil)
			w.must(c.Send())
			closed(t, c.Conn)
		})
	}
	c, _ := w.attachExtended("base:allocation")
	w.must(c.WriteAt(pattern(100000, 3), 777, true))
	got := make([]byte, 100000)
	w.must(c.ReadAt(got, 777))
	if !bytes.Equal(got, pattern(100000, 3)) {
		t.Error("READ differs from WRITE")
	}
	_, err := c.Do(wire.CmdWrite, 0, 0, 512, nil)
	errno(t, "WRITE without a payload", err, 22)
	_, err = c.Do(wire.CmdWrite, 0, 0, 0, []byte{})
	errno(t, "WRITE of nothing", err, 0)
	for _, typ := range []uint16{wire.CmdRead, wire.CmdFlush, wire.CmdTrim, wire.CmdCache, wire.CmdWriteZeroes, 77} {
		for _, n := range []int{0, 1, 28, 70000} {
			_, err := c.Do(typ, 0, 0, 512, make([]byte, n))
			errno(t, fmt.Sprintf("command %d with a payload of %d", typ, n), err, 22)
		}
	}
	if m.Calls(nbdtest.OpTrim)+m.Calls(nbdtest.OpWriteZeroes)+m.Calls(nbdtest.OpCache) != 0 {
		t.Error("a refused command was carried out")
	}
	_, err = c.Do(wire.CmdRead, 0, 1<<40, 512, nil)
	errno(t, "READ past the end", err, 22)
	_, err = c.Do(wire.CmdRead, 0, 0, 1<<33, nil)
	errno(t, "READ of 8 GiB", err, 22)
	r, err := c.Do(wire.CmdFlush, 0, 1<<63, 1<<63, nil) // reserved fields, the offset still echoed
	if w.must(err); r.Chunks != 1 {
		t.Errorf("FLUSH: %+v", r)
	}
	w.must(c.Disconnect())
	plain := w.attach()
	_, err = plain.Do(wire.CmdRead, wire.CmdFlagPayloadLen, 0, 512, nil)
	errno(t, "PAYLOAD_LEN without extended headers", err, 22)
	w.must(plain.ReadAt(got[:512], 0))
}

// A payload above the maximum ends the connection; all else keeps it.
func TestRule26Oversize(t *testing.T) {
	w := disk(t, memory(), nil)
	for _, typ := range []uint16{wire.CmdWrite, wire.CmdRead, wire.CmdBlockStatus, 99} {
		for _, n := range []uint64{32<<20 + 1, 1 << 32, 1<<64 - 1} {
			c, _ := w.attachExtended("base:allocation")
			_, err := c.Conn.Write(wire.AppendExtRequest(nil, wire.Request{Flags: wire.CmdFlagPayloadLen, Type: typ, Length: n}))
			w.must(err)
			closed(t, c.Conn)
		}
	}
	until(t, "they are counted", func() bool { return w.srv.Stats().ProtocolErrors == 12 })
	c, _ := w.attachExtended()
	errno(t, "WRITE of the maximum at the wrong place", c.WriteAt(make([]byte, 32<<20), 0, false), 28)
	errno(t, "and after it", c.Flush(), 0)
}

// vast is a device of 64 TiB that notes what it is asked.
type vast struct {
	nbd.Device
	trim, zero, cache uint64
	trims             int
}

const vastSize = 64 << 40

func (*vast) Size() uint64 { return vastSize }

func (v *vast) Trim(_ context.Context, off, length uint64, _ bool) error {
	v.trim, v.trims = length, v.trims+1
	return nil
}

func (v *vast) WriteZeroes(_ context.Context, off, length uint64, _, _ bool) error {
	v.zero = length
	return nil
}

func (v *vast) Cache(_ context.Context, off, length uint64) error {
	v.cache = length
	return nil
}

func (*vast) Extents(_ context.Context, off, length uint64, yield func(uint64, bool, bool) bool) error {
	for ; yield(5<<40, off%2 == 0, off%2 == 0); off++ {
	}
	return nil
}

func TestRule26Lengths(t *testing.T) {
	v := &vast{Device: memory()}
	w := disk(t, v, nil)
	c, _ := w.attachExtended("base:allocation")
	if c.Size != vastSize {
		t.Fatalf("size %d", c.Size)
	}
	w.must(c.Trim(0, vastSize, false))
	w.must(c.WriteZeroes(1, vastSize-1, false, false))
	_, err := c.Do(wire.CmdCache, 0, 4096, vastSize-4096, nil)
	w.must(err)
	if v.trim != vastSize || v.zero != vastSize-1 || v.cache != vastSize-4096 {
		t.Errorf("device was asked %+v", v)
	}
	r, err := c.Do(wire.CmdBlockStatus, 0, 0, vastSize, nil)
	w.must(err)
	sum := uint64(0)
	for _, e := range r.Status[1] {
		sum += e.Length
	}
	if got := r.Status[1]; len(got) != 13 || sum != vastSize || got[0] != (wire.Extent{Length: 5 << 40, Flags: 3}) || got[12] != (wire.Extent{Length: 4 << 40, Flags: 3}) {
		t.Errorf("BLOCK_STATUS: %v", got)
	}
	r, err = c.Do(wire.CmdBlockStatus, wire.CmdFlagReqOne, 0, vastSize, nil)
	if w.must(err); len(r.Status[1]) != 1 {
		t.Errorf("REQ_ONE: %v", r.Status)
	}
	for _, x := range []struct{ off, length uint64 }{{1, vastSize}, {vastSize, 1}, {1<<64 - 1, 1}, {1, 1<<64 - 1}, {1<<64 - 1, 1<<64 - 1}, {1 << 63, 1 << 63}, {0, 1<<64 - 1}} {
		what := fmt.Sprintf(" of %d at %d", x.length, x.off)
		errno(t, "TRIM"+what, c.Trim(x.off, x.length, false), 22)
		errno(t, "WRITE_ZEROES"+what, c.WriteZeroes(x.off, x.length, false, false), 28)
		_, err := c.Do(wire.CmdBlockStatus, 0, x.off, x.length, nil)
		errno(t, "BLOCK_STATUS"+what, err, 22)
	}
	if v.trims != 1 {
		t.Errorf("%d TRIMs reached the device", v.trims)
	}
}

// BLOCK_STATUS may name the contexts it asks about.
func TestRule26StatusPayload(t *testing.T) {
	m := nbdtest.NewMemory(64 << 20)
	w := disk(t, m, marks)
	c, ids := w.attachExtended("test:marks", "base:allocation")
	alloc, mark := ids["base:allocation"], ids["test:marks"]
	ask := func(c *nbdtest.Client, length uint64, p []byte) (*nbdtest.Reply, error) {
		return c.Do(wire.CmdBlockStatus, 0, 4096, length, p)
	}
	payload := func(length uint64, ids ...uint32) []byte {
		return wire.AppendStatusRequest(nil, wire.StatusRequest{Length: length, IDs: ids})
	}
	for _, want := range [][]uint32{{alloc}, {mark}, {alloc, mark}, {mark, alloc}} {
		r, err := ask(c, 1<<20, payload(1<<20, want...))
		w.must(err)
		for _, id := range want {
			if sum := r.Status[id]; len(sum) == 0 {
				t.Errorf("asked for %v, got %v", want, r.Status)
			}
		}
		if len(r.Status) != len(want) {
			t.Errorf("asked for %v, got %v", want, r.Status)
		}
	}
	r, err := ask(c, 1<<20, nil)
	if w.must(err); len(r.Status) != 2 {
		t.Errorf("without a payload: %v", r.Status)
	}
	for name, p := range map[string][]byte{
		"no context":          payload(4096),
		"context 0":           payload(4096, 0),
		"unknown context":     payload(4096, 3),
		"large number":        payload(4096, alloc, 1<<31+alloc),
		"twice":               payload(4096, alloc, alloc),
		"beyond the end":      payload(64<<20, alloc),
		"length 0":            payload(0, alloc),
		"no length":           {},
		"half a length":       make([]byte, 4),
		"half an id":          append(payload(4096, alloc), 0, 0),
		"more than there are": payload(4096, make([]uint32, 16)...),
		"far too long":        make([]byte, 1<<20),
	} {
		_, err := ask(c, 4096, p)
		errno(t, name, err, 22)
	}
	w.must(c.ReadAt(make([]byte, 512), 0)) // still in step
	only, _ := w.attachExtended("test:marks")
	_, err = ask(only, 4096, payload(4096, alloc))
	errno(t, "a context that was not selected", err, 22)
	none, _ := w.attachExtended()
	_, err = ask(none, 4096, payload(4096, alloc))
	errno(t, "no context was selected", err, 22)
	w.must(none.Flush())
	t.Run("a byte at a time", func(t *testing.T) {
		b := wire.AppendExtRequest(nil, wire.Request{Flags: wire.CmdFlagPayloadLen, Type: wire.CmdBlockStatus, Cookie: 5, Offset: 0, Length: 12})
		b = append(b, payload(4096, alloc)...)
		for i := range b {
			_, err := c.Conn.Write(b[i : i+1])
			w.must(err)
		}
		reply := make([]byte, wire.ExtChunkHeaderSize+8+16)
		if _, err := io.ReadFull(c.Conn, reply); err != nil || reply[15] != 5 || reply[39] != 1 {
			t.Errorf("%x, %v", reply, err)
		}
	})
}

// The bytes, written down from the text of the extension.
func TestRule26Bytes(t *testing.T) {
	w := disk(t, memory(), nil)
	c, _ := w.attachExtended("base:allocation")
	for _, x := range []struct{ name, sent, want string }{
		{"READ of a hole", "21e41c71 0000 0000 0102030405060708 0000000000000200 0000000000000004",
			"6e8a278c 0001 0002 0102030405060708 0000000000000200 000000000000000c 0000000000000200 00000004"},
		{"WRITE", "21e41c71 0021 0001 0102030405060708 0000000000000200 0000000000000004 aabbccdd",
			"6e8a278c 0001 0000 0102030405060708 0000000000000200 0000000000000000"},
		{"READ of data", "21e41c71 0000 0000 0102030405060708 0000000000000202 0000000000000002",
			"6e8a278c 0001 0001 0102030405060708 0000000000000202 000000000000000a 0000000000000202 ccdd"},
		{"FLUSH", "21e41c71 0000 0003 1112131415161718 0000000000000000 0000000000000000",
			"6e8a278c 0001 0000 1112131415161718 0000000000000000 0000000000000000"},
		{"BLOCK_STATUS", "21e41c71 0000 0007 00000000000000ff 0000000000000000 0000000000100000",
			"6e8a278c 0001 0006 00000000000000ff 0000000000000000 0000000000000028 00000001 00000002" +
				"0000000000001000 0000000000000000 00000000000ff000 0000000000000003"},
		{"BLOCK_STATUS with a payload", "21e41c71 0020 0007 00000000000000ff 0000000000000000 000000000000000c 0000000000000800 00000001",
			"6e8a278c 0001 0006 00000000000000ff 0000000000000000 0000000000000018 00000001 00000001 0000000000000800 0000000000000000"},
		{"error", "21e41c71 0000 004d 0000000000000001 0000000000000200 0000000000000004",
			"6e8a278c 0001 8001 0000000000000001 0000000000000200 0000000000000015 00000016 000f" + hex.EncodeToString([]byte("unknown command"))},
	} {
		sent, err := hex.DecodeString(strings.ReplaceAll(x.sent, " ", ""))
		w.must(err)
		want, err := hex.DecodeString(strings.ReplaceAll(x.want, " ", ""))
		w.must(err)
		_, err = c.Conn.Write(sent)
		w.must(err)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c.Conn, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x (%v)", x.name, got, want, err)
		}
	}
}
