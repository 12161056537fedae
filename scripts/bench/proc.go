package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ticksPerSecond is the unit of the times in /proc: USER_HZ, 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// snapshot is what /proc says of the machine and of some processes, with their children.
type snapshot struct {
	at      time.Time
	cpu     float64 // seconds, of the processes
	rss     int64   // bytes
	peak    int64   // the highest so far; of several processes the sum, though at different times
	written int64   // bytes that the processes caused to be sent to a disk
	disk    int64   // bytes that the device wrote, for whomever
	busy    float64 // seconds of all CPUs that were not idle, for whomever
}

// take reads a snapshot. A process that is gone is an error: the server has crashed.
func take(pids []int, device string) (snapshot, error) {
	s := snapshot{at: time.Now()}
	tree, err := withChildren(pids)
	if err != nil {
		return s, err
	}
	for _, p := range tree {
		if err := s.addProcess(p); err != nil {
			return s, err
		}
	}
	if s.disk, err = sectorsWritten(device); err != nil {
		return s, err
	}
	s.busy, err = busySeconds()
	return s, err
}

func (s *snapshot) addProcess(pid int) error {
	f, err := statFields(pid)
	if err != nil {
		return err
	}
	for _, i := range []int{11, 12, 13, 14} { // utime stime cutime cstime
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		s.cpu += float64(n) / ticksPerSecond
	}
	rss, err := labelled(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:")
	if err != nil {
		return err
	}
	s.rss += rss << 10
	peak, err := labelled(fmt.Sprintf("/proc/%d/status", pid), "VmHWM:")
	if err != nil {
		return err
	}
	s.peak += peak << 10
	w, err := labelled(fmt.Sprintf("/proc/%d/io", pid), "write_bytes:")
	if err != nil {
		return err
	}
	s.written += w
	return nil
}

// statFields returns the fields of /proc/PID/stat from the state on: a name may hold anything.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	_, rest, ok := cutLast(string(b), ")")
	f := strings.Fields(rest)
	if !ok || len(f) < 15 {
		return nil, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	return f, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// labelled returns the number behind a label at the beginning of a line.
func labelled(path, label string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, label); ok {
			f := strings.Fields(rest)
			if len(f) == 0 {
				break
			}
			return strconv.ParseInt(f[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: no %s", path, label)
}

// withChildren returns the processes and all that descend from them and are alive.
func withChildren(pids []int) ([]int, error) {
	children := map[int][]int{}
	paths, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			continue
		}
		f, err := statFields(pid)
		if err != nil {
			continue // it has ended meanwhile
		}
		if parent, err := strconv.Atoi(f[1]); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	var all []int
	seen := map[int]bool{}
	for todo := append([]int(nil), pids...); len(todo) > 0; {
		p := todo[0]
		todo = todo[1:]
		if !seen[p] {
			seen[p] = true
			all = append(all, p)
			todo = append(todo, children[p]...)
		}
	}
	return all, nil
}

// deviceOf returns the kernel's name of the device that holds a folder, "" when it has none.
func deviceOf(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", dir, err)
	}
	name := ""
	err := eachLine("/proc/diskstats", func(f []string) {
		if len(f) > 9 && f[0] == fmt.Sprint(unix.Major(st.Dev)) && f[1] == fmt.Sprint(unix.Minor(st.Dev)) {
			name = f[2]
		}
	})
	return name, err
}

func sectorsWritten(device string) (int64, error) {
	var n int64
	err := eachLine("/proc/diskstats", func(f []string) {
		if len(f) > 9 && f[2] == device {
			n, _ = strconv.ParseInt(f[9], 10, 64) // the kernel writes digits
		}
	})
	return n * 512, err
}

func busySeconds() (float64, error) {
	busy := 0.0
	err := eachLine("/proc/stat", func(f []string) {
		if f[0] != "cpu" {
			return
		}
		for i, t := range f[1:min(len(f), 9)] {
			if n, err := strconv.ParseFloat(t, 64); err == nil && i != 3 && i != 4 { // idle, iowait
				busy += n / ticksPerSecond
			}
		}
	})
	return busy, err
}

func eachLine(path string, f func(fields []string)) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read
	sc := bufio.NewScanner(file)
	for sc.Scan() {
		if fields := strings.Fields(sc.Text()); len(fields) > 0 {
			f(fields)
		}
	}
	return sc.Err()
}

// loadAverage is that of the last minute.
func loadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	n, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return n
}

// dropCaches empties the page cache, so that a read reaches the disk. It needs root.
func dropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("the page cache cannot be emptied: %w", err)
	}
	return nil
}

// syncFS waits until the file system of a folder has written back everything, so that
// one server's late writes do not fall into the next one's run.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only a handle
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", dir, err)
	}
	return nil
}
