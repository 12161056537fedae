package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"syscall"
	"time"
)

// Limits of the admin port. They keep a hostile or broken client from costing memory.
const (
	maxRequest     = 1 << 20 // bytes of a request body
	maxHeader      = 64 << 10
	maxConnections = 256
	maxList        = 1000
	takeAnswer     = time.Minute // for a client to take an answer, or a line of one
)

// Volumes is what the server needs to administer volumes.
type Volumes interface {
	Volumes(ctx context.Context) ([]Volume, error)
	Volume(ctx context.Context, name string) (Volume, error)
	CreateVolume(ctx context.Context, in CreateVolume) (Volume, error)
	UpdateVolume(ctx context.Context, name string, in UpdateVolume) (Volume, error)
	DeleteVolume(ctx context.Context, name string, force bool) error
	// Drain starts a drain; with wait it returns at its end and calls progress meanwhile.
	Drain(ctx context.Context, name string, wait bool, progress func(DrainProgress)) error
}

// Store is what the server needs to look into the object store.
type Store interface {
	Status(ctx context.Context) (Status, error)
	Presets(ctx context.Context) ([]Preset, error)
	CreatePreset(ctx context.Context, p Preset) error
	Namespaces(ctx context.Context) ([]Namespace, error)
	Namespace(ctx context.Context, name string) (Namespace, error)
	Objects(ctx context.Context, namespace, prefix, after string, limit int) ([]Object, error)
	Object(ctx context.Context, namespace, name string) (Object, error)
	OSDs(ctx context.Context) ([]OSD, error)
}

// Options of a Server. All but Logger are required.
type Options struct {
	Volumes Volumes
	Store   Store
	// Metrics serves /metrics. Ready tells why the system is not ready, nil when it is.
	Metrics http.Handler
	Ready   func() error
	Logger  *slog.Logger
}

// Server serves the admin interface.
type Server struct {
	opts Options
	http *http.Server
}

// NewServer returns a Server; Serve runs it.
func NewServer(opts Options) *Server {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: opts}
	s.http = &http.Server{
		// A page in a browser on this machine must not reach what has no password.
		Handler:           working(http.NewCrossOriginProtection().Handler(s.routes())),
		ConnContext:       withMember,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second, // with the body: no request has a long one
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(opts.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers requests on ln until Shutdown or Close; it then returns nil.
func (s *Server) Serve(ln net.Listener) error {
	err := s.http.Serve(newCrowd(ln, maxConnections))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("admin server on %s: %w", ln.Addr(), err)
}

// Shutdown finishes the requests that run and closes the listeners.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	v, st := s.opts.Volumes, s.opts.Store
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }) //nolint:errcheck // client gone
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.opts.Ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready") //nolint:errcheck // client gone
	})
	mux.Handle("GET /metrics", s.opts.Metrics)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)

	handle(mux, s, "GET /api/v1/status", func(r *http.Request) (any, error) { return st.Status(r.Context()) })
	handle(mux, s, "GET /api/v1/volumes", func(r *http.Request) (any, error) { return list(v.Volumes(r.Context())) })
	handle(mux, s, "POST /api/v1/volumes", func(r *http.Request) (any, error) {
		in, err := decode[CreateVolume](r)
		if err != nil {
			return nil, err
		}
		return v.CreateVolume(r.Context(), in)
	})
	handle(mux, s, "GET /api/v1/volumes/{name}", func(r *http.Request) (any, error) {
		return v.Volume(r.Context(), r.PathValue("name"))
	})
	handle(mux, s, "PATCH /api/v1/volumes/{name}", func(r *http.Request) (any, error) {
		in, err := decode[UpdateVolume](r)
		if err != nil {
			return nil, err
		}
		return v.UpdateVolume(r.Context(), r.PathValue("name"), in)
	})
	handle(mux, s, "DELETE /api/v1/volumes/{name}", func(r *http.Request) (any, error) {
		return struct{}{}, v.DeleteVolume(r.Context(), r.PathValue("name"), r.URL.Query().Get("force") == "true")
	})
	mux.HandleFunc("POST /api/v1/volumes/{name}/drain", s.drain)
	handle(mux, s, "GET /api/v1/presets", func(r *http.Request) (any, error) { return list(st.Presets(r.Context())) })
	handle(mux, s, "POST /api/v1/presets", func(r *http.Request) (any, error) {
		in, err := decode[Preset](r)
		if err != nil {
			return nil, err
		}
		return struct{}{}, st.CreatePreset(r.Context(), in)
	})
	handle(mux, s, "GET /api/v1/namespaces", func(r *http.Request) (any, error) { return list(st.Namespaces(r.Context())) })
	handle(mux, s, "GET /api/v1/namespaces/{name}", func(r *http.Request) (any, error) {
		return st.Namespace(r.Context(), r.PathValue("name"))
	})
	handle(mux, s, "GET /api/v1/namespaces/{name}/objects", func(r *http.Request) (any, error) {
		q := r.URL.Query()
		limit := maxList
		if l := q.Get("limit"); l != "" {
			n, err := strconv.Atoi(l)
			if err != nil || n < 1 || n > maxList {
				return nil, &Error{Code: CodeInvalid, Message: fmt.Sprintf("limit %q: want a number from 1 to %d", l, maxList)}
			}
			limit = n
		}
		return list(st.Objects(r.Context(), r.PathValue("name"), q.Get("prefix"), q.Get("after"), limit))
	})
	handle(mux, s, "GET /api/v1/namespaces/{name}/objects/{object...}", func(r *http.Request) (any, error) {
		return st.Object(r.Context(), r.PathValue("name"), r.PathValue("object"))
	})
	handle(mux, s, "GET /api/v1/osds", func(r *http.Request) (any, error) { return list(st.OSDs(r.Context())) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, &Error{Code: CodeNotFound, Message: fmt.Sprintf("%s %s: no such method or path", r.Method, r.URL.Path)})
	})
	return mux
}

// handle serves a route whose answer is JSON.
func handle(mux *http.ServeMux, s *Server, pattern string, f func(*http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		out, err := f(r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		hurry(w)
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(out); err != nil {
			s.opts.Logger.Debug("admin answer not sent", "path", r.URL.Path, "err", err)
		}
	})
}

// hurry bounds how long the client may take for what is written next.
func hurry(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(takeAnswer)) // fails only on a closed connection
}

// list makes an empty list "[]" rather than "null".
func list[T any](l []T, err error) (any, error) {
	if l == nil {
		l = []T{}
	}
	return l, err
}

func decode[T any](r *http.Request) (T, error) {
	var in T
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return in, &Error{Code: CodeInvalid, Message: fmt.Sprintf("request body: %v", err)}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return in, &Error{Code: CodeInvalid, Message: "request body: more than one value"}
	}
	return in, nil
}

// drain streams progress, one JSON object a line.
func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	name, wait := r.PathValue("name"), r.URL.Query().Get("wait") == "true"
	enc := json.NewEncoder(w)
	started := false
	err := s.opts.Volumes.Drain(r.Context(), name, wait, func(p DrainProgress) {
		started = true
		hurry(w)
		if err := enc.Encode(p); err != nil {
			return // the client is gone; its context ends the drain
		}
		_ = http.NewResponseController(w).Flush() // best effort: progress only
	})
	hurry(w)
	switch {
	case err != nil && started:
		_ = enc.Encode(DrainProgress{Error: err.Error()}) // the client is told if it is still there
	case err != nil:
		s.fail(w, r, err)
	case !started:
		_ = enc.Encode(DrainProgress{Done: wait}) // likewise
	}
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := AsError(err)
	status := map[string]int{
		CodeInvalid: http.StatusBadRequest, CodeNotFound: http.StatusNotFound, CodeExists: http.StatusConflict,
		CodeBusy: http.StatusConflict, CodeUnavailable: http.StatusServiceUnavailable,
	}[e.Code]
	if status == 0 {
		status = http.StatusInternalServerError
		s.opts.Logger.Error("admin request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e) // the client may be gone
}

// AsError turns any error into an *Error, by its sentinels.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	code := CodeInternal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = CodeNotFound
	case errors.Is(err, fs.ErrExist):
		code = CodeExists
	case errors.Is(err, fs.ErrInvalid), errors.Is(err, syscall.EINVAL):
		code = CodeInvalid
	case errors.Is(err, syscall.EBUSY):
		code = CodeBusy
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		code = CodeUnavailable
	}
	return &Error{Code: code, Message: err.Error()}
}
