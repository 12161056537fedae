package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"strings"
	"testing"
)

const magic = 0x41524f43

func sample(body string) []byte {
	return Append([]byte("before"), magic, 3, 2, 0x0102, []byte(body))[6:]
}

func TestGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/frame-v1.bin")
	if err != nil {
		t.Fatal(err)
	}
	if got := sample("body of a frame"); !bytes.Equal(got, want) {
		t.Fatalf("the layout changed:\n got %x\nwant %x", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, body := range []string{"", "x", strings.Repeat("long ", 10000)} {
		b := append(sample(body), "rest"...)
		h, got, rest, err := Parse(b, magic, 1<<20)
		if err != nil || string(got) != body || string(rest) != "rest" {
			t.Fatalf("Parse: %v, %d bytes, rest %q", err, len(got), rest)
		}
		if h.Type != 3 || h.Version != 2 || h.Flags != 0x0102 || int(h.Length) != len(body) {
			t.Fatalf("%+v", h)
		}
		r := bytes.NewReader(b[:len(b)-4])
		if _, got, err = Read(r, magic, 1<<20); err != nil || string(got) != body {
			t.Fatalf("Read: %v", err)
		}
		if _, _, err := Read(r, magic, 1<<20); err != io.EOF {
			t.Fatalf("Read at the end: %v", err)
		}
	}
}

func TestDamage(t *testing.T) {
	good := sample("body")
	for i := range good {
		for bit := range 8 {
			b := bytes.Clone(good)
			b[i] ^= 1 << bit
			_, _, _, err := Parse(b, magic, 100)
			want := []error{ErrChecksum}
			switch {
			case i < 4:
				want = []error{ErrMagic}
			case i >= 8 && i < 12:
				want = []error{ErrTooLong, ErrTruncated, ErrChecksum}
			}
			if !isOneOf(err, want) {
				t.Fatalf("bit %d of byte %d flipped: %v, want one of %v", bit, i, err, want)
			}
		}
	}
	for n := range good {
		if _, _, _, err := Parse(good[:n], magic, 100); !errors.Is(err, ErrTruncated) {
			t.Fatalf("%d of %d bytes: %v", n, len(good), err)
		}
		if _, _, err := Read(bytes.NewReader(good[:n]), magic, 100); n > 0 && !errors.Is(err, ErrTruncated) {
			t.Fatalf("Read of %d of %d bytes: %v", n, len(good), err)
		}
	}
}

// TestReadTruncated: io.EOF alone means a clean end between two frames, never a cut one.
func TestReadTruncated(t *testing.T) {
	good := sample("body")
	for n := 1; n < len(good); n++ {
		if _, _, err := Read(bytes.NewReader(good[:n]), magic, 100); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%d of %d bytes: %v looks like a clean end", n, len(good), err)
		}
	}
}

func isOneOf(err error, list []error) bool {
	for _, e := range list {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// TestLengthIsCheckedFirst: a huge length must not be allocated.
func TestLengthIsCheckedFirst(t *testing.T) {
	b := sample("body")
	binary.LittleEndian.PutUint32(b[8:], math.MaxUint32)
	if _, _, err := Read(bytes.NewReader(b), magic, 1<<20); !errors.Is(err, ErrTooLong) {
		t.Fatalf("%v", err)
	}
	if _, _, _, err := Parse(b, magic, math.MaxUint32); !errors.Is(err, ErrTruncated) {
		t.Fatalf("%v", err)
	}
}

func TestDecoder(t *testing.T) {
	b := []byte{7}
	b = binary.LittleEndian.AppendUint16(b, 0x1234)
	b = binary.LittleEndian.AppendUint32(b, 0x12345678)
	b = binary.LittleEndian.AppendUint64(b, 1<<60)
	b = binary.AppendUvarint(b, 300)
	b = AppendString(b, "text")
	b = AppendBytes(b, []byte{1, 2})
	d := NewDecoder(b)
	if d.U8() != 7 || d.U16() != 0x1234 || d.U32() != 0x12345678 || d.U64() != 1<<60 || d.Uvarint() != 300 || d.String(4) != "text" || !bytes.Equal(d.Bytes(2), []byte{1, 2}) {
		t.Fatal("values differ")
	}
	if d.Rest() != 0 || d.Finish() != nil {
		t.Fatalf("%d bytes left, %v", d.Rest(), d.Err())
	}
}

func TestDecoderFailureSticks(t *testing.T) {
	d := NewDecoder([]byte{1, 2, 3})
	if d.U32() != 0 || !errors.Is(d.Err(), ErrTruncated) {
		t.Fatalf("%v", d.Err())
	}
	first := d.Err()
	if d.U8() != 0 || d.Uvarint() != 0 || d.Bytes(9) != nil || d.String(9) != "" || d.Count(1, 9) != 0 || d.Take(0) != nil {
		t.Fatal("values after a failure")
	}
	d.Fail("something else")
	if d.Err() != first || d.Finish() != first {
		t.Fatalf("the first failure was lost: %v", d.Err())
	}
}

func TestDecoderLimits(t *testing.T) {
	for name, c := range map[string]struct {
		b    []byte
		run  func(d *Decoder)
		want error
	}{
		"left over":          {[]byte{1, 2}, func(d *Decoder) { d.U8() }, ErrInvalid},
		"negative take":      {[]byte{1, 2}, func(d *Decoder) { d.Take(-1) }, ErrTruncated},
		"string over limit":  {AppendString(nil, "12345"), func(d *Decoder) { _ = d.String(4) }, ErrInvalid},
		"string cut":         {AppendString(nil, "12345")[:4], func(d *Decoder) { _ = d.String(10) }, ErrInvalid},
		"count over limit":   {append([]byte{5}, make([]byte, 100)...), func(d *Decoder) { d.Count(1, 4) }, ErrInvalid},
		"count over rest":    {append([]byte{5}, make([]byte, 39)...), func(d *Decoder) { d.Count(8, 100) }, ErrInvalid},
		"count overflows":    {append(binary.AppendUvarint(nil, 1<<61+1), make([]byte, 20)...), func(d *Decoder) { d.Count(8, math.MaxInt) }, ErrInvalid},
		"count far too long": {binary.AppendUvarint(nil, math.MaxUint64), func(d *Decoder) { d.Count(1, math.MaxInt) }, ErrInvalid},
		"varint cut":         {[]byte{0x80}, func(d *Decoder) { d.Uvarint() }, ErrTruncated},
		"varint too long":    {bytes.Repeat([]byte{0xff}, 11), func(d *Decoder) { d.Uvarint() }, ErrInvalid},
		"fail":               {nil, func(d *Decoder) { d.Fail("value %d", 3) }, ErrInvalid},
	} {
		d := NewDecoder(c.b)
		c.run(d)
		if err := d.Finish(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample("body"), uint32(100))
	f.Add(sample(""), uint32(0))
	f.Add([]byte("short"), uint32(5))
	f.Fuzz(func(t *testing.T, b []byte, limit uint32) {
		h, body, rest, err := Parse(b, magic, limit)
		hr, bodyr, errr := Read(bytes.NewReader(b), magic, min(limit, 1<<16))
		if err != nil {
			if !isOneOf(err, []error{ErrMagic, ErrTooLong, ErrTruncated, ErrChecksum}) {
				t.Fatalf("untyped error %v", err)
			}
			if errr == nil {
				t.Fatal("Read took what Parse refused")
			}
			return
		}
		if limit <= 1<<16 && (errr != nil || hr != h || !bytes.Equal(bodyr, body)) {
			t.Fatalf("Read differs from Parse: %v", errr)
		}
		if len(body) > int(limit) || len(body)+len(rest)+HeaderSize != len(b) {
			t.Fatalf("%d + %d of %d bytes, limit %d", len(body), len(rest), len(b), limit)
		}
		again := Append(nil, magic, h.Type, h.Version, h.Flags, body)
		if !bytes.Equal(again, b[:len(again)]) {
			t.Fatal("encoding again gives something else")
		}
	})
}

func FuzzDecoder(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte{0, 1, 2, 3, 4, 5, 6})
	f.Add(AppendString(nil, "text"), []byte{6})
	f.Fuzz(func(t *testing.T, b, script []byte) {
		d := NewDecoder(b)
		left := d.Rest()
		for _, op := range script {
			switch op % 8 {
			case 0:
				d.U8()
			case 1:
				d.U16()
			case 2:
				d.U32()
			case 3:
				d.U64()
			case 4:
				d.Uvarint()
			case 5:
				if n := d.Count(int(op/8)+1, 1000); n < 0 || n > 1000 || n*(int(op/8)+1) > d.Rest() {
					t.Fatalf("count %d with %d left", n, d.Rest())
				}
			case 6:
				if s := d.String(int(op)); len(s) > int(op) {
					t.Fatal("longer than the limit")
				}
			case 7:
				d.Take(int(op) - 128)
			}
			if d.Rest() > left {
				t.Fatal("the rest grew")
			}
			left = d.Rest()
		}
		if err := d.Finish(); err != nil && !isOneOf(err, []error{ErrTruncated, ErrInvalid}) {
			t.Fatalf("untyped error %v", err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	f := sample(strings.Repeat("x", 4096))
	b.SetBytes(int64(len(f)))
	for b.Loop() {
		if _, _, _, err := Parse(f, magic, 1<<20); err != nil {
			b.Fatal(err)
		}
	}
}
