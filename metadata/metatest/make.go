package metatest

import (
	"encoding/binary"
	"time"

	"scoria/metadata"
)

// Preset returns a valid preset of this name: 4+2 with a fallback of 2+1, no compression,
// no encryption.
func Preset(name string) metadata.Preset {
	return metadata.Preset{
		Name: name, Version: 1, ChunkSize: 1 << 20, InlineLimit: 16 << 10,
		Policies:    []metadata.Policy{{K: 4, M: 2, C: 5, X: 6}, {K: 2, M: 1, C: 3, X: 3}},
		Compression: metadata.CompressNone, Encryption: metadata.EncryptNone,
	}
}

// ObjectID returns an id made of n.
func ObjectID(n uint64) (id metadata.ObjectID) {
	binary.BigEndian.PutUint64(id[:], n*0x9e3779b97f4a7c15) // spread as random ones are
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

// Manifest returns a valid manifest of an object of `chunks` chunks of 1 MiB, policy k+m,
// whose fragment i lies on OSD osds[i] (0 or no entry: a hole). GC epoch 1.
func Manifest(name string, id metadata.ObjectID, k, m, chunks int, osds ...metadata.OSDID) metadata.Manifest {
	const size = 1 << 20
	out := metadata.Manifest{
		Name: name, ObjectID: id, Size: uint64(chunks) * size,
		Policy:      metadata.Policy{K: k, M: m, C: k, X: k + m},
		Compression: metadata.CompressNone, Encryption: metadata.EncryptNone,
		GCEpoch: 1, Created: time.Unix(1700000000, 0).UTC(), Checksum: 0xdeadbeef,
	}
	each := (uint32(size)/uint32(k) + 4095) &^ 4095
	for range chunks {
		c := metadata.Chunk{Size: size, Packed: size, FragmentLen: each, Fragments: make([]metadata.Fragment, k+m)}
		for i := range c.Fragments {
			c.Fragments[i].Digest = uint32(i) * 0x01010101
			if i < len(osds) {
				c.Fragments[i].OSD = osds[i]
			}
		}
		out.Chunks = append(out.Chunks, c)
	}
	return out
}

// Inline returns a valid manifest of an object that lives in it.
func Inline(name string, id metadata.ObjectID, data string) metadata.Manifest {
	return metadata.Manifest{
		Name: name, ObjectID: id, Size: uint64(len(data)), Inline: []byte(data),
		Compression: metadata.CompressNone, Encryption: metadata.EncryptNone,
		GCEpoch: 1, Created: time.Unix(1700000000, 0).UTC(),
	}
}
