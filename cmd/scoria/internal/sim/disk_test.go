package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"time"

	"scoria/alba/osd"
	"scoria/internal/vfs"
)

// machine is a host with a simulated disk: what a gateway and a disk server have in common.
type machine struct {
	w      *world
	host   string
	mem    *vfs.Mem
	fs     *vfs.Faulty // of the present process
	up     bool
	isDown atomic.Bool  // for those who only ask
	dead   *atomic.Bool // of the present process: it does nothing any more
	boots  atomic.Int64
	damage damage
	slow   atomic.Int64 // nanoseconds that each operation on data takes at most
}

func (m *machine) boot() {
	m.dead = new(atomic.Bool)
	m.fs = vfs.NewFaulty(m.mem, nil)
	m.up = true
	m.isDown.Store(false)
	m.boots.Add(1)
}

// die ends the process as kill -9 or the end of power does: nothing leaves it any more. It may
// be called from within an operation of the disk.
func (m *machine) die() {
	m.dead.Store(true)
	m.fs.SetHook(func(vfs.Call) error { return vfs.ErrCrashed })
	m.w.net.Stop(m.host)
}

// dieAt lets the process die at its k-th disk operation from now on; r decides how much of it is done.
func (m *machine) dieAt(k int64, r *rand.Rand) {
	keep := -1 + r.IntN(4)*700
	dead := m.dead
	m.fs.SetHook(vfs.FailAtFunc(k, func(vfs.Call) error {
		go func() { // at this very moment of virtual time
			dead.Store(true)
			m.w.net.Stop(m.host)
		}()
		if keep > 1500 {
			return vfs.ErrCrashed
		}
		return &vfs.Torn{Keep: keep, Err: vfs.ErrCrashed}
	}).Hook)
}

// lose makes of the disk what the crash leaves.
func (m *machine) lose(mode vfs.CrashMode, r *rand.Rand) {
	m.fs.Crash()
	if mode == vfs.CrashKept { // the process only: what was not synced is still not synced
		m.mem.Kill()
	} else {
		m.mem = m.mem.Crash(r, mode)
	}
	m.up = false
	m.isDown.Store(true)
}

// disk is a disk server.
type disk struct {
	machine
	n     int
	uuid  string
	id    uint32
	store *osd.Store
	srv   *osd.Server
	ended chan error
}

const (
	diskPort     = 7000
	diskCapacity = 96 << 20
)

func (d *disk) addr() string { return fmt.Sprintf("%s:%d", d.host, diskPort) }

func newDisk(w *world, n int) *disk {
	d := &disk{machine: machine{w: w, host: fmt.Sprintf("osd-%d", n)}, n: n}
	d.empty()
	return d
}

// empty gives the server a new disk.
func (d *disk) empty() {
	d.mem = vfs.NewMem(vfs.MemOptions{Capacity: diskCapacity})
	d.damage.mu.Lock()
	d.damage.lost, d.damage.misplace, d.damage.bad = 0, 0, map[string][]int64{}
	d.damage.mu.Unlock()
	d.uuid = fmt.Sprintf("00000000-0000-4000-8000-%012x", d.w.nextUUID())
}

// start starts the server.
func (d *disk) start() error {
	d.boot()
	s, err := osd.Open("/osd", osd.Options{
		FS: slowFS{d.fs, &d.machine, d.mem}, UUID: d.uuid, SegmentSize: 512 << 10, FlushBytes: 1 << 20, ReapBytes: 128 << 10, Logger: d.w.log.With("host", d.host),
	})
	if err != nil {
		d.up = false
		return fmt.Errorf("%s: %w", d.host, err)
	}
	ln, err := d.w.net.Host(d.host).Listen(d.addr())
	if err != nil {
		d.up = false
		return errors.Join(err, s.Close())
	}
	srv, ended := osd.NewServer(s, d.uuid, osd.ServerOptions{Logger: d.w.log}), make(chan error, 1)
	d.store, d.srv, d.ended = s, srv, ended
	go func() { ended <- srv.Serve(ln) }()
	return nil
}

// stop ends the server cleanly.
func (d *disk) stop() error {
	if !d.up {
		return nil
	}
	err := d.srv.Close()
	<-d.ended
	err = errors.Join(err, d.store.Close())
	d.up = false
	return err
}

// kill ends the server. With kept it was the process only, else the power.
func (d *disk) kill(mode vfs.CrashMode, r *rand.Rand) {
	if !d.up {
		return
	}
	d.die()
	d.lose(mode, r)
	srv, store := d.srv, d.store
	d.w.ghosts.Go(func() { // what is left of it ends by itself, and can do nothing
		_ = srv.Close()
		_ = store.Close()
	})
}

// slowFS makes operations on data take time. Time passes only while no lock is held that
// others wait for without a channel (DESIGN.md), so it is the segments and logs that are slow,
// not the small files around them.
type slowFS struct {
	*vfs.Faulty
	m   *machine
	mem *vfs.Mem // below
}

func (s slowFS) OpenFile(name string, flag int, perm fsMode) (vfs.File, error) {
	f, err := s.Faulty.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	if !isData(name) {
		return f, nil
	}
	return slowFile{f, s.m, s.mem, name}, nil
}

type slowFile struct {
	vfs.File
	m    *machine
	mem  *vfs.Mem
	name string
}

func (f slowFile) pause() {
	if d := f.m.slow.Load(); d > 0 {
		sleep(time.Duration(f.m.w.chance.Int64N(d) + 1))
	}
}

func (f slowFile) ReadAt(p []byte, off int64) (int, error) {
	f.pause()
	if err := f.m.damage.read(f.name, off, len(p)); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f slowFile) WriteAt(p []byte, off int64) (int, error) { return f.WriteVAt([][]byte{p}, off) }

func (f slowFile) WriteVAt(b [][]byte, off int64) (int, error) {
	f.pause()
	n := 0
	for _, p := range b {
		n += len(p)
	}
	if err := f.m.damage.refused(); err != nil {
		part := b[0][:f.m.w.chance.Int64N(int64(len(b[0])+1))/512*512]
		if _, wrong := f.File.WriteAt(part, off); wrong != nil {
			return 0, wrong
		}
		f.m.w.note("writes refused", 1)
		return len(part), fmt.Errorf("write %s at %d: %w", f.name, off, err)
	}
	if off = f.m.damage.write(f.name, off, n); off < 0 {
		return n, nil
	}
	return f.File.WriteVAt(b, off)
}

func (f slowFile) Sync() error {
	f.pause()
	if f.m.damage.unsyncable() {
		f.m.w.note("syncs failed", 1)
		return errors.Join(syscall.EIO, f.mem.FailSync(f.name))
	}
	return f.File.Sync()
}

// fill takes all the space of the disk but a little; the returned function gives it back.
func (m *machine) fill(leave uint64) (func(), error) {
	name := "/filler"
	f, err := m.mem.OpenFile(name, syscall.O_CREAT|syscall.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	_, free, err := m.mem.Space("/")
	if err == nil && free > leave {
		err = f.Allocate(0, int64(free-leave))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return func() {
		// It may be gone with the disk. A power loss must not bring it back later.
		_ = errors.Join(m.mem.Remove(name), m.mem.SyncDir("/"))
	}, nil
}
