// Command fsx exercises a file on a mounted file system, or an NBD export, with random reads,
// writes and what else changes contents, and compares every byte that comes back with a model
// in memory. A seed determines the operations. It works like the program of that name that file
// system developers use, which is in no Debian package.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

type options struct {
	ops, files, size int
	duration         time.Duration
	seed             uint64
	nbd, export      string
	dir              string
}

func main() {
	var o options
	flag.IntVar(&o.ops, "ops", 5000, "operations per file")
	flag.IntVar(&o.files, "files", 2, "files (of an NBD export: parts) at the same time")
	flag.IntVar(&o.size, "size", 1<<20, "longest length of a file in bytes")
	flag.DurationVar(&o.duration, "for", 0, "go on for this long, however many operations that are")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64(), "of all random choices")
	flag.StringVar(&o.nbd, "nbd", "", "HOST:PORT of an NBD server, in place of a folder")
	flag.StringVar(&o.export, "export", "", "of the NBD server")
	flag.Parse()
	if o.dir = flag.Arg(0); (o.dir == "") == (o.nbd == "") || flag.NArg() > 1 {
		fmt.Fprintln(os.Stderr, "usage: fsx [flags] FOLDER, or fsx [flags] -nbd HOST:PORT -export NAME")
		os.Exit(2)
	}
	begin := time.Now()
	counts, err := run(o)
	var text []string
	total := 0
	for name, n := range counts {
		text, total = append(text, fmt.Sprintf("%s %d", name, n)), total+n
	}
	slices.Sort(text)
	fmt.Printf("fsx: seed %d, %d operations on %d files in %v: %s\n", o.seed, total, o.files, time.Since(begin).Round(time.Millisecond), strings.Join(text, ", "))
	if err != nil {
		fmt.Fprintf(os.Stderr, "fsx: FAILED: %v (again: -seed %d -files %d -size %d -ops %d)\n", err, o.seed, o.files, o.size, o.ops)
		os.Exit(1)
	}
}

// run exercises all files at the same time and returns how often each operation was done.
func run(o options) (map[string]int, error) {
	counts := make(map[string]int)
	errs := make([]error, o.files)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range o.files {
		wg.Go(func() {
			t, err := o.open(i)
			if err != nil {
				errs[i] = err
				return
			}
			x := &exerciser{t: t, size: o.size, r: rand.New(rand.NewPCG(o.seed, uint64(i))), counts: make(map[string]int)}
			errs[i] = errors.Join(x.run(o.ops, o.duration), t.close())
			mu.Lock()
			defer mu.Unlock()
			for name, n := range x.counts {
				counts[name] += n
			}
		})
	}
	wg.Wait()
	return counts, errors.Join(errs...)
}

func (o options) open(i int) (target, error) {
	if o.nbd != "" {
		return openExport(o.nbd, o.export, i, o.size)
	}
	return openFile(filepath.Join(o.dir, fmt.Sprintf("fsx-%d", i)))
}

// errUnsupported: the target has no such operation, or none there.
var errUnsupported = errors.New("unsupported")

// target is what is exercised.
type target interface {
	read(p []byte, off int) error
	write(p []byte, off int) error
	sync() error
	reopen() error // forget what may be cached, and come back
	other() []operation
	fixed() bool // its length does not change
	close() error
}

// operation is one that only some targets have. It does something from off on, and the same to the model.
type operation struct {
	name string
	do   func(x *exerciser, off, n int) error
}

// exerciser does operations on a target and on a model of it.
type exerciser struct {
	t      target
	size   int
	model  []byte // its length is that of the file
	r      *rand.Rand
	counts map[string]int
	recent []string // the last operations, for the report of a failure
}

func (x *exerciser) run(ops int, duration time.Duration) error {
	if x.t.fixed() {
		x.model = make([]byte, x.size)
		if err := x.t.write(x.model, 0); err != nil {
			return fmt.Errorf("clear: %w", err)
		}
	}
	end := time.Now().Add(duration)
	for i := 0; i < ops || time.Now().Before(end); i++ {
		if err := x.step(); err != nil {
			return fmt.Errorf("operation %d: %w; the last ones:\n  %s", i, err, strings.Join(x.recent, "\n  "))
		}
	}
	if err := x.t.reopen(); err != nil {
		return fmt.Errorf("reopen: %w", err)
	}
	return x.verify(0, len(x.model))
}

// step does one operation.
func (x *exerciser) step() error {
	n := 1 + x.r.IntN(64<<10)
	if x.r.IntN(3) == 0 {
		n = 1 + x.r.IntN(5000)
	}
	n = min(n, x.size)
	off := x.r.IntN(x.size - n + 1)
	if x.r.IntN(3) == 0 {
		off &^= 4095
	}
	name, do := x.choose()
	x.recent = append(x.recent, fmt.Sprintf("%s %d+%d, length %d", name, off, n, len(x.model)))
	x.recent = x.recent[max(0, len(x.recent)-20):]
	err := do(off, n)
	if errors.Is(err, errUnsupported) || errors.Is(err, syscall.EOPNOTSUPP) {
		name, err = name+" (unsupported)", nil
	}
	x.counts[name]++
	if err != nil {
		return fmt.Errorf("%s %d+%d: %w", name, off, n, err)
	}
	return nil
}

func (x *exerciser) choose() (string, func(off, n int) error) {
	others := x.t.other()
	switch k := x.r.IntN(24 + 2*len(others)); {
	case k < 11:
		return "write", x.write
	case k < 21:
		return "read", x.verify
	case k < 22:
		return "fsync", func(int, int) error { return x.t.sync() }
	case k < 23 && x.r.IntN(4) == 0:
		return "reopen", func(int, int) error {
			if err := x.t.reopen(); err != nil {
				return err
			}
			return x.verify(0, len(x.model))
		}
	case k < 24:
		return "read", x.verify
	default:
		o := others[(k-24)/2]
		return o.name, func(off, n int) error { return o.do(x, off, n) }
	}
}

func (x *exerciser) write(off, n int) error {
	data := x.random(n)
	if err := x.t.write(data, off); err != nil {
		return err
	}
	x.put(off, data)
	return nil
}

func (x *exerciser) random(n int) []byte {
	b := make([]byte, n)
	v := x.r.Uint64()
	for i := range b {
		v = v*6364136223846793005 + 1442695040888963407
		b[i] = byte(v >> 56)
	}
	return b
}

// put changes the model as a write does.
func (x *exerciser) put(off int, data []byte) {
	x.grow(off + len(data))
	copy(x.model[off:], data)
}

// grow makes the model at least n bytes long.
func (x *exerciser) grow(n int) {
	if n > len(x.model) {
		x.model = append(x.model, make([]byte, n-len(x.model))...)
	}
}

// zero makes what of the model lies in the range zeroes.
func (x *exerciser) zero(off, n int) {
	if off < len(x.model) {
		clear(x.model[off:min(off+n, len(x.model))])
	}
}

// verify reads what of the file lies in the range and compares.
func (x *exerciser) verify(off, n int) error {
	n = min(n, len(x.model)-off)
	if n <= 0 {
		return nil
	}
	got := make([]byte, n)
	if err := x.t.read(got, off); err != nil {
		return err
	}
	return x.compare("read", got, off)
}

func (x *exerciser) compare(how string, got []byte, off int) error {
	want := x.model[off : off+len(got)]
	if bytes.Equal(got, want) {
		return nil
	}
	first, count := -1, 0
	for i := range got {
		if got[i] != want[i] {
			if first < 0 {
				first = i
			}
			count++
		}
	}
	return fmt.Errorf("WRONG BYTES by %s: %d of %d differ, the first at %d: %#x, want %#x", how, count, len(got), off+first, got[first], want[first])
}
