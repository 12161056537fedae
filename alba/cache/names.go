package cache

import (
	"container/list"
	"hash/maphash"
	"sync"

	"scoria/metadata"
)

// Names is a least-recently-used cache by (namespace, name), bounded by the weight of its
// entries. Unlike a lossy cache it forgets at once what it is told to forget, and it does
// not take an entry that was looked up before the latest change of its name: a reader that
// was overtaken by a writer cannot bring an old manifest back. Safe for concurrent use.
type Names[V any] struct {
	seed   maphash.Seed
	shards [nameShards]nameShard[V]
}

const nameShards = 16

type nameKey struct {
	ns   metadata.NamespaceID
	name string
}

type nameShard[V any] struct {
	mu      sync.Mutex
	entries map[nameKey]*list.Element
	order   *list.List // front: latest used
	weight  int64
	limit   int64
	changes uint64 // +1 with each Forget and Put
}

type nameEntry[V any] struct {
	key    nameKey
	value  V
	weight int64
}

// Token remembers when a look-up began; see Names.Offer.
type Token struct{ changes uint64 }

// NewNames returns a cache of at most limit weight (bytes).
func NewNames[V any](limit int64) *Names[V] {
	n := &Names[V]{seed: maphash.MakeSeed()}
	for i := range n.shards {
		n.shards[i].entries = map[nameKey]*list.Element{}
		n.shards[i].order = list.New()
		n.shards[i].limit = limit / nameShards
	}
	return n
}

func (n *Names[V]) shard(ns metadata.NamespaceID, name string) *nameShard[V] {
	h := maphash.String(n.seed, name) ^ uint64(ns)*0x9e3779b97f4a7c15
	return &n.shards[(h^h>>32)%nameShards]
}

// Get returns the entry, and otherwise a token to offer it with once it has been fetched.
func (n *Names[V]) Get(ns metadata.NamespaceID, name string) (v V, ok bool, t Token) {
	s := n.shard(ns, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[nameKey{ns, name}]; e != nil {
		s.order.MoveToFront(e)
		return e.Value.(*nameEntry[V]).value, true, Token{s.changes}
	}
	return v, false, Token{s.changes}
}

// Offer adds what was fetched after Get gave t, unless something changed in between.
func (n *Names[V]) Offer(ns metadata.NamespaceID, name string, v V, weight int64, t Token) {
	s := n.shard(ns, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changes == t.changes {
		s.putLocked(nameKey{ns, name}, v, weight)
	}
}

// Put sets the entry of a name that has just changed.
func (n *Names[V]) Put(ns metadata.NamespaceID, name string, v V, weight int64) {
	s := n.shard(ns, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	s.putLocked(nameKey{ns, name}, v, weight)
}

// Forget drops a name, also from look-ups that are under way.
func (n *Names[V]) Forget(ns metadata.NamespaceID, name string) {
	s := n.shard(ns, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	if e := s.entries[nameKey{ns, name}]; e != nil {
		s.removeLocked(e)
	}
}

// Weight returns the weight of all entries.
func (n *Names[V]) Weight() (total int64) {
	for i := range n.shards {
		s := &n.shards[i]
		s.mu.Lock()
		total += s.weight
		s.mu.Unlock()
	}
	return total
}

func (s *nameShard[V]) putLocked(k nameKey, v V, weight int64) {
	if e := s.entries[k]; e != nil {
		s.removeLocked(e)
	}
	weight += int64(len(k.name)) + 128 // the entry, the map's slot, the list's element
	if weight > s.limit {
		return
	}
	s.entries[k] = s.order.PushFront(&nameEntry[V]{k, v, weight})
	s.weight += weight
	for s.weight > s.limit {
		s.removeLocked(s.order.Back())
	}
}

func (s *nameShard[V]) removeLocked(e *list.Element) {
	ent := s.order.Remove(e).(*nameEntry[V])
	delete(s.entries, ent.key)
	s.weight -= ent.weight
}
