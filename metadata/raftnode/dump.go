package raftnode

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"scoria/internal/vfs"
	"scoria/metadata"
	"scoria/metadata/fsm"
)

// Describer turns a machine's pairs and commands into text for people.
type Describer interface {
	// DescribePair describes a key and its value.
	DescribePair(key, value []byte) string
	// DescribeCommand describes an opened command.
	DescribeCommand(fsm.Command) string
}

// Dump prints a file of a node's directory for people: NODE, raft.db, state.db, or a
// snapshot's state.bin. describe picks the describer of a machine's kind; nil, or a nil
// result, prints bytes. The node must not be running (its databases are locked then).
func Dump(w io.Writer, path string, describe func(kind string) Describer) error {
	out := bufio.NewWriter(w)
	err := dump(out, path, describe)
	return errors.Join(err, out.Flush())
}

func dump(w io.Writer, path string, describe func(string) Describer) error {
	switch filepath.Base(path) {
	case nodeFile:
		n, err := readNode(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "node %q of kind %q, made %v\n", n.ID, n.Kind, n.Created)
		return nil
	case logFile:
		kind := ""
		if n, err := readNode(filepath.Join(filepath.Dir(path), nodeFile)); err == nil {
			kind = n.Kind
		}
		return dumpLog(w, path, pick(describe, kind))
	case stateFile:
		return dumpState(w, path, describe)
	}
	return dumpSnapshot(w, path, describe)
}

func readNode(path string) (nodeInfo, error) {
	b, err := vfs.ReadFile(vfs.OS, path, nodeLimit)
	if err != nil {
		return nodeInfo{}, err
	}
	return decodeNode(b)
}

// raw describes nothing.
type raw struct{}

func (raw) DescribePair(k, v []byte) string { return fmt.Sprintf("%x = %x", k, v) }
func (raw) DescribeCommand(c fsm.Command) string {
	return fmt.Sprintf("command %d: %x", c.Type, c.Body)
}

func pick(describe func(string) Describer, kind string) Describer {
	if describe != nil {
		if d := describe(kind); d != nil {
			return d
		}
	}
	return raw{}
}

// pair describes a pair, those of package fsm in one way for all machines.
func pair(d Describer, k, v []byte) string {
	if text, ours := fsm.DescribePair(k, v); ours {
		return text
	}
	return d.DescribePair(k, v)
}

func dumpState(w io.Writer, path string, describe func(string) Describer) (err error) {
	if err := checkBolt(path); err != nil {
		return err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: boltTimeout})
	if err != nil {
		return boltError(path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	defer guard(path, &err)()
	return db.View(func(tx *bbolt.Tx) error {
		meta, kv := tx.Bucket(bucketMeta), tx.Bucket(bucketKV)
		if meta == nil || kv == nil {
			return fmt.Errorf("%s is not a metadata state: %w", path, ErrForeign)
		}
		kind := string(meta.Get(keyKind))
		fmt.Fprintf(w, "state of kind %q, format %v, applied %x\n", kind, meta.Get(keyFormat), meta.Get(keyApplied))
		d := pick(describe, kind)
		return kv.ForEach(func(k, v []byte) error {
			_, err := fmt.Fprintln(w, pair(d, k, v))
			return err
		})
	})
}

func dumpLog(w io.Writer, path string, d Describer) (err error) {
	if err := checkBolt(path); err != nil {
		return err
	}
	store, err := raftboltdb.New(raftboltdb.Options{
		Path: path, MsgpackUseNewTimeFormat: true, BoltOptions: &bbolt.Options{ReadOnly: true, Timeout: boltTimeout},
	})
	if err != nil {
		return boltError(path, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	first, err := store.FirstIndex()
	if err != nil {
		return err
	}
	last, err := store.LastIndex()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "log of entries %d to %d\n", first, last)
	for i := first; i != 0 && i <= last; i++ {
		var l raft.Log
		if err := store.GetLog(i, &l); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		text := l.Type.String()
		if l.Type == raft.LogCommand {
			cmd, err := fsm.Open(l.Data)
			if err != nil {
				return fmt.Errorf("entry %d: %w", i, err)
			}
			text = fmt.Sprintf("at %v request %x/%d: %s", metadata.NanosToTime(cmd.Now), cmd.Request.Client, cmd.Request.Seq, d.DescribeCommand(cmd))
		}
		if _, err := fmt.Fprintf(w, "%d term %d %s\n", l.Index, l.Term, text); err != nil {
			return err
		}
	}
	return nil
}

func dumpSnapshot(w io.Writer, path string, describe func(string) Describer) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	s, err := newSnapshotReader(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if m, err := readSnapshotMeta(filepath.Join(filepath.Dir(path), "meta.json")); err == nil {
		fmt.Fprintf(w, "snapshot %s at entry %d term %d\n", m.ID, m.Index, m.Term)
	}
	fmt.Fprintf(w, "state of kind %q, applied %d\n", s.Kind, s.Applied)
	d := pick(describe, s.Kind)
	for {
		err := s.page(func(k, v []byte) error {
			_, err := fmt.Fprintln(w, pair(d, k, v))
			return err
		})
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
}

// readSnapshotMeta reads what Raft keeps beside a snapshot.
func readSnapshotMeta(path string) (m raft.SnapshotMeta, err error) {
	b, err := vfs.ReadFile(vfs.OS, path, 1<<20)
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(b, &m)
}
