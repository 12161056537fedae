package main

// nbdMutants break what the NBD server promises its clients.
var nbdMutants = []Mutant{
	{
		Name: "connections-unbounded", Contract: "C7", Breaks: "any number of connections is taken",
		File: "nbd/server.go",
		Old:  "	case len(s.conns) >= s.opts.MaxConns:\n", New: "	case len(s.conns) >= 1<<30:\n",
		Package: "nbd", Tests: "^TestMaxConns$",
	},
	{
		Name: "flush-of-own-connection-only", Contract: "C2", Breaks: "FLUSH does nothing on a connection that has not written",
		File: "nbd/work.go",
		Old:  "		c.dirty.Store(false)\n		return c.dev.Flush(c.ctx)\n", New: "		if !c.dirty.Swap(false) {\n			return nil\n		}\n		return c.dev.Flush(c.ctx)\n",
		Package: "nbd", Tests: "^TestRule33And42FlushCoversAllConnections$",
	},
	{
		Name: "fua-flag-dropped", Contract: "C2", Breaks: "the server does not pass FUA of a WRITE on",
		File: "nbd/work.go",
		Old:  "		return c.dev.WriteAt(c.ctx, data, off, fua)\n", New: "		return c.dev.WriteAt(c.ctx, data, off, fua && length == 1)\n",
		Package: "nbd", Tests: "^TestRule43FUA$",
	},
	{
		Name: "batch-takes-fua", Contract: "C2", Breaks: "a WRITE with FUA goes into a batch, which knows no FUA",
		File: "nbd/write.go",
		Old:  "	return c.tw != nil && req.Flags&wire.CmdFlagFUA == 0\n", New: "	return c.tw != nil\n",
		Package: "nbd", Tests: "^TestRule43FUA$",
	},
	{
		Name: "option-length-unchecked", Contract: "C7", Breaks: "an option of any length is read into memory",
		File: "nbd/handshake.go",
		Old:  "	if opt.Length > wire.MaxOptionPayload {", New: "	if opt.Length > 1<<31 {",
		Package: "nbd", Tests: "^TestRule09HugeOption$",
	},
	{
		Name: "failed-write-of-batch-answered-ok", Contract: "C1", Breaks: "the error of one write of a batch is not answered",
		File: "nbd/write.go",
		Old:  "		if err := b.errs[i]; err != nil {\n", New: "		if err := b.errs[0]; err != nil {\n",
		Package: "nbd", Tests: "^TestBatchAnswersEachWrite$",
	},
	{
		Name: "extended-length-cut", Contract: "C7", Breaks: "the length of an extended request is cut to 32 bits",
		File: "nbd/internal/wire/request.go",
		Old:  "Length: binary.BigEndian.Uint64(b[24:]),", New: "Length: uint64(uint32(binary.BigEndian.Uint64(b[24:]))),",
		Package: "nbd", Tests: "^TestRule26",
	},
	{
		Name: "extended-cookie-cut", Contract: "C6", Breaks: "an extended reply goes to the request with the lower half of its cookie",
		File: "nbd/internal/wire/request.go",
		Old:  "	dst = binary.BigEndian.AppendUint64(dst, req.Cookie)\n", New: "	dst = binary.BigEndian.AppendUint64(dst, uint64(uint32(req.Cookie)))\n",
		Package: "nbd", Tests: "^TestRule26",
	},
	{
		Name: "extended-reply-without-offset", Contract: "C6", Breaks: "an extended reply does not name the offset of its request",
		File: "nbd/internal/wire/request.go",
		Old:  "	dst = binary.BigEndian.AppendUint64(dst, req.Offset)\n	return binary.BigEndian.AppendUint64(dst, length)\n", New: "	dst = binary.BigEndian.AppendUint64(dst, 0)\n	return binary.BigEndian.AppendUint64(dst, length)\n",
		Package: "nbd", Tests: "^TestRule26",
	},
	{
		Name: "polls-beside-others", Contract: "C7", Breaks: "a connection polls its socket while others are busy",
		File: "nbd/poll.go",
		Old:  "	case p.alone < pollAfter || c.single < pollAfter || !c.srv.polls:", New: "	case c.single < pollAfter || !c.srv.polls:",
		Package: "nbd", Tests: "^TestPoller$",
	},
}
