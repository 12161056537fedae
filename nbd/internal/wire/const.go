// Package wire holds the NBD protocol as bytes: numbers, sizes, limits, and functions
// that parse what a client sends and append what a server answers. It is pure: no I/O, no
// clock, no state. Everything on the wire is big-endian.
//
// Numbers that go-nbd's protocol package has are taken from there; it lacks most of the
// modern protocol (structured replies, FLUSH and everything after it), so the rest is
// written out here. No number is an iota: each one is fixed by the protocol.
package wire

import "github.com/pojntfx/go-nbd/pkg/protocol"

// Magic numbers.
const (
	MagicInit        = protocol.NEGOTIATION_MAGIC_OLDSTYLE // "NBDMAGIC"
	MagicOption      = protocol.NEGOTIATION_MAGIC_OPTION   // "IHAVEOPT"
	MagicOptionReply = protocol.NEGOTIATION_MAGIC_REPLY
	MagicRequest     = protocol.TRANSMISSION_MAGIC_REQUEST
	MagicSimpleReply = protocol.TRANSMISSION_MAGIC_REPLY
	MagicChunk       = uint32(0x668e33ef)
	MagicExtRequest  = uint32(0x21e41c71)
	MagicExtReply    = uint32(0x6e8a278c)
)

// Handshake flags: the server's are 16 bits wide, the client's 32.
const (
	HandshakeFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	HandshakeNoZeroes      = uint16(1 << 1)
	ClientFixedNewstyle    = uint32(1 << 0)
	ClientNoZeroes         = uint32(1 << 1)
)

// Options a client may send.
const (
	OptExportName      = uint32(1)
	OptAbort           = protocol.NEGOTIATION_ID_OPTION_ABORT
	OptList            = protocol.NEGOTIATION_ID_OPTION_LIST
	OptPeekExport      = uint32(4) // withdrawn
	OptStartTLS        = uint32(5)
	OptInfo            = protocol.NEGOTIATION_ID_OPTION_INFO
	OptGo              = protocol.NEGOTIATION_ID_OPTION_GO
	OptStructuredReply = uint32(8)
	OptListMetaContext = uint32(9)
	OptSetMetaContext  = uint32(10)
	OptExtendedHeaders = uint32(11)
)

// Types of option replies. Those with bit 31 are errors.
const (
	RepAck              = protocol.NEGOTIATION_TYPE_REPLY_ACK
	RepServer           = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	RepInfo             = protocol.NEGOTIATION_TYPE_REPLY_INFO
	RepMetaContext      = uint32(4)
	RepErrUnsup         = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	RepErrPolicy        = uint32(1<<31 | 2)
	RepErrInvalid       = uint32(1<<31 | 3)
	RepErrPlatform      = uint32(1<<31 | 4)
	RepErrTLSRequired   = uint32(1<<31 | 5)
	RepErrUnknown       = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	RepErrShutdown      = uint32(1<<31 | 7)
	RepErrBlockSizeReqd = uint32(1<<31 | 8)
	RepErrTooBig        = uint32(1<<31 | 9)
	RepErrExtHeaderReqd = uint32(1<<31 | 10)
	RepErrBit           = uint32(1 << 31)
)

// Types of information in INFO and GO.
const (
	InfoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	InfoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	InfoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	InfoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags of an export.
const (
	FlagHasFlags        = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	FlagReadOnly        = uint16(1 << 1)
	FlagSendFlush       = uint16(1 << 2)
	FlagSendFUA         = uint16(1 << 3)
	FlagRotational      = uint16(1 << 4)
	FlagSendTrim        = uint16(1 << 5)
	FlagSendWriteZeroes = uint16(1 << 6)
	FlagSendDF          = uint16(1 << 7)
	FlagCanMultiConn    = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	FlagSendResize      = uint16(1 << 9) // a withdrawn extension, never sent
	FlagSendCache       = uint16(1 << 10)
	FlagSendFastZero    = uint16(1 << 11)
	FlagStatusPayload   = uint16(1 << 12) // BLOCK_STATUS may carry the ids of the contexts it asks about
)

// Commands.
const (
	CmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	CmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	CmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	CmdFlush       = uint16(3)
	CmdTrim        = uint16(4)
	CmdCache       = uint16(5)
	CmdWriteZeroes = uint16(6)
	CmdBlockStatus = uint16(7)
	// CmdCount is the number of commands known here; valid types are below it.
	CmdCount = 8
)

// Command flags.
const (
	CmdFlagFUA      = uint16(1 << 0)
	CmdFlagNoHole   = uint16(1 << 1)
	CmdFlagDF       = uint16(1 << 2)
	CmdFlagReqOne   = uint16(1 << 3)
	CmdFlagFastZero = uint16(1 << 4)
	// CmdFlagPayloadLen (extended headers only): the length is that of a payload.
	CmdFlagPayloadLen = uint16(1 << 5)
)

// Chunk types and flags of structured and extended replies.
const (
	ChunkFlagDone    = uint16(1 << 0)
	ChunkNone        = uint16(0)
	ChunkOffsetData  = uint16(1)
	ChunkOffsetHole  = uint16(2)
	ChunkBlockStatus = uint16(5)
	ChunkStatusExt   = uint16(6) // BLOCK_STATUS with 64-bit extents
	ChunkError       = uint16(1<<15 | 1)
	ChunkErrorOffset = uint16(1<<15 | 2)
)

// Errno is an error number of the protocol; 0 is success. Only these may be sent.
type Errno uint32

// The errors of the protocol.
const (
	OK        = Errno(0)
	EPERM     = Errno(protocol.TRANSMISSION_ERROR_EPERM)
	EIO       = Errno(5)
	ENOMEM    = Errno(12)
	EINVAL    = Errno(protocol.TRANSMISSION_ERROR_EINVAL)
	ENOSPC    = Errno(28)
	EOVERFLOW = Errno(75)
	ENOTSUP   = Errno(95)
	ESHUTDOWN = Errno(108)
)

// String names the error as the protocol does.
func (e Errno) String() string {
	switch e {
	case OK:
		return "OK"
	case EPERM:
		return "EPERM"
	case EIO:
		return "EIO"
	case ENOMEM:
		return "ENOMEM"
	case EINVAL:
		return "EINVAL"
	case ENOSPC:
		return "ENOSPC"
	case EOVERFLOW:
		return "EOVERFLOW"
	case ENOTSUP:
		return "ENOTSUP"
	case ESHUTDOWN:
		return "ESHUTDOWN"
	}
	return "unknown error"
}

// Block-status flags of the context "base:allocation".
const (
	// ContextBaseAllocation is the name of the context every export has.
	ContextBaseAllocation = "base:allocation"
	StateHole             = uint32(1 << 0)
	StateZero             = uint32(1 << 1)
)

// Sizes and limits, in bytes unless they say otherwise.
const (
	GreetingSize     = 18
	OptionHeaderSize = 16
	OptionReplySize  = 20 // header of an option reply
	RequestSize      = 28
	SimpleReplySize  = 16
	ChunkHeaderSize  = 20
	// DataChunkSize is what stands before the data of an OFFSET_DATA chunk.
	DataChunkSize = ChunkHeaderSize + 8
	// With extended headers, requests and chunks have headers of the same size.
	ExtRequestSize     = 32
	ExtChunkHeaderSize = 32
	ExtDataChunkSize   = ExtChunkHeaderSize + 8
	// MaxString is the longest name, description, query or message of the protocol.
	MaxString = 4096
	// MaxOptionPayload bounds what is read into memory for one option; two strings and a
	// good number of queries fit.
	MaxOptionPayload = 64 << 10
	// MaxQueries bounds the queries of one LIST or SET_META_CONTEXT.
	MaxQueries = 256
	// MaxExtents bounds the descriptors of one BLOCK_STATUS chunk (the protocol asks for at
	// most 2^20; a shorter answer is always legal, the client asks on).
	MaxExtents = 8 << 10
	// MaxExtExtents is MaxExtents of a chunk with 64-bit extents, which are twice as large.
	MaxExtExtents = MaxExtents / 2
	// MaxStatusChunk bounds a BLOCK_STATUS chunk in either form.
	MaxStatusChunk = ExtChunkHeaderSize + 8 + 16*MaxExtExtents
	// ExportNamePadding follows the EXPORT_NAME reply unless NO_ZEROES was agreed.
	ExportNamePadding = 124
)
