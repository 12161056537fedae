// Package nbd serves block devices over NBD (Network Block Device, fixed newstyle).
//
// A Server accepts connections on any number of listeners, lets each client choose an
// export, and carries out its requests on the Device of that export. Names are resolved in
// one place, the Exports given to NewServer. The package knows nothing of Scoria: Device has
// only types of the standard library in its methods, so that a volume is a Device by its shape.
//
// # A connection
//
// One goroutine reads a connection. It takes as much as fits into a pooled buffer with one
// read, carries out every complete request in it that needs no waiting (TryReader, TryWriter;
// runs of WRITEs in one call, straight from the receive buffer), gathers the replies, and
// sends them with one write before it reads again. What may wait goes to a goroutine of its
// own, bounded per connection; whoever finishes writes its reply, and whoever is writing
// takes along all that became ready meanwhile. A connection that waits for its client holds
// no buffers.
//
// Bad requests are answered with errors, and only a stream that is out of step (a wrong
// magic) or a broken socket ends a connection. Everything is bounded: see Options.
//
// DESIGN.md has the reasons and what was refused.
package nbd
