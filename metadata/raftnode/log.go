package raftnode

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hlog lets the Raft libraries log to a slog.Logger. They are chattier than we are: each
// level goes one lower, so that an election is news to who asks for details only.
type hlog struct {
	l    *slog.Logger
	name string
	args []any
}

func levelOf(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelWarn
	case hclog.Warn:
		return slog.LevelInfo
	case hclog.Info:
		return slog.LevelDebug
	}
	return slog.LevelDebug - 4
}

func (h *hlog) Log(level hclog.Level, msg string, args ...any) {
	ctx, lv := context.Background(), levelOf(level)
	if !h.l.Enabled(ctx, lv) {
		return
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	h.l.Log(ctx, lv, "raft: "+msg, args...)
}

func (h *hlog) Trace(msg string, args ...any) { h.Log(hclog.Trace, msg, args...) }
func (h *hlog) Debug(msg string, args ...any) { h.Log(hclog.Debug, msg, args...) }
func (h *hlog) Info(msg string, args ...any)  { h.Log(hclog.Info, msg, args...) }
func (h *hlog) Warn(msg string, args ...any)  { h.Log(hclog.Warn, msg, args...) }
func (h *hlog) Error(msg string, args ...any) { h.Log(hclog.Error, msg, args...) }

func (h *hlog) enabled(l hclog.Level) bool { return h.l.Enabled(context.Background(), levelOf(l)) }

func (h *hlog) IsTrace() bool      { return h.enabled(hclog.Trace) }
func (h *hlog) IsDebug() bool      { return h.enabled(hclog.Debug) }
func (h *hlog) IsInfo() bool       { return h.enabled(hclog.Info) }
func (h *hlog) IsWarn() bool       { return h.enabled(hclog.Warn) }
func (h *hlog) IsError() bool      { return h.enabled(hclog.Error) }
func (h *hlog) ImpliedArgs() []any { return h.args }
func (h *hlog) Name() string       { return h.name }

func (h *hlog) With(args ...any) hclog.Logger {
	return &hlog{l: h.l.With(args...), name: h.name, args: append(append([]any(nil), h.args...), args...)}
}

func (h *hlog) Named(name string) hclog.Logger {
	if h.name != "" {
		name = h.name + "." + name
	}
	return h.ResetNamed(name)
}

func (h *hlog) ResetNamed(name string) hclog.Logger {
	return &hlog{l: h.l, name: name, args: h.args}
}

func (h *hlog) SetLevel(hclog.Level)  {} // the slog handler decides
func (h *hlog) GetLevel() hclog.Level { return hclog.NoLevel }

func (h *hlog) StandardLogger(opts *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(h.StandardWriter(opts), "", 0)
}

func (h *hlog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return lineWriter{h} }

// lineWriter logs each write as one message.
type lineWriter struct{ h *hlog }

func (w lineWriter) Write(p []byte) (int, error) {
	w.h.Debug(string(p))
	return len(p), nil
}
