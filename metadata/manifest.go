package metadata

import "time"

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
