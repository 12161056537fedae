package sco

import (
	"errors"
	"math/rand/v2"
	"testing"
)

func TestNamesSortAsNumbers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		a, b := r.Uint64N(MaxNumber>>r.UintN(36))+1, r.Uint64N(MaxNumber>>r.UintN(36))+1
		if (Name(a) < Name(b)) != (a < b) || (TLogName(a) < TLogName(b)) != (a < b) {
			t.Fatalf("%x and %x sort as %s and %s", a, b, Name(a), Name(b))
		}
	}
}

func TestParse(t *testing.T) {
	for name, want := range map[string]struct {
		typ Type
		n   uint64
	}{
		"head":           {Head, 0},
		"sco/000000001":  {SCO, 1},
		"sco/fffffffff":  {SCO, MaxNumber},
		"tlog/0000000ab": {TLog, 0xab},
		"map/ffffffff":   {Pack, MaxPack},
	} {
		typ, n, err := Parse(name)
		if err != nil || typ != want.typ || n != want.n {
			t.Errorf("%s: %v %x %v", name, typ, n, err)
		}
	}
	for _, name := range []string{"", "head ", "sco/", "sco/000000000", "sco/1", "sco/00000000A", "sco/0000000001", "tlog/-00000001",
		"map/000000001", "map/00000000", "sco/00000000g", "SCO/000000001", "head/1"} {
		if _, _, err := Parse(name); !errors.Is(err, ErrName) {
			t.Errorf("%q: err %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"head", "sco/000000001", "tlog/fffffffff", "map/00000001", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		typ, n, err := Parse(name)
		if err != nil {
			return
		}
		again := map[Type]func() string{
			Head: func() string { return HeadName },
			SCO:  func() string { return Name(n) },
			TLog: func() string { return TLogName(n) },
			Pack: func() string { return PackName(uint32(n)) },
		}[typ]()
		if again != name {
			t.Fatalf("%q parses to %v %d, which is called %q", name, typ, n, again)
		}
	})
}
