package system

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"scoria/alba/maintenance"
	"scoria/cmd/scoria/internal/admin"
	"scoria/nbd/nbdtest"
)

const block = 4096

// rig is a data directory with a system that is started and stopped over it.
type rig struct {
	t   *testing.T
	dir string
	cfg Config
	sys *System // nil: stopped
}

// newRig makes a directory for a small system. Nothing is drained but by a test's wish or
// for want of room.
func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "scoria") // t.TempDir() may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	r := &rig{t: t, dir: dir, cfg: Config{
		Data: filepath.Join(dir, "data"), NBD: []string{"unix:" + filepath.Join(dir, "nbd")}, Admin: "127.0.0.1:0",
		WriteBuffer: 64 << 20, MapCache: 8 << 20, BlockCache: 1 << 20, DrainDelay: -1, SpaceWait: time.Second, Maintenance: time.Hour, Version: "test", Logger: logger,
	}}
	t.Cleanup(func() {
		r.stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) path(parts ...string) string {
	return filepath.Join(append([]string{r.cfg.Data}, parts...)...)
}

func (r *rig) start() *System {
	r.t.Helper()
	s, err := Start(r.t.Context(), r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.sys = s
	return s
}

func (r *rig) stop() {
	r.t.Helper()
	if r.sys == nil {
		return
	}
	s := r.sys
	r.sys = nil
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		r.t.Errorf("close: %v", err)
	}
	select {
	case err := <-s.Failed():
		r.t.Errorf("a part ended by itself: %v", err)
	default:
	}
}

func (r *rig) create(name string, size uint64) {
	r.t.Helper()
	if _, err := r.sys.CreateVolume(r.t.Context(), admin.CreateVolume{Name: name, Size: size}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) drain(name string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	if err := r.sys.Drain(ctx, name, true, func(admin.DrainProgress) {}); err != nil {
		r.t.Fatalf("drain %s: %v; problems %q", name, err, r.status().Problems)
	}
}

func (r *rig) status() admin.Status {
	r.t.Helper()
	st, err := r.sys.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

// degraded fails the test unless status says (or does not say) that something is wrong.
func (r *rig) degraded(want bool) admin.Status {
	r.t.Helper()
	st := r.status()
	if got := st.Health != "ok"; got != want || got != (len(st.Problems) > 0) {
		r.t.Errorf("health %s, problems %q; want degraded %t", st.Health, st.Problems, want)
	}
	return st
}

// try opens a volume over NBD; no answer may take longer than limit.
func (r *rig) try(name string, limit time.Duration) (*nbdtest.Client, error) {
	r.t.Helper()
	c, err := nbdtest.Dial("unix", filepath.Join(r.dir, "nbd"))
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { _ = c.Close() }) // mostly closed before
	if err := c.Conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	return c, c.Go(name)
}

func (r *rig) dial(name string) *nbdtest.Client {
	r.t.Helper()
	c, err := r.try(name, 50*time.Second)
	if err != nil {
		r.t.Fatalf("open %s: %v", name, err)
	}
	return c
}

// maintain does rounds of maintenance, of objects of any age, until done says so.
func (r *rig) maintain(what string, done func() bool) {
	r.t.Helper()
	a, err := maintenance.New(maintenance.Options{
		Client: r.sys.client, ABM: r.sys.abm, Name: r.sys.data.id.Gateway, RepairAge: -1, GCGrace: -1, BytesPerSecond: -1,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	var last error
	for ctx.Err() == nil {
		last = a.RunOnce(ctx, maintenance.TaskHeartbeat, maintenance.TaskDeletes, maintenance.TaskNamespaces, maintenance.TaskRepair)
		last = errors.Join(last, r.sys.agent.RunOnce(ctx, maintenance.TaskRepair)) // what status tells is this one's
		if done() {
			return
		}
	}
	r.t.Fatalf("%s: not after two minutes of maintenance; last error %v, problems %q", what, last, r.status().Problems)
}

// fill writes the content that belongs to (seed, block number) into p.
func fill(p []byte, seed, first uint64) {
	for i := range len(p) / block {
		g := rand.NewPCG(seed, first+uint64(i))
		b := p[i*block : (i+1)*block]
		for j := 0; j < block; j += 8 {
			binary.LittleEndian.PutUint64(b[j:], g.Uint64())
		}
	}
}

const requestBlocks = 64

// write writes blocks [first, first+n) with the content of seed.
func (r *rig) write(c *nbdtest.Client, seed, first, n uint64) {
	r.t.Helper()
	for p := make([]byte, requestBlocks*block); n > 0; {
		m := min(n, requestBlocks)
		fill(p[:m*block], seed, first)
		if err := c.WriteAt(p[:m*block], first*block, false); err != nil {
			r.t.Fatalf("write block %d: %v", first, err)
		}
		first, n = first+m, n-m
	}
}

// counts is what look found, in requests of requestBlocks.
type counts struct{ right, zero, failed, wrong int }

// look reads blocks [first, first+n) one request at a time. A request of which some blocks
// are right and the others zero counts as wrong.
func (r *rig) look(c *nbdtest.Client, seed, first, n uint64) (out counts) {
	r.t.Helper()
	want, got := make([]byte, requestBlocks*block), make([]byte, requestBlocks*block)
	zeros := make([]byte, requestBlocks*block)
	for n > 0 {
		m := min(n, requestBlocks)
		fill(want[:m*block], seed, first)
		err := c.ReadAt(got[:m*block], first*block)
		switch {
		case err != nil && nbdtest.ErrnoOf(err) == 0:
			r.t.Fatalf("read block %d: the connection broke: %v", first, err)
		case err != nil:
			out.failed++
		case bytes.Equal(got[:m*block], want[:m*block]):
			out.right++
		case bytes.Equal(got[:m*block], zeros[:m*block]):
			out.zero++
		default:
			out.wrong++
		}
		first, n = first+m, n-m
	}
	return out
}

// check fails the test unless all blocks have the content of seed.
func (r *rig) check(c *nbdtest.Client, seed, first, n uint64) {
	r.t.Helper()
	if got := r.look(c, seed, first, n); got.zero+got.failed+got.wrong > 0 {
		r.t.Errorf("blocks %d to %d: %+v", first, first+n, got)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// flip changes a byte in every step bytes of a file, from offset on.
func flip(t *testing.T, name string, offset, step int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	st, err := f.Stat()
	must(t, err)
	for at := offset; at < st.Size(); at += step {
		var b [1]byte
		if _, err := f.ReadAt(b[:], at); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		b[0] ^= 0x10
		_, err := f.WriteAt(b[:], at)
		must(t, err)
	}
	must(t, f.Close())
}

// missing counts fragments that objects of all volumes lack.
func (r *rig) missing() (n int) {
	r.t.Helper()
	spaces, err := r.sys.Namespaces(r.t.Context())
	must(r.t, err)
	lost := make(map[uint32]bool)
	osds, err := r.sys.OSDs(r.t.Context())
	must(r.t, err)
	for _, o := range osds {
		lost[o.ID] = o.State == "lost" || o.State == "gone"
	}
	for _, s := range spaces {
		objects, err := r.sys.Objects(r.t.Context(), s.Name, "", "", 1000)
		must(r.t, err)
		for _, o := range objects {
			full, err := r.sys.Object(r.t.Context(), s.Name, o.Name)
			must(r.t, err)
			for _, c := range full.Chunks {
				for _, f := range c.Fragments {
					if f.OSD == 0 || lost[f.OSD] {
						n++
					}
				}
			}
		}
	}
	return n
}
