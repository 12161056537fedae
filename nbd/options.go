package nbd

import (
	"fmt"
	"log/slog"
	"time"
)

// Options are the limits of a Server. The zero value is a useful server; every field that is
// 0 gets the default that its comment names.
type Options struct {
	// Exports resolves names. Required.
	Exports Exports
	// Logger gets what an operator may want to know. Default: nothing is logged.
	Logger *slog.Logger

	// HandshakeTimeout ends a connection that has not chosen an export by then; the time that
	// Exports needs does not count. Default 30 s.
	HandshakeTimeout time.Duration
	// OpenTimeout bounds one call of Exports.Open or List. Default 60 s.
	OpenTimeout time.Duration
	// IdleTimeout ends a connection on which nothing is in flight and nothing was sent for so
	// long. Default 0: never, which is what clients that attach disks want.
	IdleTimeout time.Duration
	// StallTimeout ends a connection that is in the middle of something that only its client
	// can finish and has not moved a byte for so long: a half-sent request; or, only while
	// other connections wait for memory that it holds, replies that are not taken. Default
	// 60 s; negative: never.
	StallTimeout time.Duration
	// PressureTimeout is what StallTimeout becomes for a connection that holds memory for which
	// others wait: it may be long for a client that harms nobody but itself. Default 5 s, at
	// most StallTimeout.
	PressureTimeout time.Duration

	// MaxConns bounds connections of all listeners; more are closed at once. Default 8192.
	MaxConns int
	// MaxHandshakes bounds connections that have not chosen an export yet; beyond it, the one
	// that has taken longest is closed, so that silent peers cannot lock others out.
	// Default 256.
	MaxHandshakes int
	// MaxRequests bounds the requests of one connection that wait in the device. Default 128.
	MaxRequests int
	// MaxPayload is the largest READ or WRITE in bytes: a power of two from 1 MiB to 64 MiB.
	// Default 32 MiB, what every client expects.
	MaxPayload uint32
	// MaxConnBytes bounds the payload memory of one connection; at least MaxPayload and
	// 1 MiB more. Default 64 MiB.
	MaxConnBytes int64
	// MaxBytes bounds the payload memory of all connections; at least MaxConnBytes. Besides
	// it, a connection that is moving data has up to three buffers of 128 KiB. Default 1 GiB.
	MaxBytes int64
	// InlineLimit is how long FLUSH and other calls that may wait have to take on average to
	// be handed to a goroutine of their own when nothing else is pending on the connection.
	// Shorter ones are carried out by the reading goroutine, which saves a hop of 5-20 µs.
	// Default 1 ms; negative: always hand over.
	InlineLimit time.Duration
}

func (o *Options) ensureDefaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	def(&o.HandshakeTimeout, 30*time.Second)
	def(&o.OpenTimeout, time.Minute)
	def(&o.StallTimeout, time.Minute)
	def(&o.PressureTimeout, 5*time.Second)
	if o.PressureTimeout > o.StallTimeout {
		o.PressureTimeout = o.StallTimeout
	}
	def(&o.MaxConns, 8192)
	def(&o.MaxHandshakes, 256)
	def(&o.MaxRequests, 128)
	def(&o.MaxPayload, 32<<20)
	def(&o.MaxConnBytes, max(64<<20, 2*int64(o.MaxPayload)))
	def(&o.MaxBytes, max(1<<30, o.MaxConnBytes))
	def(&o.InlineLimit, time.Millisecond)
}

func def[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

func (o *Options) validate() error {
	switch {
	case o.Exports == nil:
		return fmt.Errorf("nbd: Options.Exports is not set")
	case o.MaxPayload < 1<<20 || o.MaxPayload > 64<<20 || o.MaxPayload&(o.MaxPayload-1) != 0:
		return fmt.Errorf("nbd: Options.MaxPayload %d is not a power of two from 1 MiB to 64 MiB", o.MaxPayload)
	case o.MaxConnBytes < int64(o.MaxPayload)+1<<20:
		return fmt.Errorf("nbd: Options.MaxConnBytes %d is below MaxPayload %d and 1 MiB", o.MaxConnBytes, o.MaxPayload)
	case o.MaxBytes < o.MaxConnBytes:
		return fmt.Errorf("nbd: Options.MaxBytes %d is below MaxConnBytes %d", o.MaxBytes, o.MaxConnBytes)
	case o.MaxConns < 1 || o.MaxHandshakes < 1 || o.MaxRequests < 1:
		return fmt.Errorf("nbd: Options.MaxConns, MaxHandshakes and MaxRequests must be at least 1")
	case o.HandshakeTimeout < 0 || o.OpenTimeout < 0 || o.IdleTimeout < 0:
		return fmt.Errorf("nbd: a time-out is negative")
	}
	return nil
}
