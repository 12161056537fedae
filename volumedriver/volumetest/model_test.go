package volumetest

import "testing"

func filled(stamp uint64, n int) []byte {
	p := make([]byte, n)
	Fill(p, stamp, 0)
	return p
}

func TestModelPrefix(t *testing.T) {
	m := NewModel(16 * clusterSize)
	var states [][]byte
	snap := func() { states = append(states, append([]byte(nil), m.now...)) }
	snap()
	m.Write(0, filled(1, 4*clusterSize))
	snap()
	m.Write(100, filled(2, 50))
	snap()
	m.Zero(clusterSize, 2*clusterSize)
	snap()
	m.Write(8*clusterSize, filled(3, 3*clusterSize))
	snap()
	for k, s := range states {
		for _, from := range []int{0, k} {
			if got, err := m.Prefix(s, from); err != nil || got != k {
				t.Errorf("state %d: found %d, %v", k, got, err)
			}
		}
		if k < m.State() {
			if _, err := m.Prefix(s, k+1); err == nil {
				t.Errorf("state %d passes for a later one", k)
			}
		}
	}
	// The first cluster of the last operation only: a cut inside of it.
	cut := append([]byte(nil), states[3]...)
	copy(cut[8*clusterSize:9*clusterSize], states[4][8*clusterSize:])
	if k, err := m.Prefix(cut, 3); err != nil || k != 3 {
		t.Errorf("cut inside an operation: %d, %v", k, err)
	}
	// The last cluster only: not a beginning.
	bad := append([]byte(nil), states[3]...)
	copy(bad[10*clusterSize:11*clusterSize], states[4][10*clusterSize:])
	if k, err := m.Prefix(bad, 0); err == nil {
		t.Errorf("the end of an operation without its beginning passes as state %d", k)
	}
	// A later operation without an earlier one: a mixture.
	mixed := append([]byte(nil), states[4]...)
	copy(mixed[:clusterSize], states[1][:clusterSize])
	if k, err := m.Prefix(mixed, 0); err == nil {
		t.Errorf("a mixture passes as state %d", k)
	}
	if err := m.Check(0, states[4]); err != nil {
		t.Error(err)
	}
	if err := m.Check(0, states[3]); err == nil {
		t.Error("an old state passes for the newest")
	}
}
