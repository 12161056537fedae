package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxAnswer bounds what a Client reads of an answer, in bytes.
const maxAnswer = 64 << 20

// Client talks to the admin address of a Scoria server. Its errors are *Error, with
// CodeUnavailable when the server cannot be reached.
type Client struct {
	addr string
	http *http.Client
}

// NewClient returns a client of the server at addr (HOST:PORT).
func NewClient(addr string) *Client {
	return &Client{addr: addr, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
}

// do sends a request with in as JSON body (nil: none) and decodes the answer into out (nil: ignored).
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // fully read below, or of no interest any more
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return &Error{Code: CodeInternal, Message: fmt.Sprintf("%s %s at %s: answer is not understood: %v", method, path, c.addr, err), Hint: "is this the admin address of a Scoria server of this version?"}
	}
	return nil
}

func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.addr+path, body)
	if err != nil {
		return nil, &Error{Code: CodeInvalid, Message: fmt.Sprintf("admin address %q: %v", c.addr, err), Hint: "give HOST:PORT by --admin or SCORIA_ADMIN"}
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, &Error{Code: CodeUnavailable, Message: fmt.Sprintf("no answer from the Scoria server at %s: %v", c.addr, err), Hint: "is `scoria serve` running? Its address is given by --admin or SCORIA_ADMIN"}
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close() //nolint:errcheck // error answer, read below
	var e Error
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&e); err != nil || e.Code == "" {
		return nil, &Error{Code: CodeInternal, Message: fmt.Sprintf("%s %s at %s: HTTP %s", method, path, c.addr, resp.Status), Hint: "is this the admin address of a Scoria server of this version?"}
	}
	return nil, &e
}

// Volumes lists all volumes by name.
func (c *Client) Volumes(ctx context.Context) (v []Volume, err error) {
	err = c.do(ctx, http.MethodGet, "/api/v1/volumes", nil, &v)
	return v, err
}

// Volume tells all of one volume.
func (c *Client) Volume(ctx context.Context, name string) (v Volume, err error) {
	err = c.do(ctx, http.MethodGet, "/api/v1/volumes/"+url.PathEscape(name), nil, &v)
	return v, err
}

// CreateVolume makes a volume.
func (c *Client) CreateVolume(ctx context.Context, in CreateVolume) (v Volume, err error) {
	err = c.do(ctx, http.MethodPost, "/api/v1/volumes", in, &v)
	return v, err
}

// UpdateVolume grows or renames a volume.
func (c *Client) UpdateVolume(ctx context.Context, name string, in UpdateVolume) (v Volume, err error) {
	err = c.do(ctx, http.MethodPatch, "/api/v1/volumes/"+url.PathEscape(name), in, &v)
	return v, err
}

// DeleteVolume deletes a volume; with force also while clients hold it open.
func (c *Client) DeleteVolume(ctx context.Context, name string, force bool) error {
	path := "/api/v1/volumes/" + url.PathEscape(name)
	if force {
		path += "?force=true"
	}
	return c.do(ctx, http.MethodDelete, path, nil, nil)
}

// Drain starts a drain of a volume. With wait it returns when all that was written before
// is on the disk servers, and calls progress (if not nil) meanwhile.
func (c *Client) Drain(ctx context.Context, name string, wait bool, progress func(DrainProgress)) error {
	resp, err := c.send(ctx, http.MethodPost, fmt.Sprintf("/api/v1/volumes/%s/drain?wait=%t", url.PathEscape(name), wait), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end below
	if !wait {
		return nil
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var p DrainProgress
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return fmt.Errorf("drain of %s: progress not understood: %w", name, err)
		}
		if p.Error != "" {
			return &Error{Code: CodeInternal, Message: p.Error}
		}
		if progress != nil {
			progress(p)
		}
		if p.Done {
			return nil
		}
	}
	if err := errors.Join(lines.Err(), ctx.Err()); err != nil {
		return fmt.Errorf("drain of %s: connection to the server lost: %w", name, err)
	}
	return &Error{Code: CodeUnavailable, Message: fmt.Sprintf("drain of %s: the server ended before the drain did", name), Hint: "start it again; what is drained stays drained"}
}

// Presets lists all presets by name.
func (c *Client) Presets(ctx context.Context) (p []Preset, err error) {
	err = c.do(ctx, http.MethodGet, "/api/v1/presets", nil, &p)
	return p, err
}

// CreatePreset adds a preset.
func (c *Client) CreatePreset(ctx context.Context, p Preset) error {
	return c.do(ctx, http.MethodPost, "/api/v1/presets", p, nil)
}

// Namespaces lists all namespaces by id.
func (c *Client) Namespaces(ctx context.Context) (n []Namespace, err error) {
	err = c.do(ctx, http.MethodGet, "/api/v1/namespaces", nil, &n)
	return n, err
}

// Namespace tells all of one namespace, by name.
func (c *Client) Namespace(ctx context.Context, name string) (n Namespace, err error) {
	err = c.do(ctx, http.MethodGet, "/api/v1/namespaces/"+url.PathEscape(name), nil, &n)
	return n, err
}

// Objects lists objects of a namespace whose names start with prefix and follow after.
func (c *Client) Objects(ctx context.Context, namespace, prefix, after string, limit int) (o []Object, err error) {
	q := url.Values{"prefix": {prefix}, "after": {after}, "limit": {fmt.Sprint(limit)}}
	err = c.do(ctx, http.MethodGet, "/api/v1/namespaces/"+url.PathEscape(namespace)+"/objects?"+q.Encode(), nil, &o)
	return o, err
}

// Object tells all of one object.
func (c *Client) Object(ctx context.Context, namespace, name string) (o Object, err error) {
	parts := strings.Split(name, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	err = c.do(ctx, http.MethodGet, "/api/v1/namespaces/"+url.PathEscape(namespace)+"/objects/"+strings.Join(parts, "/"), nil, &o)
	return o, err
}

// OSDs lists the disk servers by id.
func (c *Client) OSDs(ctx context.Context) (o []OSD, err error) {
	err = c.do(ctx, http.MethodGet, "/api/v1/osds", nil, &o)
	return o, err
}

// Status tells the state of the system.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.do(ctx, http.MethodGet, "/api/v1/status", nil, &s)
	return s, err
}
