package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"scoria/scripts/e2e/internal/e2e"
	"scoria/scripts/e2e/internal/history"
)

// damage writes, drains, stops the server, harms some disk servers and the write buffer,
// and wants everything back: erasure coding must make up for it, checksums must find it.
func damage(o options, h *history.History, r *rand.Rand) error {
	c, err := e2e.Dial("tcp", o.server.NBD, o.server.Volume)
	if err != nil {
		return err
	}
	for at := 0; at+256 <= h.Sectors(); at += 256 { // 128 KiB each
		w := h.BeginAt(at, 256)
		if err := c.WriteAt(w.Data, w.Offset()); err != nil {
			return errors.Join(err, c.Close())
		}
		h.End(w)
	}
	if err := errors.Join(c.Flush(), c.Close()); err != nil {
		return err
	}
	at := time.Now()
	if err := o.server.Command("volume", "drain", o.server.Volume, "--wait"); err != nil {
		return err
	}
	fmt.Printf("crash: %d MiB drained in %v\n", o.span>>20, time.Since(at).Round(time.Millisecond))
	if err := o.server.Stop(); err != nil {
		return err
	}
	data := filepath.Join(o.server.Dir, "data")
	disks, err := filepath.Glob(filepath.Join(data, "osd-*"))
	if err != nil {
		return err
	}
	if len(disks) < 3 {
		return fmt.Errorf("only %d disk servers below %s", len(disks), data)
	}
	r.Shuffle(len(disks), func(i, j int) { disks[i], disks[j] = disks[j], disks[i] })
	disks = disks[:max(o.lose, min(o.flip, 2))] // 4+2: at most two may be harmed
	if err := harm(o, r, disks); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(data, "gateway")); err != nil { // or it would serve the reads
		return err
	}
	if err := o.server.Start(context.Background()); err != nil {
		return err
	}
	at = time.Now()
	if _, err := verify(o, h); err != nil {
		return err
	}
	fmt.Printf("crash: all %d MiB read back right in %v\n", o.span>>20, time.Since(at).Round(time.Millisecond))
	return nil
}

// harm removes the disks, or flips bytes in their files.
func harm(o options, r *rand.Rand, disks []string) error {
	if o.lose > 0 {
		for _, d := range disks {
			fmt.Println("crash: removing", filepath.Base(d))
			if err := os.RemoveAll(d); err != nil {
				return err
			}
		}
		return nil
	}
	flipped, err := e2e.Flip(disks, o.flip, r)
	if err != nil {
		return err
	}
	fmt.Printf("crash: %d bytes flipped on %d disk servers\n", flipped, len(disks))
	return nil
}
