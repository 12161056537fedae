package vfs

import "io"

// ReadReq is one of the reads of ReadMany. Err is what ReadAt would return.
type ReadReq struct {
	File File
	Buf  []byte
	Off  int64
	N    int
	Err  error
}

// ReadMany does all reads, at the same time where the system can: a disk is faster with
// many requests at hand, and a thread that waits for all of them together costs less than
// one for each. It returns when all have ended.
func ReadMany(reqs []ReadReq) {
	if len(reqs) > 1 && readManyOS(reqs) {
		return
	}
	for i := range reqs {
		r := &reqs[i]
		r.N, r.Err = r.File.ReadAt(r.Buf, r.Off)
	}
}

// finish completes a read that gave fewer bytes than asked for, as ReadAt does.
func (r *ReadReq) finish() {
	if r.Err != nil || r.N == len(r.Buf) {
		return
	}
	n, err := r.File.ReadAt(r.Buf[r.N:], r.Off+int64(r.N))
	r.N += n
	if r.Err = err; err == nil && r.N < len(r.Buf) {
		r.Err = io.ErrUnexpectedEOF // ReadAt does not do that
	}
}
