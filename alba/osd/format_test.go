package osd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"scoria/internal/frame"
	"scoria/internal/vfs"
)

const testUUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"

func goldenSegment() []byte {
	s := appendSegment(nil, segmentInfo{UUID: testUUID, No: 3, Nonce: 0x1122334455667788, FirstSeq: 41})
	s = append(s, make([]byte, segmentHeader-len(s))...)
	big := bytes.Repeat([]byte("block"), 1000) // 5000 bytes: two blocks
	ops := []op{
		{kind: opPut, key: []byte("big"), entry: newEntry([]byte("big"), big, nil), value: big},
		{kind: opInline, key: []byte("small"), entry: newEntry([]byte("small"), []byte("value"), nil)},
		{kind: opInline, key: []byte("empty"), entry: newEntry([]byte("empty"), nil, nil)},
		{kind: opDelete, key: []byte("gone")},
	}
	r := recordInfo{Seq: 41, Durable: 40, Segment: 3, Nonce: 0x1122334455667788, Off: segmentHeader, Values: 8192}
	s = append(appendRecord(s, r, ops), big...)
	return append(s, make([]byte, 8192-len(big))...)
}

func goldenIdentity() []byte {
	return appendIdentity(nil, identity{UUID: testUUID, Backend: "default", ID: 7})
}

// TestGolden: files written by former releases are read, and today's are the same bytes.
// UPDATE_GOLDEN=1 writes them anew, which a change of a format needs a new version for.
func TestGolden(t *testing.T) {
	for name, want := range map[string][]byte{segmentName(3): goldenSegment(), identityFile: goldenIdentity()} {
		file := filepath.Join("testdata", name)
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the encoder writes other bytes than the golden file has", name)
		}
		var out bytes.Buffer
		if err := Dump(&out, vfs.OS, file); err != nil {
			t.Error(err)
		}
		text, err := os.ReadFile(file + ".txt")
		if os.Getenv("UPDATE_GOLDEN") != "" {
			text, err = out.Bytes(), os.WriteFile(file+".txt", out.Bytes(), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		if out.String() != string(text) {
			t.Errorf("dump of %s:\n%swant:\n%s", name, out.String(), text)
		}
	}
}

// TestFormatErrors: foreign, newer and damaged files are told apart.
func TestFormatErrors(t *testing.T) {
	id := goldenIdentity()
	for _, c := range []struct {
		name string
		edit func(b []byte)
		want error
	}{
		{"foreign", func(b []byte) { b[0] ^= 1 }, frame.ErrMagic},
		{"damaged", func(b []byte) { b[20] ^= 1 }, frame.ErrChecksum},
		{"newer", func(b []byte) { sealFrame(b, identityMagic, typeIdentity, identityVersion+1) }, frame.ErrVersion},
	} {
		fsys := vfs.NewMem(vfs.MemOptions{})
		b := bytes.Clone(id)
		c.edit(b)
		if err := fsys.MkdirAll("/osd", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := vfs.WriteFile(fsys, "/osd/"+identityFile, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open("/osd", Options{FS: fsys}); !errors.Is(err, c.want) {
			t.Errorf("%s identity: %v, want %v", c.name, err, c.want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	g := goldenSegment()
	f.Add(g[segmentHeader : 2*segmentHeader])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum keeps a fuzzer out; give it the key.
		if len(b) >= frame.HeaderSize {
			b = bytes.Clone(b)
			sealFrame(b, logMagic, typeRecord, recordVersion)
		}
		r, ops, err := parseRecord(b)
		if err != nil {
			return
		}
		r2, ops2, err := parseRecord(appendRecord(nil, r, ops))
		if err != nil || len(ops2) != len(ops) || r2.Seq != r.Seq {
			t.Fatalf("encoded again it does not decode: %v", err)
		}
	})
}

func FuzzEntry(f *testing.F) {
	f.Add(newEntry([]byte("k"), []byte("v"), nil))
	f.Add(newEntry([]byte("k"), make([]byte, 9000), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEntry(b)
		if err == nil && (uint64(e.blocks()) != Blocks(e.size) || e.kind == opInline && uint64(len(e.value)) != e.size) {
			t.Fatalf("accepted %+v", e)
		}
	})
}

func FuzzSegmentAndIdentity(f *testing.F) {
	f.Add(goldenSegment()[:segmentHeader])
	f.Add(goldenIdentity())
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := parseIdentity(b); err == nil && !validUUID(id.UUID) {
			t.Fatal("accepted a bad uuid")
		}
		_, _ = parseSegment(b) // must not panic
	})
}

func FuzzMessage(f *testing.F) {
	b, _ := appendBatch(nil, &Batch{
		Asserts: []Assert{{Key: []byte("a"), Exists: true, Value: []byte("v")}},
		Puts:    []Put{{Key: []byte("p"), Value: make([]byte, 5000)}}, Deletes: [][]byte{[]byte("d")},
	})
	f.Add(b)
	f.Add(appendReads(nil, []Read{{Key: []byte("k"), Off: 4096, Buf: make([]byte, 10)}}))
	f.Add(appendInfo(nil, Info{UUID: testUUID, Backend: "b", Capacity: 1}))
	f.Add(appendVerify(nil, []Bad{{Key: []byte("k"), Block: 1, Text: "t"}}, 5, []byte("n")))
	f.Add(appendItems(nil, []Item{{Key: []byte("k"), Size: 9}}))
	f.Add(appendError(nil, ErrFull))
	f.Fuzz(func(t *testing.T, b []byte) {
		if batch, sums, sizes := decodeBatch(frame.NewDecoder(b)); batch != nil {
			if len(sums) != len(batch.Asserts) || slabSize(sizes) > MaxBatch+int64(len(sizes))*align {
				t.Fatalf("accepted a batch of %d bytes", slabSize(sizes))
			}
		}
		if reads, sizes := decodeReads(frame.NewDecoder(b)); len(reads) != len(sizes) {
			t.Fatal("reads and sizes differ")
		}
		decodeReadResults(frame.NewDecoder(b), make([]Read, 2))
		decodeItems(frame.NewDecoder(b))
		decodeVerify(frame.NewDecoder(b))
		decodeInfo(frame.NewDecoder(b))
		decodeHello(frame.NewDecoder(b))
		_ = decodeError(frame.NewDecoder(b), nil)
	})
}
