// Package placement decides on which disk servers the fragments of a chunk go. It is pure:
// the same arguments give the same choice, randomness comes in as a seed.
package placement

import (
	"cmp"
	"slices"

	"scoria/metadata"
)

// Candidate is a disk server that could take a fragment.
type Candidate struct {
	ID     metadata.OSDID
	Node   string // failure domain
	Weight uint64 // free bytes
}

// Slots returns how many fragments of one chunk the candidates can take with at most x on
// a node, where used counts those that each node holds already (nil: none).
func Slots(cands []Candidate, x int, used map[string]int) int {
	per := map[string]int{}
	n := 0
	for _, c := range cands {
		if per[c.Node]+used[c.Node] < x {
			per[c.Node]++
			n++
		}
	}
	return n
}

// Policy returns the first policy that the candidates satisfy (its C fragments find a place)
// and the number of fragments to place, C..K+M. ok is false when none is satisfied.
func Policy(policies []metadata.Policy, cands []Candidate) (p metadata.Policy, n int, ok bool) {
	for _, p := range policies {
		if n := Slots(cands, p.X, nil); p.C <= n {
			return p, min(n, p.K+p.M), true
		}
	}
	return metadata.Policy{}, 0, false
}

// Choose picks up to n different candidates, at most x on a node including the used ones.
// The nodes that hold the fewest fragments come first; among them the draw is by weight, a
// node weighing the mean of what it has left, so that free space fills evenly but never
// at the price of spread. The order of the result is that of the draw.
func Choose(cands []Candidate, n, x int, used map[string]int, seed uint64) []metadata.OSDID {
	nodes := group(cands, used)
	rng := splitmix(seed)
	out := make([]metadata.OSDID, 0, n)
	for len(out) < n {
		node := drawNode(nodes, x, &rng)
		if node == nil {
			break
		}
		i := drawIndex(len(node.cands), func(i int) uint64 { return node.cands[i].Weight }, &rng)
		out = append(out, node.cands[i].ID)
		node.cands = slices.Delete(node.cands, i, i+1)
		node.used++
	}
	return out
}

type node struct {
	name  string
	used  int
	cands []Candidate
}

func (n *node) weight() uint64 {
	sum := uint64(0)
	for _, c := range n.cands {
		sum += c.Weight/uint64(len(n.cands)) + 1
	}
	return sum
}

// group sorts candidates by node and id: the caller's order does not matter.
func group(cands []Candidate, used map[string]int) []*node {
	sorted := slices.Clone(cands)
	slices.SortFunc(sorted, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
	})
	var nodes []*node
	for i, c := range sorted {
		if i > 0 && sorted[i-1].ID == c.ID && sorted[i-1].Node == c.Node {
			continue
		}
		if len(nodes) == 0 || nodes[len(nodes)-1].name != c.Node {
			nodes = append(nodes, &node{name: c.Node, used: used[c.Node]})
		}
		last := nodes[len(nodes)-1]
		last.cands = append(last.cands, c)
	}
	return nodes
}

func drawNode(nodes []*node, x int, rng *splitmix) *node {
	least := x
	for _, n := range nodes {
		if len(n.cands) > 0 && n.used < least {
			least = n.used
		}
	}
	if least >= x {
		return nil
	}
	var open []*node
	for _, n := range nodes {
		if len(n.cands) > 0 && n.used == least {
			open = append(open, n)
		}
	}
	return open[drawIndex(len(open), func(i int) uint64 { return open[i].weight() }, rng)]
}

// drawIndex draws an index in [0, n) by weight; a weight of 0 counts as 1.
func drawIndex(n int, weight func(int) uint64, rng *splitmix) int {
	// 2^48 B a disk and a few thousand disks stay below 2^64 after this shift.
	const shift = 12
	total := uint64(0)
	for i := range n {
		total += weight(i)>>shift + 1
	}
	at := rng.next() % total
	for i := range n {
		w := weight(i)>>shift + 1
		if at < w {
			return i
		}
		at -= w
	}
	return n - 1
}

// splitmix is the generator of the draw (SplitMix64).
type splitmix uint64

func (s *splitmix) next() uint64 {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
