package fsm

import (
	"encoding/binary"
	"fmt"

	"scoria/internal/frame"
	"scoria/metadata"
)

// Bounds of the memory of requests. A client keeps its unanswered requests within
// WindowSize numbers of each other; then a retry always finds its result. A client that
// was not heard of while MaxClients others were is forgotten.
const (
	WindowSize = 128
	MaxClients = 1024
	maxResult  = 16 << 10 // bytes of a remembered reply; larger ones are not kept
)

// The keys of this package.
const (
	tableClients = 0xf0 // client u64 → window
	keyClients   = 0xf1 // → number of clients u64
)

// window is what is remembered of a client: the results of its last WindowSize numbers.
type window struct {
	client  uint64
	fresh   bool   // not stored yet
	touched uint64 // index of the last command
	highest uint64 // highest number seen
	results []numbered
}

type numbered struct {
	seq uint64
	Result
}

func clientKey(client uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{tableClients}, client)
}

func loadWindow(r Reader, client uint64) (*window, error) {
	w := &window{client: client}
	b := r.Get(clientKey(client))
	if b == nil {
		w.fresh = true
		return w, nil
	}
	d := frame.NewDecoder(b)
	w.touched, w.highest = d.Uvarint(), d.Uvarint()
	n := d.Count(4, WindowSize)
	w.results = make([]numbered, 0, n+1)
	for range n {
		e := numbered{seq: d.Uvarint()}
		e.Kind = metadata.Kind(d.Uvarint())
		e.Text = d.String(maxResult)
		e.Body = append([]byte(nil), d.Bytes(maxResult)...)
		w.results = append(w.results, e)
	}
	if err := d.Finish(); err != nil {
		return nil, fmt.Errorf("requests of client %016x: %w: %w", client, err, metadata.ErrCorrupt)
	}
	return w, nil
}

// lookup returns the result of a request that was applied, or of one too old to know.
func (w *window) lookup(seq uint64) (Result, bool) {
	for i := range w.results {
		if w.results[i].seq == seq {
			return w.results[i].Result, true
		}
	}
	if seq+WindowSize <= w.highest {
		return Result{Kind: metadata.KindState, Text: "request is older than what is remembered of its client"}, true
	}
	return Result{}, false
}

// remember stores the result of a request.
func (w *window) remember(tx Tx, seq, index uint64, r Result) {
	if w.fresh {
		admitClient(tx)
	}
	if len(r.Body) > maxResult || len(r.Text) > maxResult {
		r = Result{Kind: metadata.KindState, Text: "request was applied before; its reply was too long to keep"}
	}
	w.touched = index
	w.highest = max(w.highest, seq)
	w.results = append(w.results, numbered{seq: seq, Result: r})
	b := binary.AppendUvarint(nil, w.touched)
	b = binary.AppendUvarint(b, w.highest)
	kept := w.results[:0]
	for _, e := range w.results {
		if e.seq+WindowSize > w.highest {
			kept = append(kept, e)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(kept)))
	for _, e := range kept {
		b = binary.AppendUvarint(b, e.seq)
		b = binary.AppendUvarint(b, uint64(e.Kind))
		b = frame.AppendString(b, e.Text)
		b = frame.AppendBytes(b, e.Body)
	}
	tx.Put(clientKey(w.client), b)
}

// admitClient counts a new client, and forgets the one longest not heard of when there are too many.
func admitClient(tx Tx) {
	var count uint64
	if b := tx.Get([]byte{keyClients}); len(b) == 8 {
		count = binary.BigEndian.Uint64(b)
	}
	if count >= MaxClients {
		var oldest []byte
		var least uint64
		tx.Scan([]byte{tableClients}, []byte{tableClients + 1}, func(k, v []byte) bool {
			if touched, n := binary.Uvarint(v); n > 0 && (oldest == nil || touched < least) {
				oldest, least = append(oldest[:0], k...), touched
			}
			return true
		})
		tx.Delete(oldest)
		count--
	}
	tx.Put([]byte{keyClients}, binary.BigEndian.AppendUint64(nil, count+1))
}

// DescribePair describes a pair of this package's tables for people; ours is false for others.
func DescribePair(key, value []byte) (text string, ours bool) {
	switch {
	case len(key) == 9 && key[0] == tableClients:
		w, err := loadWindow(one{key, value}, binary.BigEndian.Uint64(key[1:]))
		if err != nil {
			return err.Error(), true
		}
		return fmt.Sprintf("client %016x: highest request %d, %d results kept, last at entry %d", w.client, w.highest, len(w.results), w.touched), true
	case len(key) == 1 && key[0] == keyClients:
		return fmt.Sprintf("clients: %x", value), true
	}
	return "", false
}

// one is a Reader of a single pair.
type one struct{ k, v []byte }

func (o one) Get([]byte) []byte                           { return o.v }
func (o one) Scan(_, _ []byte, fn func(k, v []byte) bool) { fn(o.k, o.v) }
