// Package cache keeps what reads need again: plain 4 KiB blocks of objects and manifests,
// both bounded by bytes.
package cache

import (
	"encoding/binary"
	"fmt"

	"github.com/dgraph-io/ristretto/v2"

	"scoria/internal/blocksum"
	"scoria/metadata"
)

// Block is a verified plain block of an object. It is never changed once it is in a cache.
type Block struct {
	ID    metadata.ObjectID
	Index uint32 // number of the block in the object
	Sum   uint32 // plain CRC32C of Data
	Data  []byte // BlockSize bytes, fewer at the object's end
}

// Blocks is a block cache in RAM. Objects never change under their id, so nothing is ever
// invalidated; admission is TinyLFU, which a scan cannot poison. A nil *Blocks is an empty
// cache that takes nothing. Safe for concurrent use.
type Blocks struct {
	c *ristretto.Cache[uint64, *Block]
}

// blockCost is what a block weighs: its bytes, its header and its share of the index.
const blockCost = blocksum.BlockSize + 160

// NewBlocks returns a cache of at most maxBytes; nil when that is less than a block.
func NewBlocks(maxBytes int64) (*Blocks, error) {
	if maxBytes < blockCost {
		return nil, nil
	}
	c, err := ristretto.NewCache(&ristretto.Config[uint64, *Block]{
		NumCounters:        max(10*(maxBytes/blockCost), 1000),
		MaxCost:            maxBytes,
		BufferItems:        64,
		IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, fmt.Errorf("block cache of %d bytes: %w", maxBytes, err)
	}
	return &Blocks{c}, nil
}

// key hashes a place. Ids are random; what collides is told apart by the Block's own fields.
func key(id *metadata.ObjectID, index uint32) uint64 {
	h := binary.LittleEndian.Uint64(id[:]) + uint64(index)*0x9e3779b97f4a7c15
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	return h ^ h>>32
}

// Get returns the block or nil, without waiting and without allocating.
func (b *Blocks) Get(id *metadata.ObjectID, index uint32) *Block {
	if b == nil {
		return nil
	}
	v, ok := b.c.Get(key(id, index))
	if !ok || v.Index != index || v.ID != *id {
		return nil
	}
	return v
}

// Add offers a copy of data to the cache.
func (b *Blocks) Add(id *metadata.ObjectID, index uint32, data []byte, sum uint32) {
	if b == nil {
		return
	}
	blk := &Block{ID: *id, Index: index, Sum: sum, Data: append(make([]byte, 0, len(data)), data...)}
	b.c.Set(key(id, index), blk, blockCost)
}

// Wait returns when all that was added has been admitted or refused; for tests.
func (b *Blocks) Wait() {
	if b != nil {
		b.c.Wait()
	}
}

// Close frees the cache. It must not be used afterwards.
func (b *Blocks) Close() {
	if b != nil {
		b.c.Close()
	}
}
