// Command crash kills a Scoria server with SIGKILL under write load, again and again,
// and checks that every acknowledged write is still there (contract C1). With -wipe it
// also removes the write buffer while the server is down, and checks that the volume is
// a prefix of its writes (contract C3). With -lose or -flip it harms disk servers instead.
//
// Every sector is stamped with its place and the number of its write, so a lost, torn,
// misplaced or resurrected write is told from a good one. -server nbdkit-memory shows
// that the check bites: it must fail.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"scoria/scripts/e2e/internal/e2e"
	"scoria/scripts/e2e/internal/history"
)

type options struct {
	rounds, connections, depth int
	seed                       uint64
	span                       int // bytes of the volume that are written
	load                       time.Duration
	wipe                       string
	lose, flip                 int
	server                     *e2e.Server
	keep                       bool
}

func main() {
	o := options{server: new(e2e.Server)}
	flag.IntVar(&o.rounds, "rounds", 20, "kills")
	flag.IntVar(&o.connections, "connections", 2, "NBD connections")
	flag.IntVar(&o.depth, "depth", 8, "writes in flight per connection; with one connection and depth 1 the prefix is exact")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64(), "of all random choices")
	flag.IntVar(&o.span, "span", 32<<20, "bytes of the volume to write on")
	flag.DurationVar(&o.load, "load", 1500*time.Millisecond, "longest load before a kill")
	flag.StringVar(&o.wipe, "wipe", "", "directory below the data directory to remove after each kill (gateway: the write buffer); implies one connection with depth 1")
	flag.IntVar(&o.lose, "lose", 0, "no kills: write, drain, then remove that many disk servers' directories and read back")
	flag.IntVar(&o.flip, "flip", 0, "no kills: write, drain, then flip that many bytes in the files of two disk servers and read back")
	flag.StringVar(&o.server.Kind, "server", "scoria", "scoria, nbdkit or nbdkit-memory")
	flag.StringVar(&o.server.Binary, "bin", "bin/scoria", "binary of scoria")
	flag.BoolVar(&o.keep, "keep", false, "keep the working directory")
	flag.Parse()
	if o.wipe != "" {
		o.connections, o.depth = 1, 1
	}
	o.server.Size, o.server.Volume = "256MiB", "crash"
	fmt.Printf("crash: seed %d\n", o.seed)
	if err := run(o); err != nil {
		fmt.Fprintf(os.Stderr, "crash: FAILED: %v (again: -seed %d)\n", err, o.seed)
		os.Exit(1)
	}
}

func run(o options) (err error) {
	dir, err := os.MkdirTemp("", "scoria-crash-")
	if err != nil {
		return err
	}
	o.server.Dir = dir
	defer func() {
		if e := o.server.Kill(); err == nil {
			err = e
		}
		if err != nil || o.keep {
			fmt.Fprintln(os.Stderr, "crash: data and log are kept in", dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	r := rand.New(rand.NewPCG(o.seed, 1))
	h := history.New(o.seed, o.span/history.Sector)
	if err := o.server.Start(context.Background()); err != nil {
		return err
	}
	if o.lose > 0 || o.flip > 0 {
		return damage(o, h, r)
	}
	return kills(o, h, r)
}

// kills is the loop of load, kill, restart and check.
func kills(o options, h *history.History, r *rand.Rand) error {
	begin, restarts, slowest := time.Now(), time.Duration(0), time.Duration(0)
	for round := 1; round <= o.rounds; round++ {
		before := h.Count()
		if err := loadAndKill(o, h, r); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if o.wipe != "" {
			if err := os.RemoveAll(filepath.Join(o.server.Dir, "data", o.wipe)); err != nil {
				return err
			}
		}
		at := time.Now()
		if err := o.server.Start(context.Background()); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		took := time.Since(at)
		restarts, slowest = restarts+took, max(slowest, took)
		newest, err := verify(o, h)
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		fmt.Printf("crash: round %2d: %6d writes acknowledged, %6d sent so far, newest visible has time %6d, ready again in %v\n",
			round, h.Count().Acknowledged-before.Acknowledged, h.Count().Sent, newest, took.Round(time.Millisecond))
	}
	promise := "none lost"
	if o.wipe != "" {
		promise = "always a prefix without " + o.wipe
	}
	fmt.Printf("crash: %d kills, %d acknowledged writes, %s; restart %v on average, %v at most; %v\n", o.rounds, h.Count().Acknowledged, promise,
		(restarts / time.Duration(o.rounds)).Round(time.Millisecond), slowest.Round(time.Millisecond), time.Since(begin).Round(time.Second))
	return nil
}

// loadAndKill writes for a random time and kills the server meanwhile.
func loadAndKill(o options, h *history.History, r *rand.Rand) error {
	var clients []*e2e.Client
	defer func() {
		for _, c := range clients {
			_ = c.Close() // its server is dead
		}
	}()
	for range o.connections {
		c, err := e2e.Dial("tcp", o.server.NBD, o.server.Volume)
		if err != nil {
			return err
		}
		clients = append(clients, c)
	}
	var killed atomic.Bool
	var wg sync.WaitGroup
	errs := make(chan error, o.connections*o.depth)
	for _, c := range clients {
		for range o.depth {
			seed := r.Uint64()
			wg.Go(func() {
				if err := writer(c, h, rand.New(rand.NewPCG(seed, 2))); !killed.Load() {
					errs <- fmt.Errorf("a write failed although the server was not killed: %w", err)
				}
			})
		}
	}
	err := untilKill(r, o.load, errs)
	if err == nil && o.wipe != "" { // what is drained now must survive the loss of the write buffer; what follows may
		b := h.Before(history.Drained)
		if err = o.server.Command("volume", "drain", o.server.Volume, "--wait"); err == nil {
			h.Done(b)
			err = untilKill(r, o.load, errs)
		}
	}
	killed.Store(true)
	err = errors.Join(err, o.server.Kill())
	wg.Wait()
	return err
}

// untilKill waits for a random time, or for the first error.
func untilKill(r *rand.Rand, longest time.Duration, errs <-chan error) error {
	timer := time.NewTimer(time.Duration(r.Int64N(int64(longest)) + int64(50*time.Millisecond)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case err := <-errs:
		return err
	}
}

// writer writes until the connection dies.
func writer(c *e2e.Client, h *history.History, r *rand.Rand) error {
	for {
		if r.IntN(50) == 0 {
			b := h.Before(history.Flushed)
			if err := c.Flush(); err != nil {
				return err
			}
			h.Done(b)
		}
		w, ok := h.BeginRandom(r)
		if !ok {
			return errors.New("no place is free for one more write")
		}
		if err := c.WriteAt(w.Data, w.Offset()); err != nil {
			return err
		}
		h.End(w)
	}
}

func verify(o options, h *history.History) (newest uint64, err error) {
	c, err := e2e.Dial("tcp", o.server.NBD, o.server.Volume)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	volume := make([]byte, o.span)
	const step = 1 << 20
	for at := 0; at < o.span; at += step {
		if err := c.ReadAt(volume[at:min(at+step, o.span)], uint64(at)); err != nil {
			return 0, fmt.Errorf("read back at %d: %w", at, err)
		}
	}
	promise := history.Acknowledged
	if o.wipe != "" {
		promise = history.Drained
	}
	return h.Check(volume, promise)
}
