package volumedriver

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestRangeLockGivesUp: who waits behind a write that waits for room can be called off, and
// then stands in nobody's way.
func TestRangeLockGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l rangeLocks
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.lock(ctx, 1<<3|1<<4, 0); err != nil {
			t.Fatal(err)
		}
		if err := l.lock(ctx, 1<<2, 1<<3); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got the lock: %v", err)
		}
		if !l.tryShared(1<<2 | 1<<3) {
			t.Fatal("the one that gave up still holds or wants something")
		}
		l.unlock(1<<2 | 1<<3)
		l.unlock(1<<3 | 1<<4)
		if err := l.lock(t.Context(), 0, 1<<2|1<<3|1<<4); err != nil {
			t.Fatal(err)
		}
	})
}

// TestRangeLockExcludes: alone means alone, and all waiters get their turn.
func TestRangeLockExcludes(t *testing.T) {
	var l rangeLocks
	var shared, alone atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		r := rand.New(rand.NewPCG(1, uint64(i)))
		wg.Go(func() {
			for range 2000 {
				if r.IntN(3) > 0 {
					if err := l.lock(t.Context(), 1<<5|1<<6, 0); err != nil {
						t.Error(err)
						return
					}
					shared.Add(1)
					if alone.Load() != 0 {
						t.Error("shared beside one that is alone")
					}
					shared.Add(-1)
					l.unlock(1<<5 | 1<<6)
					continue
				}
				if err := l.lock(t.Context(), 1<<5, 1<<6); err != nil {
					t.Error(err)
					return
				}
				if alone.Add(1) != 1 || shared.Load() != 0 {
					t.Error("not alone")
				}
				alone.Add(-1)
				l.unlock(1<<5 | 1<<6)
			}
		})
	}
	wg.Wait()
	if s := &l.stripes[6]; s.holders != 0 || s.alone != 0 || s.changed != nil {
		t.Errorf("left: %d holders, %d who want it alone", s.holders, s.alone)
	}
}
