package osd

import (
	"encoding/binary"
	"net"
)

// SessionForTest makes of fuzzed bytes what a client sends: a hello, then messages with right
// checksums, so that the fuzzer gets behind them. Each message takes its type, the length of its tail
// and of its body from b, then the body; what is left in the end is sent as it is.
func SessionForTest(uuid string, b []byte) []byte {
	out := message(msgHello, appendHello(nil, hello{UUID: uuid}), 0)
	for len(b) >= 4 {
		typ, tail, n := b[0], int(b[1])*16, int(binary.LittleEndian.Uint16(b[2:]))%1024
		n = min(n, len(b)-4)
		out = append(out, message(typ, b[4:4+n], tail)...)
		b = b[4+n:]
	}
	return append(out, b...)
}

// SeedsForTest are inputs of SessionForTest with one message of each type.
func SeedsForTest() [][]byte {
	batch, tail := appendBatch(nil, &Batch{Puts: []Put{{Key: []byte("p"), Value: make([]byte, 4096)}}, Deletes: [][]byte{[]byte("d")}})
	n := 0
	for _, t := range tail {
		n += len(t)
	}
	bodies := [][]byte{
		batch,
		appendReads(nil, []Read{{Key: []byte("k"), Off: 4096, Buf: make([]byte, 10)}}),
		append(appendBound(appendBound(nil, []byte("a")), nil), 9, 0, 0, 0),
	}
	var seeds [][]byte
	for typ := byte(0); typ < 12; typ++ {
		for _, body := range bodies {
			tail := 0
			if typ == msgApply {
				tail = n / 16
			}
			seeds = append(seeds, append([]byte{typ, byte(tail), byte(len(body)), byte(len(body) >> 8)}, body...))
		}
	}
	return seeds
}

func message(typ uint8, body []byte, tail int) []byte {
	zeroes := make([]byte, tail)
	m := append(beginMessage(nil, 7), body...)
	endMessage(m, typ, [][]byte{zeroes})
	return append(m, zeroes...)
}

// OtherVersionForTest is a hello of another version of the protocol.
func OtherVersionForTest(uuid string) []byte {
	m := message(msgHello, appendHello(nil, hello{UUID: uuid}), 0)
	sealFrame(m, wireMagic, msgHello, 9)
	return m
}

// ServeConnForTest serves one connection of any kind.
func ServeConnForTest(s *Server, nc net.Conn) { s.start(nc) }
