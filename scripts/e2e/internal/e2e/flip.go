package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

// Flip changes up to n bytes that were written, in the large files of some directories.
func Flip(dirs []string, n int, r *rand.Rand) (flipped int, err error) {
	var files []string
	for _, d := range dirs {
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
			return 0, err
		}
	}
	if len(files) == 0 {
		return 0, fmt.Errorf("no file of 1 MiB or more in %v to damage", dirs)
	}
	slices.Sort(files)
	for range n {
		done, err := flipOne(files[r.IntN(len(files))], r)
		if err != nil {
			return flipped, err
		}
		if done {
			flipped++
		}
	}
	return flipped, nil
}

func flipOne(name string, r *rand.Rand) (done bool, err error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	b := make([]byte, 1)
	for range 10000 { // preallocated space that was never written harms nobody
		at := r.Int64N(info.Size())
		if _, err := f.ReadAt(b, at); err != nil {
			return false, err
		}
		if b[0] != 0 {
			b[0] ^= byte(1 + r.IntN(255))
			_, err = f.WriteAt(b, at)
			return err == nil, err
		}
	}
	return false, nil
}
