package system

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// minDescriptors is how many files and sockets a system must be allowed to have open:
	// less than that leaves no useful number of connections.
	minDescriptors = 512
	// ownDescriptors is what a system has open for itself besides volumes and connections: metadata,
	// listeners, admin clients, logs, cached files of the write buffer.
	ownDescriptors = 192
	// diskDescriptors is what a disk server in this process has open: segments and index.
	diskDescriptors = 24
	// maxConnections bounds NBD connections where descriptors do not.
	maxConnections = 8192
)

// descriptorLimit returns how many descriptors this process may have. The Go runtime has
// raised the soft limit to the hard one.
func descriptorLimit() (uint64, error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	return lim.Cur, nil
}

// connectionLimit returns how many NBD connections fit into a limit of descriptors, so that
// clients can never take those that disk servers and volumes need. A connection gets one,
// and so does the volume that it may open.
func connectionLimit(descriptors uint64, disks int) (int, error) {
	if descriptors < minDescriptors {
		return 0, fmt.Errorf("%w: this process may have only %d files and sockets open, and needs at least %d; raise the limit (ulimit -n, LimitNOFILE= of systemd)",
			ErrConfig, descriptors, minDescriptors)
	}
	own := uint64(ownDescriptors + diskDescriptors*disks)
	left := max(descriptors, own) - own
	return int(min(max(left/2, 32), maxConnections)), nil
}
