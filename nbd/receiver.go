package nbd

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// ioClass is the size class of receive and reply buffers: 128 KiB holds 31 writes of
	// 4 KiB, enough to make the system call cheap, and stays in the processor's cache.
	ioClass = 17
	// aheadAfterLarge is how much is read beyond a large payload: the next headers, but
	// little of the next large payload, which would have to be copied.
	aheadAfterLarge = 4 << 10
)

// receiver reads a connection into a pooled buffer. While it waits for the client it holds
// none: it waits for the socket to become readable and takes a buffer only then. Only the
// reading goroutine uses it.
type receiver struct {
	nc       net.Conn
	raw      syscall.RawConn // nil: not a socket (TLS, pipe), read plainly
	pool     *pool
	received atomic.Uint64 // bytes, for the watch over stalled clients
	partial  atomic.Bool   // waiting in the middle of a request

	buf     *buffer
	r, w    int // unread bytes are buf.mem[r:w]
	stash   [64]byte
	stashed int    // bytes of stash in use while buf is nil
	large   bool   // the last fill was for a large payload
	direct  []byte // where the next bytes go before buf
	within  bool   // the client owes the rest of a request
	ready   func(fd uintptr) bool
	spin    time.Duration // how long the next fill polls before it sleeps
	n       int           // result of the last read
	err     error
}

func (v *receiver) init(nc net.Conn, p *pool) {
	v.nc, v.pool = nc, p
	v.ready = v.tryRead
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			v.raw = raw
		}
	}
}

// peek returns what is buffered; it is valid until the next fill.
func (v *receiver) peek() []byte {
	if v.buf == nil {
		return nil
	}
	return v.buf.mem[v.r:v.w]
}

func (v *receiver) skip(n int) { v.r += n }

// fill waits for at least one more byte. It goes to direct first, which is used only when
// nothing is buffered; fill returns how many bytes went there.
func (v *receiver) fill(direct []byte, within bool) (int, error) {
	if v.r > 0 && v.buf != nil {
		v.w = copy(v.buf.mem, v.buf.mem[v.r:v.w])
		v.r = 0
	}
	v.direct, v.within = direct, within || v.w > 0 || v.stashed > 0
	v.n, v.err = 0, nil
	if v.raw != nil {
		if err := v.raw.Read(v.ready); err != nil {
			return 0, err
		}
	} else {
		v.readPlain()
	}
	if v.err == nil && v.n == 0 {
		v.err = io.EOF
	}
	if v.err != nil {
		return 0, v.err
	}
	v.received.Add(uint64(v.n))
	n := min(v.n, len(direct))
	v.w += v.n - n
	v.large = len(direct) > 0
	return n, nil
}

// tryRead reads without waiting; false means that the socket has nothing.
func (v *receiver) tryRead(fd uintptr) bool {
	v.take()
	var until time.Time
	for {
		if len(v.direct) > 0 {
			v.n, v.err = unix.Readv(int(fd), [][]byte{v.direct, v.room()})
		} else {
			v.n, v.err = syscall.Read(int(fd), v.room())
		}
		if v.err == nil {
			v.wait(false)
			return true
		}
		v.n = max(v.n, 0)
		if errors.Is(v.err, syscall.EINTR) {
			continue
		}
		if !errors.Is(v.err, syscall.EAGAIN) {
			return true
		}
		if v.spin > 0 {
			now := time.Now()
			if until.IsZero() {
				until = now.Add(v.spin)
			}
			if now.Before(until) {
				continue
			}
			v.spin = 0 // tells that it was in vain
		}
		v.wait(v.within)
		v.giveIfSmall()
		return false
	}
}

func (v *receiver) readPlain() {
	v.take()
	v.wait(v.within)
	if len(v.direct) > 0 {
		v.n, v.err = v.nc.Read(v.direct)
	} else {
		v.n, v.err = v.nc.Read(v.room())
	}
	if v.n > 0 {
		v.err = nil // the error comes again
	}
	v.wait(false)
}

func (v *receiver) wait(partial bool) {
	if v.partial.Load() != partial {
		v.partial.Store(partial)
	}
}

// room is the free part of the buffer that the next read may use; never empty, as a request
// that is waited for in the buffer is smaller than the buffer.
func (v *receiver) room() []byte {
	if v.w == 0 && (v.large || len(v.direct) > 0) {
		return v.buf.mem[:aheadAfterLarge]
	}
	return v.buf.mem[v.w:]
}

// take makes sure that there is a buffer.
func (v *receiver) take() {
	if v.buf == nil {
		v.buf = v.pool.get(1 << ioClass)
		v.w = copy(v.buf.mem, v.stash[:v.stashed])
		v.stashed = 0
	}
}

// giveIfSmall gives the buffer back when what it holds fits into the stash.
func (v *receiver) giveIfSmall() {
	if v.w <= len(v.stash) {
		v.stashed = copy(v.stash[:], v.buf.mem[:v.w])
		v.release()
	}
}

// release gives the buffer back.
func (v *receiver) release() {
	v.pool.put(v.buf)
	v.buf, v.r, v.w = nil, 0, 0
}
