package metadata

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of names, in bytes, and of sizes.
const (
	MaxName       = 128 // of volumes, namespaces, presets, hosts
	MaxObjectName = 1024
	MaxVolumeSize = 64 << 40 // 64 TiB
	VolumeAlign   = 4096     // volume sizes are multiples of it

	MinChunkSize   = 64 << 10
	MaxChunkSize   = 64 << 20
	MaxInlineLimit = 64 << 10
	MaxPolicies    = 16
	fragmentAlign  = 4096
)

// checkName checks length, encoding and control characters.
func checkName(what, name string, limit int) error {
	switch {
	case name == "":
		return Errorf(KindInvalid, "%s name is empty: give 1 to %d bytes", what, limit)
	case len(name) > limit:
		return Errorf(KindInvalid, "%s name of %d bytes is too long: at most %d are allowed", what, len(name), limit)
	case !utf8.ValidString(name):
		return Errorf(KindInvalid, "%s name %q is not valid UTF-8", what, name)
	}
	for _, r := range name {
		if unicode.IsControl(r) {
			return Errorf(KindInvalid, "%s name %q has a control character (%U)", what, name, r)
		}
	}
	return nil
}

// ValidateVolumeName checks the name of a volume: 1..128 bytes of UTF-8 without control
// characters, '@' (which separates a snapshot's name) and '/', not "." or "..", without
// spaces at its ends and not beginning with '-' (which reads as a flag).
func ValidateVolumeName(name string) error {
	if err := checkName("volume", name, MaxName); err != nil {
		return err
	}
	if i := strings.IndexAny(name, "@/"); i >= 0 {
		return Errorf(KindInvalid, "volume name %q has a %q: '@' separates snapshot names, '/' is kept for paths", name, name[i])
	}
	switch {
	case name == "." || name == "..":
		return Errorf(KindInvalid, "volume name %q is not allowed", name)
	case strings.TrimSpace(name) != name:
		return Errorf(KindInvalid, "volume name %q begins or ends with a space", name)
	case name[0] == '-':
		return Errorf(KindInvalid, "volume name %q begins with '-', which reads as a flag", name)
	}
	return nil
}

// ValidateName checks the name of anything but volumes and objects (what says of which, for
// the message): 1..128 bytes of UTF-8 without control characters.
func ValidateName(what, name string) error { return checkName(what, name, MaxName) }

// ValidateObjectName checks the name of an object: 1..1024 bytes of UTF-8 without control characters.
func ValidateObjectName(name string) error { return checkName("object", name, MaxObjectName) }

// ValidateVolumeSize checks that a size is a multiple of 4 KiB within 4 KiB..64 TiB.
func ValidateVolumeSize(size uint64) error {
	switch {
	case size == 0 || size%VolumeAlign != 0:
		return Errorf(KindInvalid, "volume size %d is not a multiple of %d bytes above 0", size, VolumeAlign)
	case size > MaxVolumeSize:
		return Errorf(KindInvalid, "volume size %d is over the limit of 64 TiB", size)
	}
	return nil
}

// Validate checks all but Version and Default of a preset.
func (p *Preset) Validate() error {
	if err := checkName("preset", p.Name, MaxName); err != nil {
		return err
	}
	if len(p.Policies) == 0 || len(p.Policies) > MaxPolicies {
		return Errorf(KindInvalid, "preset %q has %d policies: give 1 to %d", p.Name, len(p.Policies), MaxPolicies)
	}
	for _, q := range p.Policies {
		if err := q.Validate(); err != nil {
			return Errorf(KindInvalid, "preset %q: %v", p.Name, err)
		}
	}
	switch {
	case p.ChunkSize < MinChunkSize || p.ChunkSize > MaxChunkSize || p.ChunkSize%fragmentAlign != 0:
		return Errorf(KindInvalid, "preset %q: chunk size %d is not a multiple of 4 KiB within 64 KiB..64 MiB", p.Name, p.ChunkSize)
	case p.InlineLimit > MaxInlineLimit:
		return Errorf(KindInvalid, "preset %q: inline limit %d is over 64 KiB", p.Name, p.InlineLimit)
	case !p.Compression.valid():
		return Errorf(KindInvalid, "preset %q: unknown compression %d", p.Name, p.Compression)
	case !p.Encryption.valid():
		return Errorf(KindInvalid, "preset %q: unknown encryption %d", p.Name, p.Encryption)
	}
	return nil
}

func (c Compression) valid() bool { return c >= CompressNone && c <= CompressZstd }
func (e Encryption) valid() bool  { return e == EncryptNone || e == EncryptAES256GCM }

// Validate checks that a manifest makes sense in itself: names, sizes that add up, a
// fragment for each place of the policy, no two fragments of a chunk on one OSD.
func (m *Manifest) Validate() error {
	if err := ValidateObjectName(m.Name); err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return Errorf(KindInvalid, "object %q: "+format, append([]any{m.Name}, args...)...)
	}
	switch {
	case m.ObjectID == ObjectID{}:
		return bad("no object id")
	case !m.Compression.valid():
		return bad("unknown compression %d", m.Compression)
	case !m.Encryption.valid():
		return bad("unknown encryption %d", m.Encryption)
	}
	if m.Inline != nil {
		plain := m.Compression == CompressNone && m.Encryption == EncryptNone
		switch {
		case len(m.Chunks) != 0:
			return bad("has both inline data and chunks")
		case len(m.Inline) > MaxInline || m.Size > MaxInlineLimit:
			return bad("inline data of %d bytes (%d stored) is over 64 KiB", m.Size, len(m.Inline))
		case plain && uint64(len(m.Inline)) != m.Size:
			return bad("%d bytes inline, size says %d", len(m.Inline), m.Size)
		}
		return nil
	}
	if err := m.Policy.Validate(); err != nil {
		return bad("%v", err)
	}
	if len(m.Chunks) == 0 || len(m.Chunks) > MaxChunks {
		return bad("%d chunks: 1 to %d are allowed, or inline data", len(m.Chunks), MaxChunks)
	}
	var size uint64
	for i := range m.Chunks {
		if err := m.Chunks[i].validate(m); err != nil {
			return bad("chunk %d: %v", i, err)
		}
		size += uint64(m.Chunks[i].Size)
	}
	if size != m.Size {
		return bad("chunks hold %d bytes, size says %d", size, m.Size)
	}
	return nil
}

func (c *Chunk) validate(m *Manifest) error {
	switch {
	case c.Size == 0 || c.Size > MaxChunkSize:
		return Errorf(KindInvalid, "size %d is not within 1..64 MiB", c.Size)
	case c.FragmentLen == 0 || c.FragmentLen%fragmentAlign != 0 || c.FragmentLen > 2*MaxChunkSize:
		return Errorf(KindInvalid, "fragment length %d is not a multiple of %d", c.FragmentLen, fragmentAlign)
	case uint64(c.Packed) > uint64(m.Policy.K)*uint64(c.FragmentLen):
		return Errorf(KindInvalid, "%d packed bytes do not fit into %d fragments of %d", c.Packed, m.Policy.K, c.FragmentLen)
	case len(c.Fragments) != m.Policy.K+m.Policy.M:
		return Errorf(KindInvalid, "%d fragments under policy %v", len(c.Fragments), m.Policy)
	}
	if err := c.validateUnits(m.UnitSize); err != nil {
		return err
	}
	for i, f := range c.Fragments {
		if f.OSD == 0 {
			continue
		}
		if f.Version > m.Version {
			return Errorf(KindInvalid, "fragment %d has version %d, the manifest %d", i, f.Version, m.Version)
		}
		for j := range i {
			if c.Fragments[j].OSD == f.OSD {
				return Errorf(KindInvalid, "fragments %d and %d are both on OSD %d", j, i, f.OSD)
			}
		}
	}
	return nil
}

func (c *Chunk) validateUnits(unitSize uint32) error {
	if unitSize == 0 {
		if c.Packed != c.Size || c.Units != nil {
			return Errorf(KindInvalid, "%d packed bytes in %d units for %d plain bytes, without a unit size", c.Packed, len(c.Units), c.Size)
		}
		return nil
	}
	if want := (uint64(c.Size) + uint64(unitSize) - 1) / uint64(unitSize); uint64(len(c.Units)) != want {
		return Errorf(KindInvalid, "%d units, %d expected", len(c.Units), want)
	}
	var sum uint64
	for _, u := range c.Units {
		sum += uint64(u)
	}
	if sum != uint64(c.Packed) {
		return Errorf(KindInvalid, "units hold %d bytes, packed says %d", sum, c.Packed)
	}
	return nil
}

// Placed returns how many fragments of the chunk are stored.
func (c *Chunk) Placed() int {
	n := 0
	for i := range c.Fragments {
		if c.Fragments[i].OSD != 0 {
			n++
		}
	}
	return n
}

// Placed returns how many fragments are stored at the worst chunk; 0 for inline objects.
func (m *Manifest) Placed() int {
	least := 0
	for i := range m.Chunks {
		if n := m.Chunks[i].Placed(); i == 0 || n < least {
			least = n
		}
	}
	return least
}

// StoredBytes is what the object takes: its inline data and all fragments that are stored.
func (m *Manifest) StoredBytes() uint64 {
	sum := uint64(len(m.Inline))
	for i := range m.Chunks {
		sum += uint64(m.Chunks[i].Placed()) * uint64(m.Chunks[i].FragmentLen)
	}
	return sum
}

// Info describes the object for listings.
func (m *Manifest) Info() ObjectInfo {
	info := ObjectInfo{
		Name: m.Name, ObjectID: m.ObjectID, Size: m.Size, Created: m.Created, Version: m.Version,
		Inline: m.Inline != nil, Policy: m.Policy,
	}
	if !info.Inline {
		info.Missing = m.Policy.K + m.Policy.M - m.Placed()
	}
	return info
}
