package writebuffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"scoria/internal/blocksum"
	"scoria/internal/frame"
	"scoria/internal/vfs"
	"scoria/volumedriver/sco"
	"scoria/volumedriver/tlog"
)

var update = flag.Bool("update", false, "rewrite golden files")

// goldenSegment is fixed for ever: later versions must read the file as it is.
func goldenSegment() []byte { return makeSegment(1) }

// goldenAhead is a segment with space ahead, which version 2 allows.
func goldenAhead() []byte { return append(makeSegment(2), make([]byte, 5000)...) }

// goldenReused is a segment over an old one, whose records may follow from version 3 on.
func goldenReused() []byte {
	old := makeSegment(2)
	return append(makeSegment(3), old[headerSize:headerSize+5000]...)
}

func makeSegment(version uint16) []byte {
	out := make([]byte, headerSize)
	h := segmentHeader{version: version, volume: 7, number: 0x1f, epoch: 3, firstSeq: 100, synced: 98, prev: 0xcafe}
	chain := h.encode(out)
	index := uint32(0)
	for i, x := range []struct {
		kind   tlog.Kind
		addr   uint64
		count  uint64
		direct bool
	}{{tlog.Write, 5, 1, false}, {tlog.Clear, 0, tlog.MaxAddr, false}, {tlog.Write, 9, 3, true}, {tlog.Write, tlog.MaxAddr - 1, 1, false}} {
		r := record{kind: x.kind, epoch: 3, seq: 100 + uint64(i), addr: x.addr, count: x.count, index: index, synced: 99, prev: chain}
		var data []byte
		var sums []uint32
		if x.kind == tlog.Write {
			for c := range x.count {
				data = append(data, bytes.Repeat([]byte{byte(i)*16 + byte(c)}, ClusterSize)...)
				sums = append(sums, blocksum.Seal(blocksum.Of(data[len(data)-ClusterSize:]), x.addr+c))
			}
			r.dataOff = uint32(r.headBytes())
			index += uint32(x.count)
		}
		if x.direct {
			out = append(out, make([]byte, alignUp(int64(len(out)))-int64(len(out)))...)
			r.dataOff = uint32(alignUp(int64(r.dataOff)))
		}
		head := make([]byte, max(int(r.dataOff), headerSize))
		chain = r.encode(head, sums)
		out = append(append(out, head...), data...)
	}
	return out
}

func TestGolden(t *testing.T) {
	testGolden(t, "testdata/v1.segment", goldenSegment(), 0, "end of the file")
	testGolden(t, "testdata/v2.segment", goldenAhead(), 5000, "zeroes up to the end of the file")
	testGolden(t, "testdata/v3.segment", goldenReused(), 5000, "SCO 1f, offset 28740: record 100 of epoch 3, index 0, behind ")
}

func testGolden(t *testing.T, name string, seg []byte, behind int64, end string) {
	if *update {
		if err := os.WriteFile(name, seg, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(seg, want) {
		t.Error("the encoding changed: readers of this version would not understand it")
	}
	found, err := scan(want, int64(len(want)), 0)
	if err != nil || (found.cut != nil) != (found.header.version == 3) || found.lastSeq != 103 || found.clusters != 5 ||
		found.end != int64(len(want))-behind || found.synced != 99 {
		t.Fatalf("%+v, %v", found, err)
	}
	var text strings.Builder
	if err := DumpSegment(&text, vfs.OS, name); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"segment of SCO 1f, volume 7, epoch 3, from record 100, synced up to 98, behind 0000cafe",
		"100 write 5+1 index 0 data at 132 sums [",
		"101 clear 0+17179869184 synced 99",
		"102 write 9+3 index 1 data at 12288 sums [",
		"103 write 17179869183+1 index 4",
		"record 103, 5 clusters: " + end,
	} {
		if !strings.Contains(text.String(), line) {
			t.Errorf("dump lacks %q:\n%s", line, text.String())
		}
	}
}

// Every flipped bit of a header ends the log before its record, every cut does, and a newer
// version is not damage.
func TestScanDamage(t *testing.T) {
	seg := goldenSegment()
	ends := []int64{headerSize}
	s, err := newScanner(seg, 0)
	if err != nil {
		t.Fatal(err)
	}
	var r record
	for s.next(&r) {
		ends = append(ends, s.off)
	}
	for cut := range len(seg) {
		found, err := scan(seg[:cut], int64(cut), 0)
		if cut < headerSize {
			if err == nil {
				t.Fatalf("cut at %d: no error", cut)
			}
			continue
		}
		want := ends[0]
		for _, e := range ends {
			if e <= int64(cut) {
				want = e
			}
		}
		if err != nil || found.end != want || found.cut == nil && int64(cut) != want {
			t.Fatalf("cut at %d: ends at %d, want %d: %v %v", cut, found.end, want, err, found.cut)
		}
	}
	padding := 0
	for at := range seg {
		bad := bytes.Clone(seg)
		bad[at] ^= 4
		found, err := scan(bad, int64(len(bad)), 0)
		if at < headerSize {
			if err == nil {
				t.Fatalf("byte %d of the header flipped: no error", at)
			}
			continue
		}
		if found.cut == nil {
			padding++
			continue
		}
		for i, e := range ends[1:] {
			if int64(at) < e {
				if found.end != ends[i] {
					t.Fatalf("byte %d flipped: ends at %d, want %d", at, found.end, ends[i])
				}
				break
			}
		}
	}
	if pad := int(alignUp(ends[2])-ends[2]) + pageSize - headerSize - 3*4; padding != pad {
		t.Errorf("%d bytes are not protected, want the %d of padding", padding, pad)
	}
	next := bytes.Clone(seg)
	next[4] = segmentVersion + 1
	binary.LittleEndian.PutUint32(next[60:], blocksum.Of(next[:60]))
	if _, err := scan(next, int64(len(next)), 0); !errors.Is(err, frame.ErrVersion) {
		t.Errorf("segment of the next version: %v", err)
	}
	next = bytes.Clone(seg)
	rec := next[headerSize:]
	rec[13]++
	binary.LittleEndian.PutUint32(rec[4:], blocksum.Of(rec[8:headerSize+4]))
	if found, err := scan(next, int64(len(next)), 0); err != nil || !errors.Is(found.cut, frame.ErrVersion) {
		t.Errorf("record of the next version: %v %v", err, found.cut)
	}
}

// Zeroes behind the records are space ahead of the end, from version 2 on and only if there is nothing
// else behind them: what follows a gap shows that something has been lost.
func TestScanAhead(t *testing.T) {
	for name, c := range map[string]struct {
		version uint16
		tail    []byte
		clean   bool
	}{
		"none":                 {2, nil, true},
		"less than a header":   {2, make([]byte, headerSize-1), true},
		"many":                 {2, make([]byte, 3*aheadMin+17), true},
		"version 1":            {1, make([]byte, 5000), false},
		"something at the end": {2, append(make([]byte, 100000), 1), false},
		"something in between": {2, append(append(make([]byte, 4096), 0x80), make([]byte, 4096)...), false},
	} {
		seg := makeSegment(c.version)
		b := append(bytes.Clone(seg), c.tail...)
		found, err := scan(b, int64(len(b)), 0)
		if err != nil || found.end != int64(len(seg)) || found.lastSeq != 103 || (found.cut == nil) != c.clean {
			t.Errorf("%s: %+v, %v", name, found, err)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	seg := goldenSegment()
	f.Add(seg[headerSize : headerSize+200])
	f.Add(seg[headerSize+68+ClusterSize:])
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b)
		_, _, _, _ = parseRecord(b)
		// Behind the checksum:
		if len(b) >= headerSize {
			n := headerSize
			if tlog.Kind(b[12]) == tlog.Write {
				n += 4 * int(min(binary.LittleEndian.Uint64(b[40:]), sco.MaxClusters))
			}
			if n <= len(b) {
				binary.LittleEndian.PutUint32(b[4:], blocksum.Of(b[8:n]))
			}
		}
		r, crc, sums, err := parseRecord(b)
		if err != nil {
			return
		}
		again := bytes.Clone(b[:r.headBytes()])
		if got := r.encode(again, decodeSums(nil, sums)); got != crc && b[14] == 0 && b[15] == 0 {
			t.Fatalf("encodes to %08x, was %08x", got, crc)
		}
		if r.size() > int64(maxSegmentBytes) {
			t.Fatalf("record of %d bytes", r.size())
		}
	})
}

func FuzzScan(f *testing.F) {
	seg := goldenSegment()
	f.Add(seg)
	f.Add(goldenAhead())
	f.Add(goldenReused())
	f.Add(seg[:headerSize])
	f.Add(seg[:headerSize+100])
	f.Fuzz(func(t *testing.T, b []byte) {
		found, err := scan(b, int64(len(b)), 0)
		if err != nil {
			return
		}
		if found.end > int64(len(b)) || found.clusters > sco.MaxClusters || found.cut == nil && found.end != int64(len(b)) && (found.header.version == 1 || !isZero(b[found.end:])) {
			t.Fatalf("%+v of %d bytes", found, len(b))
		}
		if found.section != nil {
			if _, err := tlog.DecodeSection(found.section, nil); err != nil {
				t.Fatal(err)
			}
		}
		for i := range found.clusters {
			off, _, _, ok := find(found.runs, i)
			if !ok || off < headerSize || off+ClusterSize > found.end {
				t.Fatalf("cluster %d at %d, %v", i, off, ok)
			}
		}
	})
}

// Places of all shapes come back from the index.
func TestRuns(t *testing.T) {
	var runs []run
	type at struct {
		index uint32
		off   int64
		left  uint32
	}
	var want []at
	index, off := uint32(0), int64(132)
	for i := range 500 {
		count := uint32(1)
		switch i % 97 {
		case 40:
			count = 7
		case 41, 42:
			off += 64 // a clear between
		case 43:
			off = alignUp(off)
		}
		runs = addRun(runs, index, count, off, i%97 == 43)
		for c := range count {
			want = append(want, at{index + c, off + int64(c)*ClusterSize, count - c})
		}
		index += count
		off += int64(count)*(ClusterSize+4) + headerSize
	}
	for _, w := range want {
		got, n, _, ok := find(runs, w.index)
		if !ok || got != w.off || n != w.left {
			t.Fatalf("cluster %d at %d, %d left, %v; want %+v", w.index, got, n, ok, w)
		}
	}
	if _, _, _, ok := find(runs, index); ok {
		t.Error("a cluster behind the last one was found")
	}
	if len(runs) > 60 {
		t.Errorf("%d runs for 500 records", len(runs))
	}
}
