package osd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"scoria/alba/osd"
)

// TestIdleCost logs what six idle stores of a process cost. It fails at gross waste only, as the figures are the machine's.
func TestIdleCost(t *testing.T) {
	if os.Getenv("SCORIA_STRESS") == "" {
		t.Skip("measures for seconds; SCORIA_STRESS=1 runs it")
	}
	shared := osd.NewShared(0)
	defer shared.Close()
	dir := t.TempDir()
	v := aligned(2 << 20)
	for i := range 6 {
		s := open(t, filepath.Join(dir, fmt.Sprint(i)), osd.Options{Shared: shared, Sharers: 6})
		for k := range 50 {
			if err := put(s, t, fmt.Sprint(k), v); err != nil {
				t.Fatal(err)
			}
		}
	}
	<-time.After(12 * time.Second) // let them settle: this measures, it does not synchronize
	var a, b syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &a); err != nil {
		t.Fatal(err)
	}
	<-time.After(5 * time.Second)
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &b); err != nil {
		t.Fatal(err)
	}
	cpu := time.Duration(b.Utime.Nano() + b.Stime.Nano() - a.Utime.Nano() - a.Stime.Nano())
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "Threads") {
			t.Log(l)
		}
	}
	t.Logf("CPU in 5 idle seconds: %v", cpu)
	if cpu > 250*time.Millisecond {
		t.Errorf("six idle stores used %v of CPU in 5 s", cpu)
	}
}
