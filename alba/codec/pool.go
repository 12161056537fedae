package codec

import (
	"math/bits"
	"sync"
	"unsafe"
)

// Buffers are pools of byte slices whose memory starts at a 4 KiB border, as O_DIRECT
// wants it, by powers of two from one block to 128 MiB. The zero value is ready; it is safe
// for concurrent use. How much is taken at one time is the caller's to bound.
type Buffers struct {
	classes [maxClass - minClass + 1]sync.Pool
}

const (
	minClass = 12 // 4 KiB
	maxClass = 27 // 128 MiB
)

// Buf is a buffer from a pool. B may be resliced; Free returns the memory.
type Buf struct {
	B     []byte
	whole []byte
	class int
	from  *Buffers
}

// Get returns a buffer with len(B) == n. Its content is arbitrary.
func (p *Buffers) Get(n int) *Buf {
	class := max(bits.Len(uint(max(n, 1)-1)), minClass)
	if class > maxClass {
		return &Buf{B: aligned(n), class: -1}
	}
	b, _ := p.classes[class-minClass].Get().(*Buf)
	if b == nil {
		b = &Buf{whole: aligned(1 << class), class: class, from: p}
	}
	b.B = b.whole[:n]
	return b
}

// Free gives the memory back; B must not be used any more. Freeing nil is fine.
func (b *Buf) Free() {
	if b == nil || b.from == nil {
		return
	}
	b.B = nil
	b.from.classes[b.class-minClass].Put(b)
}

// aligned allocates n bytes at a block border.
func aligned(n int) []byte {
	raw := make([]byte, n+BlockSize-1)
	off := 0
	if r := int(uintptr(unsafe.Pointer(unsafe.SliceData(raw))) % BlockSize); r != 0 {
		off = BlockSize - r
	}
	return raw[off : off+n : off+n]
}
