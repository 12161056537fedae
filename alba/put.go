package alba

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"scoria/alba/codec"
	"scoria/internal/blocksum"
	"scoria/metadata"
	"scoria/metadata/nsm"
)

// Limits of a transaction.
const (
	MaxTxnPuts   = 1024
	maxAttempts  = 3 // of a put, each under a fresh object id
	parallelPuts = 8 // objects of one transaction whose fragments are on their way at a time
)

// Txn is a conditional transaction on one namespace.
type Txn struct {
	// Fence is the caller's owner epoch: see nsm.Txn. 0 does not take part.
	Fence   metadata.Epoch
	Asserts []nsm.Assert
	Puts    []PutObject
	Deletes []string // absent names are fine
}

// PutObject is an object to store; one of the same name is replaced.
type PutObject struct {
	Name string
	Data []byte // must not change until Release is called; best aligned to 4096 bytes in memory
	// Sums are the plain CRC32C of Data's 4 KiB blocks (the last may be short), as computed
	// where the data came from; nil: they are computed here.
	Sums []uint32
	// Release, if not nil, is called exactly once when Data is not used any more: before or
	// some time after Apply returns.
	Release func()
}

// hold counts the users of an object's data and releases it after the last.
type hold struct {
	n       atomic.Int32
	release func()
}

func newHold(release func()) *hold {
	h := &hold{release: release}
	h.n.Store(1)
	return h
}

func (h *hold) add() { h.n.Add(1) }
func (h *hold) done() {
	if h.n.Add(-1) == 0 && h.release != nil {
		h.release()
	}
}

// Apply stores the fragments of all puts, then makes puts and deletes visible in one
// transaction. nil means durable. metadata.ErrFenced, metadata.ErrAssertFailed: nothing has
// changed. ErrUnavailable: it may have been done or not, and may be repeated. What an
// Apply that failed has stored is removed by garbage collection.
func (c *Client) Apply(ctx context.Context, ns metadata.NamespaceID, txn Txn) error {
	holds := make([]*hold, len(txn.Puts))
	for i := range txn.Puts {
		holds[i] = newHold(txn.Puts[i].Release)
	}
	defer func() {
		for _, h := range holds {
			h.done()
		}
	}()
	if err := c.checkTxn(&txn); err != nil {
		return err
	}
	sp, err := c.spaces.get(ctx, ns)
	if err != nil {
		return border(err)
	}
	if len(txn.Puts) == 0 {
		return c.commit(ctx, sp, &txn, nil)
	}
	sums := make([][]uint32, len(txn.Puts))
	for i := range txn.Puts {
		if sums[i] = txn.Puts[i].Sums; sums[i] == nil {
			sums[i] = blocksum.Sums(make([]uint32, 0, len(txn.Puts[i].Data)/codec.BlockSize+1), txn.Puts[i].Data)
		}
	}
	age := c.opts.NamespaceRefresh
	for attempt := 1; ; attempt++ {
		err := c.attempt(ctx, sp, &txn, sums, holds, age)
		if err == nil {
			c.stats.transactions.Add(1)
			return nil
		}
		// Only what happened before the commit, or was refused by it, may be made again here.
		again := errors.Is(err, metadata.ErrStaleGCEpoch) || errors.Is(err, errUpload)
		if !again || attempt == maxAttempts || ctx.Err() != nil || c.ctx.Err() != nil {
			if c.ctx.Err() != nil {
				err = fmt.Errorf("%w: %w", ErrClosed, err)
			}
			return border(fmt.Errorf("namespace %d: %w", ns, err))
		}
		c.stats.putRetries.Add(1)
		c.opts.Logger.Warn("put is tried again", "namespace", ns, "attempt", attempt, "err", err)
		age = 0 // the cached epoch is what may have been stale
	}
}

func (c *Client) checkTxn(txn *Txn) error {
	if err := c.checkOpen(); err != nil {
		return err
	}
	if len(txn.Puts) > MaxTxnPuts {
		return fmt.Errorf("%d puts in a transaction, limit %d: %w", len(txn.Puts), MaxTxnPuts, ErrInvalid)
	}
	for i := range txn.Puts {
		p := &txn.Puts[i]
		if want := (len(p.Data) + codec.BlockSize - 1) / codec.BlockSize; p.Sums != nil && len(p.Sums) != want {
			return fmt.Errorf("put of %q: %d sums for %d blocks: %w", p.Name, len(p.Sums), want, ErrInvalid)
		}
		if err := metadata.ValidateObjectName(p.Name); err != nil {
			return border(err)
		}
	}
	return nil
}

// attempt uploads all puts under fresh ids and commits.
func (c *Client) attempt(ctx context.Context, sp *space, txn *Txn, sums [][]uint32, holds []*hold, age time.Duration) error {
	preset, epoch, err := c.terms(ctx, sp, age)
	if err != nil {
		return err
	}
	ups := make([]*upload, len(txn.Puts))
	errs := make([]error, len(txn.Puts))
	var wg sync.WaitGroup
	turns := make(chan struct{}, parallelPuts)
	for i := range txn.Puts {
		ups[i] = c.newUpload(sp, &preset, epoch, &txn.Puts[i], sums[i], holds[i])
		if i == len(txn.Puts)-1 { // the last, most often the only one, needs no goroutine
			errs[i] = ups[i].run(ctx)
			break
		}
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			errs[i] = ups[i].run(ctx)
		})
	}
	wg.Wait()
	err = errors.Join(errs...)
	manifests := make([]metadata.Manifest, len(ups))
	for i, u := range ups {
		manifests[i] = u.freeze()
	}
	if err == nil {
		err = c.commit(ctx, sp, txn, manifests)
	}
	for _, u := range ups {
		if err != nil {
			u.abandon()
		} else {
			u.committed()
		}
	}
	return err
}

// commit runs the transaction at the NSM and tells the manifest cache.
func (c *Client) commit(ctx context.Context, sp *space, txn *Txn, manifests []metadata.Manifest) error {
	err := sp.api.Apply(ctx, sp.id, nsm.Txn{Fence: txn.Fence, Asserts: txn.Asserts, Puts: manifests, Deletes: txn.Deletes})
	if err != nil {
		// It may have been done all the same: what is cached may be old.
		for i := range manifests {
			c.manifests.Forget(sp.id, manifests[i].Name)
		}
		for _, name := range txn.Deletes {
			c.manifests.Forget(sp.id, name)
		}
		if errors.Is(err, metadata.ErrNotFound) {
			c.spaces.forget(sp.id)
		}
		return err
	}
	for i := range manifests {
		m := &manifests[i]
		c.stats.puts.Add(1)
		c.stats.putBytes.Add(m.Size)
		o, err := c.newObject(sp, m)
		if err != nil { // a defect of ours; readers will say so
			c.manifests.Forget(sp.id, m.Name)
			continue
		}
		c.manifests.Put(sp.id, m.Name, o, o.weight())
	}
	for _, name := range txn.Deletes {
		c.manifests.Forget(sp.id, name)
	}
	return nil
}

// SetFence raises the namespace's owner epoch: transactions below it fail from now on.
func (c *Client) SetFence(ctx context.Context, ns metadata.NamespaceID, epoch metadata.Epoch) error {
	return c.Apply(ctx, ns, Txn{Fence: epoch})
}

// newObjectID returns a fresh id.
func newObjectID() (id metadata.ObjectID) {
	_, _ = rand.Read(id[:]) // documented never to return an error
	return id
}
