package tlog

// Section encodes the entries of one SCO. The zero value is ready for Reset.
type Section struct{ _ int }

// Reset starts the section of an SCO. Add appends an entry of it, in order of Seq.
// Bytes is the encoded section (valid until the next Add or Reset).
func (s *Section) Reset(number uint64) { panic("draft") }
func (s *Section) Add(e *Entry) error  { panic("draft") }
func (s *Section) Bytes() []byte       { panic("draft") }

// Info describes a TLog.
type Info struct {
	Number, Epoch     uint64
	FirstSeq, LastSeq uint64
	FirstSCO, LastSCO uint64
	Entries, Clusters uint64
}

// AppendObject appends the TLog made of sections (in order of SCO and Seq, without gaps in Seq) to dst.
func AppendObject(dst []byte, number, epoch uint64, sections [][]byte) ([]byte, error) {
	panic("draft")
}

// Decode checks a TLog and calls fn for each entry in order (the Entry and its Sums are valid during the call).
// fn may be nil. Errors wrap those of package frame, or are fn's.
func Decode(obj []byte, fn func(*Entry) error) (Info, error) { panic("draft") }

// DecodeSection does the same for one section (ClosedSCO.Entries).
func DecodeSection(section []byte, fn func(*Entry) error) (Info, error) { panic("draft") }
