package vfs

import (
	"io"
	"io/fs"
	"math"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// memFile is an open file of a Mem.
type memFile struct {
	fs     *Mem
	n      *node
	name   string
	flag   int
	closed atomic.Bool

	process int // of Mem.mu, when it was opened
}

func (f *memFile) writable() bool { return f.flag&syscall.O_ACCMODE != syscall.O_RDONLY }

// enter checks the handle and holds off Crash until the returned function is called.
func (f *memFile) enter(op string, write bool) (leave func(), err error) {
	f.fs.world.RLock()
	switch {
	case f.closed.Load():
		err = fs.ErrClosed
	case write && !f.writable(), !write && f.flag&syscall.O_ACCMODE == syscall.O_WRONLY:
		err = syscall.EBADF
	}
	if err != nil {
		f.fs.world.RUnlock()
		return nil, pathErr(op, f.name, err)
	}
	return f.fs.world.RUnlock, nil
}

// checkRange refuses negative and overflowing ranges, and unaligned ones under ODirect.
func (f *memFile) checkRange(op string, off int64, n int, buf []byte) error {
	bad := off < 0 || off > math.MaxInt64-int64(n)
	if f.flag&ODirect != 0 && n > 0 {
		addr := uintptr(unsafe.Pointer(unsafe.SliceData(buf)))
		bad = bad || off%DirectAlign != 0 || n%DirectAlign != 0 || addr%DirectAlign != 0
	}
	if bad {
		return pathErr(op, f.name, syscall.EINVAL)
	}
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	leave, err := f.enter("read", false)
	if err != nil {
		return 0, err
	}
	defer leave()
	if err := f.checkRange("read", off, len(p), p); err != nil {
		return 0, err
	}
	f.n.mu.RLock()
	defer f.n.mu.RUnlock()
	c := &f.n.data
	total := int(min(int64(len(p)), max(0, c.size-off)))
	for n := 0; n < total; {
		at := off + int64(n)
		in := int(at % pageSize)
		dst := p[n:min(total, n+pageSize-in)]
		if pg := c.page(at / pageSize); pg != nil {
			copy(dst, pg[in:])
		} else {
			clear(dst)
		}
		n += len(dst)
	}
	if total < len(p) {
		return total, io.EOF
	}
	return total, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	return f.writeAll("write", [][]byte{p}, off)
}

func (f *memFile) WriteVAt(bufs [][]byte, off int64) (int, error) {
	return f.writeAll("pwritev", bufs, off)
}

func (f *memFile) writeAll(op string, bufs [][]byte, off int64) (int, error) {
	leave, err := f.enter(op, true)
	if err != nil {
		return 0, err
	}
	defer leave()
	if f.flag&syscall.O_APPEND != 0 {
		return 0, pathErr(op, f.name, syscall.EINVAL) // as os.File does
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	start, total := off, 0
	for _, b := range bufs {
		if err := f.checkRange(op, off, len(b), b); err != nil {
			return total, err
		}
		n, err := f.writeLocked(b, off)
		total += n
		off += int64(n)
		if err != nil {
			return total, pathErr(op, f.name, err)
		}
	}
	if f.flag&(syscall.O_SYNC|syscall.O_DSYNC) != 0 && total > 0 {
		f.n.data.commitPages(start/pageSize, (off+pageSize-1)/pageSize)
	}
	return total, nil
}

// writeLocked writes what the disk has space for.
func (f *memFile) writeLocked(p []byte, off int64) (n int, err error) {
	c := &f.n.data
	for n < len(p) {
		at := off + int64(n)
		in := int(at % pageSize)
		if c.page(at/pageSize) == nil && !f.fs.reserve(1) {
			err = syscall.ENOSPC
			break
		}
		src := p[n:min(len(p), n+pageSize-in)]
		c.write(at/pageSize, in, src)
		n += len(src)
	}
	if n > 0 {
		c.size = max(c.size, off+int64(n))
	}
	return n, err
}

func (f *memFile) Sync() error {
	f.fs.world.RLock()
	defer f.fs.world.RUnlock()
	if f.closed.Load() {
		return pathErr("sync", f.name, fs.ErrClosed)
	}
	f.n.mu.Lock()
	f.n.data.commit()
	f.n.mu.Unlock()
	if f.fs.journal {
		f.fs.mu.Lock()
		f.fs.commitNameLocked(f.n)
		f.fs.mu.Unlock()
	}
	return nil
}

// StartWrite does nothing: what a crash leaves of unsynced writes is any part of them anyway.
func (f *memFile) StartWrite(off, length int64) error {
	leave, err := f.enter("start write", true)
	if err != nil {
		return err
	}
	defer leave()
	if off < 0 || length < 0 {
		return pathErr("start write", f.name, syscall.EINVAL)
	}
	return nil
}

func (f *memFile) Truncate(size int64) error {
	leave, err := f.enter("truncate", true)
	if err != nil {
		return err
	}
	defer leave()
	if size < 0 {
		return pathErr("truncate", f.name, syscall.EINVAL)
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	f.fs.used.Add(-f.n.data.truncate(size) * pageSize)
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.fs.world.RLock()
	defer f.fs.world.RUnlock()
	if f.closed.Load() {
		return 0, pathErr("size", f.name, fs.ErrClosed)
	}
	f.n.mu.RLock()
	defer f.n.mu.RUnlock()
	return f.n.data.size, nil
}

func (f *memFile) Allocate(off, length int64) error {
	leave, err := f.enter("fallocate", true)
	if err != nil {
		return err
	}
	defer leave()
	if off < 0 || length <= 0 || off > math.MaxInt64-length {
		return pathErr("fallocate", f.name, syscall.EINVAL)
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	c := &f.n.data
	from, to := off/pageSize, (off+length-1)/pageSize+1
	if (to-from)*pageSize > f.fs.capacity { // before walking an absurd range
		return pathErr("fallocate", f.name, syscall.ENOSPC)
	}
	need := int64(0)
	for pg := from; pg < to; pg++ {
		if c.page(pg) == nil {
			need++
		}
	}
	if !f.fs.reserve(need) {
		return pathErr("fallocate", f.name, syscall.ENOSPC)
	}
	for pg := from; pg < to && need > 0; pg++ {
		if c.page(pg) == nil {
			k, i := c.touch(pg)
			k.cur[i] = &zeroPage
		}
	}
	c.pages += need
	c.size = max(c.size, off+length)
	return nil
}

func (f *memFile) Punch(off, length int64) error {
	leave, err := f.enter("punch hole", true)
	if err != nil {
		return err
	}
	defer leave()
	if off < 0 || length <= 0 || off > math.MaxInt64-length {
		return pathErr("punch hole", f.name, syscall.EINVAL)
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	c := &f.n.data
	end := off + length
	first, last := (off+pageSize-1)/pageSize, end/pageSize // whole pages
	if first > last {                                      // inside one page
		f.zeroLocked(off, end)
		return nil
	}
	f.zeroLocked(off, first*pageSize)
	f.zeroLocked(last*pageSize, end)
	f.fs.used.Add(-c.dropFrom(first, last) * pageSize)
	return nil
}

// zeroLocked zeroes a part of one page.
func (f *memFile) zeroLocked(from, to int64) {
	if from < to && f.n.data.page(from/pageSize) != nil {
		f.n.data.write(from/pageSize, int(from%pageSize), zeroPage[:to-from])
	}
}

func (f *memFile) Close() error {
	f.fs.world.RLock()
	defer f.fs.world.RUnlock()
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.closeLocked()
}

func (f *memFile) closeLocked() error {
	if f.closed.Swap(true) {
		return pathErr("close", f.name, fs.ErrClosed)
	}
	if f.process == f.fs.mu.process {
		f.n.opens--
		f.fs.reapLocked(f.n)
	}
	return nil
}
