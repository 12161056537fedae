package volumedriver

import (
	"context"
	"sync"
	"sync/atomic"

	"scoria/volumedriver/clustermap"
)

// Read-ahead. Reads that have to go to the object store are watched; where they follow each
// other, chunks ahead of them are read in the background, more the longer it lasts. A chunk
// remembers the map entries it was read by, and serves a read only if the map still says
// the same, so it can never be stale. It is dropped when it has been read to its end.
const (
	chunkClusters = 256 // 1 MiB
	chunkBytes    = chunkClusters * ClusterSize
	maxStreams    = 4 // sequential readers that are told apart, per volume
	maxWindow     = 6 // chunks ahead of a reader
	maxChunks     = 32
)

type readAhead struct {
	budget *atomic.Int64 // bytes that may still be taken, over all volumes
	busy   atomic.Int32  // chunks; 0 saves the lock

	mu struct {
		sync.Mutex
		streams [maxStreams]stream
		clock   uint64
		chunks  map[uint64]*chunk // by number: address / chunkClusters
		order   []uint64          // oldest first
	}
}

// stream is a sequential reader.
type stream struct {
	next   uint64 // cluster behind its last read
	streak int    // reads in sequence
	ahead  uint64 // chunks below this have been asked for
	used   uint64 // clock of its last read
}

type chunk struct {
	ready   chan struct{} // closed when data and entries are there, or ok is false
	ok      bool
	dropped atomic.Bool
	entries []clustermap.Entry
	data    []byte
}

// note tells of a read of n clusters that was not answered locally.
func (r *readAhead) note(v *Volume, addr, n uint64) {
	if r.budget == nil {
		return
	}
	size := v.size.Load() / ClusterSize
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.streamLocked(addr, n)
	if s.streak < 3 {
		return
	}
	first := s.next / chunkClusters
	window := uint64(min(s.streak/4+1, maxWindow))
	s.ahead = max(s.ahead, first)
	for ; s.ahead <= first+window && s.ahead*chunkClusters < size; s.ahead++ {
		if !r.startLocked(v, s.ahead, size) {
			return
		}
	}
}

// streamLocked finds the stream that a read continues, or takes the one idle for longest.
// Reads of one stream may overtake each other a little.
func (r *readAhead) streamLocked(addr, n uint64) *stream {
	r.mu.clock++
	oldest := &r.mu.streams[0]
	for i := range r.mu.streams {
		s := &r.mu.streams[i]
		if s.used != 0 && addr+n > s.next-min(s.next, chunkClusters) && addr <= s.next+chunkClusters {
			if addr+n > s.next {
				s.streak++
				s.next = addr + n
			}
			s.used = r.mu.clock
			return s
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	*oldest = stream{next: addr + n, used: r.mu.clock}
	return oldest
}

// startLocked begins to read a chunk, unless it is there already. false: no room.
func (r *readAhead) startLocked(v *Volume, number, size uint64) bool {
	if r.mu.chunks[number] != nil {
		return true
	}
	if len(r.mu.order) >= maxChunks {
		r.dropLocked(r.mu.order[0])
	}
	if r.budget.Add(-chunkBytes) < 0 {
		r.budget.Add(chunkBytes)
		return false
	}
	c := &chunk{ready: make(chan struct{})}
	n := min(chunkClusters, size-number*chunkClusters)
	if !v.spawn(func() { c.fill(v, number, n) }) {
		r.budget.Add(chunkBytes)
		return false
	}
	if r.mu.chunks == nil {
		r.mu.chunks = make(map[uint64]*chunk)
	}
	r.mu.chunks[number] = c
	r.mu.order = append(r.mu.order, number)
	r.busy.Store(int32(len(r.mu.order)))
	return true
}

// fill reads the chunk. A failure is nobody's business: the read itself will meet it.
func (c *chunk) fill(v *Volume, number, n uint64) {
	defer close(c.ready)
	if c.dropped.Load() {
		return
	}
	j := readJobs.Get().(*readJob)
	defer j.free()
	j.plain = true
	data := make([]byte, n*ClusterSize)
	if err := v.readClusters(v.ctx, j, number*chunkClusters, data); err != nil {
		return
	}
	c.entries = append(c.entries, j.entries...)
	c.data, c.ok = data, true
}

// noWait is a context that has ended: take with it takes only what is there already.
var noWait = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// take fills part from chunks, waiting until ctx ends for those on their way. false: it
// could not, and part may have been changed.
func (r *readAhead) take(ctx context.Context, addr uint64, entries []clustermap.Entry, part []byte) bool {
	if r.busy.Load() == 0 {
		return false
	}
	for len(entries) > 0 {
		number, at := addr/chunkClusters, int(addr%chunkClusters)
		n := min(len(entries), chunkClusters-at)
		r.mu.Lock()
		c := r.mu.chunks[number]
		r.mu.Unlock()
		if c == nil || !c.take(ctx, at, entries[:n], part) {
			return false
		}
		if at+n == chunkClusters {
			r.mu.Lock()
			r.dropLocked(number)
			r.mu.Unlock()
		}
		addr, entries, part = addr+uint64(n), entries[n:], part[n*ClusterSize:]
	}
	return true
}

func (c *chunk) take(ctx context.Context, at int, entries []clustermap.Entry, part []byte) bool {
	select {
	case <-c.ready:
	default: // with noWait this is the end
		select {
		case <-c.ready:
		case <-ctx.Done():
			return false
		}
	}
	if !c.ok || at+len(entries) > len(c.entries) {
		return false
	}
	for i := range entries {
		if c.entries[at+i] != entries[i] {
			return false
		}
	}
	copy(part[:len(entries)*ClusterSize], c.data[at*ClusterSize:])
	return true
}

// dropLocked forgets a chunk.
func (r *readAhead) dropLocked(number uint64) {
	c := r.mu.chunks[number]
	if c == nil {
		return
	}
	c.dropped.Store(true)
	delete(r.mu.chunks, number)
	for i, n := range r.mu.order {
		if n == number {
			r.mu.order = append(r.mu.order[:i], r.mu.order[i+1:]...)
			break
		}
	}
	r.busy.Store(int32(len(r.mu.order)))
	r.budget.Add(chunkBytes)
}

// dropAll forgets all chunks: the volume is idle, or ends.
func (r *readAhead) dropAll() {
	if r.busy.Load() == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.mu.order) > 0 {
		r.dropLocked(r.mu.order[0])
	}
	r.mu.chunks, r.mu.order = nil, nil
}
