package sim

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// outcome is what a run has come to.
type outcome struct {
	err     error
	virtual time.Duration
	counts  map[string]int
}

// errHung marks a run whose virtual clock stands still: somebody waits for a mutex whose
// holder waits for time to pass.
var errHung = errors.New("virtual time stands still")

// hungAfter is how long, in real time, a virtual clock may stand still.
const hungAfter = 60 * time.Second

// simulate carries out a plan in a bubble of virtual time.
func simulate(t *testing.T, p plan) (out outcome) {
	var ticks atomic.Int64
	done := make(chan struct{})
	defer close(done)
	go watch(&ticks, done, p)
	defer func() {
		if r := recover(); r != nil && out.err == nil {
			out.err = leftover(fmt.Errorf("%v", r))
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		var to io.Writer = io.Discard
		if os.Getenv(envLog) != "" {
			to = os.Stderr
		}
		w := newWorld(t, p, slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: slog.LevelDebug})))
		w.background(func() {
			for w.ctx.Err() == nil {
				ticks.Add(1)
				time.Sleep(time.Second)
			}
		})
		out.err = w.run()
		out.virtual, out.counts = time.Since(w.start), w.mu.counts
	})
	return out
}

// watch ends the test binary when virtual time stands still.
func watch(ticks *atomic.Int64, done chan struct{}, p plan) {
	const look = 2 * time.Second
	t := time.NewTicker(look)
	defer t.Stop()
	last, still := int64(-1), time.Duration(0)
	for {
		select {
		case <-done:
			return
		case <-t.C:
		}
		if now := ticks.Load(); now != last {
			last, still = now, 0
			continue
		}
		if still += look; still > hungAfter {
			buf := make([]byte, 4<<20)
			fmt.Fprintf(os.Stderr, "%s\n%v\n%s%s\n", buf[:runtime.Stack(buf, true)], errHung, p.describe(), p.replay())
			os.Exit(1)
		}
	}
}

// parked are goroutines that may be left of a dead process: alba/osd parks those of an index
// whose disk has failed, since pebble cannot be ended then.
var parked = regexp.MustCompile(`cockroachdb/pebble|scoria/alba/osd\.\(\*indexFS\)`)

// bubbled finds the bubble of a goroutine in its first line.
var bubbled = regexp.MustCompile(`^goroutine .*synctest bubble ([0-9]+)`)

// leftover is the end of a bubble in which goroutines are left: an error unless all are parked.
func leftover(cause error) error {
	buf := make([]byte, 16<<20)
	newest, left := 0, "" // earlier bubbles that failed have left all they had
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		m := bubbled.FindStringSubmatch(g)
		if m == nil {
			continue
		}
		n, err := strconv.Atoi(m[1])
		if err != nil || n < newest {
			continue
		}
		if n > newest {
			newest, left = n, ""
		}
		if !parked.MatchString(g) {
			left = g
		}
	}
	if left == "" {
		return nil
	}
	return fmt.Errorf("%w; left over:\n%s", cause, left)
}

// sleep lets virtual time pass. Everything here runs in a bubble.
func sleep(d time.Duration) { time.Sleep(d) }
