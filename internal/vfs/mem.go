package vfs

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// MemOptions shapes a Mem. The zero value is the strict disk that tests want.
type MemOptions struct {
	// Capacity is the size of the disk in bytes, rounded down to 4 KiB; 0 means 1 TiB.
	// Memory is used only for pages that are written.
	Capacity uint64
	// Journal makes Sync of a file also make its name durable, with every directory change
	// before it, as ext4 and xfs do. The default is what POSIX promises: names need SyncDir.
	Journal bool
}

// Mem is a file system in memory that knows what would survive a power loss.
//
// Fault model. Data and size of a file are durable once Sync returned (or the write, on
// a file opened with O_SYNC or O_DSYNC). Creations, removals and renames are durable
// after SyncDir of a directory they touch; until then each directory keeps some prefix
// of its changes, independently of other directories (a rename between two directories
// happens in both or in none). Unsynced data survives in any subset of its 512-byte
// sectors. What has been synced never changes by itself: rot is Faulty's trade.
// Mem holds callers to the alignment rule of ODirect. Modification times are zero.
//
// A Mem is safe for concurrent use. Names are absolute or taken from the root, which exists.
type Mem struct {
	capacity int64 // bytes
	journal  bool
	used     atomic.Int64 // bytes in pages of the current view

	// world is held shared by every operation and exclusively by Crash, which thereby
	// sees one moment of all files. Order: world, mu, node.mu.
	world sync.RWMutex

	mu struct {
		sync.Mutex
		root    *node
		pending []change // directory changes that are not durable, oldest first
		locks   map[string]bool
		process int            // counts calls of Kill: handles of earlier processes are dead
		orphans map[*node]bool // files without a name that are open
	}
}

// node is a directory or a file.
type node struct {
	dir  bool
	perm fs.FileMode

	// Guarded by Mem.mu.
	entries map[string]*node // directory: now
	durable map[string]*node // directory: after a power loss that keeps no pending change
	links   int              // names in the current view
	opens   int              // open files

	mu   sync.RWMutex
	data content // file; guarded by mu
}

// change is one atomic change of names: a creation, a removal or a rename.
type change struct {
	effects [2]effect
	n       int
}

// effect sets (or deletes, when node is nil) one name of one directory.
type effect struct {
	dir  *node
	name string
	node *node
}

// NewMem returns an empty file system.
func NewMem(opts MemOptions) *Mem {
	if opts.Capacity == 0 {
		opts.Capacity = 1 << 40
	}
	m := &Mem{capacity: int64(opts.Capacity &^ (pageSize - 1)), journal: opts.Journal}
	m.mu.root = newDir(0o755)
	m.mu.locks = make(map[string]bool)
	m.mu.orphans = make(map[*node]bool)
	return m
}

func newDir(perm fs.FileMode) *node {
	return &node{dir: true, perm: perm, entries: make(map[string]*node), durable: make(map[string]*node)}
}

func pathErr(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// split returns the parts of a name; none for the root.
func split(name string) []string {
	name = strings.Trim(path.Clean("/"+name), "/")
	if name == "" {
		return nil
	}
	return strings.Split(name, "/")
}

func (m *Mem) walkLocked(parts []string) (*node, error) {
	n := m.mu.root
	for _, p := range parts {
		if !n.dir {
			return nil, syscall.ENOTDIR
		}
		next := n.entries[p]
		if next == nil {
			return nil, syscall.ENOENT
		}
		n = next
	}
	return n, nil
}

// parentLocked returns the directory that holds name, and the last part of name.
func (m *Mem) parentLocked(name string) (*node, string, error) {
	parts := split(name)
	if len(parts) == 0 {
		return nil, "", syscall.EINVAL
	}
	d, err := m.walkLocked(parts[:len(parts)-1])
	if err != nil {
		return nil, "", err
	}
	if !d.dir {
		return nil, "", syscall.ENOTDIR
	}
	return d, parts[len(parts)-1], nil
}

// applyLocked makes a change in the current view and notes it as pending.
func (m *Mem) applyLocked(effects ...effect) {
	c := change{n: len(effects)}
	copy(c.effects[:], effects)
	for _, e := range effects {
		set(e.dir.entries, e)
	}
	m.mu.pending = append(m.mu.pending, c)
}

func set(entries map[string]*node, e effect) {
	if e.node == nil {
		delete(entries, e.name)
	} else {
		entries[e.name] = e.node
	}
}

// unlinkLocked drops one name of a file and frees its space if that was the last user.
func (m *Mem) unlinkLocked(n *node) {
	n.links--
	m.reapLocked(n)
}

func (m *Mem) reapLocked(n *node) {
	if n.dir || n.links > 0 {
		return
	}
	if n.opens > 0 {
		m.mu.orphans[n] = true
		return
	}
	delete(m.mu.orphans, n)
	n.mu.Lock()
	m.used.Add(-n.data.pages * pageSize)
	n.data.pages = 0 // the pages stay: a lost removal brings them back in a fork
	n.mu.Unlock()
}

// OpenFile implements FS.
func (m *Mem) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	m.world.RLock()
	defer m.world.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.parentLocked(name)
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	n := d.entries[base]
	switch {
	case n == nil && flag&syscall.O_CREAT == 0:
		return nil, pathErr("open", name, syscall.ENOENT)
	case n == nil:
		n = &node{perm: perm & fs.ModePerm, links: 1}
		m.applyLocked(effect{d, base, n})
	case flag&syscall.O_CREAT != 0 && flag&syscall.O_EXCL != 0:
		return nil, pathErr("open", name, syscall.EEXIST)
	case n.dir:
		return nil, pathErr("open", name, syscall.EISDIR)
	}
	f := &memFile{fs: m, n: n, name: name, flag: flag, process: m.mu.process}
	if flag&syscall.O_TRUNC != 0 && f.writable() {
		n.mu.Lock()
		m.used.Add(-n.data.truncate(0) * pageSize)
		n.mu.Unlock()
	}
	n.opens++
	return f, nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	m.world.RLock()
	defer m.world.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.parentLocked(name)
	if err != nil {
		return pathErr("remove", name, err)
	}
	n := d.entries[base]
	if n == nil {
		return pathErr("remove", name, syscall.ENOENT)
	}
	if n.dir && len(n.entries) > 0 {
		return pathErr("remove", name, syscall.ENOTEMPTY)
	}
	m.applyLocked(effect{d, base, nil})
	m.unlinkLocked(n)
	return nil
}

// Rename implements FS.
func (m *Mem) Rename(oldname, newname string) error {
	m.world.RLock()
	defer m.world.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	od, obase, err := m.parentLocked(oldname)
	if err != nil {
		return pathErr("rename", oldname, err)
	}
	nd, nbase, err := m.parentLocked(newname)
	if err != nil {
		return pathErr("rename", newname, err)
	}
	n, target := od.entries[obase], nd.entries[nbase]
	switch {
	case n == nil:
		return pathErr("rename", oldname, syscall.ENOENT)
	case n == target:
		return nil
	case n.dir && (nd == n || m.belowLocked(n, newname)):
		return pathErr("rename", newname, syscall.EINVAL)
	case target != nil && target.dir:
		return pathErr("rename", newname, syscall.EEXIST) // as os.Rename says it
	case target != nil && n.dir:
		return pathErr("rename", newname, syscall.ENOTDIR)
	}
	m.applyLocked(effect{od, obase, nil}, effect{nd, nbase, n})
	if target != nil {
		m.unlinkLocked(target)
	}
	return nil
}

// belowLocked tells whether the parents of name include the directory n.
func (m *Mem) belowLocked(n *node, name string) bool {
	d := m.mu.root
	for _, p := range split(name) {
		if d == n {
			return true
		}
		if d = d.entries[p]; d == nil {
			return false
		}
	}
	return false
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(name string, perm fs.FileMode) error {
	m.world.RLock()
	defer m.world.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.mu.root
	for _, p := range split(name) {
		next := d.entries[p]
		if next == nil {
			next = newDir(perm & fs.ModePerm)
			m.applyLocked(effect{d, p, next})
		}
		if !next.dir {
			return pathErr("mkdir", name, syscall.ENOTDIR)
		}
		d = next
	}
	return nil
}

// ReadDir implements FS.
func (m *Mem) ReadDir(name string) ([]fs.DirEntry, error) {
	m.world.RLock()
	defer m.world.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.walkLocked(split(name))
	if err == nil && !d.dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, pathErr("readdir", name, err)
	}
	list := make([]fs.DirEntry, 0, len(d.entries))
	for base, n := range d.entries {
		list = append(list, fs.FileInfoToDirEntry(n.info(base)))
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

// Stat implements FS.
func (m *Mem) Stat(name string) (fs.FileInfo, error) {
	m.world.RLock()
	defer m.world.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.walkLocked(split(name))
	if err != nil {
		return nil, pathErr("stat", name, err)
	}
	return n.info(path.Base(path.Clean("/" + name))), nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(name string) error {
	m.world.RLock()
	defer m.world.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.walkLocked(split(name))
	if err == nil && !d.dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return pathErr("syncdir", name, err)
	}
	m.commitLocked(d)
	return nil
}

// commitLocked makes the pending changes of d durable, and those of other directories
// that must come before them because a rename joins the two.
func (m *Mem) commitLocked(d *node) {
	dirs := map[*node]bool{d: true}
	commit := make([]bool, len(m.mu.pending))
	for i, c := range slices.Backward(m.mu.pending) {
		if commit[i] = dirs[c.effects[0].dir] || c.n == 2 && dirs[c.effects[1].dir]; commit[i] {
			for _, e := range c.effects[:c.n] {
				dirs[e.dir] = true
			}
		}
	}
	rest := m.mu.pending[:0]
	for i, c := range m.mu.pending {
		if !commit[i] {
			rest = append(rest, c)
			continue
		}
		for _, e := range c.effects[:c.n] {
			set(e.dir.durable, e)
		}
	}
	clear(m.mu.pending[len(rest):])
	m.mu.pending = rest
}

// commitNameLocked is what a journal does when n is synced: every change up to the last
// one that names n becomes durable.
func (m *Mem) commitNameLocked(n *node) {
	last := -1
	for i, c := range m.mu.pending {
		if c.effects[0].node == n || c.n == 2 && c.effects[1].node == n {
			last = i
		}
	}
	for _, c := range m.mu.pending[:last+1] {
		for _, e := range c.effects[:c.n] {
			set(e.dir.durable, e)
		}
	}
	m.mu.pending = slices.Delete(m.mu.pending, 0, last+1)
}

// Space implements FS.
func (m *Mem) Space(name string) (total, free uint64, err error) {
	if _, err := m.Stat(name); err != nil {
		return 0, 0, err
	}
	return uint64(m.capacity), uint64(max(0, m.capacity-m.used.Load())), nil
}

// reserve takes space for n pages, or nothing.
func (m *Mem) reserve(n int64) bool {
	if m.used.Add(n*pageSize) > m.capacity {
		m.used.Add(-n * pageSize)
		return false
	}
	return true
}

// Lock implements Locker.
func (m *Mem) Lock(name string) (io.Closer, error) {
	f, err := m.OpenFile(name, syscall.O_RDWR|syscall.O_CREAT, 0o600)
	if err != nil {
		return nil, err
	}
	key := path.Clean("/" + name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.locks[key] {
		return nil, errors.Join(pathErr("lock", name, ErrLocked), f.(*memFile).closeLocked())
	}
	m.mu.locks[key] = true
	return &memLock{File: f, fs: m, key: key, process: m.mu.process}, nil
}

type memLock struct {
	File
	fs      *Mem
	key     string
	process int
}

func (l *memLock) Close() error {
	if err := l.File.Close(); err != nil {
		return err
	}
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	if l.process == l.fs.mu.process {
		delete(l.fs.mu.locks, l.key)
	}
	return nil
}

func sortedNames(entries map[string]*node) []string {
	return slices.Sorted(maps.Keys(entries))
}

// memInfo is the fs.FileInfo of a node.
type memInfo struct {
	name string
	size int64
	mode fs.FileMode
}

func (n *node) info(base string) memInfo {
	i := memInfo{name: base, mode: n.perm}
	if n.dir {
		i.mode |= fs.ModeDir
		return i
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	i.size = n.data.size
	return i
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) Mode() fs.FileMode  { return i.mode }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.mode.IsDir() }
func (i memInfo) Sys() any           { return nil }
