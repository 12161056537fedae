package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"scoria/metadata"
)

// plan is a run: all that is decided before it begins, made from a seed. Shrinking takes
// events and operations away.
type plan struct {
	Seed    uint64
	Disks   int
	Preset  metadata.Preset
	Bears   int // disks that may lose data at a time without any loss: c - k of the weakest policy
	Volumes []volumeSpec
	Think   time.Duration // longest pause of a client
	Active  time.Duration // how long events happen
	Events  []event
	Most    int // operations of each client
}

type volumeSpec struct {
	Number   uint64
	Clusters uint64
	Lanes    int
	Ops      int // of each lane
}

// event is something that happens to the system at a time.
type event struct {
	N    int // number in the plan, for picking
	At   time.Duration
	Kind string
	Host int           // of a disk server
	For  time.Duration // how long it lasts, where it does
	Seed uint64        // for what is decided when it happens
}

func (e event) String() string {
	return fmt.Sprintf("%d:%s(host %d, at %v for %v)", e.N, e.Kind, e.Host, e.At.Round(time.Millisecond), e.For.Round(time.Millisecond))
}

// presets are the policies that plans choose from, with what each bears.
var presets = []struct {
	disks, bears int
	policies     []metadata.Policy
}{
	{6, 1, []metadata.Policy{{K: 4, M: 2, C: 5, X: 6}, {K: 2, M: 1, C: 3, X: 3}}},
	{7, 2, []metadata.Policy{{K: 4, M: 2, C: 6, X: 6}}},
	{6, 1, []metadata.Policy{{K: 3, M: 2, C: 4, X: 5}}},
	{5, 2, []metadata.Policy{{K: 1, M: 3, C: 3, X: 4}}},
}

// newPlan makes a plan of a seed.
func newPlan(seed uint64) plan {
	r := rand.New(rand.NewPCG(seed, 1))
	pre := presets[r.IntN(len(presets))]
	p := plan{
		Seed: seed, Disks: pre.disks, Bears: pre.bears,
		Preset: metadata.Preset{
			Name: "default", Version: 1, Default: true, Policies: pre.policies, ChunkSize: []uint32{64 << 10, 128 << 10, 1 << 20}[r.IntN(3)],
			InlineLimit: []uint32{0, 2 << 10, 16 << 10}[r.IntN(3)],
			Compression: []metadata.Compression{metadata.CompressNone, metadata.CompressNone, metadata.CompressS2, metadata.CompressZstd}[r.IntN(4)],
			Encryption:  []metadata.Encryption{metadata.EncryptNone, metadata.EncryptAES256GCM}[r.IntN(2)],
		},
		Most:  300,
		Think: []time.Duration{50 * time.Millisecond, time.Second, 6 * time.Second}[r.IntN(3)],
	}
	for i := range 1 + r.IntN(3) {
		lanes := 1 + r.IntN(3)
		p.Volumes = append(p.Volumes, volumeSpec{
			Number: uint64(i + 1), Lanes: lanes, Clusters: uint64(lanes) * uint64(32+r.IntN(200)), Ops: 60 + r.IntN(240),
		})
	}
	p.Active = time.Duration(1+r.IntN(12)) * time.Minute
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	for i := range 3 + r.IntN(25) {
		n := r.IntN(total)
		for _, f := range faults {
			if n -= f.weight; n < 0 {
				p.Events = append(p.Events, event{
					N: i, At: time.Duration(r.Int64N(int64(p.Active))), Kind: f.name, Host: r.IntN(p.Disks), Seed: r.Uint64(),
					For: time.Duration(r.ExpFloat64() * float64(f.lasts)),
				})
				break
			}
		}
	}
	slices.SortStableFunc(p.Events, func(a, b event) int { return int(a.At - b.At) })
	return p
}

// describe is the plan in words.
func (p *plan) describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d disks, policies %v, chunks of %d, inline up to %d, compression %d, encryption %d, pauses up to %v\n",
		p.Seed, p.Disks, p.Preset.Policies, p.Preset.ChunkSize, p.Preset.InlineLimit, p.Preset.Compression, p.Preset.Encryption, p.Think)
	for _, v := range p.Volumes {
		fmt.Fprintf(&b, "  volume %d: %d clusters, %d clients, %d operations each\n", v.Number, v.Clusters, v.Lanes, v.Ops)
	}
	for _, e := range p.Events {
		fmt.Fprintf(&b, "  %v\n", e)
	}
	return b.String()
}
