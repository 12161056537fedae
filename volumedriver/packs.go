package volumedriver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"scoria/internal/vfs"
	"scoria/volumedriver/sco"
)

// packStore keeps the map packs of a volume: as local files, which a checkpoint writes,
// and in the object store, where the publication of a head puts them. It implements
// clustermap.PackStore. A local file that is in the object store too is only a cache.
type packStore struct {
	fs    vfs.FS
	dir   string
	store ObjectStore
	ns    uint64

	mu struct {
		sync.Mutex
		local    map[uint32]int64 // size in bytes of local files
		uploaded map[uint32]bool
	}
}

func newPackStore(fsys vfs.FS, dir string, store ObjectStore, ns uint64) *packStore {
	p := &packStore{fs: fsys, dir: dir, store: store, ns: ns}
	p.mu.local = make(map[uint32]int64)
	p.mu.uploaded = make(map[uint32]bool)
	return p
}

const packSuffix = ".pack"

func (p *packStore) file(number uint32) string {
	return filepath.Join(p.dir, fmt.Sprintf("%08x%s", number, packSuffix))
}

// load finds the local files. uploaded are the packs that the head refers to.
func (p *packStore) load(uploaded []uint32) error {
	if err := p.fs.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("map packs: %w", err)
	}
	list, err := p.fs.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("map packs: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, number := range uploaded {
		p.mu.uploaded[number] = true
	}
	for _, e := range list {
		number, ok := sco.ParseHex(strings.TrimSuffix(e.Name(), packSuffix), 8)
		if !ok {
			continue
		}
		info, err := p.fs.Stat(path.Join(p.dir, e.Name()))
		if err != nil {
			return fmt.Errorf("map packs: %w", err)
		}
		p.mu.local[uint32(number)] = info.Size()
	}
	return nil
}

// WritePack implements clustermap.PackStore.
func (p *packStore) WritePack(ctx context.Context, number uint32, write func(w io.Writer) error) error {
	name := p.file(number)
	size, err := p.writeFile(name, write)
	if err != nil {
		err = fmt.Errorf("map pack %d: %w", number, err)
		if rerr := p.fs.Remove(name); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	p.mu.Lock()
	p.mu.local[number] = size
	p.mu.Unlock()
	return nil
}

func (p *packStore) writeFile(name string, write func(w io.Writer) error) (size int64, err error) {
	f, err := p.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	w := bufio.NewWriterSize(&fileWriter{f: f}, 256<<10)
	err = write(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		size, err = f.Size()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = p.fs.SyncDir(p.dir)
	}
	return size, err
}

// fileWriter writes a file from its start.
type fileWriter struct {
	f   vfs.File
	off int64
}

func (w *fileWriter) Write(b []byte) (int, error) {
	n, err := w.f.WriteAt(b, w.off)
	w.off += int64(n)
	return n, err
}

// ReadPack implements clustermap.PackStore.
func (p *packStore) ReadPack(ctx context.Context, number uint32, off, length uint32) ([]byte, error) {
	b := make([]byte, length)
	p.mu.Lock()
	size, local := p.mu.local[number]
	p.mu.Unlock()
	if local && int64(off)+int64(length) <= size {
		err := p.readLocal(number, b, int64(off))
		if err == nil {
			return b, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || !p.isUploaded(number) {
			return nil, fmt.Errorf("map pack %d: %w", number, err)
		}
	}
	err := p.store.Read(ctx, p.ns, []Slice{{Name: sco.PackName(number), Off: uint64(off), Data: b}})
	if err != nil {
		return nil, fmt.Errorf("map pack %d: %w", number, err)
	}
	return b, nil
}

func (p *packStore) readLocal(number uint32, b []byte, off int64) error {
	f, err := p.fs.OpenFile(p.file(number), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.ReadAt(b, off)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (p *packStore) isUploaded(number uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.uploaded[number]
}

// missing returns those of the packs that are not in the object store yet.
func (p *packStore) missing(packs []uint32) []uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []uint32
	for _, number := range packs {
		if !p.mu.uploaded[number] {
			list = append(list, number)
		}
	}
	return list
}

// content reads a whole local pack into aligned memory.
func (p *packStore) content(number uint32) ([]byte, error) {
	p.mu.Lock()
	size, ok := p.mu.local[number]
	p.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("map pack %d is not here: %w", number, fs.ErrNotExist)
	}
	b := vfs.AlignedBuffer(int(size))
	if err := p.readLocal(number, b, 0); err != nil {
		return nil, fmt.Errorf("map pack %d: %w", number, err)
	}
	return b, nil
}

func (p *packStore) setUploaded(number uint32, yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if yes {
		p.mu.uploaded[number] = true
	} else {
		delete(p.mu.uploaded, number)
	}
}

// prune removes local packs that no record in keep lists, and the oldest of those that are
// in the object store, until at most limit bytes of such are left. Failing to remove a
// file is no failure of the volume: it is tried again with the next checkpoint.
func (p *packStore) prune(keep map[uint32]bool, limit int64) error {
	p.mu.Lock()
	var dead []uint32
	var cached int64
	for number, size := range p.mu.local {
		switch {
		case !keep[number]:
			dead = append(dead, number)
		case p.mu.uploaded[number]:
			cached += size
		}
	}
	for cached > limit {
		oldest := uint32(0)
		for number := range p.mu.local {
			if keep[number] && p.mu.uploaded[number] && (oldest == 0 || number < oldest) {
				oldest = number
			}
		}
		cached -= p.mu.local[oldest]
		delete(p.mu.local, oldest)
		dead = append(dead, oldest)
	}
	for _, number := range dead {
		delete(p.mu.local, number)
	}
	p.mu.Unlock()
	var errs []error
	for _, number := range dead {
		if err := p.fs.Remove(p.file(number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// forgetLocal stops using the local copy of a pack that is in the object store too. It
// tells whether there was such a copy.
func (p *packStore) forgetLocal(number uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, local := p.mu.local[number]
	if !local || !p.mu.uploaded[number] {
		return false
	}
	delete(p.mu.local, number) // the file goes when the volume is opened anew, by load and prune
	return true
}
