package nbd_test

import (
	"syscall"
	"testing"

	"scoria/nbd/internal/wire"
	"scoria/nbd/nbdtest"
)

// halfBroken is a device of which every odd block takes no writes by the fast path.
type halfBroken struct {
	*nbdtest.Memory
	most chan int // the largest batch so far
}

func (d *halfBroken) TryWriteBatch(offs []uint64, data [][]byte, errs []error) bool {
	d.most <- max(<-d.most, len(offs))
	for i := range offs {
		errs[i] = nil
		if offs[i]/4096%2 == 1 {
			errs[i] = syscall.EIO
		}
	}
	return true
}

// Each write of a batch is answered with its own error.
func TestBatchAnswersEachWrite(t *testing.T) {
	d := &halfBroken{Memory: nbdtest.NewMemory(1 << 20), most: make(chan int, 1)}
	d.most <- 0
	c := disk(t, d, nil).attach()
	const writes = 8
	for round := 0; ; round++ {
		want := make(map[uint64]uint32)
		for i := range uint64(writes) {
			cookie := c.Queue(wire.CmdWrite, 0, i*4096, 4096, pattern(4096, byte(i)))
			if want[cookie] = uint32(wire.OK); i%2 == 1 {
				want[cookie] = uint32(wire.EIO)
			}
		}
		if err := c.Send(); err != nil {
			t.Fatal(err)
		}
		for range writes {
			r, err := c.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if r.Errno != want[r.Cookie] {
				t.Fatalf("round %d: write %d is answered with error %d, want %d", round, r.Cookie, r.Errno, want[r.Cookie])
			}
		}
		most := <-d.most
		d.most <- most
		if most > 1 { // else the server was so quick that it found one at a time
			return
		}
		if round == 200 {
			t.Fatal("no batch in 200 rounds: the test tests nothing")
		}
	}
}
