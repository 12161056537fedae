package nbd

import (
	"context"
	"errors"
	"syscall"

	"scoria/nbd/internal/wire"
)

// Device is a block device that can be served. All methods may be called concurrently from
// any number of goroutines. Offsets and lengths are bytes; the server calls only with ranges
// inside Size, with lengths above 0 and with multiples of the export's MinBlock.
//
// Errors go to the client as the NBD error that fits: an error for which errors.Is finds
// syscall.ENOSPC, EDQUOT or EFBIG becomes ENOSPC; EPERM, EACCES or EROFS becomes EPERM;
// EINVAL and ESHUTDOWN become themselves; everything else becomes EIO.
type Device interface {
	// Size is the size of the device in bytes. It may grow while the device is served.
	Size() uint64
	// ReadAt fills p. It may not keep p.
	ReadAt(ctx context.Context, p []byte, off uint64) error
	// WriteAt writes p; when it returns nil, every later ReadAt sees the data, through
	// whichever connection. With fua the data is durable too. It may not keep or change p.
	WriteAt(ctx context.Context, p []byte, off uint64, fua bool) error
	// Flush makes every write that returned before the call durable, whichever connection
	// it came by.
	Flush(ctx context.Context) error
	// Trim declares a range unused. Bytes outside of it never change. Length may be far
	// above any payload limit.
	Trim(ctx context.Context, off, length uint64, fua bool) error
	// WriteZeroes makes a range read as zeroes, exactly. noHole asks that space stays (or
	// becomes) allocated.
	WriteZeroes(ctx context.Context, off, length uint64, noHole, fua bool) error
	// Cache is a hint that the range will be read soon.
	Cache(ctx context.Context, off, length uint64) error
	// Extents calls yield for consecutive extents that begin at off, until they cover the
	// range or yield returns false. zero may be said only of what reads as zeroes. The last
	// extent may reach past the range.
	Extents(ctx context.Context, off, length uint64, yield func(length uint64, hole, zero bool) bool) error
}

// TryReader is the optional fast path of reads. It is called by the goroutine that reads the
// connection, which can do nothing else meanwhile, so it never waits for I/O or a contended
// lock.
type TryReader interface {
	// TryReadAt fills p and returns true, or returns false when that would have to wait; the
	// caller then uses ReadAt. p may have been partly written in that case.
	TryReadAt(p []byte, off uint64) (done bool, err error)
}

// HoleReader is the optional fast path of reads that find nothing. Clients that can take it are
// then told of a hole instead of being sent its zeroes.
type HoleReader interface {
	TryReader
	// TryReadHole is TryReadAt, except that when the whole range is known to be a hole, which
	// reads as zeroes, it may return true for hole and leave p as it is. It finds that out on
	// its way: reads of data take no longer for it.
	TryReadHole(p []byte, off uint64) (done, hole bool, err error)
}

// TryWriter is the optional fast path of writes; what TryReader says about waiting holds.
type TryWriter interface {
	// TryWriteBatch carries out the writes offs[i], data[i], sets errs[i] (nil on entry) and
	// returns true; or it does nothing at all and returns false when some of them would have
	// to wait. The caller then uses WriteAt. There is no FUA among them. data is valid only
	// during the call. The writes are concurrent as far as the client is concerned: any order
	// is right where they overlap.
	TryWriteBatch(offs []uint64, data [][]byte, errs []error) (done bool)
}

// errnoOf maps an error of a device to what the protocol can say. ENOMEM is not passed on:
// clients take it for their own, and what failed is our I/O. ENOTSUP and EOVERFLOW have
// meanings of their own in the protocol that no device error has.
func errnoOf(err error) wire.Errno {
	if err == nil {
		return wire.OK
	}
	for _, m := range [...]struct {
		is syscall.Errno
		to wire.Errno
	}{
		{syscall.ENOSPC, wire.ENOSPC}, {syscall.EDQUOT, wire.ENOSPC}, {syscall.EFBIG, wire.ENOSPC},
		{syscall.EPERM, wire.EPERM}, {syscall.EROFS, wire.EPERM}, {syscall.EACCES, wire.EPERM},
		{syscall.EINVAL, wire.EINVAL},
		{syscall.ESHUTDOWN, wire.ESHUTDOWN},
	} {
		if errors.Is(err, m.is) {
			return m.to
		}
	}
	return wire.EIO
}
