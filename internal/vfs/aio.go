package vfs

import (
	"io/fs"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's asynchronous I/O (io_submit(2)), which reads files opened with ODirect
// without a thread for each. Other files it reads one by one, inside io_submit.

const (
	aioDepth    = 64 // reads of one context at a time
	aioContexts = 32 // kept for use; more callers at a time read without
	aioRead     = 0  // IOCB_CMD_PREAD
)

// aioCB is struct iocb.
type aioCB struct {
	data   uint64
	_      [2]uint32 // key, flags of the read
	opcode uint16
	_      int16 // priority
	fd     uint32
	buf    unsafe.Pointer
	n      uint64
	off    int64
	_      uint64
	_      [2]uint32 // flags, eventfd
}

// aioEvent is struct io_event.
type aioEvent struct {
	data uint64
	_    uint64 // the request
	res  int64
	_    int64
}

// aio is a context of the kernel with the memory for its calls.
type aio struct {
	ctx    uintptr
	cbs    [aioDepth]aioCB
	ptrs   [aioDepth]*aioCB
	events [aioDepth]aioEvent
}

var (
	aioFree = make(chan *aio, aioContexts)
	aioMade atomic.Int32
)

// takeAIO returns a context, nil when there is none to be had.
func takeAIO() *aio {
	select {
	case a := <-aioFree:
		return a
	default:
	}
	if aioMade.Add(1) > aioContexts {
		aioMade.Add(-1)
		return nil
	}
	a := &aio{}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, aioDepth, uintptr(unsafe.Pointer(&a.ctx)), 0); errno != 0 {
		return nil // it stays counted: a system that refuses is not asked for ever
	}
	return a
}

// readManyOS does the reads if all files are of OS. false: it has done nothing.
func readManyOS(reqs []ReadReq) bool {
	for i := range reqs {
		if _, ok := reqs[i].File.(*osFile); !ok || len(reqs[i].Buf) == 0 {
			return false
		}
	}
	a := takeAIO()
	if a == nil {
		return false
	}
	for len(reqs) > 0 {
		n := min(len(reqs), aioDepth)
		a.read(reqs[:n])
		reqs = reqs[n:]
	}
	aioFree <- a
	return true
}

// read does at most aioDepth reads.
func (a *aio) read(reqs []ReadReq) {
	for i := range reqs {
		r := &reqs[i]
		a.cbs[i] = aioCB{data: uint64(i), opcode: aioRead, fd: uint32(r.File.(*osFile).f.Fd()), buf: unsafe.Pointer(unsafe.SliceData(r.Buf)), n: uint64(len(r.Buf)), off: r.Off}
		a.ptrs[i] = &a.cbs[i]
	}
	sent := a.submit(len(reqs))
	a.reap(reqs, sent)
	clear(a.cbs[:len(reqs)]) // keep nobody's memory
	runtime.KeepAlive(reqs)
	for i := range reqs {
		r := &reqs[i]
		if i >= sent { // not taken by the kernel
			r.N, r.Err = r.File.ReadAt(r.Buf, r.Off)
			continue
		}
		r.finish()
	}
}

// submit hands over the first n reads and returns how many the kernel has taken.
func (a *aio) submit(n int) int {
	sent := 0
	for sent < n {
		got, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, a.ctx, uintptr(n-sent), uintptr(unsafe.Pointer(&a.ptrs[sent])))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 || got == 0 {
			break
		}
		sent += int(got)
	}
	return sent
}

// reap waits for n reads.
func (a *aio) reap(reqs []ReadReq, n int) {
	for n > 0 {
		got, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, a.ctx, uintptr(n), uintptr(n), uintptr(unsafe.Pointer(&a.events[0])), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			// The kernel owns memory of the callers until these reads end; there is no way on.
			panic("vfs: io_getevents: " + errno.Error())
		}
		for _, e := range a.events[:got] {
			r := &reqs[e.data]
			if r.N, r.Err = int(e.res), nil; e.res < 0 {
				r.N, r.Err = 0, &fs.PathError{Op: "read", Path: r.File.(*osFile).f.Name(), Err: unix.Errno(-e.res)}
			}
		}
		n -= int(got)
	}
}
