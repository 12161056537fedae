package units

import (
	"encoding/json"
	"errors"
	"flag"
	"math"
	"strings"
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	good := map[string]uint64{
		"0": 0, "512": 512, "512B": 512, "512 b": 512, "4k": 4096, "4K": 4096, "4KB": 4096, "4KiB": 4096, "4ki": 4096,
		"10GiB": 10 << 30, " 10 GiB ": 10 << 30, "1.5T": 3 << 39, "0.5k": 512, "1.25M": 5 << 18, "1.0001k": 1024, "2P": 2 << 50,
		"15E": 15 << 60, "18446744073709551615": math.MaxUint64, "007m": 7 << 20, "1.500000000000000000000000k": 1536,
		"15.999999999999999999E": 18446744073709551598 + 16,
	}
	for s, want := range good {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	bad := map[string]error{
		"": ErrSyntax, " ": ErrSyntax, "G": ErrSyntax, "-1": ErrSyntax, "+1": ErrSyntax, "1x": ErrSyntax, "1kk": ErrSyntax, "1.": ErrSyntax, ".5k": ErrSyntax,
		"1,5G": ErrSyntax, "1e3": ErrSyntax, "0x10": ErrSyntax, "1 000": ErrSyntax, "1KiBs": ErrSyntax, "١": ErrSyntax, "1.0000000000000000001k": ErrSyntax,
		"16E": ErrRange, "18446744073709551616": ErrRange, "99999999999999999999999": ErrRange, "17592186044416.5M": ErrRange,
	}
	for s, want := range bad {
		_, err := ParseSize(s)
		if !errors.Is(err, want) {
			t.Errorf("ParseSize(%q): %v, want %v", s, err, want)
		} else if !strings.Contains(err.Error(), "size") {
			t.Errorf("ParseSize(%q): %v does not say what is wrong", s, err)
		}
	}
}

func TestParseCount(t *testing.T) {
	for s, want := range map[string]uint64{"0": 0, "7": 7, "4k": 4000, "1.5M": 1_500_000, "2 G": 2_000_000_000, "18E": 18e18} {
		if got, err := ParseCount(s); err != nil || got != want {
			t.Errorf("ParseCount(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for s, want := range map[string]error{"": ErrSyntax, "4kB": ErrSyntax, "4ki": ErrSyntax, "mg": ErrSyntax, "1mg": ErrSyntax, "19E": ErrRange} {
		if _, err := ParseCount(s); !errors.Is(err, want) {
			t.Errorf("ParseCount(%q): %v, want %v", s, err, want)
		}
	}
}

func TestParseRate(t *testing.T) {
	for s, want := range map[string]uint64{"100MiB/s": 100 << 20, "1G": 1 << 30, "5k/S": 5 << 10, "512 B/s": 512} {
		if got, err := ParseRate(s); err != nil || got != want {
			t.Errorf("ParseRate(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "/s", "5/m", "5k/s/s"} {
		if _, err := ParseRate(s); !errors.Is(err, ErrSyntax) {
			t.Errorf("ParseRate(%q): %v", s, err)
		}
	}
}

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for s, want := range map[string]time.Duration{
		"0": 0, "250ms": 250 * time.Millisecond, "1h30m": 90 * time.Minute, "2d": 2 * day, "1w2d12h": 9*day + 12*time.Hour, "1.5s": 1500 * time.Millisecond,
	} {
		if got, err := ParseDuration(s); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for s, want := range map[string]error{
		"": ErrSyntax, "-1s": ErrSyntax, "5": ErrSyntax, "1d-1s": ErrSyntax, "1.5d": ErrSyntax, "1d1w": ErrSyntax, "x": ErrSyntax, "4000000000w": ErrRange, "106751d24h": ErrRange,
	} {
		if _, err := ParseDuration(s); !errors.Is(err, want) {
			t.Errorf("ParseDuration(%q): %v, want %v", s, err, want)
		}
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[uint64][3]string{
		0: {"0B", "0B", "0"}, 512: {"512B", "512B", "512"}, 1000: {"1000B", "1000B", "1k"}, 1023: {"1023B", "1023B", "1.02k"}, 1536: {"1.5KiB", "1536B", "1.54k"},
		1<<20 - 1: {"1MiB", "1048575B", "1.05M"}, 10 << 30: {"10GiB", "10GiB", "10.74G"}, 3 << 39: {"1.5TiB", "1536GiB", "1.65T"},
		math.MaxUint64: {"16EiB", "18446744073709551615B", "18.45E"}, 999_999: {"976.56KiB", "999999B", "1M"},
	} {
		if got := [3]string{FormatSize(n), FormatExact(n), FormatCount(n)}; got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	for v, want := range map[float64]string{0: "0B/s", -1: "0B/s", 0.5: "0.5B/s", 1.5 * (1 << 30): "1.5GiB/s", math.Inf(-1): "0B/s"} {
		if got := FormatRate(v); got != want {
			t.Errorf("FormatRate(%g) = %q, want %q", v, got, want)
		}
	}
	if got := FormatRate(math.NaN()); got != "0B/s" {
		t.Errorf("FormatRate(NaN) = %q", got)
	}
}

func TestFormatDuration(t *testing.T) {
	const day = 24 * time.Hour
	for d, want := range map[time.Duration]string{
		0: "0s", 7: "7ns", 1234 * time.Nanosecond: "1.23µs", 1234567 * time.Nanosecond: "1.23ms", 45678 * time.Millisecond: "45.7s", 12345 * time.Microsecond: "12.3ms",
		59_999 * time.Millisecond: "1m", 200 * time.Second: "3m20s", 3599*time.Second + 900*time.Millisecond: "1h", 5*time.Hour + 61*time.Second: "5h1m",
		52 * time.Hour: "2d4h", -90 * time.Second: "-1m30s", 1<<63 - 1: "106751d", -1 << 63: "-106751d", day - time.Second: "1d",
	} {
		if got := FormatDuration(d); got != want {
			t.Errorf("FormatDuration(%d) = %q, want %q", d, got, want)
		}
	}
}

func TestSizeIsAFlagAndText(t *testing.T) {
	s := Size(1 << 20)
	f := flag.NewFlagSet("t", flag.ContinueOnError)
	f.SetOutput(new(strings.Builder))
	f.Var(&s, "size", "")
	if err := f.Parse([]string{"-size", "3GiB"}); err != nil || s != 3<<30 {
		t.Fatalf("%v, %v", s, err)
	}
	if err := f.Parse([]string{"-size", "3x"}); err == nil || s != 3<<30 {
		t.Fatalf("a bad flag: %v, value %v", err, s)
	}
	b, err := json.Marshal(map[string]Size{"a": s})
	if err != nil || string(b) != `{"a":"3GiB"}` {
		t.Fatalf("%s, %v", b, err)
	}
	var back map[string]Size
	if err := json.Unmarshal(b, &back); err != nil || back["a"] != s {
		t.Fatalf("%v, %v", back, err)
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"10GiB", "4k", "1.5T", "512", "-1", "", "99999999999999999999", "0.9999999999999999E"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseSize(s)
		if err != nil {
			if !errors.Is(err, ErrSyntax) && !errors.Is(err, ErrRange) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if back, err := ParseSize(FormatExact(v)); err != nil || back != v {
			t.Fatalf("%q = %d, printed %q, read back %d, %v", s, v, FormatExact(v), back, err)
		}
		if near, err := ParseSize(FormatSize(v)); err == nil && math.Abs(float64(near)-float64(v)) > float64(v)/100+1 {
			t.Fatalf("%d printed as %s", v, FormatSize(v))
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"250ms", "1w2d12h", "0", "2d", "-1s", "9999999999999h", "1d1h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			if !errors.Is(err, ErrSyntax) && !errors.Is(err, ErrRange) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if d < 0 {
			t.Fatalf("%q is %v", s, d)
		}
		if FormatDuration(d) == "" {
			t.Fatal("printed nothing")
		}
	})
}

func FuzzParseCountAndRate(f *testing.F) {
	for _, s := range []string{"10", "4k", "1.5M", "1MiB/s", "10MB/s", "0", "-1", "", "99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (uint64, error){ParseCount, ParseRate} {
			if _, err := parse(s); err != nil && !errors.Is(err, ErrSyntax) && !errors.Is(err, ErrRange) {
				t.Fatalf("untyped error %v", err)
			}
		}
	})
}
