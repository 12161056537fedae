package osd

import (
	"bytes"
	"fmt"
	"io/fs"
)

// notFoundError is ErrNotFound for one key; fs.ErrNotExist matches it as well.
type notFoundError struct{ key []byte }

func (e notFoundError) Error() string { return fmt.Sprintf("osd: no such key %x", e.key) }

func (e notFoundError) Is(target error) bool {
	return target == ErrNotFound || target == fs.ErrNotExist
}

// NotFound returns the error of a read of an absent key: errors.Is finds ErrNotFound and fs.ErrNotExist in it.
func NotFound(key []byte) error { return notFoundError{bytes.Clone(key)} }

// Blocks returns the number of BlockSize blocks (the last may be short) of size bytes.
func Blocks(size uint64) uint64 { return (size + BlockSize - 1) / BlockSize }

// Validate checks the batch against the limits of requests. Its error is ErrInvalid. It does not
// look at the content: whether Sums match Value is found where the bytes are next read.
func (b *Batch) Validate() error {
	if n := len(b.Asserts) + len(b.Puts) + len(b.Deletes); n > MaxBatchOps {
		return fmt.Errorf("batch of %d operations, limit %d: %w", n, MaxBatchOps, ErrInvalid)
	}
	total := 0
	for i := range b.Asserts {
		a := &b.Asserts[i]
		if err := checkKey("assert", a.Key); err != nil {
			return err
		}
		if len(a.Value) > MaxValue {
			return fmt.Errorf("assert of %x: value of %d bytes, limit %d: %w", a.Key, len(a.Value), MaxValue, ErrInvalid)
		}
		total += len(a.Key) + len(a.Value)
	}
	for i := range b.Puts {
		p := &b.Puts[i]
		if err := checkKey("put", p.Key); err != nil {
			return err
		}
		if len(p.Value) > MaxValue {
			return fmt.Errorf("put of %x: value of %d bytes, limit %d: %w", p.Key, len(p.Value), MaxValue, ErrInvalid)
		}
		if want := Blocks(uint64(len(p.Value))); p.Sums != nil && uint64(len(p.Sums)) != want {
			return fmt.Errorf("put of %x: %d block sums for %d blocks: %w", p.Key, len(p.Sums), want, ErrInvalid)
		}
		total += len(p.Key) + len(p.Value)
	}
	for _, k := range b.Deletes {
		if err := checkKey("delete", k); err != nil {
			return err
		}
		total += len(k)
	}
	if total > MaxBatch {
		return fmt.Errorf("batch of %d bytes, limit %d: %w", total, MaxBatch, ErrInvalid)
	}
	return nil
}

func checkKey(op string, key []byte) error {
	if len(key) == 0 || len(key) > MaxKey {
		return fmt.Errorf("%s: key of %d bytes, 1..%d are allowed: %w", op, len(key), MaxKey, ErrInvalid)
	}
	return nil
}

// ValidateReads checks what concerns all reads of a request together: their number and bytes.
func ValidateReads(reads []Read) error {
	if len(reads) > MaxReadOps {
		return fmt.Errorf("%d reads at once, limit %d: %w", len(reads), MaxReadOps, ErrInvalid)
	}
	total := 0
	for i := range reads {
		if total += len(reads[i].Buf); total > MaxReadBytes {
			return fmt.Errorf("reads of more than %d bytes at once: %w", MaxReadBytes, ErrInvalid)
		}
	}
	return nil
}

// Validate checks what can be said about the read without knowing the value.
func (r *Read) Validate() error {
	if err := checkKey("read", r.Key); err != nil {
		return err
	}
	if r.Off%BlockSize != 0 || r.Off > MaxValue {
		return fmt.Errorf("read of %x: offset %d is not a block border up to %d: %w", r.Key, r.Off, MaxValue, ErrInvalid)
	}
	return nil
}

// CheckSize checks the read's range against the size of the value it reads from. An empty Buf
// is allowed anywhere up to the end: it asks for Size only.
func (r *Read) CheckSize(size uint64) error {
	end := r.Off + uint64(len(r.Buf))
	if end > size || (end != size && end%BlockSize != 0) {
		return fmt.Errorf("read of %x: %d bytes at %d of a value of %d bytes must lie within it and end at a block border or its end: %w",
			r.Key, len(r.Buf), r.Off, size, ErrInvalid)
	}
	return nil
}

// ValidateRange checks a range of keys and returns an error for impossible bounds; from may be empty (the start).
func ValidateRange(from, to []byte) error {
	// A bound may be one byte longer than a key: key+"\x00" is the next possible key.
	if len(from) > MaxKey+1 || len(to) > MaxKey+1 {
		return fmt.Errorf("range bound of %d bytes, limit %d: %w", max(len(from), len(to)), MaxKey+1, ErrInvalid)
	}
	return nil
}

// ValidateLimit checks the limit of a List.
func ValidateLimit(limit int) error {
	if limit < 1 || limit > MaxList {
		return fmt.Errorf("list of %d keys, 1..%d are allowed: %w", limit, MaxList, ErrInvalid)
	}
	return nil
}

// MaxBackend is the longest name of a backend that may claim an OSD, in bytes.
const MaxBackend = 128

// ValidateClaim checks the arguments of Claim.
func ValidateClaim(backend string, id uint32) error {
	if backend == "" || len(backend) > MaxBackend || id == 0 {
		return fmt.Errorf("claim by backend %q (1..%d bytes) with id %d (not 0): %w", backend, MaxBackend, id, ErrInvalid)
	}
	return nil
}
