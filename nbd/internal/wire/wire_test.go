package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// The structs of go-nbd's protocol package are what encoding/binary writes for it; ours
// must be the same bytes.
func TestSameBytesAsGoNBD(t *testing.T) {
	enc := func(v any) []byte {
		var b bytes.Buffer
		if err := binary.Write(&b, binary.BigEndian, v); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for _, c := range []struct {
		name      string
		ours, its []byte
	}{
		{"greeting", AppendGreeting(nil, 3), enc(protocol.NegotiationNewstyleHeader{OldstyleMagic: MagicInit, OptionMagic: MagicOption, HandshakeFlags: 3})},
		{"option", AppendOption(nil, OptGo, nil), enc(protocol.NegotiationOptionHeader{OptionMagic: MagicOption, ID: 7})},
		{"option reply", AppendOptionReply(nil, OptGo, RepAck, nil), enc(protocol.NegotiationReplyHeader{ReplyMagic: MagicOptionReply, ID: 7, Type: 1})},
		{"info export", AppendInfoExport(nil, OptGo, 1<<40, 5)[OptionReplySize:], enc(protocol.NegotiationReplyInfo{Type: 0, Size: 1 << 40, TransmissionFlags: 5})},
		{"block size", AppendInfoBlockSize(nil, OptGo, 1, 4096, 1<<25)[OptionReplySize:], enc(protocol.NegotiationReplyBlockSize{Type: 3, MinimumBlockSize: 1, PreferredBlockSize: 4096, MaximumBlockSize: 1 << 25})},
		{"request", AppendRequest(nil, Request{Flags: 1, Type: CmdWrite, Cookie: 0x0102030405060708, Offset: 1 << 50, Length: 4096}),
			enc(protocol.TransmissionRequestHeader{RequestMagic: MagicRequest, CommandFlags: 1, Type: 1, Handle: 0x0102030405060708, Offset: 1 << 50, Length: 4096})},
		{"reply", AppendSimpleReply(nil, 77, EINVAL), enc(protocol.TransmissionReplyHeader{ReplyMagic: MagicSimpleReply, Error: 22, Handle: 77})},
	} {
		if !bytes.Equal(c.ours, c.its) {
			t.Errorf("%s: %x, go-nbd has %x", c.name, c.ours, c.its)
		}
	}
}

func TestRoundTrips(t *testing.T) {
	er := ExportRequest{Name: "größe", Infos: []uint16{0, 3, 65535}}
	if got, err := ParseExportRequest(AppendExportRequest(nil, er)); err != nil || !reflect.DeepEqual(got, er) {
		t.Errorf("export request: %v, %v", got, err)
	}
	if !er.Wants(3) || er.Wants(1) {
		t.Error("Wants is wrong")
	}
	mr := MetaRequest{Name: "v", Queries: []string{"base:", "", "base:allocation"}}
	if got, err := ParseMetaRequest(AppendMetaRequest(nil, mr)); err != nil || !reflect.DeepEqual(got, mr) {
		t.Errorf("meta request: %v, %v", got, err)
	}
	rq := Request{Flags: 3, Type: 6, Cookie: 9, Offset: ^uint64(0), Length: 1<<32 - 1}
	if got, err := ParseRequest(AppendRequest(nil, rq)); err != nil || got != rq {
		t.Errorf("request: %v, %v", got, err)
	}
	rq.Length = 1<<64 - 1
	if got, err := ParseExtRequest(AppendExtRequest(nil, rq)); err != nil || got != rq {
		t.Errorf("extended request: %v, %v", got, err)
	}
}

func TestRejects(t *testing.T) {
	long := strings.Repeat("a", MaxString+1)
	for name, p := range map[string][]byte{
		"empty":                 {},
		"name past the end":     {0, 0, 0, 9, 'a', 0, 0},
		"huge name":             {0xff, 0xff, 0xff, 0xff, 'a'},
		"no count":              {0, 0, 0, 1, 'a'},
		"count too big":         {0, 0, 0, 1, 'a', 0, 2, 0, 0},
		"rest":                  {0, 0, 0, 1, 'a', 0, 0, 0},
		"NUL":                   {0, 0, 0, 1, 0, 0, 0},
		"not UTF-8":             {0, 0, 0, 1, 0xff, 0, 0},
		"string over the limit": AppendExportRequest(nil, ExportRequest{Name: long}),
	} {
		if _, err := ParseExportRequest(p); !errors.Is(err, ErrInvalid) {
			t.Errorf("INFO with %s: %v", name, err)
		}
	}
	for name, p := range map[string][]byte{
		"no count":           {0, 0, 0, 0},
		"4G queries":         {0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		"query past the end": {0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 'a'},
		"rest":               {0, 0, 0, 0, 0, 0, 0, 0, 1},
		"too many":           AppendMetaRequest(nil, MetaRequest{Queries: make([]string, MaxQueries+1)}),
	} {
		if _, err := ParseMetaRequest(p); !errors.Is(err, ErrInvalid) {
			t.Errorf("SET_META_CONTEXT with %s: %v", name, err)
		}
	}
	if _, err := ParseExtRequest(AppendRequest(nil, Request{Cookie: 1})); !errors.Is(err, ErrInvalid) {
		t.Errorf("short extended request: %v", err)
	}
	if _, err := ParseExtRequest(make([]byte, ExtRequestSize)); !errors.Is(err, ErrMagic) {
		t.Errorf("zero extended request: %v", err)
	}
	if _, err := ParseRequest(make([]byte, RequestSize)); !errors.Is(err, ErrMagic) {
		t.Errorf("zero request: %v", err)
	}
	if _, err := ParseOptionHeader(make([]byte, OptionHeaderSize)); !errors.Is(err, ErrMagic) {
		t.Errorf("zero option: %v", err)
	}
}

func TestTruncateKeepsRunes(t *testing.T) {
	s := strings.Repeat("ü", 3000)
	got := Truncate(s, MaxString-1)
	if len(got) > MaxString-1 || len(got) < MaxString-3 || !utf8.ValidString(got) {
		t.Errorf("%d bytes, valid %v", len(got), utf8.ValidString(got))
	}
}

func FuzzOptionPayloads(f *testing.F) {
	f.Add(AppendExportRequest(nil, ExportRequest{Name: "disk", Infos: []uint16{3}}))
	f.Add(AppendMetaRequest(nil, MetaRequest{Name: "disk", Queries: []string{"base:allocation"}}))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		if r, err := ParseExportRequest(p); err == nil {
			if !bytes.Equal(AppendExportRequest(nil, r), p) {
				t.Fatalf("not canonical: %q", p)
			}
		} else if !errors.Is(err, ErrInvalid) {
			t.Fatal(err)
		}
		if r, err := ParseMetaRequest(p); err == nil {
			if !bytes.Equal(AppendMetaRequest(nil, r), p) {
				t.Fatalf("not canonical: %q", p)
			}
		} else if !errors.Is(err, ErrInvalid) {
			t.Fatal(err)
		}
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add(AppendRequest(nil, Request{Type: CmdRead, Length: 4096}))
	f.Add(AppendOption(nil, OptGo, nil))
	f.Add(AppendExtRequest(nil, Request{Flags: CmdFlagPayloadLen, Type: CmdBlockStatus, Length: 12}))
	f.Add(AppendStatusRequest(nil, StatusRequest{Length: 1 << 46, IDs: []uint32{1, 2}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		if r, err := ParseExtRequest(p); err == nil && !bytes.Equal(AppendExtRequest(nil, r), p[:ExtRequestSize]) {
			t.Fatalf("extended request not canonical: %x", p)
		}
		if r, err := ParseStatusRequest(p, nil); err == nil {
			if !bytes.Equal(AppendStatusRequest(nil, r), p) {
				t.Fatalf("payload of BLOCK_STATUS not canonical: %x", p)
			}
		} else if !errors.Is(err, ErrInvalid) {
			t.Fatal(err)
		}
		if r, err := ParseRequest(p); err == nil && !bytes.Equal(AppendRequest(nil, r), p[:RequestSize]) {
			t.Fatalf("request not canonical: %x", p)
		}
		if h, err := ParseOptionHeader(p); err == nil && !bytes.Equal(AppendOption(nil, h.ID, nil)[:12], p[:12]) {
			t.Fatalf("option not canonical: %x", p)
		}
	})
}
