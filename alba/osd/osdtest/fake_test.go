package osdtest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"scoria/alba/osd"
)

func TestFakeConforms(t *testing.T) {
	Run(t, func(*testing.T) osd.API { return NewFake() })
}

func TestFakeKnobs(t *testing.T) {
	f := NewFake()
	put(t, f, "k", Fill(1, 9000))
	if !f.Corrupt([]byte("k"), 5000) {
		t.Fatal("nothing to corrupt")
	}
	if _, err := get(t, f, "k"); !errors.Is(err, osd.ErrCorrupt) {
		t.Errorf("corrupt: %v", err)
	}
	if bad, _, _, err := f.Verify(t.Context(), nil, nil); err != nil || len(bad) != 1 || bad[0].Block != 1 {
		t.Errorf("verify: %v %v", bad, err)
	}
	if !f.Lose([]byte("k")) {
		t.Error("nothing to lose")
	}
	wantMissing(t, f, "k")
	f.SetFull(true)
	if err := f.Apply(t.Context(), &osd.Batch{Puts: []osd.Put{{Key: []byte("k")}}}); !errors.Is(err, osd.ErrFull) {
		t.Errorf("full: %v", err)
	}
	if err := f.Apply(t.Context(), &osd.Batch{Deletes: [][]byte{[]byte("k")}}); err != nil {
		t.Errorf("delete when full: %v", err)
	}
	f.SetDown(true)
	if _, err := f.Info(t.Context()); !errors.Is(err, osd.ErrUnavailable) {
		t.Errorf("down: %v", err)
	}
}

func TestFakeWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		f.SetDelay(OpInfo, time.Minute)
		start := time.Now()
		if _, err := f.Info(t.Context()); err != nil || time.Since(start) != time.Minute {
			t.Errorf("delay: %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		f.SetHang(OpRead, true)
		if err := f.Read(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("hang: %v", err)
		}
		done := make(chan error)
		go func() { done <- f.Read(t.Context(), nil) }()
		synctest.Wait()
		f.SetDown(true)
		if err := <-done; !errors.Is(err, osd.ErrUnavailable) {
			t.Errorf("hang and down: %v", err)
		}
	})
}
