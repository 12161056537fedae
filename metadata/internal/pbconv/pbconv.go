// Package pbconv converts between the vocabulary of package metadata and its messages.
// Numbers that do not fit become such that validation refuses them.
package pbconv

import (
	"math"

	"scoria/metadata"
	"scoria/metadata/proto/metapb"
)

// FromPolicy makes a message.
func FromPolicy(p metadata.Policy) *metapb.Policy {
	return &metapb.Policy{K: u32(p.K), M: u32(p.M), C: u32(p.C), X: u32(p.X)}
}

// ToPolicy reads a message.
func ToPolicy(p *metapb.Policy) metadata.Policy {
	return metadata.Policy{K: num(p.GetK()), M: num(p.GetM()), C: num(p.GetC()), X: num(p.GetX())}
}

// u32 keeps negative and huge numbers invalid.
func u32(n int) uint32 {
	if n < 0 || n > math.MaxInt32 {
		return math.MaxInt32
	}
	return uint32(n)
}

func num(n uint32) int { return int(min(n, math.MaxInt32)) }

// FromPreset makes a message.
func FromPreset(p metadata.Preset) *metapb.Preset {
	out := &metapb.Preset{
		Name: p.Name, Version: p.Version, ChunkSize: p.ChunkSize, InlineLimit: p.InlineLimit,
		Compression: uint32(p.Compression), Encryption: uint32(p.Encryption), Default: p.Default,
	}
	for _, q := range p.Policies {
		out.Policies = append(out.Policies, FromPolicy(q))
	}
	return out
}

// ToPreset reads a message.
func ToPreset(p *metapb.Preset) metadata.Preset {
	out := metadata.Preset{
		Name: p.GetName(), Version: p.GetVersion(), ChunkSize: p.GetChunkSize(), InlineLimit: p.GetInlineLimit(),
		Compression: metadata.Compression(U8(p.GetCompression())), Encryption: metadata.Encryption(U8(p.GetEncryption())),
		Default: p.GetDefault(),
	}
	for _, q := range p.GetPolicies() {
		out.Policies = append(out.Policies, ToPolicy(q))
	}
	return out
}

// U8 narrows a number; what does not fit becomes 255.
func U8(n uint32) uint8 { return uint8(min(n, math.MaxUint8)) }

// ObjectID reads an object id of exactly 16 bytes.
func ObjectID(b []byte) (id metadata.ObjectID, err error) {
	if len(b) != len(id) {
		return id, metadata.Errorf(metadata.KindInvalid, "object id of %d bytes, want %d", len(b), len(id))
	}
	copy(id[:], b)
	return id, nil
}
