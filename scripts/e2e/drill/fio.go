package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
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
	for begin := time.Now(); err == nil && time.Since(begin) < 30*time.Second && !r.written(fioVolume); {
		time.Sleep(50 * time.Millisecond) // its first connection must find a gateway
	}
	kills := 1 + r.r.IntN(2)
	r.note = fmt.Sprintf("%d kills", kills)
	for range kills {
		time.Sleep(r.between(500*time.Millisecond, 2500*time.Millisecond))
		err = errors.Join(err, r.killGateway())
		err = errors.Join(err, r.startGateway())
	}
	ferr := <-done
	if ferr != nil && strings.Contains(ferr.Error(), "verify:") {
		ferr = &wrongBytes{fioVolume, ferr}
	}
	err = errors.Join(err, ferr)
	return errors.Join(err, kit.End(syscall.SIGTERM, 10*time.Second))
}

// written tells whether a volume was written by its present clients.
func (r *round) written(volume string) bool {
	out, err := r.command("volume", "show", volume, "-o", "json")
	var v struct {
		Clients int
		LastSeq uint64 `json:"last_seq"`
		Drained uint64 `json:"drained_seq"`
	}
	return err == nil && json.Unmarshal(out, &v) == nil && v.Clients > 0 && v.LastSeq > v.Drained
}
