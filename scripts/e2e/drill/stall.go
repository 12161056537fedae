package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// dumpAfter is how long nobody has an answer until the gateway is asked what it waits for.
const dumpAfter = 700 * time.Millisecond

// maxDumps bounds what one round keeps.
const maxDumps = 10

// watch looks for stalls until the function that it returns is called. The look of hold at
// status takes seconds while a disk server is silent.
func (r *round) watch() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	l := r.load
	wg.Go(func() {
		for ctx.Err() == nil && r.dumps < maxDumps {
			pause(ctx, 50*time.Millisecond)
			s := l.silent()
			if s < dumpAfter || l.stopped() {
				continue
			}
			if err := r.dumpStall(s); err != nil {
				fmt.Fprintln(os.Stderr, "drill: stall not dumped:", err)
			}
			pause(ctx, dumpAfter)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// dumpStall keeps what the gateway's goroutines wait for, when a volume does not answer while a
// fault is held that should not be felt: the longest stall alone does not tell its cause.
func (r *round) dumpStall(silent time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.admin+"/debug/pprof/goroutine?debug=2", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil // it is stopped or dead: that is the fault
	}
	name := filepath.Join(r.dir, fmt.Sprintf("stall-%d.txt", time.Now().UnixMilli()))
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil // likewise
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	r.dumps++
	fmt.Printf("drill: no answer for %v; goroutines in %s (stays with -keep)\n", ms(silent), name)
	return os.WriteFile(name, b, 0o600)
}

// hangOne stops one disk server under load.
func hangOne(r *round) error {
	d := r.disks[r.r.IntN(len(r.disks))]
	r.note = d.name
	if err := d.process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	if err := r.hold(r.between(4*time.Second, 8*time.Second), true); err != nil {
		return err
	}
	return d.process.Signal(syscall.SIGCONT)
}

// hangOneCold does it when nothing is in the gateway's memory or on its disk, just before or
// just after it connects to the disk server for the first time.
func hangOneCold(r *round) error {
	if err := wipeDrained(r); err != nil {
		return err
	}
	d := r.disks[r.r.IntN(len(r.disks))]
	r.note = d.name
	if err := d.process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	r.load = startLoad(r.front.addr(), r.volumes, r.r)
	if err := r.hold(r.between(4*time.Second, 8*time.Second), true); err != nil {
		return err
	}
	return d.process.Signal(syscall.SIGCONT)
}
