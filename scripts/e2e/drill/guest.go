package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// guestStarts is the longest boot of a guest with its Scoria: it is emulated in software.
const guestStarts = 4 * time.Minute

// guestKernel builds the guest's kernel and root, and returns their folder.
func guestKernel() (string, error) {
	const dir = "build/vm"
	if !has("qemu-system-x86_64") {
		return "", errors.New("no qemu-system-x86_64")
	}
	_, err := tool("scripts/e2e/vm/image.sh", dir)
	return dir, err
}

// makeGuest makes the gateway a guest that runs a whole Scoria: to kill it is to cut its
// power. What it had not synced is gone, since it was in its memory only.
func (g *rig) makeGuest() error {
	kernel, err := guestKernel()
	if err != nil {
		return err
	}
	disk := filepath.Join(g.dir, "disk.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(disk, 6<<30); err != nil {
		return err
	}
	initrd := filepath.Join(g.dir, "initrd") // another run may make a new one
	b, err := os.ReadFile(filepath.Join(kernel, "initrd"))
	if err == nil {
		err = os.WriteFile(initrd, b, 0o600)
	}
	if err != nil {
		return err
	}
	forward := ",hostfwd=tcp:" + g.nbd + "-:10809,hostfwd=tcp:" + g.admin + "-:10800"
	g.starts = guestStarts
	g.gateway.Args = []string{
		"qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-m", "1024", "-smp", "2", "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
		"-serial", "file:" + filepath.Join(g.dir, "console"), "-serial", "unix:" + g.control() + ",server=on,wait=off",
		"-kernel", filepath.Join(kernel, "vmlinuz"), "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet e2e.step=serve e2e.fresh=1",
		"-drive", "file=" + disk + ",format=raw,if=virtio,cache=writeback",
		"-netdev", "user,id=n0,ipv6=off" + forward, "-device", "virtio-net-pci,netdev=n0,romfile=",
	}
	return nil
}

// control is the socket of the guest's second serial port.
func (g *rig) control() string { return filepath.Join(g.dir, "control") }

// tell has the guest run a command.
func (g *rig) tell(command string) error {
	c, err := net.Dial("unix", g.control())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c, command)
	return errors.Join(err, c.Close())
}

// cutPower kills the guest and boots it again, on its old disk.
func cutPower(r *round) error {
	if err := r.killGateway(); err != nil {
		return err
	}
	if err := r.load.end(); err != nil { // before what it had been told to be there goes
		return err
	}
	for i, a := range r.gateway.Args {
		r.gateway.Args[i] = strings.Replace(a, " e2e.fresh=1", "", 1)
	}
	return r.startGateway()
}

// jumpClock sets the guest's clock forwards and backwards, by seconds to days.
func jumpClock(r *round) error {
	var jumps []string
	for range 4 {
		d := []int{-90000, -7200, -40, 5, 40, 7200, 90000}[r.r.IntN(7)]
		jumps = append(jumps, (time.Duration(d) * time.Second).String())
		if err := r.tell(fmt.Sprintf("date -s @$(($(date +%%s) + %d)) >/dev/null", d)); err != nil {
			return err
		}
		if err := r.hold(r.between(time.Second, 6*time.Second), false); err != nil {
			return err
		}
	}
	r.note = strings.Join(jumps, ", ")
	return nil
}
