package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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
	var files []string
	for _, d := range disks {
		err := filepath.WalkDir(d, func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			if info, err := e.Info(); err != nil {
				return err
			} else if info.Size() >= 1<<20 { // fragments, not identities and indexes
				files = append(files, name)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return fmt.Errorf("no file of 1 MiB or more in %v to damage", disks)
	}
	slices.Sort(files)
	for range o.flip {
		if err := flip(files[r.IntN(len(files))], r); err != nil {
			return err
		}
	}
	fmt.Printf("crash: %d bytes flipped in %d files of %d disk servers\n", o.flip, len(files), len(disks))
	return nil
}

func flip(name string, r *rand.Rand) (err error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	var at int64
	for range 10000 { // preallocated space that was never written harms nobody
		at = r.Int64N(info.Size())
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
		if b[0] != 0 {
			break
		}
	}
	b[0] ^= byte(1 + r.IntN(255))
	_, err = f.WriteAt(b, at)
	return err
}
