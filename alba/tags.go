package alba

import (
	"context"
	"sync"
	"time"

	"scoria/alba/osd"
	"scoria/metadata"
)

const (
	ridingTags  = 64   // finished tags that ride along with one batch
	maxTags     = 4096 // finished tags remembered per OSD; those beyond are left to garbage collection
	closeGrace  = 2 * time.Second
	flushedTags = 1024 // of one batch that carries nothing else
)

// tagList holds the GC tags of one OSD that have done their duty. They are deleted by
// batches that go there anyway, so that they cost no sync of their own.
type tagList struct {
	mu   sync.Mutex
	keys [][]byte
}

func (t *tagList) put(keys ...[]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := maxTags - len(t.keys); n < len(keys) {
		keys = keys[:max(n, 0)]
	}
	t.keys = append(t.keys, keys...)
}

func (t *tagList) take(n int) [][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	n = min(n, len(t.keys))
	if n == 0 {
		return nil
	}
	out := t.keys[:n:n]
	if t.keys = t.keys[n:]; len(t.keys) == 0 {
		t.keys = nil
	}
	return out
}

func (t *tagList) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.keys)
}

func (c *Client) finishTag(id metadata.OSDID, tag []byte) {
	if k := c.disks.get(id); k != nil {
		k.tags.put(tag)
	}
}

func (c *Client) pendingTags() (n int) {
	for _, k := range *c.disks.table.Load() {
		n += k.tags.len()
	}
	return n
}

// FlushTags deletes all finished GC tags now.
func (c *Client) FlushTags(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, k := range *c.disks.table.Load() {
		if k.tags.len() > 0 && !k.bad.Load() && k.readable() {
			wg.Go(func() { c.flushDisk(ctx, k) })
		}
	}
}

func (c *Client) flushDisk(ctx context.Context, k *disk) {
	api, err := c.handle(k)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.ReadTimeout)
	defer cancel()
	for {
		tags := k.tags.take(flushedTags)
		if len(tags) == 0 {
			return
		}
		if err := api.Apply(ctx, &osd.Batch{Deletes: tags, Background: true}); err != nil {
			k.tags.put(tags...)
			c.opts.Logger.Info("GC tags not deleted", "osd", k.id, "err", err)
			return
		}
	}
}

func (c *Client) flushTagsLoop(ctx context.Context) {
	t := time.NewTicker(c.opts.TagFlush)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			c.FlushTags(ctx)
		}
	}
}

func (c *Client) flushTagsAtClose() {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	c.FlushTags(ctx)
}
