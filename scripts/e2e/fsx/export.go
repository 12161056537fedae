package main

import (
	"errors"

	"scoria/scripts/e2e/internal/e2e"
)

// export is a part of an NBD export. Each has a connection of its own.
type export struct {
	addr, name string
	base       uint64
	c          *e2e.Client
}

func openExport(addr, name string, i, size int) (*export, error) {
	c, err := e2e.Dial("tcp", addr, name)
	if err != nil {
		return nil, err
	}
	e := &export{addr, name, uint64(i) * uint64(size+7), c} // parts begin anywhere, and share clusters
	if c.Size() < e.base+uint64(size) {
		return nil, errors.Join(errors.New("the export is too small for so many files of this size"), c.Close())
	}
	return e, nil
}

func (e *export) fixed() bool                   { return true }
func (e *export) sync() error                   { return e.c.Flush() }
func (e *export) close() error                  { return e.c.Close() }
func (e *export) read(p []byte, off int) error  { return e.c.ReadAt(p, e.base+uint64(off)) }
func (e *export) write(p []byte, off int) error { return e.c.WriteAt(p, e.base+uint64(off)) }

func (e *export) reopen() error {
	err := e.c.Close()
	if err == nil {
		e.c, err = e2e.Dial("tcp", e.addr, e.name)
	}
	return err
}

func (e *export) other() []operation {
	return []operation{
		{"write FUA", func(x *exerciser, off, n int) error {
			data := x.random(n)
			if err := e.c.WriteFUA(data, e.base+uint64(off)); err != nil {
				return err
			}
			x.put(off, data)
			return nil
		}},
		{"trim", func(x *exerciser, off, n int) error {
			// The protocol lets a trimmed range read as anything; Scoria says that it keeps what is
			// not whole clusters, and makes zeroes of these.
			if err := e.c.Trim(e.base+uint64(off), uint32(n)); err != nil {
				return err
			}
			from := (e.base + uint64(off) + cluster - 1) / cluster * cluster
			to := (e.base + uint64(off+n)) / cluster * cluster
			if from < to {
				x.zero(int(from-e.base), int(to-from))
			}
			return nil
		}},
		{"write zeroes", func(x *exerciser, off, n int) error {
			if err := e.c.Zero(e.base+uint64(off), uint32(n), x.r.IntN(2) == 0); err != nil {
				return err
			}
			x.zero(off, n)
			return nil
		}},
	}
}

const cluster = 4096 // of a Scoria volume
