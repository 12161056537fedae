# usage: libnbd.py URI   every command of the protocol through libnbd, good and malformed, and
# what it must answer. Run with Debian's python3, to which python3-libnbd belongs.
import errno
import random
import sys

import nbd

MB = 1 << 20


def check(what, ok, *rest):
    if not ok:
        print("libnbd: FAILED:", what, *rest, file=sys.stderr)
        sys.exit(1)


def fails(what, f, *want):
    try:
        f()
    except nbd.Error as e:
        check(what, e.errno in want, e.errno, e.string)
        return
    check(what, False, "succeeded")


h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
size = h.get_size()
check("structured replies", h.get_structured_replies_negotiated())
check("base:allocation", h.can_meta_context("base:allocation"))
for what in ("flush", "fua", "trim", "zero", "fast_zero", "df", "cache", "multi_conn"):
    check("can " + what, getattr(h, "can_" + what)())
check("block sizes", h.get_block_size(nbd.SIZE_MINIMUM) == 1 and h.get_block_size(nbd.SIZE_PREFERRED) >= 512)


def extents(off, n, flags=0):
    got = []
    h.block_status(n, off, lambda ctx, o, e, err: got.extend(e), flags)
    return got


# Everything becomes a hole, then the map follows what is done.
h.trim(64 * MB, 0)
check("trimmed is a hole", extents(0, 64 * MB)[1] == 3, extents(0, 64 * MB))
check("holes read as zeroes", h.pread(MB, 3 * MB) == bytes(MB))
data = random.randbytes(3 * MB)
h.pwrite(data, 5 * MB)
h.pwrite(data[:777], 20 * MB + 123, nbd.CMD_FLAG_FUA)
check("written reads back", h.pread(3 * MB, 5 * MB) == data)
check("unaligned write keeps its neighbours", h.pread(1000, 20 * MB) == bytes(123) + data[:777] + bytes(100))
e = extents(0, 64 * MB)
check("map adds up", sum(e[0::2]) == 64 * MB, e)
check("map: hole, data, hole", e[1] == 3 and e[0] <= 5 * MB and e[3] == 0, e)
check("one extent when asked", len(extents(0, 64 * MB, nbd.CMD_FLAG_REQ_ONE)) == 2)
h.zero(MB, 5 * MB)
h.zero(MB, 6 * MB, nbd.CMD_FLAG_NO_HOLE)
h.zero(MB, 7 * MB - 100, nbd.CMD_FLAG_FAST_ZERO)
check("zeroes", h.pread(3 * MB, 5 * MB) == bytes(3 * MB - 100) + data[3 * MB - 100 :])

# A structured read may come in chunks, with DF it may not.
h.pwrite(data, 30 * MB)
seen = bytearray(b"\xaa" * 4 * MB)


def chunk(buf, off, status, err):
    if status == nbd.READ_DATA or status == nbd.READ_HOLE:
        seen[off - 30 * MB : off - 30 * MB + len(buf)] = buf


h.pread_structured(4 * MB, 30 * MB, chunk)
check("chunks cover the read", bytes(seen) == data + bytes(MB))
chunks = []
h.pread_structured(MB, 32 * MB + 512 * 1024, lambda b, o, s, err: chunks.append((o, len(b))), nbd.CMD_FLAG_DF)
check("DF: one chunk", chunks == [(32 * MB + 512 * 1024, MB)], chunks)

# What is malformed is answered, and the connection lives on.
h.set_strict_mode(0)
for name, f in {
    "read": lambda o, n: h.pread(n, o),
    "write": lambda o, n: h.pwrite(bytes(n), o),
    "trim": lambda o, n: h.trim(n, o),
    "zero": lambda o, n: h.zero(n, o),
    "cache": lambda o, n: h.cache(n, o),
    "block status": lambda o, n: h.block_status(n, o, lambda *a: None),
}.items():
    for off in (size, size - 1, size + 4096, 1 << 62, (1 << 63) - 4096):
        fails(f"{name} of 4096 at {off}", lambda: f(off, 4096), errno.errorcode[errno.EINVAL], errno.errorcode[errno.ENOSPC])
    check(name + ": the connection lives", h.pread(16, 30 * MB) == data[:16])
for name, f in {
    "unknown flags, read": lambda: h.pread(512, 0, 0x80),
    "unknown flags, write": lambda: h.pwrite(bytes(512), 0, 0x80),
    "unknown flags, flush": lambda: h.flush(0x80),
    "unknown flags, trim": lambda: h.trim(512, 0, 0x80),
}.items():
    fails(name, f, "EINVAL")
    check(name + ": the connection lives", h.pread(16, 30 * MB) == data[:16])

# Many requests at a time, answered in any order; every one by its own data.
want = [random.randbytes(4096) for _ in range(256)]
cookies = {h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(w)), 40 * MB + i * 4096): i for i, w in enumerate(want)}
while cookies:
    h.poll(-1)
    for c in list(cookies):
        if h.aio_command_completed(c):
            del cookies[c]
bufs = [nbd.Buffer(4096) for _ in want]
order = list(range(len(want)))
random.shuffle(order)
cookies = {h.aio_pread(bufs[i], 40 * MB + i * 4096): i for i in order}
while cookies:
    h.poll(-1)
    for c in list(cookies):
        if h.aio_command_completed(c):
            i = cookies.pop(c)
            check("read in flight", bytes(bufs[i].to_bytearray()) == want[i], i)
h.flush()

# A second connection sees what the first wrote, also before a flush.
h2 = nbd.NBD()
h2.connect_uri(sys.argv[1])
h.pwrite(b"first" * 100, 50 * MB)
check("the second connection sees it", h2.pread(500, 50 * MB) == b"first" * 100)
h2.shutdown()
h.shutdown()
print(f"libnbd: every command, {6 * 5 + 4} malformed requests answered")
