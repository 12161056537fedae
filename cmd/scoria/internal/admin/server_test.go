package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fake is a system in memory. err, if not nil, is what all methods return.
type fake struct {
	mu      sync.Mutex
	volumes map[string]Volume
	presets []Preset
	err     error
	// drain, if not nil, is called by Drain between two reports.
	drain func(ctx context.Context) error
}

func (f *fake) fail() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *fake) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fake) Volumes(context.Context) ([]Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var l []Volume
	for _, v := range f.volumes {
		l = append(l, v)
	}
	return l, f.err
}

func (f *fake) Volume(_ context.Context, name string) (Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.volumes[name]
	if !ok && f.err == nil {
		return v, &Error{Code: CodeNotFound, Message: fmt.Sprintf("no volume %q", name), Hint: "look"}
	}
	return v, f.err
}

func (f *fake) CreateVolume(_ context.Context, in CreateVolume) (Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := Volume{Name: in.Name, Size: in.Size, Preset: in.Preset, Created: time.Unix(1, 0).UTC()}
	f.volumes[in.Name] = v
	return v, f.err
}

func (f *fake) UpdateVolume(_ context.Context, name string, in UpdateVolume) (Volume, error) {
	return Volume{Name: in.Name, Size: in.Size, Owner: name}, f.fail()
}

func (f *fake) DeleteVolume(_ context.Context, name string, force bool) error {
	if !force {
		return fmt.Errorf("volume %q: %w", name, syscall.EBUSY)
	}
	return f.fail()
}

func (f *fake) Drain(ctx context.Context, _ string, wait bool, progress func(DrainProgress)) error {
	if err := f.fail(); err != nil || !wait {
		return err
	}
	progress(DrainProgress{Total: 10, Left: 5})
	if f.drain != nil {
		if err := f.drain(ctx); err != nil {
			return err
		}
	}
	progress(DrainProgress{Total: 10, Done: true})
	return nil
}

func (f *fake) Status(context.Context) (Status, error) {
	return Status{Health: "ok", Problems: []string{}}, f.fail()
}
func (f *fake) Presets(context.Context) ([]Preset, error) { return f.presets, f.fail() }
func (f *fake) CreatePreset(_ context.Context, p Preset) error {
	f.presets = append(f.presets, p)
	return f.fail()
}
func (f *fake) Namespaces(context.Context) ([]Namespace, error) { return nil, f.fail() }
func (f *fake) Namespace(_ context.Context, name string) (Namespace, error) {
	return Namespace{Name: name}, f.fail()
}
func (f *fake) Objects(_ context.Context, ns, prefix, after string, limit int) ([]Object, error) {
	return []Object{{Name: fmt.Sprint(ns, "|", prefix, "|", after, "|", limit)}}, f.fail()
}
func (f *fake) Object(_ context.Context, ns, name string) (Object, error) {
	return Object{Name: ns + "|" + name}, f.fail()
}
func (f *fake) OSDs(context.Context) ([]OSD, error) { return nil, f.fail() }

// start serves a fake and returns its client and address.
func start(t *testing.T, f *fake, ready error) (*Client, string) {
	t.Helper()
	if f.volumes == nil {
		f.volumes = map[string]Volume{}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Options{Volumes: f, Store: f, Metrics: http.NotFoundHandler(), Ready: func() error { return ready }})
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = s.Shutdown(ctx) // hostile clients of a test may still hold connections
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return NewClient(ln.Addr().String()), ln.Addr().String()
}

func TestRoundTrip(t *testing.T) {
	f := &fake{}
	c, _ := start(t, f, nil)
	ctx := t.Context()
	if l, err := c.Volumes(ctx); err != nil || l == nil || len(l) != 0 {
		t.Errorf("no volumes: %v, %v", l, err)
	}
	name := "a b/ü?#%"
	v, err := c.CreateVolume(ctx, CreateVolume{Name: name, Size: 1 << 62, Preset: "p"})
	if err != nil || v.Name != name || v.Size != 1<<62 || v.Preset != "p" {
		t.Errorf("created %+v, %v", v, err)
	}
	if got, err := c.Volume(ctx, name); err != nil || got.Name != name {
		t.Errorf("shown %+v, %v", got, err)
	}
	if got, err := c.UpdateVolume(ctx, name, UpdateVolume{Size: 5, Name: "n"}); err != nil || got.Size != 5 || got.Name != "n" || got.Owner != name {
		t.Errorf("updated %+v, %v", got, err)
	}
	if err := c.DeleteVolume(ctx, name, true); err != nil {
		t.Error(err)
	}
	if err := c.CreatePreset(ctx, Preset{Name: "p", Policies: []Policy{{4, 2, 5, 6}}, ChunkSize: 3}); err != nil {
		t.Error(err)
	}
	if l, err := c.Presets(ctx); err != nil || len(l) != 1 || l[0].Policies[0] != (Policy{4, 2, 5, 6}) || l[0].ChunkSize != 3 {
		t.Errorf("presets %+v, %v", l, err)
	}
	if n, err := c.Namespace(ctx, name); err != nil || n.Name != name {
		t.Errorf("namespace %+v, %v", n, err)
	}
	if l, err := c.Objects(ctx, "n/s", "p&=", "a b", 7); err != nil || l[0].Name != "n/s|p&=|a b|7" {
		t.Errorf("objects %+v, %v", l, err)
	}
	if o, err := c.Object(ctx, "n/s", "sco/00 1/ü"); err != nil || o.Name != "n/s|sco/00 1/ü" {
		t.Errorf("object %+v, %v", o, err)
	}
	if l, err := c.Namespaces(ctx); err != nil || l == nil {
		t.Errorf("namespaces %v, %v", l, err)
	}
	if l, err := c.OSDs(ctx); err != nil || l == nil {
		t.Errorf("disk servers %v, %v", l, err)
	}
	if s, err := c.Status(ctx); err != nil || s.Health != "ok" || s.Problems == nil {
		t.Errorf("status %+v, %v", s, err)
	}
}

// TestErrorCodes: what an error is survives the wire.
func TestErrorCodes(t *testing.T) {
	f := &fake{}
	c, _ := start(t, f, nil)
	for _, e := range []struct {
		err  error
		code string
	}{
		{fmt.Errorf("x: %w", fs.ErrNotExist), CodeNotFound},
		{fmt.Errorf("x: %w", fs.ErrExist), CodeExists},
		{fmt.Errorf("x: %w", fs.ErrInvalid), CodeInvalid},
		{fmt.Errorf("x: %w", syscall.EINVAL), CodeInvalid},
		{fmt.Errorf("x: %w", syscall.EBUSY), CodeBusy},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), CodeUnavailable},
		{errors.New("x"), CodeInternal},
		{fmt.Errorf("wrapped: %w", &Error{Code: CodeExists, Message: "x", Hint: "h"}), CodeExists},
	} {
		f.set(e.err)
		_, err := c.Volumes(t.Context())
		var got *Error
		if !errors.As(err, &got) || got.Code != e.code || !strings.Contains(got.Error(), "x") {
			t.Errorf("%v: %v, want code %s", e.err, err, e.code)
		}
	}
	if _, err := NewClient("127.0.0.1:1").Status(t.Context()); AsError(err).Code != CodeUnavailable {
		t.Errorf("no server: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestDrain(t *testing.T) {
	f := &fake{}
	c, _ := start(t, f, nil)
	var seen []DrainProgress
	show := func(p DrainProgress) { seen = append(seen, p) }
	if err := c.Drain(t.Context(), "v", false, show); err != nil || seen != nil {
		t.Errorf("without waiting: %v, %v", seen, err)
	}
	if err := c.Drain(t.Context(), "v", true, show); err != nil || len(seen) != 2 || seen[0].Left != 5 || !seen[1].Done {
		t.Errorf("waiting: %v, %v", seen, err)
	}
	f.drain = func(context.Context) error { return errors.New("disks are gone") }
	if err := c.Drain(t.Context(), "v", true, nil); err == nil || !strings.Contains(err.Error(), "disks are gone") {
		t.Errorf("failed half-way: %v", err)
	}
	f.set(fs.ErrNotExist)
	if err := c.Drain(t.Context(), "v", true, nil); AsError(err).Code != CodeNotFound {
		t.Errorf("refused: %v", err)
	}
	f.set(nil)
	// A client that goes away ends the drain.
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	f.drain = func(server context.Context) error {
		cancel()
		<-server.Done()
		close(ended)
		return server.Err()
	}
	if err := c.Drain(ctx, "v", true, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	<-ended
}

// exchange sends raw bytes and returns the status line and body of the answer, "" if the
// connection was closed without one.
func exchange(t *testing.T, addr, sent string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(conn, sent) // the server may hang up in the middle
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	b, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%.40q: %v", sent, err)
	}
	return string(b)
}

func post(path, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

func TestHostileClients(t *testing.T) {
	f := &fake{}
	c, addr := start(t, f, nil)
	get := func(method, path string) string {
		return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, path)
	}
	for name, e := range map[string]struct{ sent, want string }{
		"garbage":          {strings.Repeat("\x00\xff\x17garbage", 100), "400"},
		"binary":           {"NBDMAGIC\x00\x00\x00\x00\r\n\r\n", "400"},
		"empty":            {"", ""},
		"huge header":      {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 2*maxHeader) + "\r\n\r\n", "431"},
		"many headers":     {"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", maxHeader) + "\r\n", "431"},
		"huge body":        {post("/api/v1/volumes", `{"name":"`+strings.Repeat("a", 2*maxRequest)+`"}`), "400"},
		"negative length":  {"POST /api/v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "400"},
		"not json":         {post("/api/v1/volumes", "name=x"), "400"},
		"wrong type":       {post("/api/v1/volumes", `{"name":7}`), "400"},
		"negative size":    {post("/api/v1/volumes", `{"name":"a","size":-1}`), "400"},
		"size over 64 bit": {post("/api/v1/volumes", `{"name":"a","size":99999999999999999999}`), "400"},
		"unknown field":    {post("/api/v1/volumes", `{"name":"a","colour":"red"}`), "400"},
		"deep":             {post("/api/v1/volumes", strings.Repeat(`[`, 20000)), "400"},
		"no body":          {post("/api/v1/volumes", ""), "400"},
		"two values":       {post("/api/v1/volumes", `{"name":"a"}{"name":"b"}`), "400"},
		"unknown method":   {get("BREW", "/api/v1/volumes"), "404"},
		"wrong method":     {get("PUT", "/api/v1/volumes"), "404"},
		"unknown path":     {get("GET", "/api/v2/volumes"), "404"},
		"bad limit":        {get("GET", "/api/v1/namespaces/n/objects?limit=99999999999999999999"), "400"},
		"limit 0":          {get("GET", "/api/v1/namespaces/n/objects?limit=0"), "400"},
		"without force":    {get("DELETE", "/api/v1/volumes/v?force=maybe"), "409"},
		"foreign page":     {"POST /api/v1/volumes HTTP/1.1\r\nHost: 127.0.0.1:10800\r\nOrigin: http://evil.example\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 26\r\n\r\n{\"name\":\"csrf\",\"size\":4096}", "403"},
		"health":           {get("GET", "/healthz"), "200"},
		"ready":            {get("GET", "/readyz"), "200"},
	} {
		answer := exchange(t, addr, e.sent)
		if status, _, _ := strings.Cut(strings.TrimPrefix(answer, "HTTP/1.1 "), " "); status != e.want {
			t.Errorf("%s: answer %.200q, want status %s", name, answer, e.want)
		}
	}
	if len(f.volumes) != 0 {
		t.Errorf("a bad request made volumes: %v", f.volumes)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// TestSlowClients: more peers than there are places, which send a byte or nothing and wait, keep
// nobody out; those that have waited for longest make room.
func TestSlowClients(t *testing.T) {
	c, addr := start(t, &fake{}, nil)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for i := range 2 * maxConnections {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		if _, err := io.WriteString(conn, "G"[:i%2]); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("beside %d slow clients: %v", len(conns), err)
	}
	if took := time.Since(began); took > 4*time.Second { // their headers have 5 s
		t.Errorf("it waited %v for slow clients", took)
	}
	if n, err := conns[0].Read(make([]byte, 1)); err == nil {
		t.Errorf("the oldest one was told %d bytes, and not sent away", n)
	}
}

// TestCrowd: a connection with a request in work keeps its place, and then others wait; the one
// that was quiet for longest makes room; Close ends who waits.
func TestCrowd(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newCrowd(ln, 2)
	accepted := make(chan *member)
	var accept sync.WaitGroup
	accept.Go(func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c.(*member)
		}
	})
	dial := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	dial()
	first := <-accepted
	first.work(true)
	quiet := dial()
	second := <-accepted
	dial()
	third := <-accepted
	if n, err := quiet.Read(make([]byte, 1)); err == nil {
		t.Errorf("the quiet one read %d bytes, and was to make room", n)
	}
	third.work(true)
	dial()        // has to wait
	for range 2 { // giving back twice must not free two places
		if err := errors.Join(second.Close(), third.Close()); err != nil {
			t.Error(err)
		}
	}
	fourth := <-accepted
	fourth.work(true)
	l.mu.Lock()
	if l.taken != 2 || l.quiet.Len() != 0 {
		t.Errorf("%d places taken, %d quiet", l.taken, l.quiet.Len())
	}
	l.mu.Unlock()
	dial()
	fourth.work(false) // answered: it can make room now
	fifth := <-accepted
	fifth.work(true)
	dial() // waits, until the listener closes
	if err := errors.Join(l.Close(), first.Close(), fifth.Close()); err != nil {
		t.Error(err)
	}
	for c := range accepted { // perhaps the one that waited, in the place of one that ended
		_ = c.Close()
	}
	accept.Wait()
}

func TestNotReady(t *testing.T) {
	_, addr := start(t, &fake{}, errors.New("still starting"))
	answer := exchange(t, addr, "GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 503") || !strings.Contains(answer, "still starting") {
		t.Errorf("answer %q", answer)
	}
}

// TestForeignServer: the client meets something that is not Scoria.
func TestForeignServer(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"html":   func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"404":    func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"500":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); fmt.Fprint(w, `{"code":""}`) },
		"hangup": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: h}
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.Serve(ln) }()
		c := NewClient(ln.Addr().String())
		_, err = c.Status(t.Context())
		var e *Error
		if !errors.As(err, &e) || e.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.Drain(t.Context(), "v", true, nil); err == nil {
			t.Errorf("%s: drained", name)
		}
		_ = srv.Close()
		<-done
	}
}

// FuzzDecode: request bodies of any kind are decoded or refused, never worse.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"name":"a","size":4096}`))
	f.Add([]byte(`{"name":"p","policies":[{"k":4,"m":2,"c":5,"x":6}],"chunk_size":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, err := range []error{decodeFrom[CreateVolume](b), decodeFrom[UpdateVolume](b), decodeFrom[Preset](b)} {
			if err != nil && AsError(err).Code != CodeInvalid {
				t.Error(err)
			}
		}
	})
}

func decodeFrom[T any](b []byte) error {
	r, err := http.NewRequest(http.MethodPost, "/", bytes.NewReader(b))
	if err != nil {
		return err
	}
	in, err := decode[T](r)
	if err == nil {
		_, err = json.Marshal(in)
	}
	return err
}
