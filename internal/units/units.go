// Package units reads and prints sizes, counts, rates and durations as people write them.
//
// Sizes are in bytes and every unit is a power of 1024, however it is written: "k", "K",
// "KB" and "KiB" are all 1024 bytes, since that is what people who size disks mean.
// Counts ("4k operations") are powers of 1000. Upper and lower case are the same.
package units

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// ErrSyntax is returned (wrapped) for text that is no size, count, rate or duration.
var ErrSyntax = errors.New("not understood")

// ErrRange is returned (wrapped) for a value that is too large.
var ErrRange = errors.New("out of range")

// prefixes are the powers of 1024 or 1000 in order.
const prefixes = "kmgtpe"

// number is a decimal number with a unit, split.
type number struct {
	whole  uint64
	frac   uint64 // digits behind the point, without trailing zeroes
	scale  uint64 // 10 to the number of digits in frac
	suffix string // lower case, without spaces around it
}

func split(kind, example, s string) (number, error) {
	bad := func(format string, args ...any) (number, error) {
		return number{}, fmt.Errorf("%s %q: %s: %w (write it like %s)", kind, s, fmt.Sprintf(format, args...), ErrSyntax, example)
	}
	t := strings.TrimSpace(s)
	digits := func() string {
		n := 0
		for n < len(t) && t[n] >= '0' && t[n] <= '9' {
			n++
		}
		d := t[:n]
		t = t[n:]
		return d
	}
	switch {
	case t == "":
		return bad("empty")
	case t[0] == '-':
		return bad("must not be negative")
	}
	whole := digits()
	if whole == "" {
		return bad("must begin with a digit")
	}
	n := number{scale: 1}
	var err error
	if n.whole, err = strconv.ParseUint(whole, 10, 64); err != nil {
		return number{}, fmt.Errorf("%s %q: %w", kind, s, ErrRange)
	}
	if strings.HasPrefix(t, ".") {
		t = t[1:]
		frac := digits()
		if frac == "" {
			return bad("no digit behind the point")
		}
		frac = strings.TrimRight(frac, "0")
		if len(frac) > 18 {
			return bad("too many digits behind the point")
		}
		for _, c := range frac {
			n.frac = n.frac*10 + uint64(c-'0')
			n.scale *= 10
		}
	}
	n.suffix = strings.ToLower(strings.TrimSpace(t))
	return n, nil
}

// times multiplies, dropping what is less than one. ok is false on overflow.
func (n number) times(unit uint64) (v uint64, ok bool) {
	hi, lo := bits.Mul64(n.whole, unit)
	if hi != 0 {
		return 0, false
	}
	fh, fl := bits.Mul64(n.frac, unit) // frac < scale, so the quotient fits
	q, _ := bits.Div64(fh, fl, n.scale)
	v, carry := bits.Add64(lo, q, 0)
	return v, carry == 0
}

// ParseSize reads a size in bytes: "512", "4k", "10GiB", "1.5 T". A fraction of a byte is dropped.
func ParseSize(s string) (uint64, error) {
	n, err := split("size", "10GiB, 512M or 4k", s)
	if err != nil {
		return 0, err
	}
	unit, ok := sizeUnit(n.suffix)
	if !ok {
		return 0, fmt.Errorf("size %q: unit %q: %w (units are B, k, M, G, T, P, E, each 1024 of the one before)", s, n.suffix, ErrSyntax)
	}
	v, ok := n.times(unit)
	if !ok {
		return 0, fmt.Errorf("size %q: %w (at most 16 EiB - 1)", s, ErrRange)
	}
	return v, nil
}

func sizeUnit(suffix string) (uint64, bool) {
	if suffix == "" || suffix == "b" {
		return 1, true
	}
	i := strings.IndexByte(prefixes, suffix[0])
	if i < 0 {
		return 0, false
	}
	switch suffix[1:] {
	case "", "b", "i", "ib":
		return 1 << (10 * (i + 1)), true
	}
	return 0, false
}

// ParseCount reads a number of things: "1000", "4k", "1.5M" (powers of 1000).
func ParseCount(s string) (uint64, error) {
	n, err := split("count", "1000, 4k or 1.5M", s)
	if err != nil {
		return 0, err
	}
	unit := uint64(1)
	if n.suffix != "" {
		i := strings.Index(prefixes, n.suffix)
		if i < 0 || len(n.suffix) != 1 {
			return 0, fmt.Errorf("count %q: unit %q: %w (units are k, M, G, T, P, E, each 1000 of the one before)", s, n.suffix, ErrSyntax)
		}
		for range i + 1 {
			unit *= 1000
		}
	}
	v, ok := n.times(unit)
	if !ok {
		return 0, fmt.Errorf("count %q: %w (at most 2^64 - 1)", s, ErrRange)
	}
	return v, nil
}

// ParseRate reads bytes per second: "100MiB/s", "1G" (the "/s" may be left out).
func ParseRate(s string) (uint64, error) {
	t := strings.TrimSpace(s)
	if len(t) > 2 && strings.EqualFold(t[len(t)-2:], "/s") {
		t = t[:len(t)-2]
	}
	v, err := ParseSize(t)
	if err != nil {
		return 0, fmt.Errorf("rate %q: %w", s, err)
	}
	return v, nil
}

// ParseDuration reads what time.ParseDuration reads and days and weeks in front of it:
// "250ms", "1h30m", "2d", "1w2d12h". Negative ones are refused.
func ParseDuration(s string) (time.Duration, error) {
	t := strings.TrimSpace(s)
	if t == "" || t[0] < '0' || t[0] > '9' {
		return 0, fmt.Errorf("duration %q: must begin with a digit: %w (write it like 250ms, 1h30m or 2d)", s, ErrSyntax)
	}
	var total time.Duration
	for _, u := range []struct {
		letter string
		length time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		head, tail, found := strings.Cut(t, u.letter)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(head, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("duration %q: %q before %q: %w (whole numbers only)", s, head, u.letter, ErrSyntax)
		}
		if n > uint64((1<<63-1-total)/u.length) {
			return 0, fmt.Errorf("duration %q: %w (at most 292 years)", s, ErrRange)
		}
		total += time.Duration(n) * u.length
		t = tail
	}
	if t == "" || t == "0" {
		return total, nil
	}
	rest, err := time.ParseDuration(t)
	if err != nil || t[0] < '0' || t[0] > '9' {
		return 0, fmt.Errorf("duration %q: %q: %w (units are ns, us, ms, s, m, h, d, w)", s, t, ErrSyntax)
	}
	if rest < 0 || total > 1<<63-1-rest {
		return 0, fmt.Errorf("duration %q: %w (at most 292 years)", s, ErrRange)
	}
	return total + rest, nil
}

// FormatSize prints a size for people, rounded to two decimals: "512B", "4KiB", "1.46GiB".
func FormatSize(n uint64) string {
	v, unit := scaled(float64(n), 1024)
	if unit == "" {
		return v + "B"
	}
	return v + strings.ToUpper(unit) + "iB"
}

// FormatExact prints a size so that ParseSize gives it back: "10GiB", "1536MiB", "1000B".
func FormatExact(n uint64) string {
	i := 0
	for i < len(prefixes) && n != 0 && n%1024 == 0 {
		n /= 1024
		i++
	}
	if i == 0 {
		return strconv.FormatUint(n, 10) + "B"
	}
	return strconv.FormatUint(n, 10) + strings.ToUpper(prefixes[i-1:i]) + "iB"
}

// FormatCount prints a count for people, rounded to two decimals: "999", "1.5k", "2M".
func FormatCount(n uint64) string {
	v, unit := scaled(float64(n), 1000)
	if unit == "k" {
		return v + unit
	}
	return v + strings.ToUpper(unit)
}

// FormatRate prints bytes per second for people: "1.46GiB/s".
func FormatRate(bytesPerSecond float64) string {
	if !(bytesPerSecond > 0) { // NaN too
		return "0B/s"
	}
	v, unit := scaled(bytesPerSecond, 1024)
	if unit == "" {
		return v + "B/s"
	}
	return v + strings.ToUpper(unit) + "iB/s"
}

// scaled divides v until it is below base and prints it with at most two decimals.
func scaled(v, base float64) (text, unit string) {
	i := 0
	for i < len(prefixes) && v >= base-0.005 { // what would print as "1024" goes up
		v /= base
		i++
	}
	text = strconv.FormatFloat(v, 'f', 2, 64)
	text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	if i == 0 {
		return text, ""
	}
	return text, prefixes[i-1 : i]
}

// FormatDuration prints a duration for people with three digits or two units:
// "1.23ms", "45.6s", "3m20s", "5h1m", "2d4h".
func FormatDuration(d time.Duration) string {
	if d < 0 {
		if d == -1<<63 {
			d++
		}
		return "-" + FormatDuration(-d)
	}
	two := func(big, small time.Duration, b, s string) string {
		d = d.Round(small)
		t := fmt.Sprintf("%d%s", d/big, b)
		if r := d % big / small; r != 0 {
			t += fmt.Sprintf("%d%s", r, s)
		}
		return t
	}
	const day = 24 * time.Hour
	switch {
	case d >= 1<<63-1-day: // rounding would overflow
		return fmt.Sprintf("%dd", d/day)
	case d.Round(time.Hour) >= day && d >= day-30*time.Minute:
		return two(day, time.Hour, "d", "h")
	case d.Round(time.Minute) >= time.Hour && d >= time.Hour-30*time.Second:
		return two(time.Hour, time.Minute, "h", "m")
	case d.Round(time.Second) >= time.Minute && d >= time.Minute-500*time.Millisecond:
		return two(time.Minute, time.Second, "m", "s")
	}
	for _, unit := range []time.Duration{10 * time.Second, time.Second, 100 * time.Millisecond, 10 * time.Millisecond, time.Millisecond, 100 * time.Microsecond, 10 * time.Microsecond, time.Microsecond} {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}

// Size is a number of bytes that can be a command-line flag (it has the methods of
// flag.Value and pflag.Value) and a field of JSON or YAML, as text that ParseSize reads.
type Size uint64

// String prints the size exactly.
func (s Size) String() string { return FormatExact(uint64(s)) }

// Set parses a size.
func (s *Size) Set(text string) error {
	v, err := ParseSize(text)
	if err == nil {
		*s = Size(v)
	}
	return err
}

// Type names the kind of value in the help of a command.
func (s *Size) Type() string { return "size" }

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error { return s.Set(string(text)) }
