package raftnode

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"scoria/metadata/fsm"
)

// killDir tells a copy of the test binary to be the victim.
const killDir = "SCORIA_TEST_KILL_DIR"

// TestVictim is the process that TestKill kills: it applies commands and prints each that
// was acknowledged.
func TestVictim(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		t.Skip("only run by TestKill")
	}
	o := soloOptions(dir)
	o.SnapshotBytes = 64 << 10
	n := open(t, o)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				k := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				if _, err := n.Apply(context.Background(), command(t, 1, fsm.RequestID{}, k, strings.Repeat(k, 20))); err != nil {
					t.Errorf("apply: %v", err)
					return
				}
				if _, err := n.Apply(context.Background(), command(t, 2, fsm.RequestID{}, "sum", "x")); err != nil {
					t.Errorf("apply: %v", err)
					return
				}
				mu.Lock()
				fmt.Println("acked", k)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// TestKill kills a process in the middle of commands, several times over one directory:
// all that was acknowledged is there, and nothing was applied twice.
func TestKill(t *testing.T) {
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	dir := t.TempDir()
	var acked []string
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestVictim$", "-test.v")
		cmd.Env = append(os.Environ(), killDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		before := len(acked)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if k, ok := strings.CutPrefix(lines.Text(), "acked "); ok {
				acked = append(acked, k)
			}
			if len(acked) == before+200+70*round {
				_ = cmd.Process.Kill() // it may print a little more
			}
		}
		_ = cmd.Wait() // killed, as it should be
		if len(acked) < before+200 {
			t.Fatalf("round %d: the victim ended by itself after %d commands", round, len(acked)-before)
		}
		n := open(t, soloOptions(dir))
		for _, k := range acked {
			if v := get(t, n, k); v != strings.Repeat(k, 20) {
				t.Fatalf("round %d: acknowledged %s is %q", round, k, v)
			}
		}
		// Every acknowledged line stands for one step of the sum; commands under way may have counted too.
		if sum := binary.BigEndian.Uint64([]byte(get(t, n, "sum"))); sum < uint64(len(acked)) || sum > uint64(len(acked)+8*(round+1)) {
			t.Fatalf("round %d: sum %d after %d acknowledged steps", round, sum, len(acked))
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
