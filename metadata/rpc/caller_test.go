package rpc

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"scoria/metadata"
	"scoria/metadata/fsm"
)

func TestErrorsSurviveTheWire(t *testing.T) {
	for kind := range kindCodes {
		leader, err := fromStatus(toStatus(fmt.Errorf("outer: %w", metadata.Errorf(kind, "inner %d", kind)), "host:1"))
		if metadata.KindOf(err) != kind || err.Error() != fmt.Sprintf("outer: inner %d", kind) || leader != "host:1" {
			t.Errorf("kind %d became %v (leader %q)", kind, err, leader)
		}
	}
	if _, err := fromStatus(toStatus(context.Canceled, "")); !errors.Is(err, metadata.ErrUnavailable) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := fromStatus(status.Error(codes.Unimplemented, "no such method")); !errors.Is(err, metadata.ErrInvalid) {
		t.Errorf("unimplemented: %v", err)
	}
}

// TestRequestWindow takes numbers until the window is full, and gives them back out of order.
func TestRequestWindow(t *testing.T) {
	c, err := NewCaller(Options{Addrs: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for want := uint64(1); want <= fsm.WindowSize; want++ {
		if got, err := c.take(t.Context()); err != nil || got != want {
			t.Fatalf("took %d, %v; want %d", got, err, want)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	c.done(5) // not the oldest: the window stays where it is
	if _, err := c.take(gone); !errors.Is(err, metadata.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Fatalf("took one over the window: %v", err)
	}
	got := make(chan uint64)
	go func() {
		seq, _ := c.take(context.Background())
		got <- seq
	}()
	c.done(1)
	if seq := <-got; seq != fsm.WindowSize+1 {
		t.Fatalf("took %d", seq)
	}
	for _, seq := range []uint64{4, 3, 2} {
		c.done(seq)
	}
	for want := uint64(fsm.WindowSize + 2); want <= fsm.WindowSize+5; want++ { // 1..5 are done
		if got, err := c.take(t.Context()); err != nil || got != want {
			t.Fatalf("took %d, %v; want %d", got, err, want)
		}
	}
}

func TestCallerNeedsAddresses(t *testing.T) {
	if _, err := NewCaller(Options{}); !errors.Is(err, metadata.ErrInvalid) {
		t.Fatal(err)
	}
}
