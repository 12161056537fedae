// Command garbage feeds garbage to the ports of a Scoria server while a well-behaved
// client writes, reads back and compares. The server must stay alive, its memory bounded
// and the client undisturbed.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"scoria/scripts/e2e/internal/e2e"
)

type options struct {
	duration time.Duration
	workers  int
	seed     uint64
	bound    uint64
	ports    string
	server   *e2e.Server
}

func main() {
	o := options{server: new(e2e.Server)}
	flag.DurationVar(&o.duration, "for", 30*time.Second, "how long")
	flag.IntVar(&o.workers, "workers", 8, "attackers per port")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64(), "of all random choices")
	bound := flag.Uint64("rss", 700, "MiB of memory that the server may reach")
	flag.StringVar(&o.ports, "ports", "", "further addresses to attack, host:port with commas between (disk servers)")
	flag.StringVar(&o.server.Kind, "server", "scoria", "scoria, nbdkit or nbdkit-memory")
	flag.StringVar(&o.server.Binary, "bin", "bin/scoria", "binary of scoria")
	flag.Parse()
	o.bound = *bound << 20
	o.server.Size, o.server.Volume = "64MiB", "garbage"
	fmt.Printf("garbage: seed %d\n", o.seed)
	if err := run(o); err != nil {
		fmt.Fprintf(os.Stderr, "garbage: FAILED: %v (again: -seed %d)\n", err, o.seed)
		os.Exit(1)
	}
}

func run(o options) (err error) {
	dir, err := os.MkdirTemp("", "scoria-garbage-")
	if err != nil {
		return err
	}
	o.server.Dir = dir
	if err := o.server.Start(context.Background()); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, o.server.Kill())
		if err != nil {
			fmt.Fprintln(os.Stderr, "garbage: data and log are kept in", dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	targets := []string{o.server.NBD}
	if o.server.Kind == "scoria" {
		targets = append(targets, o.server.Admin)
	}
	if o.ports != "" {
		targets = append(targets, strings.Split(o.ports, ",")...)
	}
	before, _, err := o.server.Memory()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.duration)
	defer cancel()
	var wg sync.WaitGroup
	var attacks, sent atomic.Int64
	for i, t := range targets {
		for w := range o.workers {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(o.seed, uint64(i*1000+w)))
				for ctx.Err() == nil {
					sent.Add(int64(attack(ctx, r, t, o.server.Volume)))
					attacks.Add(1)
				}
			})
		}
	}
	latencies, verr := victim(ctx, o)
	cancel()
	wg.Wait()
	if verr != nil {
		return fmt.Errorf("the well-behaved client was disturbed: %w", verr)
	}
	if !o.server.Alive() {
		return errors.New("the server is dead")
	}
	rss, peak, err := o.server.Memory()
	if err != nil {
		return err
	}
	slices.Sort(latencies)
	fmt.Printf("garbage: %v, %d attacks, %.1f MB on %d ports; memory %d MiB before, %d after, %d at most; %d verified writes and reads, p50 %v, p99 %v, longest %v\n",
		o.duration, attacks.Load(), float64(sent.Load())/1e6, len(targets), before>>20, rss>>20, peak>>20, len(latencies),
		latencies[len(latencies)/2].Round(time.Microsecond), latencies[len(latencies)*99/100].Round(time.Microsecond), latencies[len(latencies)-1].Round(time.Microsecond))
	if peak > o.bound {
		return fmt.Errorf("the server reached %d MiB of memory, more than %d", peak>>20, o.bound>>20)
	}
	return nil
}

// victim works until ctx ends and returns how long each write and read took.
func victim(ctx context.Context, o options) (latencies []time.Duration, err error) {
	c, err := e2e.Dial("tcp", o.server.NBD, o.server.Volume)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	r := rand.New(rand.NewPCG(o.seed, 1<<40))
	data, back := make([]byte, 8192), make([]byte, 8192)
	for ctx.Err() == nil || len(latencies) == 0 {
		for i := 0; i < len(data); i += 8 {
			binary.LittleEndian.PutUint64(data[i:], r.Uint64())
		}
		off := r.Uint64N(c.Size()/4096-1) * 4096
		at := time.Now()
		if err := c.WriteAt(data, off); err != nil {
			return nil, err
		}
		if err := c.ReadAt(back, off); err != nil {
			return nil, err
		}
		latencies = append(latencies, time.Since(at))
		if !bytes.Equal(data, back) {
			return nil, fmt.Errorf("wrong data at %d", off)
		}
	}
	return latencies, nil
}

// attack opens one connection and is rude. It returns the bytes sent; errors are what it wants.
func attack(ctx context.Context, r *rand.Rand, target, export string) (sent int) {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return 0
	}
	defer conn.Close()                                                                      //nolint:errcheck // rude
	_ = conn.SetDeadline(time.Now().Add(time.Duration(50+r.IntN(1500)) * time.Millisecond)) // fails only on a dead connection
	var b []byte
	switch r.IntN(7) {
	case 0: // noise
		b = noise(r, 1+r.IntN(1<<16))
	case 1: // an option with a huge length
		b = option(binary.BigEndian.AppendUint32(nil, 3), r.Uint32N(16), 1<<31+r.Uint32N(1<<31), noise(r, r.IntN(4096)))
	case 2: // many options, of right and wrong content
		b = binary.BigEndian.AppendUint32(nil, 3)
		for range 1 + r.IntN(50) {
			body := noise(r, r.IntN(64))
			b = option(b, r.Uint32N(12), uint32(len(body)), body)
		}
	case 3: // a good GO, then requests of noise
		b = requests(r, goOption(export), func(q []byte) { copy(q, noise(r, len(q))) })
	case 4: // a good GO, then requests that are nearly right: huge, far out, unknown
		b = requests(r, goOption(export), func(q []byte) {
			binary.BigEndian.PutUint32(q, 0x25609513)
			binary.BigEndian.PutUint16(q[4:], uint16(r.IntN(64)))
			binary.BigEndian.PutUint16(q[6:], []uint16{0, 0, 3, 4, 5, 6, 7, 8, 99}[r.IntN(9)]) // no WRITE: the victim's data is compared
			binary.BigEndian.PutUint64(q[16:], r.Uint64()>>r.IntN(64))
			binary.BigEndian.PutUint32(q[24:], r.Uint32()>>r.IntN(32))
			if binary.BigEndian.Uint16(q[6:]) == 4 || binary.BigEndian.Uint16(q[6:]) == 6 { // TRIM and WRITE_ZEROES only out of range
				binary.BigEndian.PutUint64(q[16:], 1<<62)
			}
		})
	case 5: // HTTP that never ends
		b = append([]byte("GET /metrics HTTP/1.1\r\nHost: x\r\nX: "), bytes.Repeat([]byte("a"), r.IntN(1<<20))...)
	case 6: // silence
	}
	n, _ := conn.Write(b)
	if r.IntN(2) == 0 { // half of them never read what they are sent
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1<<20))
	}
	return n
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func option(b []byte, number, length uint32, body []byte) []byte {
	b = append(b, "IHAVEOPT"...)
	b = binary.BigEndian.AppendUint32(b, number)
	b = binary.BigEndian.AppendUint32(b, length)
	return append(b, body...)
}

func goOption(export string) []byte {
	body := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	body = append(append(body, export...), 0, 0)
	return option(binary.BigEndian.AppendUint32(nil, 3), 7, uint32(len(body)), body)
}

func requests(r *rand.Rand, b []byte, fill func([]byte)) []byte {
	for range 1 + r.IntN(200) {
		q := make([]byte, 28)
		fill(q)
		b = append(b, q...)
	}
	return b
}
