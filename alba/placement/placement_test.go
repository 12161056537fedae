package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"scoria/metadata"
)

func cands(nodes, per int) (out []Candidate) {
	for n := range nodes {
		for i := range per {
			out = append(out, Candidate{ID: metadata.OSDID(n*per + i + 1), Node: fmt.Sprint("n", n), Weight: 1 << 40})
		}
	}
	return out
}

func TestPolicyFallsBack(t *testing.T) {
	policies := []metadata.Policy{{K: 4, M: 2, C: 5, X: 2}, {K: 2, M: 1, C: 2, X: 1}}
	for _, c := range []struct{ nodes, per, k, n int }{{6, 1, 4, 6}, {5, 1, 4, 5}, {3, 2, 4, 6}, {3, 4, 4, 6}, {2, 4, 2, 2}, {4, 1, 2, 3}, {1, 9, 0, 0}, {0, 0, 0, 0}} {
		p, n, ok := Policy(policies, cands(c.nodes, c.per))
		if ok != (c.k > 0) || p.K != c.k || n != c.n {
			t.Errorf("%d nodes of %d: policy %v, %d fragments, %v", c.nodes, c.per, p, n, ok)
		}
	}
}

// TestChooseRules checks the rules on random clusters: different disks, at most x on a node
// with the used ones, as many as fit, evenly over nodes, and the same for the same seed.
func TestChooseRules(t *testing.T) {
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		list := cands(1+rng.IntN(6), 1+rng.IntN(5))
		rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		list = list[:1+rng.IntN(len(list))]
		for i := range list {
			list[i].Weight = rng.Uint64N(1 << 44)
		}
		x, n := 1+rng.IntN(4), 1+rng.IntN(8)
		used := map[string]int{"n0": rng.IntN(3)}
		got := Choose(list, n, x, used, seed)
		per := map[string]int{"n0": used["n0"]}
		for _, id := range got {
			i := slices.IndexFunc(list, func(c Candidate) bool { return c.ID == id })
			if i < 0 {
				t.Fatalf("seed %d: chose %d, no candidate", seed, id)
			}
			per[list[i].Node]++
		}
		sorted := slices.Sorted(slices.Values(got))
		if len(slices.Compact(sorted)) != len(got) {
			t.Fatalf("seed %d: a disk twice: %v", seed, got)
		}
		for node, k := range per {
			if k > x && k > used[node] {
				t.Fatalf("seed %d: %d on %s, x is %d", seed, k, node, x)
			}
		}
		if want := min(n, Slots(list, x, used)); len(got) != want {
			t.Fatalf("seed %d: %d chosen, %d possible", seed, len(got), want)
		}
		slices.Reverse(list)
		if again := Choose(list, n, x, used, seed); !slices.Equal(again, got) {
			t.Fatalf("seed %d: order of candidates matters: %v, %v", seed, got, again)
		}
	}
}

func TestWeightsDecide(t *testing.T) {
	list := cands(6, 1)
	list[0].Weight, list[1].Weight = 3<<40, 0
	count := map[metadata.OSDID]int{}
	for seed := range uint64(8000) {
		for _, id := range Choose(list, 1, 1, nil, seed) {
			count[id]++
		}
	}
	// Weights 3, 0, 1, 1, 1, 1.
	if count[1] < 3000 || count[1] > 3900 || count[2] > 5 || count[3] < 900 || count[3] > 1400 {
		t.Errorf("draws: %v", count)
	}
}
