package osd

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"scoria/internal/frame"
	"scoria/internal/vfs"
)

const (
	identityMagic         = 0x44494f53 // "SOID"
	typeIdentity    uint8 = 1
	identityVersion uint8 = 1
	identityFile          = "identity"
	maxIdentity           = 4096
)

// identity says whose disk it is.
type identity struct {
	UUID    string
	Backend string // "" when not claimed
	ID      uint32
}

func appendIdentity(dst []byte, id identity) []byte {
	body := frame.AppendString(nil, id.UUID)
	body = frame.AppendString(body, id.Backend)
	body = binary.LittleEndian.AppendUint32(body, id.ID)
	return frame.Append(dst, identityMagic, typeIdentity, identityVersion, 0, body)
}

func parseIdentity(b []byte) (identity, error) {
	h, body, rest, err := frame.Parse(b, identityMagic, maxIdentity)
	if err != nil {
		return identity{}, err
	}
	if h.Type != typeIdentity || len(rest) != 0 {
		return identity{}, fmt.Errorf("frame of type %d with %d bytes behind it: %w", h.Type, len(rest), frame.ErrInvalid)
	}
	if h.Version != identityVersion {
		return identity{}, fmt.Errorf("version %d, this program knows %d: %w", h.Version, identityVersion, frame.ErrVersion)
	}
	d := frame.NewDecoder(body)
	id := identity{UUID: d.String(64), Backend: d.String(MaxBackend), ID: d.U32()}
	if d.Err() == nil && !validUUID(id.UUID) {
		d.Fail("uuid %q", id.UUID)
	}
	return id, d.Finish()
}

// validUUID tells whether s is a UUID in lower case.
func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case (c < '0' || c > '9') && (c < 'a' || c > 'f'):
			return false
		}
	}
	return true
}

// newUUID returns a random (version 4) UUID.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // crypto/rand does not fail
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func writeIdentity(fsys vfs.FS, dir string, id identity) error {
	if err := vfs.WriteFile(fsys, path.Join(dir, identityFile), appendIdentity(nil, id), 0o600); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

// readIdentity reads the identity of dir. fs.ErrNotExist means that dir is new: it holds nothing of ours.
func readIdentity(fsys vfs.FS, dir string) (identity, error) {
	name := path.Join(dir, identityFile)
	b, err := vfs.ReadFile(fsys, name, maxIdentity)
	if errors.Is(err, fs.ErrNotExist) {
		return identity{}, err
	}
	if errors.Is(err, vfs.ErrTooLong) {
		return identity{}, fmt.Errorf("read identity: %w: %w", err, ErrCorrupt)
	}
	if err != nil {
		return identity{}, fmt.Errorf("read identity: %w", err)
	}
	id, err := parseIdentity(b)
	if err != nil {
		return identity{}, fmt.Errorf("%s is not an OSD identity this program can use (was the directory written by something else or by a newer release?): %w", name, err)
	}
	return id, nil
}
