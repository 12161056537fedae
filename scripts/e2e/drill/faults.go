package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"scoria/scripts/e2e/internal/e2e"
	"scoria/scripts/e2e/internal/history"
)

// fault is one kind of bad day.
type fault struct {
	name string
	kind string // which rig: "inside" (disk servers in the gateway's process), "processes", "" (these two), "guest"
	// strike does it, holds it and heals it. What it returns is an error of the drill or of the system.
	strike func(*round) error
	// bound is the longest time without an answer, beyond how long the fault was held.
	bound time.Duration
	// promise is what the fault may not take.
	promise history.Promise
	// loses: the write buffer is wiped, and status must tell what that may have cost.
	loses bool
	// errors may be answers to requests (reads while too many disks are away, writes to a full disk).
	errors bool
}

// Bounds. A killed gateway is back when it has read its logs; a disk server that is away holds
// nobody up, and what is slow is decoded from others within a request's time limit (10 s).
const (
	restartBound = 30 * time.Second
	awayBound    = 15 * time.Second
)

func faults() []fault {
	return []fault{
		{name: "kill gateway", strike: killGateway, bound: restartBound},
		{name: "kill gateway while it starts", strike: killStarting, bound: 2 * restartBound},
		{name: "stop gateway shortly", strike: stopGateway(100*time.Millisecond, time.Second), bound: awayBound},
		{name: "stop gateway for long", strike: stopGateway(4*time.Second, 8*time.Second), bound: awayBound},
		{name: "cut clients", strike: cutClients, bound: awayBound},
		{name: "wipe write buffer, drained", strike: wipeDrained, bound: restartBound, loses: true},
		{name: "wipe write buffer under load", strike: wipeLoaded, bound: restartBound, promise: history.Drained, loses: true},
		{name: "full file system of the write buffer", strike: fullBuffer, bound: awayBound, errors: true},
		{name: "wipe disk servers inside", kind: "inside", strike: wipeInside, bound: restartBound},
		{name: "flip bytes on disk servers inside", kind: "inside", strike: flipInside, bound: restartBound, loses: true},
		{name: "kill disk servers", kind: "processes", strike: disksAway((*diskServer).kill, startDisk, 2, false), bound: awayBound},
		{name: "kill disk servers while they start", kind: "processes", strike: killStartingDisks, bound: awayBound},
		{name: "stop disk servers", kind: "processes", strike: disksAway(send(syscall.SIGSTOP), send(syscall.SIGCONT), 2, false), bound: awayBound},
		{name: "hang one disk server", kind: "processes", strike: hangOne, bound: awayBound},
		{name: "hang one disk server, caches empty", kind: "processes", strike: hangOneCold, bound: awayBound},
		{name: "full write buffer", kind: "processes", strike: overfill, bound: restartBound, errors: true},
		{name: "wipe disk servers", kind: "processes", strike: wipeDisks, bound: awayBound},
		{name: "stop too many disk servers", kind: "processes", strike: disksAway(send(syscall.SIGSTOP), send(syscall.SIGCONT), 4, true), bound: restartBound, errors: true},
		{name: "part disk servers", kind: "processes", strike: disksAway(func(d *diskServer) error { return d.link.part() }, func(d *diskServer) error { return d.link.heal() }, 2, false), bound: awayBound},
		{name: "part all disk servers", kind: "processes", strike: disksAway(func(d *diskServer) error { return d.link.part() }, func(d *diskServer) error { return d.link.heal() }, 6, true), bound: restartBound, errors: true},
		{name: "slow network to disk servers", kind: "processes", strike: slowNetwork, bound: awayBound},
		{name: "cut disk servers", kind: "processes", strike: cutDisks, bound: awayBound},
		{name: "full disk servers", kind: "processes", strike: fullDisks, bound: awayBound, errors: true},
		{name: "slow disks of disk servers", kind: "processes", strike: slowDisks, bound: awayBound},
		{name: "read errors on disk servers", kind: "processes", strike: failReads, bound: restartBound, loses: true},
		{name: "fio verify over kills", strike: fio, bound: 2 * restartBound},
		{name: "power loss", kind: "guest", strike: cutPower, bound: guestStarts, promise: history.Flushed},
		{name: "clock jumps", kind: "guest", strike: jumpClock, bound: restartBound},
		{name: "kill everything", kind: "processes", strike: killAll, bound: restartBound},
	}
}

// round is one fault on its rig, under load.
type round struct {
	*rig
	r     *rand.Rand
	load  *load
	held  time.Duration // how long the fault was in force
	told  []string      // problems that status told meanwhile
	note  string        // what exactly was done
	dumps int           // of the gateway's goroutines
}

// between returns a random time.
func (r *round) between(low, high time.Duration) time.Duration {
	return low + time.Duration(r.r.Int64N(int64(high-low)))
}

// hold waits while a fault is in force. When tell is set, status has to tell it: exit code 6,
// within what its own look at the disk servers may take.
func (r *round) hold(d time.Duration, tell bool) error {
	begin, told := time.Now(), false
	defer r.watch()()
	for time.Since(begin) < d || (tell && !told) {
		h, err := r.status()
		if err != nil {
			return err
		}
		if h.answered && h.Health != "ok" {
			told = true
			r.told = append(r.told, h.Problems...)
		}
		if s := r.load.silent(); h.answered && h.Health == "ok" && s > hiddenStall {
			return fmt.Errorf("status says ok, and a volume has not answered for %v", s.Round(time.Millisecond))
		}
		if tell && !told && time.Since(begin) > d+tellWithin {
			return fmt.Errorf("status says ok %v after the fault came: a degraded state is hidden", time.Since(begin).Round(time.Millisecond))
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.held += time.Since(begin)
	return nil
}

// hiddenStall is how long nobody may get an answer while status says ok.
const hiddenStall = 12 * time.Second

// tellWithin is how long a degraded state may stay untold: the period of the maintenance agent
// (10 s) and the time limit of a request to a disk server (3 s), and as much for a loaded machine.
const tellWithin = 26 * time.Second

func killGateway(r *round) error {
	if err := r.killGateway(); err != nil {
		return err
	}
	time.Sleep(r.between(0, 500*time.Millisecond))
	return r.startGateway()
}

// killStarting kills again and again in the middle of recovery.
func killStarting(r *round) error {
	n := 2 + r.r.IntN(3)
	if err := r.killGateway(); err != nil {
		return err
	}
	for range n {
		if err := r.gateway.Start(); err != nil {
			return err
		}
		time.Sleep(r.between(0, 800*time.Millisecond))
		if err := r.killGateway(); err != nil {
			return err
		}
	}
	r.note = fmt.Sprintf("%d times", n)
	return r.startGateway()
}

func stopGateway(low, high time.Duration) func(*round) error {
	return func(r *round) error {
		if err := r.gateway.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		d := r.between(low, high)
		time.Sleep(d)
		r.held += d
		return r.gateway.Signal(syscall.SIGCONT)
	}
}

func cutClients(r *round) error {
	cuts, times := 0, 3+r.r.IntN(5)
	for range times {
		cuts += r.front.cut(r.r)
		time.Sleep(r.between(10*time.Millisecond, 300*time.Millisecond))
	}
	r.note = fmt.Sprintf("%d connections", cuts)
	return nil
}

func (r *round) wipe(dirs ...string) error {
	for _, d := range dirs {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	return nil
}

// wipeDrained removes the write buffer after everything that had been acknowledged was drained: all of it comes back.
func wipeDrained(r *round) error {
	if err := r.load.end(); err != nil {
		return err
	}
	if err := r.drain(); err != nil {
		return err
	}
	if err := r.killGateway(); err != nil {
		return err
	}
	if err := r.wipe(r.bufferDir()); err != nil {
		return err
	}
	return r.startGateway()
}

// wipeLoaded drains, and removes the write buffer some time later, with writes under way.
func wipeLoaded(r *round) error {
	if err := r.drain(); err != nil {
		return err
	}
	time.Sleep(r.between(0, time.Second))
	if err := r.killGateway(); err != nil {
		return err
	}
	if err := r.load.end(); err != nil { // before what it had been told to be there goes
		return err
	}
	if err := r.wipe(r.bufferDir()); err != nil {
		return err
	}
	return r.startGateway()
}

// some returns a random choice of 1 to n of a list.
func some[T any](r *rand.Rand, list []T, n int, exactly bool) []T {
	list = append([]T(nil), list...)
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	if !exactly {
		n = 1 + r.IntN(n)
	}
	return list[:min(n, len(list))]
}

func wipeInside(r *round) error {
	dirs, err := r.inside()
	if err != nil {
		return err
	}
	if err := r.killGateway(); err != nil {
		return err
	}
	dirs = r.victims(dirs)
	r.note = fmt.Sprintf("%d of 6", len(dirs))
	if err := r.wipe(dirs...); err != nil {
		return err
	}
	r.flipped = nil // gone with the rest
	return r.startGateway()
}

// victims chooses one or two disk servers: those whose damage may not have been met by a read
// yet, if there are any. With others besides, more would be lost than the policy bears.
func (r *round) victims(dirs []string) []string {
	if len(r.flipped) > 0 {
		return r.flipped
	}
	return some(r.r, dirs, 2, false)
}

// flipInside damages two disk servers, and takes the write buffer so that they are read.
func flipInside(r *round) error {
	dirs, err := r.inside()
	if err != nil {
		return err
	}
	if err := r.load.end(); err != nil {
		return err
	}
	if err := r.drain(); err != nil {
		return err
	}
	if err := r.killGateway(); err != nil {
		return err
	}
	r.flipped = r.victims(dirs)
	n, err := e2e.Flip(r.flipped, 50, r.r)
	if err != nil {
		return err
	}
	r.note = fmt.Sprintf("%d bytes", n)
	if err := r.wipe(r.bufferDir()); err != nil {
		return err
	}
	return r.startGateway()
}

// fullBuffer fills the file system of the write buffer.
func fullBuffer(r *round) error {
	dir := filepath.Dir(r.bufferDir())
	if !r.host.isolated(dir) {
		return errSkipped
	}
	free, err := fill(dir, 0)
	if err != nil {
		return err
	}
	if err := r.hold(r.between(2*time.Second, 8*time.Second), false); err != nil {
		return err
	}
	return free()
}
