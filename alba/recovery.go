package alba

import (
	"encoding/binary"
	"fmt"

	"scoria/internal/frame"
	"scoria/metadata"
)

// Recovery is what lies beside a fragment: enough, with that of the object's other
// chunks, to make its manifest again when the metadata is lost.
type Recovery struct {
	Namespace metadata.NamespaceID
	Chunk     uint16 // of this fragment
	Chunks    uint32 // of the object
	// Manifest is the object's, with only this chunk in Chunks. Places are not told: they
	// are where fragments are found.
	Manifest *metadata.Manifest
}

const (
	recoveryMagic   = 0x56435253 // "SRCV"
	recoveryType    = 1
	recoveryVersion = 1
	maxRecovery     = metadata.MaxManifestSize + 1024
)

// AppendRecovery appends the encoded form of r.
func AppendRecovery(dst []byte, r Recovery) ([]byte, error) {
	body := binary.AppendUvarint(nil, uint64(r.Namespace))
	body = binary.LittleEndian.AppendUint16(body, r.Chunk)
	body = binary.AppendUvarint(body, uint64(r.Chunks))
	body, err := metadata.AppendManifest(body, r.Manifest)
	if err != nil {
		return nil, fmt.Errorf("recovery information: %w", err)
	}
	return frame.Append(dst, recoveryMagic, recoveryType, recoveryVersion, 0, body), nil
}

// DecodeRecovery decodes what AppendRecovery made.
func DecodeRecovery(b []byte) (Recovery, error) {
	h, body, rest, err := frame.Parse(b, recoveryMagic, maxRecovery)
	if err != nil {
		return Recovery{}, fmt.Errorf("recovery information: %w", err)
	}
	if h.Type != recoveryType || h.Version != recoveryVersion {
		return Recovery{}, fmt.Errorf("recovery information: type %d version %d: %w", h.Type, h.Version, frame.ErrVersion)
	}
	if len(rest) != 0 {
		return Recovery{}, fmt.Errorf("recovery information: %d bytes behind it: %w", len(rest), frame.ErrInvalid)
	}
	d := frame.NewDecoder(body)
	r := Recovery{Namespace: metadata.NamespaceID(d.Uvarint()), Chunk: d.U16()}
	chunks := d.Uvarint()
	if chunks > metadata.MaxChunks || uint64(r.Chunk) >= chunks {
		d.Fail("chunk %d of %d", r.Chunk, chunks)
	}
	r.Chunks = uint32(chunks)
	inner := d.Take(d.Rest())
	if err := d.Err(); err != nil {
		return Recovery{}, fmt.Errorf("recovery information: %w", err)
	}
	if r.Manifest, err = metadata.DecodeManifest(inner); err != nil {
		return Recovery{}, fmt.Errorf("recovery information: %w", err)
	}
	if len(r.Manifest.Chunks) != 1 {
		return Recovery{}, fmt.Errorf("recovery information with %d chunks: %w", len(r.Manifest.Chunks), frame.ErrInvalid)
	}
	return r, nil
}

// recovery encodes what is stored beside the fragments of one chunk of m.
func recovery(ns metadata.NamespaceID, m *metadata.Manifest, chunk int) ([]byte, error) {
	one, ch := *m, m.Chunks[chunk]
	ch.Fragments = make([]metadata.Fragment, len(ch.Fragments))
	for i, f := range m.Chunks[chunk].Fragments {
		ch.Fragments[i] = metadata.Fragment{Digest: f.Digest}
	}
	one.Version, one.Chunks = 0, []metadata.Chunk{ch}
	return AppendRecovery(nil, Recovery{Namespace: ns, Chunk: uint16(chunk), Chunks: uint32(len(m.Chunks)), Manifest: &one})
}
