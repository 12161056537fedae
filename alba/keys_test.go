package alba

import (
	"bytes"
	"testing"
	"time"

	"scoria/metadata"
)

func TestKeysSortByPlace(t *testing.T) {
	a := FragmentKey{Namespace: 1, ObjectID: metadata.ObjectID{1}, Chunk: 1, Fragment: 2, Version: 3}
	ordered := [][]byte{a.Bytes(KeyData)}
	for _, f := range []func(*FragmentKey){
		func(k *FragmentKey) { k.Version = 1 << 30 }, func(k *FragmentKey) { k.Fragment = 200 }, func(k *FragmentKey) { k.Chunk = 60000 },
		func(k *FragmentKey) { k.ObjectID[15] = 1 }, func(k *FragmentKey) { k.ObjectID[0] = 255 }, func(k *FragmentKey) { k.Namespace = 1 << 40 },
	} {
		f(&a)
		ordered = append(ordered, a.Bytes(KeyData))
	}
	for i := 1; i < len(ordered); i++ {
		if bytes.Compare(ordered[i-1], ordered[i]) >= 0 {
			t.Errorf("key %d does not sort behind key %d", i, i-1)
		}
	}
	for _, kind := range []KeyKind{KeyData, KeyRecovery} {
		from, to := ObjectRange(kind, a.Namespace, a.ObjectID)
		if k := a.Bytes(kind); bytes.Compare(k, from) < 0 || bytes.Compare(k, to) >= 0 {
			t.Errorf("key outside the range of its object")
		}
		from, to = NamespaceRange(kind, a.Namespace)
		if k := a.Bytes(kind); bytes.Compare(k, from) < 0 || bytes.Compare(k, to) >= 0 {
			t.Errorf("key outside the range of its namespace")
		}
	}
	from, to := TagRange(7, 5)
	for epoch, in := range map[metadata.GCEpoch]bool{1: true, 4: true, 5: false, 6: false} {
		k := TagKey{Namespace: 7, Epoch: epoch, ObjectID: metadata.ObjectID{255}, Version: 1, Nonce: 9}.Bytes()
		if got := bytes.Compare(k, from) >= 0 && bytes.Compare(k, to) < 0; got != in {
			t.Errorf("tag of epoch %d in the range below 5: %v", epoch, got)
		}
	}
	if from, to := NamespaceRange(KeyData, ^metadata.NamespaceID(0)); bytes.Compare(from, to) >= 0 {
		t.Error("the range of the last namespace is empty")
	}
}

func FuzzKeys(f *testing.F) {
	f.Add(FragmentKey{1, metadata.ObjectID{2}, 3, 4, 5}.Bytes(KeyData))
	f.Add(FragmentKey{1, metadata.ObjectID{2}, 3, 4, 5}.Bytes(KeyRecovery))
	f.Add(TagKey{1, 2, metadata.ObjectID{3}, 4, 5}.Bytes())
	f.Add([]byte("d"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, kind, err := ParseFragmentKey(b); err == nil && !bytes.Equal(k.Bytes(kind), b) {
			t.Errorf("%x decodes to %+v", b, k)
		}
		if k, err := ParseTagKey(b); err == nil && !bytes.Equal(k.Bytes(), b) {
			t.Errorf("%x decodes to %+v", b, k)
		}
		KeyNamespace(b)
		if parts, err := ParseTagValue(b); err == nil {
			back := make([]part, len(parts))
			for i, p := range parts {
				back[i] = part{int(p.Chunk), int(p.Fragment)}
			}
			if !bytes.Equal(tagValue(back), b) {
				t.Errorf("tag value %x decodes to %v", b, parts)
			}
		}
	})
}

func recoverySeed(t testing.TB) (metadata.Manifest, []byte) {
	m := metadata.Manifest{
		Name: "n", ObjectID: metadata.ObjectID{1}, Version: 4, Size: 8192, Policy: metadata.Policy{K: 2, M: 1, C: 2, X: 1},
		Compression: metadata.CompressNone, Encryption: metadata.EncryptNone, GCEpoch: 3, Created: time.Unix(1, 0).UTC(), Checksum: 9,
	}
	for i := range 2 {
		m.Chunks = append(m.Chunks, metadata.Chunk{Size: 4096, Packed: 4096, FragmentLen: 4096, Fragments: []metadata.Fragment{
			{OSD: 1, Version: 1, Digest: uint32(i)}, {OSD: 2, Digest: 7}, {OSD: 3, Digest: 8}}})
	}
	b, err := recovery(5, &m, 1)
	if err != nil {
		t.Fatal(err)
	}
	return m, b
}

func TestRecovery(t *testing.T) {
	m, b := recoverySeed(t)
	r, err := DecodeRecovery(b)
	if err != nil {
		t.Fatal(err)
	}
	if r.Namespace != 5 || r.Chunk != 1 || r.Chunks != 2 || r.Manifest.Name != "n" || r.Manifest.Chunks[0].Fragments[0] != (metadata.Fragment{Digest: 1}) {
		t.Fatalf("%+v %+v", r, r.Manifest)
	}
	if m.Chunks[1].Fragments[0].OSD != 1 {
		t.Fatal("encoding changed the manifest")
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 4
		if _, err := DecodeRecovery(bad); err == nil {
			t.Fatalf("byte %d damaged, and not noticed", i)
		}
		if _, err := DecodeRecovery(b[:i]); err == nil {
			t.Fatalf("cut at %d, and not noticed", i)
		}
	}
}

func FuzzRecovery(f *testing.F) {
	_, b := recoverySeed(f)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRecovery(b)
		if err != nil {
			return
		}
		again, err := AppendRecovery(nil, r)
		if err != nil {
			t.Fatalf("decoded, but does not encode: %v", err)
		}
		if _, err := DecodeRecovery(again); err != nil {
			t.Fatal(err)
		}
	})
}
