package attach

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

// Numbers of the kernel's nbd netlink interface (include/uapi/linux/nbd-netlink.h).
const (
	family = "nbd"
	group  = "nbd_mc_group"

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdLinkDead    = 4

	attrIndex       = 1
	attrSizeBytes   = 2
	attrBlockSize   = 3
	attrServerFlags = 5
	attrSockets     = 7
	attrDeadTimeout = 8

	sockItem = 1
	sockFD   = 1
)

// kernel speaks to the nbd driver.
type kernel struct {
	conn *genetlink.Conn
	fam  genetlink.Family
}

func openKernel() (*kernel, error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open generic netlink: %w", err)
	}
	fam, err := conn.GetFamily(family)
	if err != nil {
		err = errors.Join(err, conn.Close())
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("this kernel has no nbd driver; try `modprobe nbd`: %w", err)
		}
		return nil, fmt.Errorf("look up netlink family nbd: %w", err)
	}
	return &kernel{conn: conn, fam: fam}, nil
}

func (k *kernel) Close() error { return k.conn.Close() }

func (k *kernel) call(cmd uint8, fill func(*netlink.AttributeEncoder)) ([]genetlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	fill(ae)
	data, err := ae.Encode()
	if err != nil {
		return nil, fmt.Errorf("encode netlink attributes: %w", err)
	}
	flags := netlink.Request | netlink.Acknowledge
	return k.conn.Execute(genetlink.Message{Header: genetlink.Header{Command: cmd, Version: 1}, Data: data}, k.fam.ID, flags)
}

func sockets(ae *netlink.AttributeEncoder, files []*os.File) {
	ae.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
		for _, f := range files {
			list.Nested(sockItem, func(item *netlink.AttributeEncoder) error {
				item.Uint32(sockFD, uint32(f.Fd()))
				return nil
			})
		}
		return nil
	})
}

// connect makes a device of the sockets; index < 0 lets the kernel choose. It returns the index.
func (k *kernel) connect(index int, exp Export, blockSize uint64, deadTimeout uint64, files []*os.File) (int, error) {
	msgs, err := k.call(cmdConnect, func(ae *netlink.AttributeEncoder) {
		if index >= 0 {
			ae.Uint32(attrIndex, uint32(index))
		}
		ae.Uint64(attrSizeBytes, exp.Size)
		ae.Uint64(attrBlockSize, blockSize)
		ae.Uint64(attrServerFlags, uint64(exp.Flags))
		ae.Uint64(attrDeadTimeout, deadTimeout)
		sockets(ae, files)
	})
	if err != nil {
		if errors.Is(err, syscall.EBUSY) {
			return 0, fmt.Errorf("/dev/nbd%d is in use; detach it first or choose another: %w", index, err)
		}
		return 0, fmt.Errorf("kernel refused the device: %w", err)
	}
	for _, m := range msgs {
		if i, ok := indexOf(m); ok {
			return i, nil
		}
	}
	if index >= 0 {
		return index, nil
	}
	return 0, errors.New("kernel did not tell which device it made")
}

// reconfigure gives a device more sockets in place of dead ones.
func (k *kernel) reconfigure(index int, deadTimeout uint64, files []*os.File) error {
	_, err := k.call(cmdReconfigure, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(attrIndex, uint32(index))
		ae.Uint64(attrDeadTimeout, deadTimeout)
		sockets(ae, files)
	})
	return err
}

func (k *kernel) disconnect(index int) error {
	_, err := k.call(cmdDisconnect, func(ae *netlink.AttributeEncoder) { ae.Uint32(attrIndex, uint32(index)) })
	return err
}

// subscribe makes receive return the driver's notices of dead links.
func (k *kernel) subscribe() error {
	for _, g := range k.fam.Groups {
		if g.Name == group {
			return k.conn.JoinGroup(g.ID)
		}
	}
	return fmt.Errorf("kernel's nbd driver has no notices (group %s)", group)
}

// deadLink waits for the next notice and returns the device's index.
func (k *kernel) deadLink() (int, error) {
	for {
		msgs, _, err := k.conn.Receive()
		if err != nil {
			return 0, err
		}
		for _, m := range msgs {
			if m.Header.Command != cmdLinkDead {
				continue
			}
			if i, ok := indexOf(m); ok {
				return i, nil
			}
		}
	}
}

func indexOf(m genetlink.Message) (int, bool) {
	ad, err := netlink.NewAttributeDecoder(m.Data)
	if err != nil {
		return 0, false
	}
	for ad.Next() {
		if ad.Type() == attrIndex {
			return int(ad.Uint32()), true
		}
	}
	return 0, false
}
