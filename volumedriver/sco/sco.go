// Package sco names the objects that a volume keeps in its namespace of the object store,
// and holds the limits of SCOs (storage container objects: clusters in the order in
// which they were written).
//
//	head            the volume head: what the volume consists of
//	sco/%09x        clusters, back to back, without any header
//	tlog/%09x       which cluster of the volume lies where, in order
//	map/%08x        a pack of map pages
//
// Numbers are hexadecimal of fixed width, so that the order of names is the order of
// numbers. The package is pure.
package sco

import (
	"errors"
	"fmt"
	"strconv"
)

// Limits of SCOs. The cluster map packs a place into 36 bits of SCO number and 14 bits of index.
const (
	MaxNumber       = 1<<36 - 1 // largest number of an SCO or a TLog; 0 is invalid
	MaxPack         = 1<<32 - 1 // largest number of a map pack; 0 is invalid
	MaxClusters     = 1 << 14   // most clusters of an SCO
	DefaultClusters = 4096      // 16 MiB
	ClusterSize     = 4096      // bytes
)

// ErrName is returned, wrapped, for a name that is not an object of a volume.
var ErrName = errors.New("not the name of a volume object")

// Type tells what an object is.
type Type uint8

// The types of objects.
const (
	Head Type = 1
	SCO  Type = 2
	TLog Type = 3
	Pack Type = 4
)

// Prefixes of the names, for listing.
const (
	PrefixSCO  = "sco/"
	PrefixTLog = "tlog/"
	PrefixPack = "map/"
	HeadName   = "head"
)

// String names the type.
func (t Type) String() string {
	switch t {
	case Head:
		return "head"
	case SCO:
		return "sco"
	case TLog:
		return "tlog"
	case Pack:
		return "map pack"
	}
	return "invalid type " + strconv.Itoa(int(t))
}

// Name returns the name of an SCO, numbered 1..MaxNumber.
func Name(number uint64) string { return fmt.Sprintf("sco/%09x", number) }

// TLogName returns the name of a TLog, numbered 1..MaxNumber.
func TLogName(number uint64) string { return fmt.Sprintf("tlog/%09x", number) }

// PackName returns the name of a map pack, numbered from 1.
func PackName(number uint32) string { return fmt.Sprintf("map/%08x", number) }

// Parse tells what the object called name is. The number of a head is 0. Only the exact
// form that Name, TLogName and PackName give is taken; anything else is ErrName.
func Parse(name string) (Type, uint64, error) {
	if name == HeadName {
		return Head, 0, nil
	}
	for _, k := range [...]struct {
		prefix string
		width  int
		max    uint64
		typ    Type
	}{{PrefixSCO, 9, MaxNumber, SCO}, {PrefixTLog, 9, MaxNumber, TLog}, {PrefixPack, 8, MaxPack, Pack}} {
		if len(name) < len(k.prefix) || name[:len(k.prefix)] != k.prefix {
			continue
		}
		n, ok := ParseHex(name[len(k.prefix):], k.width)
		if !ok || n == 0 || n > k.max {
			break
		}
		return k.typ, n, nil
	}
	return 0, 0, fmt.Errorf("%q: %w", name, ErrName)
}

// ParseHex reads a number of exactly width lower-case hexadecimal digits (at most 15).
func ParseHex(s string, width int) (uint64, bool) {
	if len(s) != width || width > 15 {
		return 0, false
	}
	var n uint64
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			n = n<<4 | uint64(c-'0')
		case c >= 'a' && c <= 'f':
			n = n<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}
