package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Errors of parsing, returned wrapped with what was found.
var (
	// ErrMagic means that the stream is out of step; the connection cannot go on.
	ErrMagic = errors.New("wrong magic")
	// ErrInvalid means that a payload contradicts itself; the stream is still in step.
	ErrInvalid = errors.New("invalid payload")
)

// OptionHeader stands before the payload of every option.
type OptionHeader struct {
	ID     uint32
	Length uint32 // bytes of payload, not yet bounded
}

// AppendGreeting appends what the server says first.
func AppendGreeting(dst []byte, flags uint16) []byte {
	dst = binary.BigEndian.AppendUint64(dst, MagicInit)
	dst = binary.BigEndian.AppendUint64(dst, MagicOption)
	return binary.BigEndian.AppendUint16(dst, flags)
}

// ParseOptionHeader reads the first OptionHeaderSize bytes of b.
func ParseOptionHeader(b []byte) (OptionHeader, error) {
	if len(b) < OptionHeaderSize {
		return OptionHeader{}, fmt.Errorf("%w: option header of %d bytes", ErrInvalid, len(b))
	}
	if m := binary.BigEndian.Uint64(b); m != MagicOption {
		return OptionHeader{}, fmt.Errorf("%w %#x of an option", ErrMagic, m)
	}
	return OptionHeader{ID: binary.BigEndian.Uint32(b[8:]), Length: binary.BigEndian.Uint32(b[12:])}, nil
}

// AppendOption appends a whole option as a client sends it.
func AppendOption(dst []byte, id uint32, payload []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, MagicOption)
	dst = binary.BigEndian.AppendUint32(dst, id)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...)
}

// AppendOptionReply appends a whole option reply.
func AppendOptionReply(dst []byte, option, typ uint32, payload []byte) []byte {
	dst = appendReplyHeader(dst, option, typ, len(payload))
	return append(dst, payload...)
}

func appendReplyHeader(dst []byte, option, typ uint32, length int) []byte {
	dst = binary.BigEndian.AppendUint64(dst, MagicOptionReply)
	dst = binary.BigEndian.AppendUint32(dst, option)
	dst = binary.BigEndian.AppendUint32(dst, typ)
	return binary.BigEndian.AppendUint32(dst, uint32(length))
}

// AppendOptionError appends an error reply with a message, cut to MaxString on a rune border.
func AppendOptionError(dst []byte, option, typ uint32, message string) []byte {
	return AppendOptionReply(dst, option, typ, []byte(Truncate(message, MaxString)))
}

// AppendServer appends a REP_SERVER, the entry of one export in a LIST.
func AppendServer(dst []byte, name, description string) []byte {
	description = Truncate(description, MaxString)
	dst = appendReplyHeader(dst, OptList, RepServer, 4+len(name)+len(description))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(name)))
	dst = append(dst, name...)
	return append(dst, description...)
}

// AppendInfoExport appends the REP_INFO that every INFO and GO needs.
func AppendInfoExport(dst []byte, option uint32, size uint64, flags uint16) []byte {
	dst = appendReplyHeader(dst, option, RepInfo, 12)
	dst = binary.BigEndian.AppendUint16(dst, InfoExport)
	dst = binary.BigEndian.AppendUint64(dst, size)
	return binary.BigEndian.AppendUint16(dst, flags)
}

// AppendInfoString appends a REP_INFO with a name or a description.
func AppendInfoString(dst []byte, option uint32, typ uint16, s string) []byte {
	s = Truncate(s, MaxString)
	dst = appendReplyHeader(dst, option, RepInfo, 2+len(s))
	dst = binary.BigEndian.AppendUint16(dst, typ)
	return append(dst, s...)
}

// AppendInfoBlockSize appends a REP_INFO with the block sizes.
func AppendInfoBlockSize(dst []byte, option uint32, minimum, preferred, maximum uint32) []byte {
	dst = appendReplyHeader(dst, option, RepInfo, 14)
	dst = binary.BigEndian.AppendUint16(dst, InfoBlockSize)
	dst = binary.BigEndian.AppendUint32(dst, minimum)
	dst = binary.BigEndian.AppendUint32(dst, preferred)
	return binary.BigEndian.AppendUint32(dst, maximum)
}

// AppendMetaContext appends a REP_META_CONTEXT.
func AppendMetaContext(dst []byte, option, id uint32, name string) []byte {
	dst = appendReplyHeader(dst, option, RepMetaContext, 4+len(name))
	dst = binary.BigEndian.AppendUint32(dst, id)
	return append(dst, name...)
}

// AppendExportName appends the answer to EXPORT_NAME; padding says whether the 124 zero
// bytes of old follow.
func AppendExportName(dst []byte, size uint64, flags uint16, padding bool) []byte {
	dst = binary.BigEndian.AppendUint64(dst, size)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	if padding {
		var zero [ExportNamePadding]byte
		dst = append(dst, zero[:]...)
	}
	return dst
}

// ExportRequest is the payload of INFO and GO.
type ExportRequest struct {
	Name  string
	Infos []uint16 // what the client asks for; unknown numbers are kept
}

// Wants reports whether the client asked for the given information.
func (r *ExportRequest) Wants(info uint16) bool {
	for _, i := range r.Infos {
		if i == info {
			return true
		}
	}
	return false
}

// ParseExportRequest parses the payload of INFO or GO; every byte must be accounted for.
func ParseExportRequest(p []byte) (ExportRequest, error) {
	name, p, err := parseString(p, "export name")
	if err != nil {
		return ExportRequest{}, err
	}
	if len(p) < 2 {
		return ExportRequest{}, fmt.Errorf("%w: no count of information requests", ErrInvalid)
	}
	n := int(binary.BigEndian.Uint16(p))
	p = p[2:]
	if len(p) != 2*n {
		return ExportRequest{}, fmt.Errorf("%w: %d information requests in %d bytes", ErrInvalid, n, len(p))
	}
	r := ExportRequest{Name: name, Infos: make([]uint16, n)}
	for i := range r.Infos {
		r.Infos[i] = binary.BigEndian.Uint16(p[2*i:])
	}
	return r, nil
}

// AppendExportRequest appends the payload of INFO or GO as a client sends it.
func AppendExportRequest(dst []byte, r ExportRequest) []byte {
	dst = appendString(dst, r.Name)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(r.Infos)))
	for _, i := range r.Infos {
		dst = binary.BigEndian.AppendUint16(dst, i)
	}
	return dst
}

// MetaRequest is the payload of LIST_META_CONTEXT and SET_META_CONTEXT.
type MetaRequest struct {
	Name    string
	Queries []string
}

// ParseMetaRequest parses the payload of LIST_ or SET_META_CONTEXT; every byte must be
// accounted for, and there are at most MaxQueries queries.
func ParseMetaRequest(p []byte) (MetaRequest, error) {
	name, p, err := parseString(p, "export name")
	if err != nil {
		return MetaRequest{}, err
	}
	if len(p) < 4 {
		return MetaRequest{}, fmt.Errorf("%w: no count of queries", ErrInvalid)
	}
	n := binary.BigEndian.Uint32(p)
	p = p[4:]
	if n > MaxQueries || uint64(n)*4 > uint64(len(p)) {
		return MetaRequest{}, fmt.Errorf("%w: %d queries in %d bytes", ErrInvalid, n, len(p))
	}
	r := MetaRequest{Name: name, Queries: make([]string, n)}
	for i := range r.Queries {
		if r.Queries[i], p, err = parseString(p, "query"); err != nil {
			return MetaRequest{}, err
		}
	}
	if len(p) != 0 {
		return MetaRequest{}, fmt.Errorf("%w: %d bytes after the last query", ErrInvalid, len(p))
	}
	return r, nil
}

// AppendMetaRequest appends the payload of LIST_ or SET_META_CONTEXT as a client sends it.
func AppendMetaRequest(dst []byte, r MetaRequest) []byte {
	dst = appendString(dst, r.Name)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(r.Queries)))
	for _, q := range r.Queries {
		dst = appendString(dst, q)
	}
	return dst
}

func appendString(dst []byte, s string) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(s)))
	return append(dst, s...)
}

func parseString(p []byte, what string) (string, []byte, error) {
	if len(p) < 4 {
		return "", nil, fmt.Errorf("%w: no length of the %s", ErrInvalid, what)
	}
	n := binary.BigEndian.Uint32(p)
	p = p[4:]
	if uint64(n) > uint64(len(p)) {
		return "", nil, fmt.Errorf("%w: %s of %d bytes in a payload of %d", ErrInvalid, what, n, len(p))
	}
	s := string(p[:n])
	if err := CheckString(s); err != nil {
		return "", nil, fmt.Errorf("%s: %w", what, err)
	}
	return s, p[n:], nil
}

// CheckString says whether s may stand as a string of the protocol.
func CheckString(s string) error {
	switch {
	case len(s) > MaxString:
		return fmt.Errorf("%w: string of %d bytes, at most %d", ErrInvalid, len(s), MaxString)
	case strings.IndexByte(s, 0) >= 0:
		return fmt.Errorf("%w: NUL in a string", ErrInvalid)
	case !utf8.ValidString(s):
		return fmt.Errorf("%w: string is not UTF-8", ErrInvalid)
	}
	return nil
}

// Truncate cuts s to at most n bytes without cutting a rune.
func Truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
