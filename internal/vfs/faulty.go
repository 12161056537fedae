package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"syscall"
)

// ErrCrashed is what every operation returns after the simulated end of the machine.
var ErrCrashed = errors.New("simulated crash: the machine is off")

// ErrInjected is a fault for hooks that need no particular error.
var ErrInjected = errors.New("injected fault")

// Op is a kind of operation that a Hook sees.
type Op uint8

// Operations of FS and File. From OpCreate on they change what is on the disk or what is durable.
const (
	OpOpen    Op = 1
	OpReadDir Op = 2
	OpStat    Op = 3
	OpSpace   Op = 4
	OpRead    Op = 5
	OpSize    Op = 6
	OpClose   Op = 7
	OpLock    Op = 8
	// OpStartWrite makes nothing durable for certain, so no point of failure is behind it.
	OpStartWrite Op = 9

	OpCreate   Op = 20 // OpenFile with O_CREATE or O_TRUNC
	OpRemove   Op = 21
	OpRename   Op = 22
	OpMkdir    Op = 23
	OpSyncDir  Op = 24
	OpWrite    Op = 25 // WriteAt and WriteVAt
	OpSync     Op = 26
	OpTruncate Op = 27
	OpAllocate Op = 28
	OpPunch    Op = 29
)

// Mutates tells whether the operation changes what is on the disk or what is durable.
func (o Op) Mutates() bool { return o >= OpCreate }

// String names the operation.
func (o Op) String() string {
	names := map[Op]string{OpOpen: "open", OpReadDir: "readdir", OpStat: "stat", OpSpace: "space", OpRead: "read",
		OpSize: "size", OpClose: "close", OpLock: "lock", OpCreate: "create", OpRemove: "remove", OpRename: "rename",
		OpMkdir: "mkdir", OpSyncDir: "syncdir", OpWrite: "write", OpSync: "sync", OpTruncate: "truncate",
		OpAllocate: "allocate", OpPunch: "punch", OpStartWrite: "start write"}
	if n, ok := names[o]; ok {
		return n
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Call describes one operation to a Hook.
type Call struct {
	Op     Op
	Path   string
	To     string // new name of a rename
	Off    int64  // bytes; the new size of a truncate
	Length int64  // bytes
}

// Hook decides about an operation before it is done: nil lets it pass, any error is
// returned instead of doing it. Three errors do more:
//   - ErrCrashed (wrapped or not) fails this and every later operation;
//   - *Torn does a part first;
//   - both: &Torn{Keep: n, Err: ErrCrashed} writes a part and then the machine is off.
//
// A Hook may be called from many goroutines at once. It must not use the Faulty.
type Hook func(Call) error

// Torn is a fault that lets the first Keep bytes of a write happen and then fails with
// Err. Keep < 0 lets the whole operation happen, of whatever kind, and fails all the same:
// the answer was lost, not the deed.
type Torn struct {
	Keep int
	Err  error
}

func (t *Torn) Error() string { return fmt.Sprintf("torn after %d bytes: %v", t.Keep, t.Err) }
func (t *Torn) Unwrap() error { return t.Err }

// Faulty wraps a file system and fails where a Hook says so. It is safe for concurrent use.
type Faulty struct {
	fs      FS
	hook    atomic.Pointer[Hook]
	crashed atomic.Bool
	running sync.RWMutex // held shared by every operation
}

// NewFaulty wraps fsys. A nil hook lets everything pass.
func NewFaulty(fsys FS, hook Hook) *Faulty {
	f := &Faulty{fs: fsys}
	f.SetHook(hook)
	return f
}

// SetHook replaces the hook; nil lets everything pass.
func (f *Faulty) SetHook(hook Hook) {
	if hook == nil {
		hook = func(Call) error { return nil }
	}
	f.hook.Store(&hook)
}

// Crash fails every operation from now on and returns when none is running any more. So
// the state of the file system below holds all that was ever answered with success.
func (f *Faulty) Crash() {
	f.crashed.Store(true)
	f.running.Lock()
	defer f.running.Unlock()
}

// Crashed tells whether the machine is off.
func (f *Faulty) Crashed() bool { return f.crashed.Load() }

// do runs one operation under the hook. run gets the number of bytes that it may write,
// -1 for all.
func (f *Faulty) do(c Call, run func(keep int) error) error {
	f.running.RLock()
	defer f.running.RUnlock()
	if f.crashed.Load() {
		return pathErr(c.Op.String(), c.Path, ErrCrashed)
	}
	fault := (*f.hook.Load())(c)
	if fault == nil {
		return run(-1)
	}
	var torn *Torn
	if errors.As(fault, &torn) && (torn.Keep < 0 || c.Op == OpWrite && torn.Keep > 0) {
		if err := run(torn.Keep); err != nil {
			fault = errors.Join(fault, err)
		}
	}
	if errors.Is(fault, ErrCrashed) {
		f.crashed.Store(true)
	}
	return pathErr(c.Op.String(), c.Path, fault)
}

// OpenFile implements FS.
func (f *Faulty) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	op := OpOpen
	if flag&(syscall.O_CREAT|syscall.O_TRUNC) != 0 {
		op = OpCreate
	}
	var file File
	err := f.do(Call{Op: op, Path: name}, func(int) (err error) {
		file, err = f.fs.OpenFile(name, flag, perm)
		return err
	})
	if err != nil {
		if file != nil { // opened, and the answer was lost
			err = errors.Join(err, file.Close())
		}
		return nil, err
	}
	return &faultyFile{fs: f, file: file, name: name, direct: flag&ODirect != 0}, nil
}

// Remove implements FS.
func (f *Faulty) Remove(name string) error {
	return f.do(Call{Op: OpRemove, Path: name}, func(int) error { return f.fs.Remove(name) })
}

// Rename implements FS.
func (f *Faulty) Rename(oldname, newname string) error {
	return f.do(Call{Op: OpRename, Path: oldname, To: newname}, func(int) error { return f.fs.Rename(oldname, newname) })
}

// MkdirAll implements FS.
func (f *Faulty) MkdirAll(name string, perm fs.FileMode) error {
	return f.do(Call{Op: OpMkdir, Path: name}, func(int) error { return f.fs.MkdirAll(name, perm) })
}

// ReadDir implements FS.
func (f *Faulty) ReadDir(name string) (list []fs.DirEntry, err error) {
	err = f.do(Call{Op: OpReadDir, Path: name}, func(int) (err error) {
		list, err = f.fs.ReadDir(name)
		return err
	})
	return list, err
}

// Stat implements FS.
func (f *Faulty) Stat(name string) (info fs.FileInfo, err error) {
	err = f.do(Call{Op: OpStat, Path: name}, func(int) (err error) {
		info, err = f.fs.Stat(name)
		return err
	})
	return info, err
}

// SyncDir implements FS.
func (f *Faulty) SyncDir(name string) error {
	return f.do(Call{Op: OpSyncDir, Path: name}, func(int) error { return f.fs.SyncDir(name) })
}

// Space implements FS.
func (f *Faulty) Space(name string) (total, free uint64, err error) {
	err = f.do(Call{Op: OpSpace, Path: name}, func(int) (err error) {
		total, free, err = f.fs.Space(name)
		return err
	})
	return total, free, err
}

// Lock implements Locker.
func (f *Faulty) Lock(name string) (io.Closer, error) {
	var lock io.Closer
	err := f.do(Call{Op: OpLock, Path: name}, func(int) (err error) {
		lock, err = Lock(f.fs, name)
		return err
	})
	if err != nil {
		if lock != nil {
			err = errors.Join(err, lock.Close())
		}
		return nil, err
	}
	return lock, nil // a lock ends with its process: Close works after a crash too
}

// faultyFile is an open file of a Faulty.
type faultyFile struct {
	fs   *Faulty
	file File
	name string

	direct bool // torn writes end at multiples of DirectAlign
}

// kept bounds what a torn write of n bytes writes.
func (f *faultyFile) kept(keep, n int) int {
	if keep < 0 || keep > n {
		return n
	}
	if f.direct {
		keep -= keep % DirectAlign
	}
	return keep
}

func (f *faultyFile) ReadAt(p []byte, off int64) (n int, err error) {
	var plain error
	err = f.fs.do(Call{Op: OpRead, Path: f.name, Off: off, Length: int64(len(p))}, func(int) error {
		n, plain = f.file.ReadAt(p, off)
		return nil
	})
	if err == nil {
		err = plain // io.EOF as it is: callers compare it
	}
	return n, err
}

func (f *faultyFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.fs.do(Call{Op: OpWrite, Path: f.name, Off: off, Length: int64(len(p))}, func(keep int) (err error) {
		n, err = f.file.WriteAt(p[:f.kept(keep, len(p))], off)
		return err
	})
	return n, err
}

func (f *faultyFile) WriteVAt(bufs [][]byte, off int64) (n int, err error) {
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	err = f.fs.do(Call{Op: OpWrite, Path: f.name, Off: off, Length: int64(total)}, func(keep int) (err error) {
		if k := f.kept(keep, total); k < total {
			bufs = firstBytes(bufs, k)
		}
		n, err = f.file.WriteVAt(bufs, off)
		return err
	})
	return n, err
}

// firstBytes returns the first n bytes of bufs.
func firstBytes(bufs [][]byte, n int) [][]byte {
	var out [][]byte
	for _, b := range bufs {
		if n <= 0 {
			break
		}
		b = b[:min(n, len(b))]
		out = append(out, b)
		n -= len(b)
	}
	return out
}

func (f *faultyFile) Sync() error {
	return f.fs.do(Call{Op: OpSync, Path: f.name}, func(int) error { return f.file.Sync() })
}

func (f *faultyFile) Truncate(size int64) error {
	return f.fs.do(Call{Op: OpTruncate, Path: f.name, Off: size}, func(int) error { return f.file.Truncate(size) })
}

func (f *faultyFile) Size() (size int64, err error) {
	err = f.fs.do(Call{Op: OpSize, Path: f.name}, func(int) (err error) {
		size, err = f.file.Size()
		return err
	})
	return size, err
}

func (f *faultyFile) Allocate(off, length int64) error {
	return f.fs.do(Call{Op: OpAllocate, Path: f.name, Off: off, Length: length}, func(int) error { return f.file.Allocate(off, length) })
}

func (f *faultyFile) StartWrite(off, length int64) error {
	return f.fs.do(Call{Op: OpStartWrite, Path: f.name, Off: off, Length: length}, func(int) error { return f.file.StartWrite(off, length) })
}

func (f *faultyFile) Punch(off, length int64) error {
	return f.fs.do(Call{Op: OpPunch, Path: f.name, Off: off, Length: length}, func(int) error { return f.file.Punch(off, length) })
}

// Close always closes the file below, so that no test leaks descriptors.
func (f *faultyFile) Close() error {
	closed := false
	err := f.fs.do(Call{Op: OpClose, Path: f.name}, func(int) error {
		closed = true
		return f.file.Close()
	})
	if !closed {
		return errors.Join(err, f.file.Close())
	}
	return err
}

// Counter is a Hook that counts mutating operations and lets one of them fail. It is
// the engine of loops that try every point of failure:
//
//	for k := int64(1); ; k++ {
//		mem := vfs.NewMem(vfs.MemOptions{})
//		c := vfs.FailAt(k, vfs.ErrCrashed)
//		disk := vfs.NewFaulty(mem, c.Hook)
//		acked := run(disk)
//		disk.Crash()
//		check(mem.Crash(rng, vfs.CrashTorn), acked)
//		if !c.Fired() {
//			break // the run has fewer than k operations: all points were tried
//		}
//	}
type Counter struct {
	at    int64
	fault func(Call) error
	n     atomic.Int64
}

// FailAt returns a Counter whose k-th mutating operation, counted from 1, fails with
// fault; later ones pass again unless fault is ErrCrashed. k = 0 only counts.
func FailAt(k int64, fault error) *Counter {
	return FailAtFunc(k, func(Call) error { return fault })
}

// FailAtFunc is FailAt with a fault that depends on the operation (a random Torn, say).
func FailAtFunc(k int64, fault func(Call) error) *Counter { return &Counter{at: k, fault: fault} }

// Hook implements the Hook.
func (c *Counter) Hook(call Call) error {
	if call.Op.Mutates() && c.n.Add(1) == c.at {
		return c.fault(call)
	}
	return nil
}

// Seen returns the number of mutating operations so far.
func (c *Counter) Seen() int64 { return c.n.Load() }

// Fired tells whether the k-th operation came.
func (c *Counter) Fired() bool { return c.at > 0 && c.n.Load() >= c.at }
