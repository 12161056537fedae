// Package alba is the object store: immutable objects in namespaces, cut in chunks, erasure
// coded over disk servers (package osd), described by manifests in namespace managers.
//
// A Client is linked into its user; there is no proxy. Writes go data before metadata:
// all fragments of all objects of a transaction first, then one conditional transaction at
// the NSM. Reads take one verified block from one disk server, and decode from others only
// what is missing, slow or damaged. DESIGN.md has the reasons, FORMAT.md the keys and values.
package alba

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/semaphore"

	"scoria/alba/cache"
	"scoria/alba/codec"
	"scoria/metadata"
)

// Client is an object store. All methods are safe for concurrent use.
type Client struct {
	opts      Options
	codec     *codec.Codec
	blocks    *cache.Blocks
	manifests *cache.Names[*object]
	uploads   *semaphore.Weighted
	rebuilds  *semaphore.Weighted
	disks     disks
	spaces    spaces
	flights   flights
	repairs   repairQueue
	hedges    budget
	stats     counters

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	mu     struct {
		sync.Mutex
		closed bool
	}
}

// New returns a Client. It does not wait for any server.
func New(opts Options) (*Client, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{opts: opts, manifests: cache.NewNames[*object](opts.ManifestCacheBytes)}
	if c.codec, err = codec.New(); err != nil {
		return nil, fmt.Errorf("alba client: %w", err)
	}
	if c.blocks, err = cache.NewBlocks(opts.BlockCacheBytes); err != nil {
		c.codec.Close()
		return nil, fmt.Errorf("alba client: %w", err)
	}
	c.uploads = semaphore.NewWeighted(opts.UploadBytes)
	c.rebuilds = semaphore.NewWeighted(opts.ReadBytes)
	c.hedges.tokens.Store(hedgeCredit) // the first disk that hangs may be met by the first reads
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.disks.init(c)
	c.spaces.init(c)
	c.flights.init()
	c.repairs.init(opts.RepairQueue)
	c.spawn(c.flushTagsLoop)
	c.spawn(c.repairLoop)
	return c, nil
}

// spawn runs f in a goroutine that Close waits for; false when the Client is closed.
func (c *Client) spawn(f func(ctx context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return false
	}
	c.tasks.Add(1)
	go func() {
		defer c.tasks.Done()
		f(c.ctx)
	}()
	return true
}

// Close ends what the Client does in the background and waits for it. Late fragments that
// are still on their way are given up (maintenance adds them), data is released. Calls
// that run get errors; the caller should have ended them. Idempotent.
func (c *Client) Close() error {
	c.mu.Lock()
	first := !c.mu.closed
	c.mu.closed = true
	c.mu.Unlock()
	c.cancel()
	c.tasks.Wait()
	if first {
		c.flushTagsAtClose()
		c.blocks.Close()
		c.codec.Close()
	}
	return nil
}

func (c *Client) checkOpen() error {
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	return nil
}

// object is a manifest with what is derived from it once. It is immutable.
type object struct {
	*metadata.Manifest
	chunkSize uint64 // plain bytes of all chunks but the last
	total     int    // K+M
	sealer    *codec.Sealer
}

// newObject checks a manifest that came from a metadata service and prepares it for reading.
func (c *Client) newObject(sp *space, m *metadata.Manifest) (*object, error) {
	if err := codec.CheckManifest(m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	o := &object{Manifest: m, total: m.Policy.K + m.Policy.M}
	if len(m.Chunks) > 0 {
		o.chunkSize = uint64(m.Chunks[0].Size)
	}
	if m.UnitSize != 0 || (m.Inline != nil && !plainInline(m)) {
		var err error
		if o.sealer, err = c.codec.Sealer(m.ObjectID, m.Compression, m.Encryption, sp.rec.Key); err != nil {
			return nil, fmt.Errorf("object %q: %w", m.Name, err)
		}
	}
	return o, nil
}

func plainInline(m *metadata.Manifest) bool {
	return m.Compression == metadata.CompressNone && m.Encryption == metadata.EncryptNone
}

// weight is what an object weighs in the manifest cache, in bytes.
func (o *object) weight() int64 {
	n := int64(400 + len(o.Inline))
	for i := range o.Chunks {
		n += 80 + int64(4*len(o.Chunks[i].Units)+12*len(o.Chunks[i].Fragments))
	}
	if o.sealer != nil {
		n += 1024
	}
	return n
}
