package writebuffer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"scoria/internal/vfs"
)

// When a sync fails, the kernel keeps the pages that it could not write, for reads, and takes them
// for clean: no later sync writes them or says so, not even one of another process. Whoever
// opens such a log reads records that are not on the disk and, if it believed the next sync,
// would promise them. So a failure leaves a mark, and who finds it writes again what the log does
// not know to be durable. The mark needs no sync: after a power loss, what is read is what the disk has.

const failedName = "failed"

// failed makes err the sticky failure, and leaves the mark.
func (b *Buffer) failed(err error) error {
	f, markErr := b.opts.FS.OpenFile(filepath.Join(b.opts.Dir, failedName), os.O_WRONLY|os.O_CREATE, 0o600)
	if markErr == nil {
		markErr = f.Close()
	}
	if markErr != nil {
		b.opts.Logger.Error("a sync failed, and no mark of it could be made: do not open this log again before the machine has been restarted", "dir", b.opts.Dir, "err", markErr)
	}
	return b.sync.fail(err)
}

// marked tells whether a sync of the log in dir failed, and nothing has mended it.
func marked(fsys vfs.FS, dir string) (bool, error) {
	_, err := fsys.Stat(filepath.Join(dir, failedName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// mend writes the recovered segments again that may not be on the disk. The next sync makes
// them durable, or fails. The bytes are the same, so a power loss in between harms nothing.
func (r *recovery) mend() error {
	opts := &r.b.opts
	found, err := marked(opts.FS, opts.Dir)
	if err != nil || !found {
		return err
	}
	opts.Logger.Warn("a sync of this log failed before; what it did not cover is written again", "dir", opts.Dir)
	for _, s := range r.segs {
		if s.state == stateDisposable || s.lastSeq <= r.durable() && s.lastSeq >= s.firstSeq {
			continue
		}
		if err := rewrite(opts.FS, s.path, s.size); err != nil {
			return fmt.Errorf("write %s again: %w", s.path, err)
		}
	}
	r.b.mended.Store(true)
	return nil
}

// rewrite writes the first size bytes of a file over themselves.
func rewrite(fsys vfs.FS, path string, size int64) error {
	f, err := fsys.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p := takeReadBuffer(int(min(size, maxSegmentBytes)))
	defer giveReadBuffer(p)
	n, err := f.ReadAt(*p, 0)
	if errors.Is(err, io.EOF) && n == len(*p) {
		err = nil
	}
	if err == nil {
		_, err = f.WriteAt(*p, 0)
	}
	return errors.Join(err, f.Close())
}

// unmark takes the mark away after a sync of everything. One that stays costs the next open some writes.
func (b *Buffer) unmark() {
	if !b.mended.Swap(false) {
		return
	}
	if err := b.opts.FS.Remove(filepath.Join(b.opts.Dir, failedName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.opts.Logger.Warn("the mark of a failed sync cannot be removed", "dir", b.opts.Dir, "err", err)
	}
}
