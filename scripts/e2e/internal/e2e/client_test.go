package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// serve runs script as the server of one connection and returns its address.
func serve(t *testing.T, script func(conn net.Conn) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if err := errors.Join(script(conn), conn.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

// greet does the handshake: it reads the GO and answers with replies.
func greet(conn net.Conn, export string, replies ...[]byte) error {
	hello := binary.BigEndian.AppendUint64(nil, initMagic)
	hello = binary.BigEndian.AppendUint64(hello, optionMagic)
	if _, err := conn.Write(append(hello, 0, 3)); err != nil {
		return err
	}
	b := make([]byte, 4+16+4+len(export)+2)
	if _, err := io.ReadFull(conn, b); err != nil {
		return err
	}
	if !bytes.Contains(b, []byte(export)) {
		return errors.New("the export's name did not arrive")
	}
	_, err := conn.Write(bytes.Join(replies, nil))
	return err
}

func reply(typ uint32, body []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, replyMagic)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, typ)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(body))), body...)
}

func info(size uint64) []byte {
	return reply(repInfo, binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint64([]byte{0, 0}, size), 1))
}

func answer(cookie []byte, errno uint32, data string) []byte {
	b := binary.BigEndian.AppendUint32(nil, ansMagic)
	b = binary.BigEndian.AppendUint32(b, errno)
	return append(append(b, cookie...), data...)
}

func TestAnswersOutOfOrder(t *testing.T) {
	addr := serve(t, func(conn net.Conn) error {
		if err := greet(conn, "vol", info(1<<20), reply(repAck, nil)); err != nil {
			return err
		}
		var reqs [2][28]byte
		for i := range reqs {
			if _, err := io.ReadFull(conn, reqs[i][:]); err != nil {
				return err
			}
		}
		var out []byte
		for _, r := range [][28]byte{reqs[1], reqs[0]} { // the read at 0 answers "00", that at 1 an error
			if binary.BigEndian.Uint64(r[16:]) == 0 {
				out = append(out, answer(r[8:16], 0, "00")...)
			} else {
				out = append(out, answer(r[8:16], uint32(syscall.ENOSPC), "")...)
			}
		}
		_, err := conn.Write(out)
		if err == nil {
			_, err = io.Copy(io.Discard, conn)
		}
		return err
	})
	c, err := Dial("tcp", addr, "vol")
	if err != nil {
		t.Fatal(err)
	}
	if c.Size() != 1<<20 {
		t.Errorf("size %d", c.Size())
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2)
		if err := c.ReadAt(b, 0); err != nil || string(b) != "00" {
			t.Errorf("%q, %v", b, err)
		}
	})
	wg.Go(func() {
		if err := c.ReadAt(make([]byte, 2), 1); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%v", err)
		}
	})
	wg.Wait()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a closed client took a write")
	}
}

// TestDeadServer: what waits gets an error, never an answer.
func TestDeadServer(t *testing.T) {
	addr := serve(t, func(conn net.Conn) error {
		if err := greet(conn, "vol", info(1), reply(repAck, nil)); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, 29))
		return err
	})
	c, err := Dial("tcp", addr, "vol")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a write was acknowledged by nobody")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		replies []byte
		want    string
	}{
		"unknown export": {reply(1<<31|6, []byte("no such volume")), "no such volume"},
		"no size":        {reply(repAck, nil), "no size"},
		"bad magic":      {make([]byte, 20), "bad option reply"},
	} {
		addr := serve(t, func(conn net.Conn) error { return greet(conn, "vol", c.replies) })
		if _, err := Dial("tcp", addr, "vol"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
