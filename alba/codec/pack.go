package codec

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"scoria/metadata"
)

// Overhead is the most that packing adds to a unit, in bytes: the tag of AES-GCM.
const Overhead = 16

// KeySize is the length of a namespace's key, in bytes.
const KeySize = 32

// Sealer packs and unpacks the units of ONE object. It is safe for concurrent use.
type Sealer struct {
	codec *Codec
	id    metadata.ObjectID
	comp  metadata.Compression
	aead  cipher.AEAD // nil: no encryption
}

// Sealer returns the packer of the object with the id. key is the namespace's and is
// needed for encrypted objects only.
func (c *Codec) Sealer(id metadata.ObjectID, comp metadata.Compression, enc metadata.Encryption, key []byte) (*Sealer, error) {
	s := &Sealer{codec: c, id: id, comp: comp}
	switch comp {
	case metadata.CompressNone, metadata.CompressS2, metadata.CompressZstd:
	default:
		return nil, fmt.Errorf("compression %d: %w", comp, ErrInvalid)
	}
	switch enc {
	case metadata.EncryptNone:
		return s, nil
	case metadata.EncryptAES256GCM:
	default:
		return nil, fmt.Errorf("encryption %d: %w", enc, ErrInvalid)
	}
	if len(key) != KeySize {
		return nil, fmt.Errorf("namespace key of %d bytes, %d needed: %w", len(key), KeySize, ErrInvalid)
	}
	// A key per object: object ids are random and used once, so (key, nonce) cannot repeat
	// although nonces are mere counters of chunk and unit.
	sub, err := hkdf.Key(sha256.New, key, id[:], "scoria object v1", KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive object key: %w", err)
	}
	block, err := aes.NewCipher(sub)
	if err != nil {
		return nil, fmt.Errorf("object key: %w", err)
	}
	if s.aead, err = cipher.NewGCM(block); err != nil {
		return nil, fmt.Errorf("object cipher: %w", err)
	}
	return s, nil
}

// place is the nonce (12 bytes) and the additional data of a unit: object id, chunk, unit and
// plain length, so that a unit opens only where it was sealed.
func (s *Sealer) place(chunk, unit, plain int) (nonce [12]byte, aad [28]byte) {
	binary.BigEndian.PutUint32(nonce[0:], uint32(chunk))
	binary.BigEndian.PutUint64(nonce[4:], uint64(unit))
	copy(aad[:], s.id[:])
	binary.BigEndian.PutUint32(aad[16:], uint32(chunk))
	binary.BigEndian.PutUint32(aad[20:], uint32(unit))
	binary.BigEndian.PutUint32(aad[24:], uint32(plain))
	return nonce, aad
}

// PackedBound is the most that Pack makes of size plain bytes.
func PackedBound(size, unitSize uint32) int {
	return int(size) + Units(size, unitSize)*Overhead
}

// Pack appends the packed units of a chunk to dst, which should have PackedBound of free
// capacity, and returns it with the packed length of each unit.
func (s *Sealer) Pack(dst, plain []byte, chunk int, unitSize uint32) ([]byte, []uint32, error) {
	if unitSize == 0 {
		return nil, nil, fmt.Errorf("packing without units: %w", ErrInvalid)
	}
	units := make([]uint32, 0, Units(uint32(len(plain)), unitSize))
	scratch := s.codec.bufs.Get(s2.MaxEncodedLen(int(unitSize)))
	defer scratch.Free()
	for i := 0; len(plain) > 0; i++ {
		n := min(len(plain), int(unitSize))
		body := s.compress(scratch.B, plain[:n])
		before := len(dst)
		if s.aead != nil {
			nonce, aad := s.place(chunk, i, n)
			dst = s.aead.Seal(dst, nonce[:], body, aad[:])
		} else {
			dst = append(dst, body...)
		}
		units = append(units, uint32(len(dst)-before))
		plain = plain[n:]
	}
	return dst, units, nil
}

// compress returns unit compressed into scratch, or unit itself when that is not shorter:
// a body as long as its plain bytes is not compressed, so no flag has to be stored.
func (s *Sealer) compress(scratch, unit []byte) []byte {
	var out []byte
	switch s.comp {
	case metadata.CompressS2:
		out = s2.Encode(scratch, unit)
	case metadata.CompressZstd:
		out = s.codec.zenc.EncodeAll(unit, scratch[:0])
	default:
		return unit
	}
	if len(out) >= len(unit) {
		return unit
	}
	return out
}

// Unpack opens one packed unit into dst, whose length is the unit's plain length. packed is
// overwritten when the object is encrypted. The error is ErrDamaged.
func (s *Sealer) Unpack(dst, packed []byte, chunk, unit int) error {
	body := packed
	if s.aead != nil {
		nonce, aad := s.place(chunk, unit, len(dst))
		opened, err := s.aead.Open(packed[:0], nonce[:], packed, aad[:])
		if err != nil {
			return fmt.Errorf("object %v, chunk %d, unit %d: %w: %w", s.id, chunk, unit, ErrDamaged, err)
		}
		body = opened
	}
	if len(body) == len(dst) {
		copy(dst, body)
		return nil
	}
	if len(body) > len(dst) {
		return fmt.Errorf("object %v, chunk %d, unit %d: %d packed bytes for %d plain ones: %w", s.id, chunk, unit, len(body), len(dst), ErrDamaged)
	}
	var out []byte
	var err error
	switch s.comp {
	case metadata.CompressS2:
		var n int
		if n, err = s2.DecodedLen(body); err == nil && n != len(dst) {
			err = fmt.Errorf("%d bytes", n)
		}
		if err == nil {
			out, err = s2.Decode(dst, body)
		}
	case metadata.CompressZstd:
		out, err = s.codec.zdec.DecodeAll(body, dst[:0:len(dst)])
	default:
		err = fmt.Errorf("%d bytes, not compressed", len(body))
	}
	if err == nil && len(out) != len(dst) {
		err = fmt.Errorf("%d bytes", len(out))
	}
	if err != nil {
		return fmt.Errorf("object %v, chunk %d, unit %d of %d plain bytes: %w: %w", s.id, chunk, unit, len(dst), ErrDamaged, err)
	}
	if len(out) > 0 && &out[0] != &dst[0] {
		copy(dst, out)
	}
	return nil
}

// newZstd returns the shared zstd coder pair; both are safe for concurrent use.
func newZstd() (*zstd.Encoder, *zstd.Decoder, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(UnitCompressed), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return nil, nil, fmt.Errorf("zstd encoder: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(MaxChunk))
	if err != nil {
		return nil, nil, fmt.Errorf("zstd decoder: %w", err)
	}
	return enc, dec, nil
}
