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
	flag.IntVar(&o.depth, "depth", 8, "writes in flight per connection; one connection with depth 1 also checks for an exact prefix")
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
	h := newHistory(o.seed, o.span/sector)
	if err := o.server.Start(context.Background()); err != nil {
		return err
	}
	if o.lose > 0 || o.flip > 0 {
		return damage(o, h, r)
	}
	return kills(o, h, r)
}

// kills is the loop of load, kill, restart and check.
func kills(o options, h *history, r *rand.Rand) error {
	begin, restarts, slowest := time.Now(), time.Duration(0), time.Duration(0)
	for round := 1; round <= o.rounds; round++ {
		before := h.acks
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
		fmt.Printf("crash: round %2d: %6d writes acknowledged, %6d sent so far, newest visible %6d, ready again in %v\n",
			round, h.acks-before, h.next, newest, took.Round(time.Millisecond))
	}
	promise := "none lost"
	if o.wipe != "" {
		promise = "always a prefix without " + o.wipe
	}
	fmt.Printf("crash: %d kills, %d acknowledged writes, %s; restart %v on average, %v at most; %v\n", o.rounds, h.acks, promise,
		(restarts / time.Duration(o.rounds)).Round(time.Millisecond), slowest.Round(time.Millisecond), time.Since(begin).Round(time.Second))
	return nil
}

// loadAndKill writes for a random time and kills the server meanwhile.
func loadAndKill(o options, h *history, r *rand.Rand) error {
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
		h.mu.Lock()
		floor := h.next - min(h.next, 1) // the last may be on its way
		h.mu.Unlock()
		if err = o.server.Command("volume", "drain", o.server.Volume, "--wait"); err == nil {
			h.floor = max(h.floor, floor)
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

// writer writes until the connection dies. All writers of one sector would race for the
// order, so a write in flight blocks its sectors.
func writer(c *e2e.Client, h *history, r *rand.Rand) error {
	for i := 0; ; i++ {
		if r.IntN(50) == 0 {
			if err := c.Flush(); err != nil {
				return err
			}
		}
		n := 8 // 4 KiB
		switch r.IntN(8) {
		case 0:
			n = 1 + r.IntN(20) // unaligned
		case 1:
			n = 8 * (1 + r.IntN(32)) // up to 128 KiB
		}
		first := r.IntN(len(h.acked) - n)
		if r.IntN(2) == 0 && n%8 == 0 {
			first -= first % 8
		}
		release := claim.take(first, n)
		seq, data := h.begin(first, n)
		err := c.WriteAt(data, uint64(first)*sector)
		if err == nil {
			h.end(seq, first, n)
		}
		release()
		if err != nil {
			return err
		}
	}
}

// claim keeps writes in flight apart where they overlap.
var claim = newClaims()

type claims struct {
	mu    sync.Mutex
	freed *sync.Cond
	taken map[int]int // first sector -> sectors
}

func newClaims() *claims {
	c := &claims{taken: make(map[int]int)}
	c.freed = sync.NewCond(&c.mu)
	return c
}

func (c *claims) take(first, n int) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.overlapsLocked(first, n) {
		c.freed.Wait()
	}
	c.taken[first] = n
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.taken, first)
		c.freed.Broadcast()
	}
}

func (c *claims) overlapsLocked(first, n int) bool {
	for f, k := range c.taken {
		if first < f+k && f < first+n {
			return true
		}
	}
	return false
}

func verify(o options, h *history) (newest uint64, err error) {
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
	newest, err = h.check(volume, o.connections == 1 && o.depth == 1, o.wipe != "")
	if err == nil && newest < h.floor {
		err = fmt.Errorf("newest write visible is %d, though all up to %d had been drained", newest, h.floor)
	}
	return newest, err
}
