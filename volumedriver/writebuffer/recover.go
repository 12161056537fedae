package writebuffer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"scoria/internal/frame"
	"scoria/internal/vfs"
	"scoria/volumedriver/sco"
	"scoria/volumedriver/tlog"
)

// segmentFile is a file of the log's directory.
type segmentFile struct {
	number uint64
	path   string
	size   int64
}

// listSegments lists the segment files of dir by number. Other files are ignored.
func listSegments(fsys vfs.FS, dir string) ([]segmentFile, error) {
	list, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list write buffer: %w", err)
	}
	var out []segmentFile
	for _, e := range list {
		number, ok := parseSegmentName(e.Name())
		if !ok {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, fmt.Errorf("list write buffer: %w", err)
		}
		out = append(out, segmentFile{number: number, path: filepath.Join(dir, e.Name()), size: info.Size()})
	}
	slices.SortFunc(out, func(a, b segmentFile) int {
		if a.number < b.number {
			return -1
		}
		return 1
	})
	return out, nil
}

func readSegmentHeader(fsys vfs.FS, path string) (segmentHeader, uint32, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return segmentHeader{}, 0, err
	}
	var b [headerSize]byte
	n, err := f.ReadAt(b[:], 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return segmentHeader{}, 0, err
	}
	return parseSegmentHeader(b[:n])
}

var readBuffers = sync.Pool{New: func() any { return new([]byte) }}

// takeReadBuffer returns a buffer of n bytes.
func takeReadBuffer(n int) *[]byte {
	p := readBuffers.Get().(*[]byte)
	if cap(*p) < n {
		*p = make([]byte, n)
	}
	*p = (*p)[:n]
	return p
}

func giveReadBuffer(p *[]byte) { readBuffers.Put(p) }

// readWhole reads a segment file up to the largest size a segment has. It tells the size of
// the file too.
func readWhole(f vfs.File) (*[]byte, int64, error) {
	size, err := f.Size()
	if err != nil {
		return nil, 0, err
	}
	p := takeReadBuffer(int(min(size, maxSegmentBytes)))
	n, err := f.ReadAt(*p, 0)
	if err != nil && !(errors.Is(err, io.EOF) && n == len(*p)) {
		giveReadBuffer(p)
		return nil, 0, err
	}
	return p, size, nil
}

// recovery is a running Open.
type recovery struct {
	b     *Buffer
	files []segmentFile
	out   Recovery

	segs   []*segment // what is kept
	seq    uint64     // of the last record kept
	chain  uint32
	epoch  uint64
	synced uint64 // greatest claim found anywhere
	broken error  // why the oldest segment that is needed is of no use

	// tail is the end of the last segment that is kept, if old records may follow there: it
	// becomes the cut unless the next segment continues the log.
	tail struct {
		file *segmentFile
		at   int64
		why  error
	}

	cutFile *segmentFile // holds the first thing that does not count; nil: nothing does not
	cutAt   int64        // what of it counts
	cut     error
	drop    []segmentFile
}

// Open recovers the log in Options.Dir and calls replay for all records after FromSeq, in
// order; an Entry's Sums are valid during the call. What follows the recovered prefix is
// discarded durably before Open returns; an Open that fails changes nothing on the disk.
// New records go to a new SCO; all found ones are closed.
//
// Errors: fs.ErrNotExist (there is no log), ErrGap, ErrStale, ErrCorrupt (records that
// had been synced are lost), frame.ErrVersion (written by a newer program), replay's.
func Open(ctx context.Context, opts Options, replay func(*Entry) error) (*Buffer, Recovery, error) {
	opts.ensureDefaults()
	if err := opts.validate(); err != nil {
		return nil, Recovery{}, err
	}
	files, err := listSegments(opts.FS, opts.Dir)
	if err != nil {
		return nil, Recovery{}, err
	}
	none := len(files) == 0
	if len(files) == 1 && files[0].size <= headerSize { // what a crash in Create leaves?
		_, _, err := readSegmentHeader(opts.FS, files[0].path)
		none = isDamage(err)
	}
	if none {
		return nil, Recovery{}, fmt.Errorf("open write buffer %s: no log there: %w", opts.Dir, fs.ErrNotExist)
	}
	r := &recovery{b: newBuffer(opts), files: files}
	if err := r.run(ctx, replay); err != nil {
		return nil, r.out, fmt.Errorf("open write buffer %s: %w", opts.Dir, err)
	}
	if err := r.b.pool.register(r.b); err != nil {
		return nil, r.out, err
	}
	if err := r.discard(); err != nil {
		return nil, r.out, errors.Join(fmt.Errorf("open write buffer %s: discarding what does not count: %w", opts.Dir, err), r.b.Close())
	}
	r.adopt()
	return r.b, r.out, nil
}

func (r *recovery) run(ctx context.Context, replay func(*Entry) error) error {
	opts := &r.b.opts
	rest, err := r.skipCache()
	if err != nil {
		return err
	}
	if err := r.scanAll(ctx, rest, replay); err != nil {
		return err
	}
	r.cutTail()
	r.readNote()
	r.out.Synced = r.synced
	r.out.LastSeq, r.out.LastSCO = r.seq, r.files[len(r.files)-1].number
	if r.broken != nil {
		return r.broken
	}
	r.out.FirstSeq = r.seq + 1
	if len(r.segs) > 0 {
		r.out.FirstSeq = r.segs[0].firstSeq
	}
	if r.cut != nil {
		r.out.Cut = r.cut.Error()
	}
	if r.seq < opts.FromSeq {
		return fmt.Errorf("the log ends at record %d, the map is at %d (%s): %w", r.seq, opts.FromSeq, r.out.Cut, ErrCorrupt)
	}
	if r.synced > r.seq {
		if !opts.Salvage {
			why := r.cut
			if why == nil {
				why = errors.New("the log ends before them")
			}
			return fmt.Errorf("records %d..%d had been synced and are lost (%w): %w", r.seq+1, r.synced, why, ErrCorrupt)
		}
		r.out.LostSynced = true
	}
	return nil
}

// skipCache registers the leading segments that are nothing but read cache: disposable,
// and not needed for the replay. They are not even read.
func (r *recovery) skipCache() (rest []segmentFile, err error) {
	opts := &r.b.opts
	rest = r.files
	for len(rest) > 1 && rest[0].number <= opts.Disposable {
		next, err := r.nextHeader(rest[1:])
		if err != nil || next.firstSeq > opts.FromSeq+1 {
			break // it is needed, or what follows is damaged: look at it closely
		}
		h, _, err := readSegmentHeader(opts.FS, rest[0].path)
		if err == nil && h.volume == opts.Volume && h.number == rest[0].number && rest[0].size <= maxSegmentBytes {
			seg := &segment{number: h.number, path: rest[0].path, firstSeq: h.firstSeq, lastSeq: next.firstSeq - 1, size: rest[0].size,
				syncedSize: rest[0].size, state: stateDisposable}
			r.segs = append(r.segs, seg)
		} else {
			r.drop = append(r.drop, rest[0]) // a cache that is damaged is no loss
		}
		rest = rest[1:]
	}
	return rest, nil
}

// nextHeader returns the header of the first of files that has one of its own. In front of it may be
// cached segments whose files were being written over by newer ones, and that a power loss gave
// their old names again.
func (r *recovery) nextHeader(files []segmentFile) (segmentHeader, error) {
	for _, f := range files {
		h, _, err := readSegmentHeader(r.b.opts.FS, f.path)
		switch {
		case err == nil && h.number == f.number:
			return h, nil
		case err != nil && !isDamage(err):
			return h, err
		case f.number > r.b.opts.Disposable:
			return h, fmt.Errorf("%s: not its header: %w", f.path, frame.ErrInvalid)
		}
	}
	return segmentHeader{}, frame.ErrInvalid
}

// isDamage tells that bytes are wrong, as opposed to unreadable or of a newer version.
func isDamage(err error) bool {
	return errors.Is(err, frame.ErrMagic) || errors.Is(err, frame.ErrTruncated) || errors.Is(err, frame.ErrChecksum)
}

// result is the scan of one file.
type result struct {
	found *scanned
	err   error // not even the header is good, or the file cannot be read
	io    bool  // the latter
}

// scanners is how many files are read and verified at the same time.
const scanners = 2

// scanAll scans files in parallel, and takes and replays them in order.
func (r *recovery) scanAll(ctx context.Context, files []segmentFile, replay func(*Entry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	results := make([]chan result, len(files))
	for i := range results {
		results[i] = make(chan result, 1)
	}
	var (
		wg    sync.WaitGroup
		ahead = make(chan struct{}, 2*scanners) // results that are not taken yet: bounds memory
		work  = make(chan int)
	)
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(work)
		for i := range files {
			select {
			case ahead <- struct{}{}:
			case <-ctx.Done():
				return
			}
			select {
			case work <- i:
			case <-ctx.Done():
				return
			}
		}
	})
	for range min(scanners, len(files)) {
		wg.Go(func() {
			for i := range work {
				results[i] <- r.scanFile(files[i])
			}
		})
	}
	for i := range files {
		select {
		case res := <-results[i]:
			<-ahead
			if err := r.take(&files[i], res, i == 0, replay); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (r *recovery) scanFile(file segmentFile) result {
	f, err := r.b.opts.FS.OpenFile(file.path, os.O_RDONLY, 0)
	if err != nil {
		return result{err: err, io: true}
	}
	buf, size, err := readWhole(f)
	if err != nil {
		return result{err: errors.Join(err, f.Close()), io: true}
	}
	defer giveReadBuffer(buf)
	found, err := scan(*buf, size, r.b.opts.FromSeq)
	if cerr := f.Close(); cerr != nil {
		return result{err: errors.Join(err, cerr), io: true}
	}
	return result{found: found, err: err}
}

// take decides about the next file in order.
func (r *recovery) take(file *segmentFile, res result, first bool, replay func(*Entry) error) error {
	opts, found := &r.b.opts, res.found
	if res.io {
		return fmt.Errorf("%s: %w", file.path, res.err)
	}
	if errors.Is(res.err, frame.ErrVersion) || found != nil && errors.Is(found.cut, frame.ErrVersion) {
		return fmt.Errorf("%s: %w", file.path, errors.Join(res.err, found.reason()))
	}
	if found != nil {
		h := found.header
		if h.volume != opts.Volume || h.epoch > opts.Epoch {
			return fmt.Errorf("%s belongs to volume %d, epoch %d; this is volume %d, epoch %d: %w", file.path, h.volume, h.epoch, opts.Volume, opts.Epoch, ErrStale)
		}
		r.synced = max(r.synced, found.synced)
	}
	if first {
		if res.err != nil {
			// The others are looked at for what they say was synced.
			r.broken = fmt.Errorf("%s: the oldest segment that is needed: %w: %w", file.path, res.err, ErrCorrupt)
			r.cut = r.broken
			return nil
		}
		if found.header.firstSeq > opts.FromSeq+1 {
			return fmt.Errorf("records from %d on are here, from %d on are needed: %w", found.header.firstSeq, opts.FromSeq+1, ErrGap)
		}
		r.seq, r.chain, r.epoch = found.header.firstSeq-1, found.header.prev, found.header.epoch
	}
	if r.cut == nil {
		if r.cut = r.fits(file, res); r.cut == nil {
			return r.keep(file, found, replay)
		}
		r.cutTail()
	}
	r.drop = append(r.drop, *file)
	r.out.CutBytes += file.size
	r.out.CutSCOs++
	return nil
}

func (s *scanned) reason() error {
	if s == nil {
		return nil
	}
	return s.cut
}

// fits tells why a segment does not continue the log.
func (r *recovery) fits(file *segmentFile, res result) error {
	if res.err != nil {
		return fmt.Errorf("SCO %x: %w", file.number, res.err)
	}
	h := res.found.header
	if h.number != file.number || h.firstSeq != r.seq+1 || h.prev != r.chain || h.epoch < r.epoch {
		return fmt.Errorf("SCO %x: segment %x of epoch %d from record %d behind %08x; want from %d behind %08x", file.number, h.number, h.epoch,
			h.firstSeq, h.prev, r.seq+1, r.chain)
	}
	return nil
}

// keep takes the good part of a segment and replays it.
func (r *recovery) keep(file *segmentFile, found *scanned, replay func(*Entry) error) error {
	opts := &r.b.opts
	if found.section != nil && found.lastSeq > opts.FromSeq {
		if _, err := tlog.DecodeSection(found.section, func(e *Entry) error {
			if e.Seq <= opts.FromSeq {
				return nil
			}
			r.out.Replayed++
			return replay(e)
		}); err != nil {
			return fmt.Errorf("replay of SCO %x: %w", file.number, err)
		}
	}
	seg := &segment{number: file.number, path: file.path, firstSeq: found.header.firstSeq, head: found.head, lastSeq: found.lastSeq, size: found.end,
		state: stateClosed, entries: found.section}
	seg.mu.runs, seg.mu.clusters = found.runs, found.clusters
	seg.indexed.Store(true)
	r.segs = append(r.segs, seg)
	r.seq, r.chain, r.epoch = found.lastSeq, found.chain, found.header.epoch
	r.tail.file, r.tail.at, r.tail.why = file, found.end, found.cut
	if found.cut != nil && found.header.version < segmentVersion {
		r.cutTail()
	}
	return nil
}

// cutTail ends the log where the last segment that is kept ends, if anything follows there.
func (r *recovery) cutTail() {
	if r.tail.why == nil {
		return
	}
	r.cut = r.tail.why
	r.cutFile, r.cutAt = r.tail.file, r.tail.at
	r.out.CutBytes += r.tail.file.size - r.tail.at
	r.tail.why = nil
}

// discard removes what does not count, durably, before anything new may be written.
func (r *recovery) discard() error {
	fsys := r.b.opts.FS
	if r.out.LostSynced {
		if err := dropNote(fsys, r.b.opts.Dir); err != nil {
			return err
		}
	}
	if r.cutFile != nil {
		f, err := fsys.OpenFile(r.cutFile.path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if err = f.Truncate(r.cutAt); err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	for _, f := range slices.Backward(r.drop) {
		if err := fsys.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if len(r.drop) > 0 {
		if err := fsys.SyncDir(r.b.opts.Dir); err != nil {
			return err
		}
	}
	return r.mend()
}

// durable is the last record that is known to be on the disk.
func (r *recovery) durable() uint64 { return max(r.b.opts.FromSeq, min(r.synced, r.seq)) }

// adopt makes the recovered segments those of the buffer.
func (r *recovery) adopt() {
	b := r.b
	durable := r.durable()
	b.mu.Lock()
	b.segs.Store(&r.segs)
	total := int64(0)
	for _, s := range r.segs {
		total += s.size
		if s.number <= b.opts.Disposable && s.lastSeq <= b.opts.FromSeq || s.indexed.Load() && s.entries == nil {
			s.state, s.entries = stateDisposable, nil
		}
		s.syncedSize = s.size
		switch {
		case s.state == stateDisposable:
			b.mu.cached += s.size
		default:
			b.mu.dirty += s.size
		}
		if s.lastSeq > durable || s.lastSeq < s.firstSeq {
			s.syncedSize = 0
			b.mu.unsynced = append(b.mu.unsynced, s)
			b.mu.newNames++
		}
	}
	b.pool.restore(total, b.mu.dirty)
	free := b.evictableLocked()
	b.mu.Unlock()
	b.pool.enlist(b, free)
	b.tail.nextSCO = max(b.opts.MinSCO, r.out.LastSCO+1)
	if b.tail.nextSCO > sco.MaxNumber {
		b.opts.Logger.Error("the log has used up all SCO numbers", "dir", b.opts.Dir)
	}
	b.tail.seq, b.tail.chain = r.seq, r.chain
	b.lastSeq.Store(r.seq)
	b.synced.Store(durable)
	if r.cut != nil {
		b.opts.Logger.Info("the log was cut", "dir", b.opts.Dir, "last", r.seq, "bytes", r.out.CutBytes, "why", r.out.Cut, "lostSynced", r.out.LostSynced)
	}
}
