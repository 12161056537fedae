package osd

import (
	"container/list"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"scoria/internal/vfs"
)

const segmentPrefix = "seg-"

func segmentName(no uint32) string { return fmt.Sprintf("%s%08x", segmentPrefix, no) }

// parseSegmentName returns the number of a segment's file name.
func parseSegmentName(name string) (uint32, bool) {
	hex, ok := strings.CutPrefix(name, segmentPrefix)
	if !ok || len(hex) != 8 {
		return 0, false
	}
	n, err := strconv.ParseUint(hex, 16, 32)
	return uint32(n), err == nil && n > 0
}

// segment is the segment that is being written. The writer owns it; the syncer syncs it.
type segment struct {
	info segmentInfo
	f    vfs.File
	off  int64 // where the next record goes
	size int64 // preallocated bytes
}

// segments is the directory of segments: creation, removal and a bounded set of open files for reading.
type segments struct {
	fs  vfs.FS
	dir string

	mu struct {
		sync.Mutex
		open map[handleKey]*list.Element // of *handle
		lru  *list.List                  // front: used last
	}
	limit int
}

type handleKey struct {
	seg    uint32
	direct bool
}

// handle is an open file shared by readers.
type handle struct {
	key  handleKey
	f    vfs.File
	refs int  // of readers
	gone bool // no longer in the set: the last reader closes it
}

func newSegments(fsys vfs.FS, dir string, limit int) *segments {
	g := &segments{fs: fsys, dir: dir, limit: limit}
	g.mu.open = map[handleKey]*list.Element{}
	g.mu.lru = list.New()
	return g
}

func (g *segments) name(no uint32) string { return path.Join(g.dir, segmentName(no)) }

// create makes a segment of size bytes and makes it durable, empty as it is.
func (g *segments) create(info segmentInfo, size int64) (*segment, error) {
	name := g.name(info.No)
	f, err := g.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC|vfs.ODirect, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create segment: %w", err)
	}
	block := vfs.AlignedBuffer(segmentHeader)
	copy(block, appendSegment(nil, info))
	err = f.Allocate(0, size)
	if err == nil {
		_, err = f.WriteAt(block, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = g.fs.SyncDir(g.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("create segment: %w", errors.Join(err, f.Close(), g.fs.Remove(name)))
	}
	return &segment{info: info, f: f, off: segmentHeader, size: size}, nil
}

// list returns the numbers of all segments, in order.
func (g *segments) list() ([]uint32, error) {
	entries, err := g.fs.ReadDir(g.dir)
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var nos []uint32
	for _, e := range entries {
		if no, ok := parseSegmentName(e.Name()); ok {
			nos = append(nos, no)
		}
	}
	return nos, nil // ReadDir sorts, and the names sort as the numbers
}

// remove deletes a segment durably. Its absence is fine.
func (g *segments) remove(no uint32) error {
	g.forget(no)
	if err := g.fs.Remove(g.name(no)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove segment: %w", err)
	}
	return g.fs.SyncDir(g.dir)
}

// acquire opens a segment for reading, or finds it open. The caller calls release.
func (g *segments) acquire(no uint32, direct bool) (*handle, error) {
	key := handleKey{no, direct}
	g.mu.Lock()
	if el, ok := g.mu.open[key]; ok {
		h := el.Value.(*handle)
		h.refs++
		g.mu.lru.MoveToFront(el)
		g.mu.Unlock()
		return h, nil
	}
	g.mu.Unlock()
	flag := os.O_RDONLY
	if direct {
		flag |= vfs.ODirect
	}
	f, err := g.fs.OpenFile(g.name(no), flag, 0)
	if err != nil {
		return nil, err
	}
	h := &handle{key: key, f: f, refs: 1}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.mu.open[key]; ok {
		h.gone = true // somebody was faster; ours lives for this one read
		return h, nil
	}
	g.mu.open[key] = g.mu.lru.PushFront(h)
	for el := g.mu.lru.Back(); el != nil && g.mu.lru.Len() > g.limit; {
		prev := el.Prev()
		if el.Value.(*handle).refs == 0 {
			g.dropLocked(el)
		}
		el = prev
	}
	return h, nil
}

func (g *segments) release(h *handle) {
	g.mu.Lock()
	h.refs--
	last := h.gone && h.refs == 0
	g.mu.Unlock()
	if last {
		_ = h.f.Close() // read only
	}
}

func (g *segments) dropLocked(el *list.Element) {
	h := el.Value.(*handle)
	g.mu.lru.Remove(el)
	delete(g.mu.open, h.key)
	h.gone = true
	if h.refs == 0 {
		_ = h.f.Close() // read only
	}
}

// forget closes the open files of a segment.
func (g *segments) forget(no uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, direct := range []bool{false, true} {
		if el, ok := g.mu.open[handleKey{no, direct}]; ok {
			g.dropLocked(el)
		}
	}
}

// close closes all open files.
func (g *segments) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for el := g.mu.lru.Front(); el != nil; el = g.mu.lru.Front() {
		g.dropLocked(el)
	}
}
