package metadata

import (
	"bytes"
	"slices"
	"time"
)

// Manifest says where the data of one object is. It is immutable but for its fragments'
// places: repair writes a new version of it.
type Manifest struct {
	Name     string
	ObjectID ObjectID
	Version  uint32 // 0 when put; +1 with each change of places
	Size     uint64 // bytes of the object
	// Inline holds the data of small objects; Chunks is empty then (and Inline is never nil, even if empty).
	Inline      []byte
	Policy      Policy // the effective one: K and M as written
	Compression Compression
	Encryption  Encryption
	KeyID       uint32
	// UnitSize is the number of plain bytes that are compressed and encrypted as one, 0 when
	// the preset does neither (then a chunk's packed bytes are its plain bytes).
	UnitSize uint32
	Chunks   []Chunk
	GCEpoch  GCEpoch
	Created  time.Time
	Checksum uint32 // CRC32C of the whole object's plain data
}

// Chunk is one stripe of an object. Its packed bytes (padded with zeroes to K equal
// fragments, each a multiple of 4 KiB) are cut into K data fragments; fragment i holds the
// packed bytes [i*FragmentLen, (i+1)*FragmentLen). M parity fragments follow.
type Chunk struct {
	Size        uint32   // plain bytes
	Packed      uint32   // packed bytes, without padding; equals Size when UnitSize is 0
	FragmentLen uint32   // bytes of each fragment, a multiple of 4096
	Units       []uint32 // packed length of each unit; nil when UnitSize is 0
	Fragments   []Fragment
}

// Fragment is the place of one fragment.
type Fragment struct {
	OSD     OSDID  // 0: a hole, not stored
	Version uint32 // manifest version at which it was written; part of its key
	Digest  uint32 // CRC32C over the little-endian plain block sums of the fragment
}

// ObjectInfo is a listed object.
type ObjectInfo struct {
	Name     string
	ObjectID ObjectID
	Size     uint64
	Created  time.Time
	Version  uint32
	Inline   bool
	Policy   Policy
	Missing  int // fragments that are holes, at the worst chunk
}

// SameData reports whether two manifests are equal in all but Version and the fragments'
// places: whether one may be an update of the other.
func (m *Manifest) SameData(o *Manifest) bool {
	same := m.Name == o.Name && m.ObjectID == o.ObjectID && m.Size == o.Size && m.Policy == o.Policy &&
		m.Compression == o.Compression && m.Encryption == o.Encryption && m.KeyID == o.KeyID &&
		m.UnitSize == o.UnitSize && m.GCEpoch == o.GCEpoch && m.Created.Equal(o.Created) && m.Checksum == o.Checksum &&
		(m.Inline == nil) == (o.Inline == nil) && bytes.Equal(m.Inline, o.Inline) && len(m.Chunks) == len(o.Chunks)
	for i := 0; same && i < len(m.Chunks); i++ {
		a, b := &m.Chunks[i], &o.Chunks[i]
		same = a.Size == b.Size && a.Packed == b.Packed && a.FragmentLen == b.FragmentLen &&
			slices.Equal(a.Units, b.Units) && len(a.Fragments) == len(b.Fragments)
	}
	return same
}
