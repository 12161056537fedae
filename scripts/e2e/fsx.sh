#!/bin/bash
# Random operations against a model: on the NBD export itself, and on ext4 and xfs on it, with the
# gateway killed in the middle. nbdkit's retry filter stands between, so that the file system lives on.
# SMALL=1 for a smoke test: the export, and ext4. OPS: operations per file.
source "$(dirname "$0")/lib.sh"
begin fsx
need nbdkit nbdfuse losetup mkfs.ext4 e2fsck
ops=${OPS:-${SMALL:+600}} ops=${ops:-10000}
seconds=${SMALL:+2s} seconds=${seconds:-15s}
fsx=$root/build/e2e-fsx
[ -x "$fsx" ] || (cd "$root" && go build -o build/e2e-fsx ./scripts/e2e/fsx)

block() {
	local at; at=$(clock)
	"$fsx" -nbd "127.0.0.1:$port" -export fsx -files 3 -ops "$ops" || die "on the export"
	figure "$at" "random operations on the export"
}
down() {
	if mountpoint -q "$work/mnt"; then umount "$work/mnt"; fi
	if [ -n "${loop:-}" ]; then losetup -d "$loop"; loop=""; fi
	if mountpoint -q "$work/fuse"; then umount "$work/fuse"; fi
	if [ -n "${kit:-}" ]; then kill "$kit" && wait "$kit"; kit=""; fi
}
up() {
	local i
	rm -f "$work/fuse.pid" "$work/kit.sock" "$work/kit.pid"
	nbdkit -f -P "$work/kit.pid" -U "$work/kit.sock" --filter=retry nbd hostname=127.0.0.1 port="$port" export=fsx retries=60 retry-delay=1 retry-exponential=no >>"$work/kit.log" 2>&1 &
	kit=$!
	for ((i = 0; i < 100; i++)); do [ -s "$work/kit.pid" ] && break; sleep 0.1; done
	nbdfuse -P "$work/fuse.pid" "$work/fuse/disk" "nbd+unix:///?socket=$work/kit.sock" >>"$work/fuse.log" 2>&1 &
	for ((i = 0; i < 100; i++)); do [ -s "$work/fuse.pid" ] && break; sleep 0.1; done
	[ -s "$work/fuse.pid" ] || die "nbdfuse: $(tail -n 1 "$work/fuse.log")"
	loop=$(losetup -f --show "$work/fuse/disk")
}
file_system() { # file_system TYPE MKFS... -- CHECK...
	local type=$1 make=() at pid
	shift
	while [ "$1" != -- ]; do make+=("$1"); shift; done
	shift
	at=$(clock)
	up
	"${make[@]}" "$loop" >"$work/mkfs.log" 2>&1 || die "$type: $(tail -n 1 "$work/mkfs.log")"
	mount -o discard "$loop" "$work/mnt"
	"$fsx" -ops "$ops" -for "$seconds" "$work/mnt" >"$work/fsx.log" 2>&1 &
	pid=$!
	sleep 1
	server_stop KILL
	server_start
	if ! wait $pid; then cat "$work/fsx.log" >&2; die "on $type"; fi
	say "$type: $(tail -n 1 "$work/fsx.log")"
	down
	up
	"$@" "$loop" >"$work/fsck.log" 2>&1 || die "fsck of $type: $(tail -n 2 "$work/fsck.log")"
	down
	figure "$at" "random operations on $type, gateway killed meanwhile, fsck clean"
}

volume=fsx
[ "$SERVER" = scoria ] || volume_create fsx 512M
server_start
[ "$SERVER" != scoria ] || volume_create fsx 512M
block
if [ "$(id -u)" != 0 ] || [ ! -e /dev/fuse ] || ! losetup -f >/dev/null 2>&1; then
	say "SKIPPED file systems: needs root, /dev/fuse and a free loop device"
	exit 0
fi
mkdir -p "$work/mnt" "$work/fuse"
later down
file_system ext4 mkfs.ext4 -q -F -- e2fsck -fn
if [ -z "${SMALL:-}" ] && command -v mkfs.xfs >/dev/null; then
	file_system xfs mkfs.xfs -q -f -- xfs_repair -n
fi
say "passed (SERVER=$SERVER)"
