// Package admin is the admin interface of a running Scoria: HTTP with JSON bodies under
// /api/v1, beside /metrics, /healthz, /readyz and /debug/pprof. Server serves a System,
// Client is what the command line uses.
package admin

import "time"

// Volume is what `volume list` and `volume show` tell.
type Volume struct {
	Name       string    `json:"name"`
	ID         uint64    `json:"id"`
	Namespace  uint64    `json:"namespace"`
	Size       uint64    `json:"size"`   // bytes
	Mapped     uint64    `json:"mapped"` // bytes that hold data, 0 while the volume is closed and not looked at
	Preset     string    `json:"preset"`
	Created    time.Time `json:"created"`
	Owner      string    `json:"owner"`
	Epoch      uint64    `json:"epoch"`
	State      string    `json:"state"`       // closed, open, degraded, fenced, failed
	Problem    string    `json:"problem"`     // why it is not healthy, "" when it is
	Durability string    `json:"durability"`  // what FLUSH means: "local" = synced on this gateway's disk
	Clients    int       `json:"clients"`     // connections that hold it open
	DirtyBytes uint64    `json:"dirty_bytes"` // acknowledged, not yet on the disk servers
	LastSeq    uint64    `json:"last_seq"`    // newest write
	DrainedSeq uint64    `json:"drained_seq"` // newest write that is on the disk servers, with its TLog
	URIs       []string  `json:"uris,omitempty"`
}

// CreateVolume asks for a volume.
type CreateVolume struct {
	Name   string `json:"name"`
	Size   uint64 `json:"size"`
	Preset string `json:"preset,omitempty"`
}

// UpdateVolume changes a volume; zero fields stay as they are.
type UpdateVolume struct {
	Size uint64 `json:"size,omitempty"`
	Name string `json:"name,omitempty"`
}

// DrainProgress is one line of the answer to a drain.
type DrainProgress struct {
	Total uint64 `json:"total"` // bytes that were to be drained when it began
	Left  uint64 `json:"left"`  // bytes of these that are not yet on the disk servers
	Done  bool   `json:"done"`
	Error string `json:"error,omitempty"`
}

// Policy is a policy (k,m,c,x).
type Policy struct {
	K int `json:"k"`
	M int `json:"m"`
	C int `json:"c"`
	X int `json:"x"`
}

// Preset is a preset.
type Preset struct {
	Name        string   `json:"name"`
	Version     uint32   `json:"version,omitempty"`
	Policies    []Policy `json:"policies"`
	ChunkSize   uint32   `json:"chunk_size"`
	InlineLimit uint32   `json:"inline_limit"`
	Compression string   `json:"compression"`
	Encryption  string   `json:"encryption"`
	Default     bool     `json:"default"`
}

// Namespace is what `namespace list` and `namespace show` tell.
type Namespace struct {
	ID           uint64         `json:"id"`
	Name         string         `json:"name"`
	Preset       string         `json:"preset"`
	NSM          string         `json:"nsm"`
	State        string         `json:"state"`
	Created      time.Time      `json:"created"`
	Objects      uint64         `json:"objects"`
	LogicalBytes uint64         `json:"logical_bytes"`
	StoredBytes  uint64         `json:"stored_bytes"`
	Epoch        uint64         `json:"epoch"` // newest owner epoch seen
	Buckets      []Bucket       `json:"buckets,omitempty"`
	PerOSD       []NamespaceOSD `json:"per_osd,omitempty"`
}

// Bucket counts objects of equal safety.
type Bucket struct {
	K       int    `json:"k"`
	M       int    `json:"m"`
	Placed  int    `json:"placed"`
	MayLose int    `json:"may_lose"` // how many more fragments may be lost
	Objects uint64 `json:"objects"`
}

// NamespaceOSD is what a namespace has on an OSD.
type NamespaceOSD struct {
	OSD           uint32 `json:"osd"`
	Fragments     uint64 `json:"fragments"`
	Bytes         uint64 `json:"bytes"`
	QueuedDeletes uint64 `json:"queued_deletes"`
}

// Object is a listed object.
type Object struct {
	Name     string    `json:"name"`
	ObjectID string    `json:"object_id"`
	Size     uint64    `json:"size"`
	Created  time.Time `json:"created"`
	Inline   bool      `json:"inline"`
	Policy   string    `json:"policy"`
	Missing  int       `json:"missing"`
	Chunks   []Chunk   `json:"chunks,omitempty"`
}

// Chunk is a chunk of a shown object.
type Chunk struct {
	Size        uint32     `json:"size"`
	Packed      uint32     `json:"packed"`
	FragmentLen uint32     `json:"fragment_len"`
	Fragments   []Fragment `json:"fragments"`
}

// Fragment is a fragment of a shown object. OSD 0 is a hole.
type Fragment struct {
	OSD     uint32 `json:"osd"`
	Version uint32 `json:"version"`
	Digest  string `json:"digest"`
}

// OSD is a disk server.
type OSD struct {
	ID       uint32    `json:"id"`
	UUID     string    `json:"uuid"`
	Node     string    `json:"node"`
	Addr     string    `json:"addr"`
	State    string    `json:"state"`
	Capacity uint64    `json:"capacity"`
	Used     uint64    `json:"used"`
	Full     bool      `json:"full"`
	LastSeen time.Time `json:"last_seen"`
	Problem  string    `json:"problem"` // "" when it answers
	Keys     uint64    `json:"keys"`
	// Counters since its start.
	Applies       uint64 `json:"applies"`
	Syncs         uint64 `json:"syncs"`
	Reads         uint64 `json:"reads"`
	BytesWritten  uint64 `json:"bytes_written"`
	BytesRead     uint64 `json:"bytes_read"`
	CorruptBlocks uint64 `json:"corrupt_blocks"`
	// WrongFragments counts what it gave, with checksums that fit, though it was given other data.
	WrongFragments uint64 `json:"wrong_fragments"`
}

// Status is the state of the whole system. Problems is empty exactly when nothing is degraded.
type Status struct {
	Version     string      `json:"version"`
	Data        string      `json:"data"`
	Started     time.Time   `json:"started"`
	Ready       bool        `json:"ready"`
	Health      string      `json:"health"` // ok or degraded
	Problems    []string    `json:"problems"`
	NBD         []string    `json:"nbd"`
	Volumes     int         `json:"volumes"`
	OpenVolumes int         `json:"open_volumes"`
	Connections int         `json:"connections"`
	OSDs        []OSD       `json:"osds"`
	Buffer      Buffer      `json:"write_buffer"`
	Maintenance Maintenance `json:"maintenance"`
}

// Buffer is the write buffer of the gateway.
type Buffer struct {
	Limit  uint64 `json:"limit"`
	Dirty  uint64 `json:"dirty"`
	Cached uint64 `json:"cached"`
}

// Maintenance is what the maintenance agent has done since its start, and is doing.
type Maintenance struct {
	Tasks []Task `json:"tasks"`
	// Unreadable are objects that have lost more fragments than their policy bears (at most 100).
	Unreadable []UnreadableObject `json:"unreadable"`
	// Fallback counts objects with less protection than the disk servers allow now.
	Fallback uint64 `json:"fallback"`
}

// Task is the progress of one kind of maintenance.
type Task struct {
	Name      string    `json:"name"`
	Running   bool      `json:"running"`
	Finished  time.Time `json:"finished"` // of the last run
	Runs      uint64    `json:"runs"`
	Errors    uint64    `json:"errors"`     // runs that failed
	LastError string    `json:"last_error"` // of the last run, "" when it went well
	Done      uint64    `json:"done"`       // things done: keys deleted, fragments written or checked, orphans removed
	Bytes     uint64    `json:"bytes"`      // moved or checked
	Left      uint64    `json:"left"`       // things known to remain
	Failed    uint64    `json:"failed"`     // things that could not be done
	Elsewhere bool      `json:"elsewhere"`  // another gateway does it
}

// UnreadableObject is an object beyond repair.
type UnreadableObject struct {
	Namespace uint64 `json:"namespace"`
	Name      string `json:"name"`
	Problem   string `json:"problem"`
}

// Error codes of the API, in the field "code" of an error answer.
const (
	CodeInvalid     = "invalid"
	CodeNotFound    = "not_found"
	CodeExists      = "exists"
	CodeBusy        = "busy"
	CodeUnavailable = "unavailable"
	CodeInternal    = "internal"
)

// Error is the answer to a request that failed.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`        // what failed and why
	Hint    string `json:"hint,omitempty"` // what to do next
}

// Error returns message and hint.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + " (" + e.Hint + ")"
}
