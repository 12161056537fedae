package system

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"scoria/alba/osd"
	"scoria/metadata"
)

// remoteDisk is a disk server with an address of its own, in this process.
type remoteDisk struct {
	t     *testing.T
	dir   string
	addr  string // the same after each start
	store *osd.Store
	srv   *osd.Server
	ended chan error
}

func (d *remoteDisk) start() {
	d.t.Helper()
	addr := d.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		d.t.Fatal(err)
	}
	d.addr = ln.Addr().String()
	if d.store, err = osd.Open(d.dir, osd.Options{Capacity: 1 << 30, SegmentSize: 4 << 20}); err != nil {
		d.t.Fatal(err)
	}
	srv, ended := osd.NewServer(d.store, d.store.UUID(), osd.ServerOptions{}), make(chan error, 1)
	d.srv, d.ended = srv, ended
	go func() { ended <- srv.Serve(ln) }()
}

func (d *remoteDisk) stop() {
	d.t.Helper()
	if d.srv == nil {
		return
	}
	must(d.t, d.srv.Close())
	if err := <-d.ended; !errors.Is(err, osd.ErrServerClosed) {
		d.t.Errorf("disk server: %v", err)
	}
	must(d.t, d.store.Close())
	d.srv = nil
}

// remotes starts a system with six disk servers of their own, all with data of a volume "v".
func remotes(t *testing.T) (*rig, []*remoteDisk) {
	r := newRig(t)
	r.cfg.DiskCheck = 20 * time.Millisecond
	disks := make([]*remoteDisk, 6)
	for i := range disks {
		d := &remoteDisk{t: t, dir: filepath.Join(r.dir, "disk-"+strconv.Itoa(i))}
		t.Cleanup(d.stop)
		d.start()
		disks[i] = d
		r.cfg.RemoteOSDs = append(r.cfg.RemoteOSDs, d.addr)
	}
	t.Cleanup(r.stop) // before the disk servers
	r.start()
	r.create("v", 16<<20)
	c := r.dial("v")
	r.write(c, 1, 0, 2048)
	must(t, c.Flush())
	must(t, c.Disconnect())
	r.drain("v")
	r.maintain("late fragments", func() bool { return r.missing() == 0 })
	return r, disks
}

// eventually waits until ok says so.
func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(end) {
			r.t.Fatalf("%s: not after two minutes; problems %q", what, r.status().Problems)
		}
	}
}

// states counts the disk servers by state.
func (r *rig) states() map[string]int {
	r.t.Helper()
	osds, err := r.sys.OSDs(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	out := make(map[string]int)
	for _, o := range osds {
		out[o.State]++
	}
	return out
}

// TestWipedRemoteDisk: a disk server that comes back with an empty directory is claimed while the
// system runs; what the old one held is told as lost until all of it is made anew.
func TestWipedRemoteDisk(t *testing.T) {
	r, disks := remotes(t)
	for _, i := range []int{1, 4} {
		disks[i].stop()
		must(t, os.RemoveAll(disks[i].dir))
		disks[i].start()
	}
	r.eventually("both are claimed, and what they were is lost", func() bool {
		s := r.states()
		return s["claimed"] == 6 && s["lost"] == 2
	})
	if st := r.degraded(true); !strings.Contains(strings.Join(st.Problems, "\n"), "lost; ") {
		t.Errorf("problems %q", st.Problems)
	}
	r.maintain("repair", func() bool { return r.missing() == 0 && r.status().Health == "ok" })
	for _, i := range []int{0, 2} { // what was made anew is needed now
		disks[i].stop()
	}
	r.stop()
	r.forget()
	r.start()
	r.checkStored()
}

// TestTooManyWipedRemoteDisks: empty directories in the place of three are more likely disks that
// are not mounted: nothing is declared lost, it is told, and all is well when they are back.
func TestTooManyWipedRemoteDisks(t *testing.T) {
	r, disks := remotes(t)
	away := filepath.Join(r.dir, "away")
	must(t, os.Mkdir(away, 0o700))
	for i, d := range disks[:3] {
		d.stop()
		must(t, os.Rename(d.dir, filepath.Join(away, strconv.Itoa(i))))
	}
	for _, d := range disks[:3] {
		d.start()
	}
	r.eventually("it is told", func() bool {
		return strings.Count(strings.Join(r.status().Problems, "\n"), "is a disk not mounted?") == 3
	})
	if got := r.states(); got["lost"] != 0 || got["claimed"] != 6 {
		t.Errorf("states %v", got)
	}
	for i, d := range disks[:3] {
		d.stop()
		must(t, os.RemoveAll(d.dir))
		must(t, os.Rename(filepath.Join(away, strconv.Itoa(i)), d.dir))
		d.start()
	}
	r.eventually("all is well again", func() bool { return r.status().Health == "ok" })
	r.stop()
	r.forget()
	r.start()
	r.checkStored()
}

func TestJudge(t *testing.T) {
	const ours, theirs = "backend-a", "backend-b"
	rec := func(id metadata.OSDID, uuid, addr string, s metadata.OSDState) metadata.OSD {
		return metadata.OSD{ID: id, UUID: uuid, Addr: addr, State: s}
	}
	at := func(addr, uuid, backend string) answer {
		return answer{addr: addr, info: osd.Info{UUID: uuid, Backend: backend}}
	}
	silent := func(addr string) answer { return answer{addr: addr, err: osd.ErrUnavailable} }
	claimed := []metadata.OSD{rec(1, "a", "A", metadata.OSDClaimed), rec(2, "b", "B", metadata.OSDClaimed), rec(3, "c", "C", metadata.OSDClaimed)}
	for _, c := range []struct {
		name    string
		recs    []metadata.OSD
		answers []answer
		holds   string // those that hold data, by id
		want    string // for each answer: "-" nothing, "+" join, "+a" join in the place of a, "!" refused
	}{
		{"as ever", claimed, []answer{at("A", "a", ours), at("B", "b", ours), at("C", "c", ours)}, "123", "- - -"},
		{"first start", nil, []answer{at("A", "a", ""), silent("B")}, "", "+ -"},
		{"wiped", claimed, []answer{at("A", "x", ""), at("B", "b", ours), silent("C")}, "123", "+a - -"},
		{"two wiped", claimed, []answer{at("A", "x", ""), at("B", "y", ""), silent("C")}, "123", "! ! -"},
		{"three wiped", claimed, []answer{at("A", "x", ""), at("B", "y", ""), at("C", "z", "")}, "123", "! ! !"},
		{"two wiped, the silent one held nothing", claimed, []answer{at("A", "x", ""), at("B", "y", ""), silent("C")}, "12", "+a +b -"},
		{"one up, the others not yet", claimed, []answer{at("A", "x", ""), silent("B"), silent("C")}, "123", "! - -"},
		{"met when others were away, which are back", claimed, []answer{at("A", "h", ""), at("B", "b", ours), at("C", "c", ours)}, "123", "! - -"},
		{"nothing was held", claimed, []answer{at("A", "x", ""), at("B", "y", ""), at("C", "z", "")}, "", "+a +b +c"},
		{"wiped before the last two are made anew", append([]metadata.OSD{rec(8, "l", "A", metadata.OSDLost), rec(9, "m", "B", metadata.OSDLost)}, claimed...), []answer{at("A", "x", ""), at("B", "b", ours), at("C", "c", ours)}, "12389", "! - -"},
		{"cut off between lost and claim", []metadata.OSD{rec(1, "a", "A", metadata.OSDLost)}, []answer{at("A", "x", "")}, "1", "+"},
		{"cut off between both claims", []metadata.OSD{rec(1, "a", "A", metadata.OSDClaimed)}, []answer{at("A", "a", "")}, "1", "+"},
		{"of another system", claimed, []answer{at("A", "x", theirs), at("B", "b", ours), at("C", "c", ours)}, "123", "! - -"},
		{"of this system, but not known", claimed, []answer{at("A", "x", ours), at("B", "b", ours), at("C", "c", ours)}, "123", "+ - -"},
		{"changed places", claimed, []answer{at("A", "b", ours), at("B", "a", ours), at("C", "c", ours)}, "123", "+ + -"},
		{"moved, and a new one in its place", claimed, []answer{at("A", "x", ""), at("B", "a", ours), at("C", "c", ours)}, "123", "+ + -"},
		{"lost before", []metadata.OSD{rec(1, "a", "A", metadata.OSDLost)}, []answer{at("A", "a", ours)}, "1", "!"},
		{"leaving", []metadata.OSD{rec(1, "a", "A", metadata.OSDDecommissioning)}, []answer{at("A", "a", ours)}, "1", "-"},
		{"copied", claimed, []answer{at("A", "a", ours), at("B", "a", ours), at("C", "c", ours)}, "123", "! ! -"},
	} {
		var got []string
		holds := make(map[metadata.OSDID]uint64)
		for _, id := range c.holds {
			holds[metadata.OSDID(id-'0')] = 7
		}
		for _, v := range judge(c.recs, c.answers, ours, holds, map[string]bool{"h": true}) {
			switch {
			case v.refuse != nil && !v.join && len(v.lost) == 0:
				got = append(got, "!")
			case v.refuse != nil:
				got = append(got, "refused and joined")
			case v.join:
				text := "+"
				for _, o := range v.lost {
					text += o.UUID
				}
				got = append(got, text)
			default:
				got = append(got, "-")
			}
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: %s, want %s", c.name, text, c.want)
		}
	}
}
