package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"scoria/scripts/e2e/internal/e2e"
)

// fioVolume is written by fio alone.
const fioVolume = "drill-fio"

// fio writes through a client that comes back by itself (nbdkit's retry filter) while the
// gateway is killed, and then verifies. It writes each block once, so it finds what is lost, damaged or
// elsewhere; what it cannot tell is which writes had been acknowledged when the gateway died, since
// the client between sends those again that had no answer.
func fio(r *round) error {
	if !has("fio") || !has("nbdkit") {
		return errSkipped
	}
	if _, err := r.command("volume", "show", fioVolume); err != nil {
		if _, err := r.command("volume", "create", fioVolume, "--size", "32MiB"); err != nil {
			return err
		}
	}
	socket := filepath.Join(r.dir, "fio.socket")
	host, port := split(r.nbd)
	kit := e2e.Process{Log: filepath.Join(r.dir, "fio-nbdkit.log"), Args: []string{"nbdkit", "-f", "-U", socket, "--filter=retry", "nbd",
		"hostname=" + host, "port=" + port, "export=" + fioVolume, "retries=120", "retry-delay=1", "retry-exponential=no"}}
	if err := kit.Start(); err != nil {
		return err
	}
	err := appears(socket)
	done := make(chan error, 1)
	go func() {
		_, err := tool("fio", "--name=drill", "--thread", "--ioengine=nbd", "--uri=nbd+unix:///?socket="+socket, "--rw=randwrite", "--bsrange=512-32k", "--bs_unaligned",
			"--size=24m", "--rate=4m", "--iodepth=8", "--fsync=50", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", fmt.Sprintf("--randseed=%d", r.r.Uint32()))
		done <- err
	}()
	kills := 1 + r.r.IntN(2)
	r.note = fmt.Sprintf("%d kills", kills)
	for range kills {
		time.Sleep(r.between(500*time.Millisecond, 2500*time.Millisecond))
		err = errors.Join(err, r.killGateway())
		err = errors.Join(err, r.startGateway())
	}
	if ferr := <-done; ferr != nil {
		err = errors.Join(err, &wrongBytes{fioVolume, ferr})
	}
	return errors.Join(err, kit.End(syscall.SIGTERM, 10*time.Second))
}
