package main

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"
)

// echo serves a TCP port that says everything back.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().String()
}

func talk(c net.Conn, wait time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

func TestRelay(t *testing.T) {
	r, err := newRelay(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		c, err := net.Dial("tcp", r.addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	c := dial()
	if err := talk(c, 10*time.Second); err != nil {
		t.Fatal("through: ", err)
	}
	r.set(true, 0)
	if err := talk(c, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("silent, and something came: ", err)
	}
	r.set(false, 0)
	if err := talk(c, 10*time.Second); err != nil {
		t.Fatal("after the silence: ", err)
	}
	if n := r.cut(rand.New(rand.NewPCG(1, 1))); n == 0 {
		t.Fatal("nothing was cut")
	}
	_, err = io.Copy(io.Discard, c) // what was held back may come before the end
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection lives on")
	}
	if err := talk(dial(), 10*time.Second); err != nil {
		t.Fatal("a new connection: ", err)
	}
	r.set(true, 0)
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
}
