package main

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

// memory is a target of bytes, with a defect that a test chooses.
type memory struct {
	b      []byte
	defect string
	writes int
}

func (m *memory) fixed() bool        { return true }
func (m *memory) sync() error        { return nil }
func (m *memory) reopen() error      { return nil }
func (m *memory) close() error       { return nil }
func (m *memory) other() []operation { return []operation{{"odd", m.odd}} }

func (m *memory) odd(*exerciser, int, int) error { return errUnsupported }

func (m *memory) read(p []byte, off int) error {
	copy(p, m.b[off:])
	return nil
}

func (m *memory) write(p []byte, off int) error {
	m.writes++
	switch {
	case m.defect == "lost" && m.writes%20 == 0:
	case m.defect == "misplaced" && m.writes%20 == 0:
		copy(m.b[max(0, off-1):], p)
	case m.defect == "short" && m.writes%20 == 0:
		copy(m.b[off:], p[:len(p)-1])
	case m.defect == "error" && m.writes%20 == 0:
		return errors.New("no")
	default:
		copy(m.b[off:], p)
	}
	return nil
}

func TestExerciserNotices(t *testing.T) {
	for defect, want := range map[string]string{"": "", "lost": "WRONG BYTES", "misplaced": "WRONG BYTES", "short": "WRONG BYTES", "error": "no"} {
		const size = 1 << 16
		x := &exerciser{t: &memory{b: make([]byte, size), defect: defect}, size: size, r: rand.New(rand.NewPCG(1, 1)), counts: make(map[string]int)}
		err := x.run(2000, 0)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", defect, err, want)
		}
		if err == nil && (x.counts["odd (unsupported)"] == 0 || x.counts["write"] == 0 || x.counts["read"] == 0) {
			t.Errorf("%q: %v", defect, x.counts)
		}
	}
}

// TestFile runs on whatever file system the tests have.
func TestFile(t *testing.T) {
	counts, err := run(options{ops: 300, files: 2, size: 1 << 18, seed: 1, dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, n := range counts {
		total += n
	}
	if total != 600 {
		t.Errorf("%d operations, want 600: %v", total, counts)
	}
}
