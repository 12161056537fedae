package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/pojntfx/go-nbd/pkg/backend"
)

// Optional interfaces of a go-nbd backend, found by type assertion in FromBackend.
type (
	// Flusher makes all writes that returned before durable. Without it, Backend.Sync does.
	Flusher interface {
		Flush(ctx context.Context) error
	}
	// Trimmer discards a range. Without it TRIM succeeds and does nothing, as it may.
	Trimmer interface {
		Trim(ctx context.Context, off, length int64) error
	}
	// ZeroWriter zeroes a range quickly. Without it zeroes are written.
	ZeroWriter interface {
		WriteZeroes(ctx context.Context, off, length int64, noHole bool) error
	}
	// Extenter tells what is allocated; see Device.Extents. Without it everything is data.
	Extenter interface {
		Extents(ctx context.Context, off, length int64, yield func(length int64, hole, zero bool) bool) error
	}
	// ContextReaderAt is io.ReaderAt with a context, used instead where it is there.
	ContextReaderAt interface {
		ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)
	}
	// ContextWriterAt is io.WriterAt with a context, used instead where it is there.
	ContextWriterAt interface {
		WriteAtContext(ctx context.Context, p []byte, off int64) (int, error)
	}
)

// zeroChunk is how much WriteZeroes writes at once to a backend that has no ZeroWriter.
const zeroChunk = 256 << 10

// FromBackend makes a go-nbd backend a Device. Its size is taken now and stays. The backend
// must allow concurrent calls, as io.ReaderAt and io.WriterAt say. What ToBackend made comes
// back as it was.
func FromBackend(b backend.Backend) (Device, error) {
	if d, ok := b.(*deviceBackend); ok {
		return d.dev, nil
	}
	size, err := b.Size()
	if err != nil {
		return nil, fmt.Errorf("nbd: size of backend: %w", err)
	}
	if size < 0 {
		return nil, fmt.Errorf("nbd: backend says its size is %d", size)
	}
	d := &backendDevice{b: b, size: uint64(size)}
	d.flusher, _ = b.(Flusher)
	d.trimmer, _ = b.(Trimmer)
	d.zeroer, _ = b.(ZeroWriter)
	d.extenter, _ = b.(Extenter)
	d.reader, _ = b.(ContextReaderAt)
	d.writer, _ = b.(ContextWriterAt)
	return d, nil
}

type backendDevice struct {
	b        backend.Backend
	size     uint64
	flusher  Flusher
	trimmer  Trimmer
	zeroer   ZeroWriter
	extenter Extenter
	reader   ContextReaderAt
	writer   ContextWriterAt
}

func (d *backendDevice) Size() uint64 { return d.size }

// check keeps wrong ranges away from the backend: go-nbd's own memory backend keeps its lock
// for ever when it sees one.
func (d *backendDevice) check(off, length uint64) error {
	if length > d.size || off > d.size-length {
		return fmt.Errorf("nbd: range %d+%d of a backend of %d bytes: %w", off, length, d.size, syscall.EINVAL)
	}
	return nil
}

func (d *backendDevice) ReadAt(ctx context.Context, p []byte, off uint64) (err error) {
	if err := d.check(off, uint64(len(p))); err != nil || len(p) == 0 {
		return err
	}
	var n int
	if d.reader != nil {
		n, err = d.reader.ReadAtContext(ctx, p, int64(off))
	} else {
		n, err = d.b.ReadAt(p, int64(off))
	}
	if n == len(p) {
		return nil // io.EOF may come with the last bytes
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("nbd: backend read %d of %d bytes at %d: %w", n, len(p), off, err)
}

func (d *backendDevice) WriteAt(ctx context.Context, p []byte, off uint64, fua bool) error {
	if err := d.check(off, uint64(len(p))); err != nil {
		return err
	}
	if err := d.write(ctx, p, off); err != nil {
		return err
	}
	return d.fua(ctx, fua)
}

func (d *backendDevice) write(ctx context.Context, p []byte, off uint64) (err error) {
	if len(p) == 0 {
		return nil
	}
	var n int
	if d.writer != nil {
		n, err = d.writer.WriteAtContext(ctx, p, int64(off))
	} else {
		n, err = d.b.WriteAt(p, int64(off))
	}
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("nbd: backend wrote %d of %d bytes at %d: %w", n, len(p), off, err)
	}
	return nil
}

func (d *backendDevice) fua(ctx context.Context, fua bool) error {
	if !fua {
		return nil
	}
	return d.Flush(ctx)
}

func (d *backendDevice) Flush(ctx context.Context) error {
	if d.flusher != nil {
		return d.flusher.Flush(ctx)
	}
	return d.b.Sync()
}

func (d *backendDevice) Trim(ctx context.Context, off, length uint64, fua bool) error {
	if err := d.check(off, length); err != nil {
		return err
	}
	if d.trimmer != nil {
		if err := d.trimmer.Trim(ctx, int64(off), int64(length)); err != nil {
			return err
		}
	}
	return d.fua(ctx, fua)
}

func (d *backendDevice) WriteZeroes(ctx context.Context, off, length uint64, noHole, fua bool) error {
	if err := d.check(off, length); err != nil {
		return err
	}
	if d.zeroer != nil {
		if err := d.zeroer.WriteZeroes(ctx, int64(off), int64(length), noHole); err != nil {
			return err
		}
		return d.fua(ctx, fua)
	}
	zero := make([]byte, min(length, zeroChunk))
	for length > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n := min(length, zeroChunk)
		if err := d.write(ctx, zero[:n], off); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return d.fua(ctx, fua)
}

func (d *backendDevice) Cache(context.Context, uint64, uint64) error { return nil }

func (d *backendDevice) Extents(ctx context.Context, off, length uint64, yield func(uint64, bool, bool) bool) error {
	if err := d.check(off, length); err != nil {
		return err
	}
	if d.extenter == nil {
		yield(length, false, false)
		return nil
	}
	return d.extenter.Extents(ctx, int64(off), int64(length), func(n int64, hole, zero bool) bool {
		return n <= 0 || yield(uint64(n), hole, zero)
	})
}

// ToBackend makes a Device a go-nbd backend. It also has the optional interfaces above, so
// nothing of the device is lost for those who look for them.
func ToBackend(d Device) backend.Backend {
	if b, ok := d.(*backendDevice); ok {
		return b.b
	}
	return &deviceBackend{dev: d}
}

type deviceBackend struct{ dev Device }

var _ interface {
	backend.Backend
	Flusher
	Trimmer
	ZeroWriter
	Extenter
	ContextReaderAt
	ContextWriterAt
} = (*deviceBackend)(nil)

// Size implements backend.Backend.
func (b *deviceBackend) Size() (int64, error) { return int64(min(b.dev.Size(), 1<<63-1)), nil }

// Sync implements backend.Backend.
func (b *deviceBackend) Sync() error { return b.dev.Flush(context.Background()) }

// Flush implements Flusher.
func (b *deviceBackend) Flush(ctx context.Context) error { return b.dev.Flush(ctx) }

// ReadAt implements io.ReaderAt.
func (b *deviceBackend) ReadAt(p []byte, off int64) (int, error) {
	return b.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements ContextReaderAt; at the end of the device it returns io.EOF.
func (b *deviceBackend) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := b.within(off, len(p))
	if err != nil || len(p) == 0 {
		return 0, err
	}
	if n > 0 {
		if err := b.dev.ReadAt(ctx, p[:n], uint64(off)); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (b *deviceBackend) WriteAt(p []byte, off int64) (int, error) {
	return b.WriteAtContext(context.Background(), p, off)
}

// WriteAtContext implements ContextWriterAt; nothing is written past the end of the device.
func (b *deviceBackend) WriteAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := b.within(off, len(p))
	if err != nil || len(p) == 0 {
		return 0, err
	}
	if n > 0 {
		if err := b.dev.WriteAt(ctx, p[:n], uint64(off), false); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, fmt.Errorf("nbd: write past the end of the device: %w", io.ErrShortWrite)
	}
	return n, nil
}

// Trim implements Trimmer.
func (b *deviceBackend) Trim(ctx context.Context, off, length int64) error {
	if err := b.inside(off, length); err != nil {
		return err
	}
	return b.dev.Trim(ctx, uint64(off), uint64(length), false)
}

// WriteZeroes implements ZeroWriter.
func (b *deviceBackend) WriteZeroes(ctx context.Context, off, length int64, noHole bool) error {
	if err := b.inside(off, length); err != nil {
		return err
	}
	return b.dev.WriteZeroes(ctx, uint64(off), uint64(length), noHole, false)
}

// Extents implements Extenter.
func (b *deviceBackend) Extents(ctx context.Context, off, length int64, yield func(int64, bool, bool) bool) error {
	if err := b.inside(off, length); err != nil {
		return err
	}
	return b.dev.Extents(ctx, uint64(off), uint64(length), func(n uint64, hole, zero bool) bool {
		return yield(int64(min(n, 1<<63-1)), hole, zero)
	})
}

// within returns how many of n bytes at off lie inside the device.
func (b *deviceBackend) within(off int64, n int) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("nbd: negative offset %d: %w", off, syscall.EINVAL)
	}
	if size := b.dev.Size(); uint64(off) >= size {
		return 0, nil
	} else if uint64(n) > size-uint64(off) {
		return int(size - uint64(off)), nil
	}
	return n, nil
}

func (b *deviceBackend) inside(off, length int64) error {
	size := b.dev.Size()
	if off < 0 || length < 0 || uint64(length) > size || uint64(off) > size-uint64(length) {
		return fmt.Errorf("nbd: range %d+%d of a device of %d bytes: %w", off, length, size, syscall.EINVAL)
	}
	return nil
}
