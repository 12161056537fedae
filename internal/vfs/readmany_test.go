package vfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
)

// TestFinishShortRead: what the kernel read in part only is read to its end, or to the file's.
func TestFinishShortRead(t *testing.T) {
	f, err := NewMem(MemOptions{}).OpenFile("/f", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789"), 10)
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int]error{100: nil, 150: io.EOF} {
		r := ReadReq{File: f, Buf: make([]byte, size), N: 40}
		copy(r.Buf, data[:40])
		r.finish()
		if r.N != 100 || !bytes.Equal(r.Buf[:r.N], data) || !errors.Is(r.Err, want) {
			t.Errorf("%d bytes of %d, %v; want 100, %v", r.N, size, r.Err, want)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
