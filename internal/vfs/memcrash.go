package vfs

import (
	"maps"
	"math/rand/v2"
	"syscall"
)

// CrashMode says what a power loss leaves of what was not synced.
type CrashMode uint8

// The modes of Crash.
const (
	// CrashLost loses everything that was not synced.
	CrashLost CrashMode = 1
	// CrashTorn keeps a random subset of the unsynced 512-byte sectors and directory changes.
	CrashTorn CrashMode = 2
	// CrashTornPages is CrashTorn for disks that never tear a 4 KiB block.
	CrashTornPages CrashMode = 3
	// CrashKept keeps everything: the process died, the machine lives (kill -9).
	CrashKept CrashMode = 4
)

// Modes lists all crash modes, for tests that try each.
func Modes() []CrashMode { return []CrashMode{CrashLost, CrashTorn, CrashTornPages, CrashKept} }

// String names the mode.
func (c CrashMode) String() string {
	switch c {
	case CrashLost:
		return "lost"
	case CrashTorn:
		return "torn"
	case CrashTornPages:
		return "torn-pages"
	case CrashKept:
		return "kept"
	}
	return "invalid"
}

// Crash returns a fork of the file system as a power loss at this moment leaves it; what
// is there is durable. The original goes on unharmed, open files with it. r decides what
// survives in the torn modes, and only there it may not be nil.
//
// Operations that run meanwhile are in the fork in full or not at all. Behind a Faulty,
// call its Crash first: then nothing that was answered with success can miss the fork.
func (m *Mem) Crash(r *rand.Rand, mode CrashMode) *Mem {
	m.world.Lock()
	defer m.world.Unlock()
	if mode == CrashLost || mode == CrashKept {
		r = nil
	}
	f := NewMem(MemOptions{Capacity: uint64(m.capacity), Journal: m.journal})
	k := &forker{to: f, r: r, mode: mode, names: m.survivingNames(r, mode), done: make(map[*node]*node)}
	f.mu.root = k.node(m.mu.root)
	return f
}

// Kill ends the process that uses the file system, and not the machine: its locks and open
// files are gone, and what was not synced is there, still not synced. (CrashKept is the same with
// everything synced in that moment.) Behind a Faulty, call its Crash first; the next process
// takes a new one.
func (m *Mem) Kill() {
	m.world.Lock()
	defer m.world.Unlock()
	m.mu.process++
	clear(m.mu.locks)
	var visit func(n *node)
	visit = func(n *node) {
		n.opens = 0
		for _, e := range n.entries {
			visit(e)
		}
	}
	visit(m.mu.root)
	for n := range m.mu.orphans {
		n.opens = 0
		m.reapLocked(n)
	}
}

// FailSync is a sync of a file that fails, as Linux does it: what could not be written back is
// still what reads see, but no later sync will write it. Only writing it again makes it count.
func (m *Mem) FailSync(name string) error {
	m.world.RLock()
	defer m.world.RUnlock()
	m.mu.Lock()
	n, err := m.walkLocked(split(name))
	m.mu.Unlock()
	if err == nil && n.dir {
		err = syscall.EISDIR
	}
	if err != nil {
		return pathErr("sync", name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.data.giveUp()
	return nil
}

// survivingNames returns the durable names of the directories that differ from node.durable.
func (m *Mem) survivingNames(r *rand.Rand, mode CrashMode) map[*node]map[string]*node {
	names := make(map[*node]map[string]*node)
	if mode == CrashLost {
		return names
	}
	stop := 0.0 // chance that a directory's log ends before the next change
	if r != nil {
		stop = []float64{0, 0.05, 0.5, 1}[r.IntN(4)]
	}
	stopped := make(map[*node]bool)
	for _, c := range m.mu.pending {
		effects := c.effects[:c.n]
		lost := r != nil && r.Float64() < stop
		for _, e := range effects {
			lost = lost || stopped[e.dir]
		}
		for _, e := range effects {
			if lost {
				stopped[e.dir] = true
				continue
			}
			if names[e.dir] == nil {
				names[e.dir] = maps.Clone(e.dir.durable)
			}
			set(names[e.dir], e)
		}
	}
	return names
}

type forker struct {
	to    *Mem
	r     *rand.Rand
	mode  CrashMode
	names map[*node]map[string]*node
	done  map[*node]*node
}

func (k *forker) node(n *node) *node {
	if d := k.done[n]; d != nil {
		d.links++
		return d
	}
	out := &node{dir: n.dir, perm: n.perm, links: 1}
	k.done[n] = out
	if !n.dir {
		out.data = n.data.fork(k.r, k.mode)
		k.to.used.Add(out.data.pages * pageSize)
		return out
	}
	names := n.durable
	if s, ok := k.names[n]; ok {
		names = s
	}
	out.entries = make(map[string]*node, len(names))
	for _, base := range sortedNames(names) { // in order: r must give the same for the same seed
		out.entries[base] = k.node(names[base])
	}
	out.durable = maps.Clone(out.entries)
	return out
}

// Writeback lets a random share of the unsynced sectors reach the disk, as the kernel
// does at any time; directory changes stay pending. A later crash may then show a
// sector as it was now, although it was overwritten since.
func (m *Mem) Writeback(r *rand.Rand) {
	m.world.Lock()
	defer m.world.Unlock()
	seen := make(map[*node]bool)
	var visit func(n *node)
	visit = func(n *node) {
		if seen[n] {
			return
		}
		seen[n] = true
		if !n.dir {
			n.data.writeback(r)
			return
		}
		for _, base := range sortedNames(n.entries) {
			visit(n.entries[base])
		}
	}
	visit(m.mu.root)
}
