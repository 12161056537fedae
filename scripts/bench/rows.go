package main

import (
	"fmt"
	"strings"
)

// row is one workload. The definitions are those of the measured anchors, so that figures
// of different days at least mean the same thing.
type row struct {
	name    string
	rw      string // fio's name of the pattern
	block   string // fio's spelling of the request size
	depth   int    // requests in flight, per connection
	fsync   int    // FLUSH after so many writes; 0: never
	mixRead int    // percent of reads in a mix
	once    bool   // write the whole image once and FLUSH it; the time includes the FLUSH
	large   bool   // told in MB/s, not in requests per second
}

// rows are the comparison, in the order in which a round runs them.
var rows = []row{
	{name: "rr4k-q1", rw: "randread", block: "4k", depth: 1},
	{name: "rr4k-q32", rw: "randread", block: "4k", depth: 32},
	{name: "rw4k-q1", rw: "randwrite", block: "4k", depth: 1},
	{name: "rw4k-q32", rw: "randwrite", block: "4k", depth: 32},
	{name: "rw4k-q1-f1", rw: "randwrite", block: "4k", depth: 1, fsync: 1},
	{name: "rw4k-q16-f32", rw: "randwrite", block: "4k", depth: 16, fsync: 32},
	{name: "mix4k-q16", rw: "randrw", block: "4k", depth: 16, mixRead: 70},
	{name: "sw64k-q8", rw: "write", block: "64k", depth: 8, large: true},
	{name: "sr64k-q8", rw: "read", block: "64k", depth: 8, large: true},
	{name: "sw1m-q4", rw: "write", block: "1m", depth: 4, large: true},
	{name: "sw1m-q4-end", rw: "write", block: "1m", depth: 4, once: true, large: true},
	{name: "sr1m-q4", rw: "read", block: "1m", depth: 4, large: true},
}

// mixedSizes is no part of a round: random requests of 4k to 1M.
var mixedSizes = row{name: "mixsize-q16", rw: "randrw", block: "4k-1m", depth: 16, mixRead: 50, large: true}

func (r row) writes() bool { return strings.Contains(r.rw, "w") }
func (r row) reads() bool  { return r.rw == "randrw" || strings.Contains(r.rw, "read") }

// named returns the row under another name and with another depth.
func (r row) named(name string, depth int) row {
	r.name, r.depth = name, depth
	return r
}

func rowByName(name string) (row, error) {
	for _, r := range append(rows, mixedSizes) {
		if r.name == name {
			return r, nil
		}
	}
	return row{}, fmt.Errorf("no row is called %q; see scripts/bench/rows.go", name)
}

// chosenRows parses a list of names; "" means all of a round.
func chosenRows(list string) ([]row, error) {
	if list == "" {
		return rows, nil
	}
	var out []row
	for _, name := range strings.FieldsFunc(list, isSeparator) {
		r, err := rowByName(name)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func isSeparator(r rune) bool { return r == ',' || r == ' ' }
