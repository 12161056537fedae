// Command bench measures Scoria side by side with other NBD servers on the same machine:
// it starts all of them, drives them by fio's NBD engine in interleaved rounds, and writes
// tables, a JSON file and a plot. scripts/bench/run.sh is the usual way to call it.
//
//	go run ./scripts/bench -modes compare -rounds 3 -secs 3
//	go run ./scripts/bench -report build/bench.json       # print, check the goals, plot
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"scoria/internal/units"
)

// options are the command line.
type options struct {
	modes, targets                              []string
	rows                                        string
	rounds, secs                                int
	dir, scoria, out                            string
	scoriaArgs                                  []string
	size, steadySize, sequentialSize, coldSize  int64
	restartSize                                 int64
	restartCompress                             string
	restartSystems                              []string
	steadySecs, idleSecs                        int
	idleVolumes, multiVolumes, multiConnections []int
	report, strict                              bool
	maxLoad                                     float64
	files                                       []string
}

// scorias are the chosen targets that are Scoria, or that run outside (peers).
func (o *options) scorias() []string {
	var out []string
	for _, t := range o.targets {
		if strings.HasPrefix(t, "scoria") || strings.Contains(t, "=") {
			out = append(out, t)
		}
	}
	return out
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err) //nolint:errcheck // nowhere else to tell
		os.Exit(1)
	}
}

func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	modes := f.String("modes", "compare", "what to run, a list of compare, steady, sequential, cold, idle, restart, multi, fair, boot, database")
	targets := f.String("targets", "scoria,nbdkit-mem,nbdkit-file,qemu-raw,qemu-qcow2", "servers, each also with -tcp, scoria-remote (disk servers as processes), or NAME=URI@PIDFILE; the first is compared with the others")
	f.StringVar(&o.rows, "rows", "", "rows of the comparison; all when empty")
	f.IntVar(&o.rounds, "rounds", 3, "rounds")
	f.IntVar(&o.secs, "secs", 3, "seconds of a run")
	f.StringVar(&o.dir, "dir", "build", "where the data goes, in a folder of its own that is deleted at the end; the same file system for all servers")
	f.StringVar(&o.scoria, "scoria", "bin/scoria", "the binary")
	extra := f.String("scoria-args", "", "more arguments of scoria serve")
	f.StringVar(&o.out, "out", "build/bench", "where results go: .json, .md and .svg are appended")
	f.IntVar(&o.steadySecs, "steady-secs", 600, "seconds of a steady run")
	f.IntVar(&o.idleSecs, "idle-secs", 30, "seconds of idleness")
	idle := f.String("idle-volumes", "1,1000", "numbers of volumes of idle systems")
	volumes := f.String("multi-volumes", "1,16,64", "numbers of volumes used at once; begins with 1")
	conns := f.String("multi-connections", "1,8,16,64", "numbers of connections to one volume")
	f.StringVar(&o.restartCompress, "restart-compress", "", "s2 or zstd: the data before restarts compresses well, and is compressed; for more than the disk takes")
	systems := f.String("restart-systems", "scoria,scoria-remote", "systems that are restarted")
	f.BoolVar(&o.report, "report", false, "measure nothing, report on the result files given as arguments, pooled")
	f.BoolVar(&o.strict, "strict", false, "fail when a goal that was measured is not reached")
	f.Float64Var(&o.maxLoad, "max-load", 0, "refuse to begin under a higher load average; 0: begin")
	sizes := map[*int64]*string{
		&o.size:           f.String("size", "1GiB", "image"),
		&o.steadySize:     f.String("steady-size", "20GiB", "image of steady runs"),
		&o.sequentialSize: f.String("sequential-size", "4GiB", "image of sequential runs"),
		&o.coldSize:       f.String("cold-size", "4GiB", "image of cold reads"),
		&o.restartSize:    f.String("restart-size", "4GiB", "data written before restarts"),
	}
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	for into, text := range sizes {
		n, err := units.ParseSize(*text)
		if err != nil {
			return nil, err
		}
		if n < 1<<20 || n > 1<<46 {
			return nil, fmt.Errorf("size %q: want 1MiB to 64TiB", *text)
		}
		*into = int64(n)
	}
	o.modes, o.targets = strings.FieldsFunc(*modes, isSeparator), strings.FieldsFunc(*targets, isSeparator)
	o.restartSystems = strings.FieldsFunc(*systems, isSeparator)
	o.scoriaArgs, o.files = strings.Fields(*extra), f.Args()
	for into, text := range map[*[]int]string{&o.idleVolumes: *idle, &o.multiVolumes: *volumes, &o.multiConnections: *conns} {
		for _, t := range strings.FieldsFunc(text, isSeparator) {
			n, err := strconv.Atoi(t)
			if err != nil || n < 1 || n > 100_000 {
				return nil, fmt.Errorf("number %q: want 1 to 100000", t)
			}
			*into = append(*into, n)
		}
	}
	return o, o.validate()
}

func (o *options) validate() error {
	for _, m := range o.modes {
		if modes[m] == nil {
			return fmt.Errorf("no mode is called %q", m)
		}
	}
	if len(o.targets) == 0 || o.rounds < 1 || o.secs < 1 || o.steadySecs < 1 || o.idleSecs < 1 {
		return errors.New("want at least one target, one round and one second")
	}
	if len(o.multiVolumes) == 0 {
		return errors.New("-multi-volumes is empty")
	}
	_, err := chosenRows(o.rows)
	return err
}

func bench(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	var d *result
	if o.report {
		d, err = loadResults(o.files)
	} else {
		d, err = o.measure(ctx, stderr)
	}
	if d == nil || len(d.Runs) == 0 {
		return err
	}
	return errors.Join(err, publish(d, o, stdout))
}

// measure runs the chosen modes. What was measured before an error is returned with it.
func (o *options) measure(ctx context.Context, stderr io.Writer) (_ *result, err error) {
	for _, tool := range []string{"fio", "nbdkit", "qemu-nbd", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%s is missing (Debian packages fio, nbdkit, qemu-utils; make deps): %w", tool, err)
		}
	}
	if l := loadAverage(); o.maxLoad > 0 && l > o.maxLoad {
		return nil, fmt.Errorf("the load average is %.1f, more than %.1f: figures would be those of the other work", l, o.maxLoad)
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return nil, err
	}
	root, err := filepath.Abs(o.dir)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(root, "bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary, err := filepath.Abs(o.scoria)
	if err != nil {
		return nil, err
	}
	device, err := deviceOf(dir)
	if err != nil {
		return nil, err
	}
	s := &session{env: &environment{scoria: binary, scoriaArgs: o.scoriaArgs, size: o.size}, device: device,
		secs: o.secs, rounds: o.rounds, out: stderr, path: o.out + ".json",
		result: &result{Date: time.Now(), Machine: thisMachine(device), Kinds: map[string]kind{},
			Config: map[string]any{"rounds": o.rounds, "secs": o.secs, "size": o.size, "modes": o.modes, "scoria_args": o.scoriaArgs}}}
	for _, m := range o.modes {
		s.env.dir = filepath.Join(dir, m)
		if err := os.Mkdir(s.env.dir, 0o700); err != nil {
			return s.result, err
		}
		if err := modes[m](s, ctx, o); err != nil {
			return s.result, fmt.Errorf("%s: %w", m, err)
		}
		if err := os.RemoveAll(s.env.dir); err != nil { // the next mode has its room
			return s.result, err
		}
	}
	return s.result, nil
}

// publish writes the files and prints the report.
func publish(d *result, o *options, stdout io.Writer) error {
	text := d.markdown()
	verdicts, missed := d.verdicts()
	text += verdicts
	err := errors.Join(d.save(o.out+".json"), os.WriteFile(o.out+".md", []byte(text), 0o644),
		os.WriteFile(o.out+".svg", []byte(d.plot()), 0o644))
	if _, werr := io.WriteString(stdout, text); werr != nil {
		err = errors.Join(err, werr)
	}
	if o.strict && missed > 0 {
		err = errors.Join(err, fmt.Errorf("%d goals were not reached", missed))
	}
	return err
}
