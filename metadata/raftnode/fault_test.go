package raftnode

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"scoria/metadata"
	"scoria/metadata/fsm"
)

// TestFullDiskUnderTheState lets commits of the state fail for a while: commands wait, the
// node says why, and goes on by itself when there is space.
func TestFullDiskUnderTheState(t *testing.T) {
	n := open(t, soloOptions(t.TempDir()))
	put(t, n, "a", "1")
	var full atomic.Bool
	full.Store(true)
	met := make(chan struct{}, 100)
	n.store.fault = func() error {
		if !full.Load() {
			return nil
		}
		met <- struct{}{}
		return syscall.ENOSPC
	}
	done := make(chan error, 1)
	go func() {
		_, err := n.Apply(context.Background(), command(t, 1, fsm.RequestID{}, "b", "2"))
		done <- err
	}()
	<-met
	<-met // tried again: the first failure is noted by now
	if s := n.Stats(); s.Problem == "" || s.Stalls == 0 {
		t.Fatalf("the stall is not shown: %+v", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := n.Apply(ctx, command(t, 1, fsm.RequestID{}, "c", "3")); !errors.Is(err, metadata.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a command that cannot wait: %v", err)
	}
	full.Store(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if a, b := get(t, n, "a"), get(t, n, "b"); a != "1" || b != "2" {
		t.Fatalf("a=%q b=%q", a, b)
	}
	if s := n.Stats(); s.Problem != "" {
		t.Fatalf("the stall is over, but shown: %+v", s)
	}
}

// TestCloseDuringStall closes a node whose state cannot be written: it does not hang, and
// nothing that was logged is lost.
func TestCloseDuringStall(t *testing.T) {
	dir := t.TempDir()
	n := open(t, soloOptions(dir))
	// The entries of the election are behind us after this: what meets the fault is logged.
	if _, err := n.Apply(t.Context(), command(t, 1, fsm.RequestID{}, "a", "1")); err != nil {
		t.Fatal(err)
	}
	met := make(chan struct{}, 100)
	n.store.fault = func() error { met <- struct{}{}; return syscall.ENOSPC }
	done := make(chan error, 1)
	go func() {
		_, err := n.Apply(context.Background(), command(t, 1, fsm.RequestID{}, "b", "2"))
		done <- err
	}()
	<-met
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, metadata.ErrUnavailable) && !errors.Is(err, metadata.ErrInternal) {
		t.Fatalf("the command under way: %v", err)
	}
	n = open(t, soloOptions(dir))
	if b := get(t, n, "b"); b != "2" {
		t.Fatalf("a logged command is lost: b=%q", b)
	}
}
