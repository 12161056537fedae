package clustermap

import "fmt"

// Bounds of the parts of a Location, inclusive.
const (
	MaxIndex    = 1<<indexBits - 1
	MaxSCO      = 1<<scoBits - 1
	MaxAncestor = 1<<ancestorBits - 1
)

const (
	indexBits    = 14
	scoBits      = 36
	ancestorBits = 14
)

// Location tells where the data of a cluster lies. From the low bits up: index of the
// cluster in its SCO (14 bits), number of the SCO (36 bits, from 1), ancestor (14 bits;
// 0 is the volume's own namespace, n the n-th ancestor). The next cluster of a SCO is
// Location+1. The zero Location is a hole, which reads as zeroes.
type Location uint64

// unknownLocation stands in partial leaves for "whatever the page on disk says". It is
// no valid Location because SCO 0 does not exist.
const unknownLocation Location = 1

// NewLocation packs a location. It panics when a part is out of its bounds (sco 0 is).
func NewLocation(sco uint64, index, ancestor uint16) Location {
	if sco == 0 || sco > MaxSCO || index > MaxIndex || ancestor > MaxAncestor {
		panic(fmt.Sprintf("clustermap: no such location: SCO %d, index %d, ancestor %d", sco, index, ancestor))
	}
	return Location(ancestor)<<(indexBits+scoBits) | Location(sco)<<indexBits | Location(index)
}

// SCO returns the number of the SCO, 0 for a hole.
func (l Location) SCO() uint64 { return uint64(l>>indexBits) & MaxSCO }

// Index returns the cluster's place in its SCO, in clusters.
func (l Location) Index() uint16 { return uint16(l & MaxIndex) }

// Ancestor returns whose namespace the SCO is in: 0 the volume's own, n the n-th ancestor's.
func (l Location) Ancestor() uint16 { return uint16(l >> (indexBits + scoBits)) }

// Mapped tells whether there is data, as opposed to a hole.
func (l Location) Mapped() bool { return l.SCO() != 0 }

// String formats l as "sco:index" with "^n" for the n-th ancestor, or "hole".
func (l Location) String() string {
	switch {
	case !l.Mapped():
		return "hole"
	case l.Ancestor() != 0:
		return fmt.Sprintf("%d:%d^%d", l.SCO(), l.Index(), l.Ancestor())
	}
	return fmt.Sprintf("%d:%d", l.SCO(), l.Index())
}

// Entry is what the map knows of one cluster. The map keeps Sum as it is given
// (blocksum.Seal of the CRC32C with the cluster's address). The Entry of a hole is zero.
type Entry struct {
	Loc Location
	Sum uint32
}
