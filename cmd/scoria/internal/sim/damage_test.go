package sim

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"scoria/alba"
	"scoria/internal/vfs"
	"scoria/metadata"
)

// damage is what a disk does to data behind the back of its server. It outlives processes.
type damage struct {
	mu       sync.Mutex
	all      bool               // nothing can be read
	lost     int                // so many writes are answered and not done
	misplace int                // ... are done elsewhere in the file
	bad      map[string][]int64 // unreadable blocks of files, by offset

	refuse   int   // so many writes fail, done in part,
	refusal  error // with this
	unsynced int   // so many syncs fail
}

// accept ends failing writes and syncs.
func (d *damage) accept() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse, d.unsynced = 0, 0
}

// refused tells whether the next write fails.
func (d *damage) refused() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse == 0 {
		return nil
	}
	d.refuse--
	return d.refusal
}

// unsyncable tells whether the next sync fails.
func (d *damage) unsyncable() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unsynced == 0 {
		return false
	}
	d.unsynced--
	return true
}

const badBlock = 4096

// write decides about a write of n bytes at off: where to do it (off < 0: not at all).
func (d *damage) write(name string, off int64, n int) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if blocks := d.bad[name]; len(blocks) > 0 { // rewriting a block makes it readable
		kept := blocks[:0]
		for _, b := range blocks {
			if b < off || b >= off+int64(n) {
				kept = append(kept, b)
			}
		}
		d.bad[name] = kept
	}
	switch {
	case d.lost > 0:
		d.lost--
		return -1
	case d.misplace > 0 && off >= 2*badBlock:
		d.misplace--
		return off - badBlock
	}
	return off
}

// setAll makes all data unreadable, or readable again.
func (d *damage) setAll(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = on
}

func (d *damage) read(name string, off int64, n int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all {
		return fmt.Errorf("read %s at %d: %w", name, off, syscall.EIO)
	}
	for _, b := range d.bad[name] {
		if b < off+int64(n) && off < b+badBlock {
			return fmt.Errorf("read %s at %d: %w", name, off, syscall.EIO)
		}
	}
	return nil
}

// mayDamage tells whether a disk server may lose data now, and takes note that it has: no more
// of them than the policies bear may have damage that is not healed.
func (w *world) mayDamage(d *disk) bool {
	if _, hurt := w.hurt[d.host]; !hurt && len(w.hurt) >= w.plan.Bears {
		w.note("skipped", 1)
		return false
	}
	w.hurt[d.host], w.scars[d.host] = time.Now(), true
	w.troubleAt(d.host, 5*time.Minute) // until a scrub has found it
	return true
}

// flipBits changes bytes of what a disk server has written.
func flipBits(w *world, e event, r *rand.Rand) {
	d := w.disks[e.Host]
	if !w.mayDamage(d) {
		return
	}
	w.eachBlock(d, r, 1+r.IntN(20), func(f vfs.File, _ string, off int64) error {
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, off); err != nil {
			return err
		}
		b[0] ^= 1 << r.IntN(8)
		_, err := f.WriteAt(b, off)
		return err
	})
}

// unreadable makes blocks of a disk unreadable until they are written again.
func unreadable(w *world, e event, r *rand.Rand) {
	d := w.disks[e.Host]
	if !w.mayDamage(d) {
		return
	}
	w.eachBlock(d, r, 1+r.IntN(20), func(_ vfs.File, name string, off int64) error {
		d.damage.mu.Lock()
		defer d.damage.mu.Unlock()
		d.damage.bad[name] = append(d.damage.bad[name], off&^(badBlock-1))
		return nil
	})
}

// eachBlock calls f for n places of segments that hold something.
func (w *world) eachBlock(d *disk, r *rand.Rand, n int, f func(file vfs.File, name string, off int64) error) {
	list, err := d.mem.ReadDir("/osd")
	if err != nil {
		w.fail(fmt.Errorf("look at the disk of %s: %w", d.host, err))
		return
	}
	var segs []string
	for _, e := range list {
		if strings.HasPrefix(e.Name(), "seg-") {
			segs = append(segs, path.Join("/osd", e.Name()))
		}
	}
	if len(segs) == 0 {
		return
	}
	for range n {
		name := segs[r.IntN(len(segs))]
		file, err := d.mem.OpenFile(name, syscall.O_RDWR, 0)
		if err != nil {
			continue // removed meanwhile
		}
		size, err := file.Size()
		block := make([]byte, badBlock)
		for try := 0; try < 50 && err == nil && size > badBlock; try++ {
			off := r.Int64N(size-badBlock) &^ (badBlock - 1)
			if _, err = file.ReadAt(block, off); err == nil && !bytes.Equal(block, make([]byte, badBlock)) {
				w.note("blocks damaged", 1)
				err = f(file, name, off+r.Int64N(badBlock))
				break
			}
		}
		if err = errors.Join(err, file.Close()); err != nil {
			w.fail(fmt.Errorf("damage %s of %s: %w", name, d.host, err))
		}
	}
}

func loseWrites(w *world, e event, r *rand.Rand) {
	if d := w.disks[e.Host]; w.mayDamage(d) {
		d.damage.mu.Lock()
		defer d.damage.mu.Unlock()
		d.damage.lost += 1 + r.IntN(3)
	}
}

func misplaceWrites(w *world, e event, r *rand.Rand) {
	if d := w.disks[e.Host]; w.mayDamage(d) {
		d.damage.mu.Lock()
		defer d.damage.mu.Unlock()
		d.damage.misplace += 1 + r.IntN(3)
	}
}

// replaceDisk puts an empty disk in the place of one that is lost, as an operator does.
func replaceDisk(w *world, e event, r *rand.Rand) {
	d := w.disks[e.Host]
	if !w.mayDamage(d) {
		return
	}
	d.kill(vfs.CrashKept, r)
	w.replace(d)
}

// replaceRefusing does what status asks for where a disk server has found its log damaged and
// takes no writes any more. That of a disk that was never damaged must not come to that.
func (w *world) replaceRefusing(d *disk) {
	if !d.up || d.gone() {
		return
	}
	info, err := d.store.Info(w.ctx)
	_, hurt := w.hurt[d.host]
	switch {
	case err != nil || info.Failed == "":
	case !w.scars[d.host] && !d.gone():
		w.fail(fmt.Errorf("%s refuses writes, though its disk is well: %s", d.host, info.Failed))
	case hurt || len(w.hurt) < w.plan.Bears: // otherwise when the others are healed
		w.hurt[d.host] = time.Now()
		w.troubleAt(d.host, 5*time.Minute)
		d.kill(vfs.CrashKept, nil)
		w.replace(d)
	}
}

func (w *world) replace(d *disk) {
	old := d.id
	d.empty()
	w.scars[d.host] = false
	w.note("disks replaced", 1)
	if err := errors.Join(w.operator().SetOSDState(w.ctx, metadata.OSDID(old), metadata.OSDLost), d.start()); err != nil {
		w.fail(fmt.Errorf("replace %s: %w", d.host, err))
		return
	}
	if err := w.register(d); err != nil {
		w.fail(fmt.Errorf("register %s: %w", d.host, err))
	}
}

// judgeDamage looks whether damage is healed: then every chunk has at least as many good
// fragments as its policy asked for, and the next disk may be hurt. It looks at all disks
// itself, and puts off its judgement while one is down.
func (w *world) judgeDamage() {
	if len(w.hurt) == 0 || w.ctx.Err() != nil {
		return
	}
	good := map[uint32]map[string]bool{}
	for _, d := range w.disks {
		if !d.up || d.gone() {
			return
		}
		d.damage.mu.Lock()
		armed := d.damage.lost+d.damage.misplace > 0
		d.damage.mu.Unlock()
		if armed {
			return
		}
		items, err := w.fragments(w.ctx, d, alba.KeyData)
		if err != nil {
			return
		}
		good[d.id] = map[string]bool{}
		for _, it := range items {
			good[d.id][string(it.Key)] = true
		}
		if !w.scars[d.host] { // of those that were, some damage may be left: c good fragments are not all
			continue
		}
		bad, err := verify(w.ctx, d)
		if err != nil {
			return
		}
		for _, b := range bad {
			delete(good[d.id], string(b.Key))
		}
	}
	spaces, err := w.operator().ListNamespaces(w.ctx)
	if err != nil {
		return
	}
	for _, s := range spaces {
		ms, err := w.manifests(s.ID)
		if err != nil {
			return // being deleted
		}
		for _, m := range ms {
			for c, ch := range m.Chunks {
				n := 0
				for f, fr := range ch.Fragments {
					k := alba.FragmentKey{Namespace: s.ID, ObjectID: m.ObjectID, Chunk: uint16(c), Fragment: uint8(f), Version: fr.Version}
					if fr.OSD != 0 && good[uint32(fr.OSD)][string(k.Bytes(alba.KeyData))] {
						n++
					}
				}
				if n < int(m.Policy.C) {
					return
				}
			}
		}
	}
	w.note("damage healed", len(w.hurt))
	clear(w.hurt)
}
