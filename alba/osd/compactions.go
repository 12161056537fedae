package osd

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// compactions lets pebble run one compaction at a time, and none any more when the index is
// frozen: a failing one would be tried again at once, for ever. Unlike pebble's own scheduler
// it needs no goroutine and no timer.
type compactions struct {
	fs *indexFS

	mu      sync.Mutex
	db      pebble.DBForCompaction // nil: not registered
	running bool                   // true until enable: pebble crashes if it fails to open with a compaction under way
	refused bool                   // one waits for the end of the running one
	calls   sync.WaitGroup         // calls of db
}

var (
	_ pebble.CompactionScheduler   = (*compactions)(nil)
	_ pebble.CompactionGrantHandle = (*compactions)(nil)
)

// Register is called by pebble when it opens.
func (c *compactions) Register(_ int, db pebble.DBForCompaction) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.db = db
}

// enable allows compactions.
func (c *compactions) enable() { c.Done() }

// Unregister is called by pebble when it closes; no method of it is called afterwards.
func (c *compactions) Unregister() {
	c.mu.Lock()
	c.db = nil
	c.mu.Unlock()
	c.calls.Wait()
}

// TrySchedule asks for leave to start a compaction. pebble calls it with its lock held.
func (c *compactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.db == nil || c.running || c.fs.isFrozen() {
		c.refused = true
		return false, nil
	}
	c.running = true
	return true, c
}

// UpdateGetAllowedWithoutPermission has no meaning when the limit is one.
func (c *compactions) UpdateGetAllowedWithoutPermission() {}

// Started is called when the compaction starts.
func (c *compactions) Started() {}

// MeasureCPU is called by the compaction's goroutines.
func (c *compactions) MeasureCPU(pebble.CompactionGoroutineKind) {}

// CumulativeStats is called now and then during the compaction.
func (c *compactions) CumulativeStats(pebble.CompactionGrantHandleStats) {}

// Done is called at the end of the compaction, without locks.
func (c *compactions) Done() {
	c.mu.Lock()
	db, again := c.db, c.refused && !c.fs.isFrozen()
	c.running, c.refused = again && db != nil, false
	if c.running {
		c.calls.Add(1)
	}
	next := c.running
	c.mu.Unlock()
	if !next {
		return
	}
	defer c.calls.Done()
	if !db.Schedule(c) {
		c.mu.Lock()
		c.running = false
		c.mu.Unlock()
	}
}
