package volumetest

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// clusterSize is the unit at which the model compares.
const clusterSize = 4096

// Model is a volume as a byte array that remembers every state it went through: state k is
// what the volume holds after its first k operations. It answers the question that matters
// after a crash: is what came back one of these states, and late enough?
//
// A Model belongs to one goroutine at a time.
type Model struct {
	size     uint64 // bytes
	now      []byte
	ops      []span      // ops[k] changes state k to state k+1
	versions [][]version // by cluster, oldest first
}

type span struct{ first, last uint64 } // clusters, both included

// version is the content of a cluster from state since on.
type version struct {
	since int
	data  []byte // nil: zeroes
}

// NewModel returns the model of an empty volume of size bytes, a multiple of 4096.
func NewModel(size uint64) *Model {
	return &Model{size: size, now: make([]byte, size), versions: make([][]version, size/clusterSize)}
}

// Size is the current size in bytes.
func (m *Model) Size() uint64 { return m.size }

// State is the number of operations so far: the index of the newest state.
func (m *Model) State() int { return len(m.ops) }

// Write puts data at off as the next operation.
func (m *Model) Write(off uint64, data []byte) {
	copy(m.now[off:], data)
	m.record(off, uint64(len(data)))
}

// Zero clears a range as the next operation.
func (m *Model) Zero(off, length uint64) {
	clear(m.now[off : off+length])
	m.record(off, length)
}

// Grow makes the volume larger. It is no operation: it shows at once in all states.
func (m *Model) Grow(size uint64) {
	m.now = append(m.now, make([]byte, size-m.size)...)
	m.versions = append(m.versions, make([][]version, size/clusterSize-uint64(len(m.versions)))...)
	m.size = size
}

func (m *Model) record(off, length uint64) {
	s := span{first: off / clusterSize, last: (off + length - 1) / clusterSize}
	m.ops = append(m.ops, s)
	for c := s.first; c <= s.last; c++ {
		data := slices.Clone(m.now[c*clusterSize : (c+1)*clusterSize])
		if isZero(data) {
			data = nil
		}
		m.versions[c] = append(m.versions[c], version{since: len(m.ops), data: data})
	}
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// Check compares a range of the volume with the newest state.
func (m *Model) Check(off uint64, got []byte) error {
	want := m.now[off : off+uint64(len(got))]
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d: got %#x, want %#x (state %d; got stamp %d, want stamp %d)", off+uint64(i), got[i], want[i],
				m.State(), Stamp(cluster(got, i)), Stamp(cluster(want, i)))
		}
	}
	return nil
}

// cluster returns what of b shares a cluster with byte i, if b starts at a cluster.
func cluster(b []byte, i int) []byte {
	i -= i % clusterSize
	return b[i:min(len(b), i+clusterSize)]
}

// Rewind makes a past state (found by Prefix or Last) the newest one; content is what the
// volume holds: that state, perhaps with a beginning of the operation behind it, which then
// counts as one more operation.
func (m *Model) Rewind(state int, content []byte) {
	var behind *span
	if state < len(m.ops) {
		behind = &m.ops[state]
	}
	m.ops = m.ops[:state]
	for c, vs := range m.versions {
		for len(vs) > 0 && vs[len(vs)-1].since > state {
			vs = vs[:len(vs)-1]
		}
		m.versions[c] = vs
	}
	m.now = slices.Clone(content)
	for c := range m.versions {
		if !same(content[c*clusterSize:(c+1)*clusterSize], m.at(uint64(c), state)) {
			m.record(behind.first*clusterSize, (behind.last-behind.first+1)*clusterSize)
			return
		}
	}
}

// Last is Prefix that finds the newest state that fits, where operations that change nothing
// make several fit.
func (m *Model) Last(content []byte, minState int) (int, error) {
	first, err := m.Prefix(content, minState)
	if err != nil {
		return 0, err
	}
	last := first
	for k := first + 1; k <= m.State(); k++ {
		if s := m.ops[k-1]; m.differs(content, k, s) {
			break
		}
		last = k
	}
	return last, nil
}

// differs tells whether the content of some clusters is not that of state k.
func (m *Model) differs(content []byte, k int, s span) bool {
	for c := s.first; c <= s.last; c++ {
		if !same(content[c*clusterSize:(c+1)*clusterSize], m.at(c, k)) {
			return true
		}
	}
	return false
}

// Prefix finds a state of at least min that the whole volume content equals. The operation
// behind that state may have been done in part, up to some cluster, because a crash may cut
// between the records of one large write. It returns the state, or an error that tells what
// is wrong with the best candidate.
func (m *Model) Prefix(content []byte, minState int) (int, error) {
	if uint64(len(content)) != m.size {
		return 0, fmt.Errorf("the volume has %d bytes, want %d", len(content), m.size)
	}
	// match[k] counts the clusters that look as in state k (as a difference array first).
	match := make([]int, m.State()+2)
	for c := range m.versions {
		m.eachMatch(uint64(c), content, func(from, to int) {
			match[from]++
			match[to+1]--
		})
	}
	best, bestAt, partly := -1, 0, -1
	sum := 0
	for k := 0; k <= m.State(); k++ {
		sum += match[k]
		if k < minState {
			continue
		}
		if sum == len(m.versions) {
			return k, nil
		}
		if partly < 0 && m.partial(content, k, len(m.versions)-sum) {
			partly = k
		}
		if sum > best {
			best, bestAt = sum, k
		}
	}
	if partly >= 0 {
		return partly, nil
	}
	return 0, fmt.Errorf("no state from %d to %d fits; state %d fits best, with %d of %d clusters: %s",
		minState, m.State(), bestAt, best, len(m.versions), m.explain(content, bestAt))
}

// eachMatch calls f for each run of states in which cluster c has the given content.
func (m *Model) eachMatch(c uint64, content []byte, f func(from, to int)) {
	got := content[c*clusterSize : (c+1)*clusterSize]
	vs := m.versions[c]
	for i := -1; i < len(vs); i++ {
		from, to, data := 0, m.State(), []byte(nil)
		if i >= 0 {
			from, data = vs[i].since, vs[i].data
		}
		if i+1 < len(vs) {
			to = vs[i+1].since - 1
		}
		if same(got, data) {
			f(from, to)
		}
	}
}

func same(got, data []byte) bool {
	if data == nil {
		return isZero(got)
	}
	return slices.Equal(got, data)
}

// at returns the content of cluster c in state k; nil is zeroes.
func (m *Model) at(c uint64, k int) []byte {
	var data []byte
	for _, v := range m.versions[c] {
		if v.since > k {
			break
		}
		data = v.data
	}
	return data
}

// partial tells whether the content is state k with a beginning of operation k+1 done.
func (m *Model) partial(content []byte, k, differ int) bool {
	if k == m.State() || differ == 0 {
		return false
	}
	s := m.ops[k]
	old := false
	for c := s.first; c <= s.last; c++ {
		got := content[c*clusterSize : (c+1)*clusterSize]
		isOld, isNew := same(got, m.at(c, k)), same(got, m.at(c, k+1))
		switch {
		case isOld && isNew: // says nothing
		case isNew && !old:
			differ--
		case isOld:
			old = true
		default:
			return false
		}
	}
	return differ == 0
}

func (m *Model) explain(content []byte, k int) string {
	text, n := "", 0
	for c := range m.versions {
		got, want := content[c*clusterSize:(c+1)*clusterSize], m.at(uint64(c), k)
		if same(got, want) {
			continue
		}
		if n++; n > 8 {
			return text + " ..."
		}
		found := "never so"
		m.eachMatch(uint64(c), content, func(from, to int) { found = fmt.Sprintf("states %d-%d", from, to) })
		text += fmt.Sprintf(" cluster %d is as in %s (stamp %d, want %d);", c, found, Stamp(got), Stamp(want))
	}
	return text
}

// Fill writes a pattern into p that is different for each stamp and for each place: a block
// that belongs elsewhere, or elsewhen, cannot pass for it.
func Fill(p []byte, stamp, off uint64) {
	x := stamp*0x9e3779b97f4a7c15 ^ off*0xbf58476d1ce4e5b9 | 1
	for i := 0; i < len(p); i += 8 {
		var w [8]byte
		if i%512 == 0 {
			binary.LittleEndian.PutUint64(w[:], stamp)
		} else {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			binary.LittleEndian.PutUint64(w[:], x)
		}
		copy(p[i:], w[:])
	}
}

// Stamp reads the stamp at the start of a filled block (for messages).
func Stamp(p []byte) uint64 {
	if len(p) < 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(p)
}
