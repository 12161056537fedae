package metadata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"scoria/internal/frame"
)

// The binary form of a manifest (FORMAT.md): one frame of this magic, type and version.
const (
	manifestMagic   = 0x4e414d53 // "SMAN"
	manifestType    = 1
	manifestVersion = 1
)

// Bounds of a manifest. A chunk number is kept in 16 bits.
const (
	MaxManifestSize = 1 << 20 // bytes of the encoded form
	MaxChunks       = 1 << 16
	MaxInline       = 64<<10 + 4096 // bytes: 64 KiB of data, and what sealing them adds
)

// Flags of an encoded manifest.
const manifestInline = 1

// ErrNewerVersion is returned (wrapped in ErrCorrupt) for what a newer Scoria wrote.
var ErrNewerVersion = errors.New("written by a newer version of Scoria")

// AppendManifest appends the binary form of m to dst. It does not judge m: Validate does.
func AppendManifest(dst []byte, m *Manifest) ([]byte, error) {
	le := binary.LittleEndian
	body := make([]byte, 0, 128+len(m.Name)+len(m.Inline)+len(m.Chunks)*(24+(m.Policy.K+m.Policy.M)*9))
	body = frame.AppendString(body, m.Name)
	body = append(body, m.ObjectID[:]...)
	body = binary.AppendUvarint(body, uint64(m.Version))
	body = binary.AppendUvarint(body, m.Size)
	for _, n := range []int{m.Policy.K, m.Policy.M, m.Policy.C, m.Policy.X} {
		if n < 0 || n > 0xff {
			return nil, Errorf(KindInvalid, "manifest of %q: policy %v out of bounds", m.Name, m.Policy)
		}
		body = append(body, byte(n))
	}
	body = append(body, byte(m.Compression), byte(m.Encryption))
	body = binary.AppendUvarint(body, uint64(m.KeyID))
	body = binary.AppendUvarint(body, uint64(m.UnitSize))
	body = binary.AppendUvarint(body, uint64(m.GCEpoch))
	body = le.AppendUint64(body, uint64(TimeToNanos(m.Created)))
	body = le.AppendUint32(body, m.Checksum)
	if m.Inline != nil {
		body = append(body, manifestInline)
		body = frame.AppendBytes(body, m.Inline)
	} else {
		body = append(body, 0)
	}
	body = binary.AppendUvarint(body, uint64(len(m.Chunks)))
	for i := range m.Chunks {
		c := &m.Chunks[i]
		if len(c.Fragments) != m.Policy.K+m.Policy.M {
			return nil, Errorf(KindInvalid, "manifest of %q: chunk %d has %d fragments under policy %v", m.Name, i, len(c.Fragments), m.Policy)
		}
		body = binary.AppendUvarint(body, uint64(c.Size))
		body = binary.AppendUvarint(body, uint64(c.Packed))
		body = binary.AppendUvarint(body, uint64(c.FragmentLen))
		body = binary.AppendUvarint(body, uint64(len(c.Units)))
		for _, u := range c.Units {
			body = binary.AppendUvarint(body, uint64(u))
		}
		for _, f := range c.Fragments {
			body = binary.AppendUvarint(body, uint64(f.OSD))
			body = binary.AppendUvarint(body, uint64(f.Version))
			body = le.AppendUint32(body, f.Digest)
		}
	}
	if len(body)+frame.HeaderSize > MaxManifestSize {
		return nil, Errorf(KindLimit, "manifest of %q takes %d bytes, at most %d are allowed: use larger chunks", m.Name, len(body), MaxManifestSize)
	}
	return frame.Append(dst, manifestMagic, manifestType, manifestVersion, 0, body), nil
}

// EncodeManifest returns the binary form of m.
func EncodeManifest(m *Manifest) ([]byte, error) { return AppendManifest(nil, m) }

// DecodeManifest decodes what AppendManifest made. The manifest shares no memory with b.
// Damage is ErrCorrupt, and a later layout ErrNewerVersion too. It does not call Validate.
func DecodeManifest(b []byte) (*Manifest, error) {
	h, body, rest, err := frame.Parse(b, manifestMagic, MaxManifestSize)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", err, ErrCorrupt)
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("manifest: %d bytes behind it: %w", len(rest), ErrCorrupt)
	}
	if h.Type != manifestType || h.Version != manifestVersion {
		return nil, fmt.Errorf("manifest: type %d version %d, known is %d version %d: %w: %w",
			h.Type, h.Version, manifestType, manifestVersion, ErrNewerVersion, ErrCorrupt)
	}
	d := frame.NewDecoder(body)
	m := decodeManifestBody(d)
	if err := d.Finish(); err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", err, ErrCorrupt)
	}
	return m, nil
}

func decodeManifestBody(d *frame.Decoder) *Manifest {
	m := &Manifest{}
	m.Name = d.String(MaxObjectName)
	copy(m.ObjectID[:], d.Take(len(m.ObjectID)))
	m.Version = uvarint32(d)
	m.Size = d.Uvarint()
	m.Policy = Policy{K: int(d.U8()), M: int(d.U8()), C: int(d.U8()), X: int(d.U8())}
	m.Compression = Compression(d.U8())
	m.Encryption = Encryption(d.U8())
	m.KeyID = uvarint32(d)
	m.UnitSize = uvarint32(d)
	m.GCEpoch = GCEpoch(d.Uvarint())
	m.Created = NanosToTime(int64(d.U64()))
	m.Checksum = d.U32()
	switch flags := d.U8(); flags {
	case 0:
	case manifestInline:
		m.Inline = append([]byte{}, d.Bytes(MaxInline)...)
	default:
		d.Fail("flags %#x", flags)
	}
	width := m.Policy.K + m.Policy.M
	if width > MaxFragments {
		d.Fail("policy %v", m.Policy)
	}
	n := d.Count(4+width*6, MaxChunks)
	if n == 0 || d.Err() != nil {
		return m
	}
	m.Chunks = make([]Chunk, n)
	fragments := make([]Fragment, n*width)
	for i := range m.Chunks {
		c := &m.Chunks[i]
		c.Size, c.Packed, c.FragmentLen = uvarint32(d), uvarint32(d), uvarint32(d)
		if units := d.Count(1, MaxManifestSize); units > 0 {
			c.Units = make([]uint32, units)
			for j := range c.Units {
				c.Units[j] = uvarint32(d)
			}
		}
		c.Fragments, fragments = fragments[:width:width], fragments[width:]
		for j := range c.Fragments {
			c.Fragments[j] = Fragment{OSD: OSDID(uvarint32(d)), Version: uvarint32(d), Digest: d.U32()}
		}
		if d.Err() != nil {
			return m
		}
	}
	return m
}

func uvarint32(d *frame.Decoder) uint32 {
	v := d.Uvarint()
	if v > 1<<32-1 {
		d.Fail("number %d over 32 bits", v)
		return 0
	}
	return uint32(v)
}

// TimeToNanos returns t as nanoseconds since 1970, 0 for the zero time.
func TimeToNanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// NanosToTime is the inverse of TimeToNanos; times are in UTC.
func NanosToTime(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}
