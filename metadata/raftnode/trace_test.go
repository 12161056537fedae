//go:build linux && amd64

package raftnode

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"scoria/internal/vfs"
)

// This file records what a process does to the files of a directory. The Raft libraries
// work on the operating system's files and leave no seam, so the process is run under ptrace,
// and its system calls are what is recorded: nothing between us and the kernel is believed.

// action is a system call that changed something below the directory, or an output.
type action struct {
	kind actionKind
	path string
	to   string // of a rename
	off  int64  // of a write; the size of a truncate
	data []byte // of a write or output
}

type actionKind uint8

const (
	doCreate   actionKind = 1
	doWrite    actionKind = 2
	doSync     actionKind = 3
	doTruncate actionKind = 4
	doRename   actionKind = 5
	doRemove   actionKind = 6
	doMkdir    actionKind = 7
	doSyncDir  actionKind = 8
	doOutput   actionKind = 9 // a write to standard output or error
)

// replay does the action on a file system in memory.
func (a *action) replay(m *vfs.Mem) error {
	switch a.kind {
	case doOutput:
		return nil
	case doRename:
		return m.Rename(a.path, a.to)
	case doRemove:
		return m.Remove(a.path)
	case doMkdir:
		return m.MkdirAll(a.path, 0o700)
	case doSyncDir:
		return m.SyncDir(a.path)
	}
	flag := os.O_RDWR
	if a.kind == doCreate {
		flag |= os.O_CREATE | os.O_EXCL
	}
	f, err := m.OpenFile(a.path, flag, 0o600)
	if err != nil {
		return err
	}
	switch a.kind {
	case doWrite:
		_, err = f.WriteAt(a.data, a.off)
	case doSync:
		err = f.Sync()
	case doTruncate:
		err = f.Truncate(a.off)
	}
	return errors.Join(err, f.Close())
}

// tracer follows a process and all its threads.
type tracer struct {
	root    string // what happens elsewhere is not recorded
	group   int
	mem     *os.File
	calls   map[int]*call // by thread: the call that it is in
	known   map[int]bool
	actions []action
	out     bytes.Buffer // standard output and error
}

// call is a system call between its entry and its exit.
type call struct {
	nr      uint64
	args    [6]uint64
	path    string // of its file or first name
	to      string
	existed bool
	began   int // actions at its entry
}

// trace runs a program to its end. Exit codes other than 0 are errors, with the output.
func trace(root, program string, args, env []string) ([]action, error) {
	runtime.LockOSThread() // ptrace obeys the thread that began the process, and no other
	defer runtime.UnlockOSThread()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	pid, err := syscall.ForkExec(program, append([]string{program}, args...), &syscall.ProcAttr{
		Env: env, Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys: &syscall.SysProcAttr{Ptrace: true, Setpgid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoTrace, err)
	}
	t := &tracer{root: root, group: pid, calls: map[int]*call{}, known: map[int]bool{pid: true}}
	err = t.run(pid)
	if err != nil {
		_ = syscall.Kill(-pid, syscall.SIGKILL) // it may have ended
		_, _ = syscall.Wait4(-pid, nil, syscall.WALL, nil)
	}
	if t.mem != nil {
		err = errors.Join(err, t.mem.Close())
	}
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, t.out.Bytes())
	}
	return t.actions, err
}

// errNoTrace: this machine (a container, say) does not let us trace.
var errNoTrace = errors.New("cannot trace a process")

// Numbers that package syscall does not name.
const (
	ptraceExitKill = 0x100000
	sysRenameat2   = 316
)

func (t *tracer) run(pid int) (err error) {
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, syscall.WALL, nil); err != nil || !ws.Stopped() {
		return fmt.Errorf("%w: first stop: %v, %v", errNoTrace, ws, err)
	}
	if t.mem, err = os.Open(fmt.Sprintf("/proc/%d/mem", pid)); err != nil {
		return fmt.Errorf("%w: %w", errNoTrace, err)
	}
	const options = syscall.PTRACE_O_TRACESYSGOOD | syscall.PTRACE_O_TRACECLONE | ptraceExitKill
	if err := syscall.PtraceSetOptions(pid, options); err != nil {
		return fmt.Errorf("%w: %w", errNoTrace, err)
	}
	tid, signal := pid, 0
	for {
		// A thread that has ended meanwhile is no failure: Wait4 tells of it.
		if err := syscall.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("continue: %w", err)
		}
		for {
			if tid, err = syscall.Wait4(-t.group, &ws, syscall.WALL, nil); err != nil {
				return fmt.Errorf("wait: %w", err)
			}
			if ws.Stopped() {
				break
			}
			if tid == pid {
				if ws.ExitStatus() != 0 {
					return fmt.Errorf("the process ended with %d, signal %v", ws.ExitStatus(), ws.Signal())
				}
				return nil
			}
		}
		signal = 0
		switch s := ws.StopSignal(); {
		case s == syscall.SIGTRAP|0x80:
			if err := t.stop(tid); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		case s == syscall.SIGTRAP: // an event, of a clone
		case s == syscall.SIGSTOP && !t.known[tid]:
			t.known[tid] = true // the first stop of a new thread
		default:
			signal = int(s)
		}
	}
}

// stop looks at a call that a thread is about to make or has made.
func (t *tracer) stop(tid int) error {
	// struct ptrace_syscall_info
	var info [88]byte
	const getSyscallInfo = 0x420e
	_, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, getSyscallInfo, uintptr(tid), uintptr(len(info)), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return fmt.Errorf("look at a system call: %w", errno)
	}
	le := binary.LittleEndian
	switch info[0] {
	case 1: // entry
		c := &call{nr: le.Uint64(info[24:]), began: len(t.actions)}
		for i := range c.args {
			c.args[i] = le.Uint64(info[32+8*i:])
		}
		t.calls[tid] = c
		return t.enter(c)
	case 2: // exit
		c := t.calls[tid]
		delete(t.calls, tid)
		if result := int64(le.Uint64(info[24:])); c != nil && result >= 0 {
			return t.leave(c, result)
		}
	}
	return nil
}

// enter notes what cannot be asked any more when the call is done.
func (t *tracer) enter(c *call) (err error) {
	switch c.nr {
	case syscall.SYS_WRITE, syscall.SYS_WRITEV, syscall.SYS_PWRITE64, syscall.SYS_PWRITEV, syscall.SYS_FSYNC, syscall.SYS_FDATASYNC,
		syscall.SYS_FTRUNCATE, syscall.SYS_FALLOCATE:
		if fd := c.args[0]; fd > 2 {
			c.path, err = os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", t.group, fd))
		}
	case syscall.SYS_OPENAT, syscall.SYS_MKDIRAT, syscall.SYS_UNLINKAT:
		c.path, err = t.text(c.args[1])
		_, serr := os.Lstat(c.path)
		c.existed = serr == nil
	case syscall.SYS_RENAMEAT, sysRenameat2:
		c.path, err = t.text(c.args[1])
		if err == nil {
			c.to, err = t.text(c.args[3])
		}
	case syscall.SYS_OPEN, syscall.SYS_CREAT, syscall.SYS_RENAME, syscall.SYS_UNLINK, syscall.SYS_MKDIR, syscall.SYS_RMDIR,
		syscall.SYS_TRUNCATE, syscall.SYS_LINK, syscall.SYS_LINKAT, syscall.SYS_SYMLINKAT:
		c.path, err = t.text(c.args[0])
		if err == nil && t.ours(c.path) {
			err = fmt.Errorf("system call %d of %s: the recorder does not know it", c.nr, c.path)
		}
	}
	return err
}

func (t *tracer) ours(path string) bool { return strings.HasPrefix(path, t.root+"/") || path == t.root }

// text reads a string of the process.
func (t *tracer) text(at uint64) (string, error) {
	var b [256]byte
	n, err := t.mem.ReadAt(b[:], int64(at))
	if end := bytes.IndexByte(b[:n], 0); end >= 0 {
		return string(b[:end]), nil
	}
	return "", fmt.Errorf("name at %x: %w", at, err)
}

func (t *tracer) bytes(at uint64, n int64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := t.mem.ReadAt(b, int64(at)); err != nil {
		return nil, fmt.Errorf("%d bytes at %x: %w", n, at, err)
	}
	return b, nil
}

// leave records a call that has succeeded.
func (t *tracer) leave(c *call, result int64) (err error) {
	a := action{path: c.path, to: c.to}
	if c.nr == syscall.SYS_WRITE && (c.args[0] == 1 || c.args[0] == 2) {
		a.kind = doOutput
		if a.data, err = t.bytes(c.args[1], result); err == nil {
			t.out.Write(a.data)
			t.actions = append(t.actions, a)
		}
		return err
	}
	if !t.ours(c.path) {
		return nil
	}
	switch c.nr {
	case syscall.SYS_WRITE, syscall.SYS_PWRITE64:
		a.kind, a.off = doWrite, int64(c.args[3])
		if c.nr == syscall.SYS_WRITE {
			if a.off, err = t.position(c.args[0]); err != nil {
				return err
			}
			a.off -= result
		}
		a.data, err = t.bytes(c.args[1], result)
	case syscall.SYS_FSYNC, syscall.SYS_FDATASYNC:
		a.kind = doSync
		if info, serr := os.Stat(c.path); serr == nil && info.IsDir() {
			a.kind = doSyncDir
		}
		for _, other := range t.actions[c.began:] { // whether the sync covers it cannot be said
			if other.path == c.path {
				return fmt.Errorf("%s is changed and synced at the same time", c.path)
			}
		}
	case syscall.SYS_FTRUNCATE:
		a.kind, a.off = doTruncate, int64(c.args[1])
	case syscall.SYS_RENAMEAT, sysRenameat2:
		a.kind = doRename
	case syscall.SYS_UNLINKAT:
		a.kind = doRemove
	case syscall.SYS_MKDIRAT:
		a.kind = doMkdir
	case syscall.SYS_OPENAT:
		switch flags := int(c.args[2]); {
		case flags&syscall.O_CREAT != 0 && !c.existed:
			a.kind = doCreate
		case flags&syscall.O_TRUNC != 0:
			a.kind = doTruncate
		default:
			return nil
		}
	case syscall.SYS_WRITEV, syscall.SYS_PWRITEV, syscall.SYS_FALLOCATE:
		return fmt.Errorf("system call %d of %s: the recorder does not know it", c.nr, c.path)
	default:
		return nil
	}
	t.actions = append(t.actions, a)
	return err
}

// position is where a file of the process will be read or written next.
func (t *tracer) position(fd uint64) (int64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(t.group), "fdinfo", strconv.FormatUint(fd, 10)))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(b), "\n")
	return strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(first, "pos:")), 10, 64)
}
