#!/bin/bash
# Real clients on the host: qemu-img, nbdcopy, nbdinfo, nbdfuse + loop + ext4 with a real tree.
# SERVER=scoria|nbdkit; TREE (a folder to copy); SMALL=1 for a smoke test.
source "$(dirname "$0")/lib.sh"
begin clients
need qemu-img nbdcopy nbdinfo nbdfuse losetup mkfs.ext4 e2fsck
TREE=${TREE:-$(go env GOROOT)/src}
size=${SMALL:+256M} size=${size:-1200M}
bytes=$(numfmt --from=iec "$size")

image() { # a real image: an ext4 with a real tree in it, as qcow2
	local at; at=$(clock)
	truncate -s "$size" "$work/source.raw"
	mkfs.ext4 -q -F -E lazy_itable_init=0 -d "$TREE" "$work/source.raw" 2>"$work/mkfs.log" || die "cannot make the image: $(tail -n 1 "$work/mkfs.log")"
	qemu-img convert -O qcow2 "$work/source.raw" "$work/source.qcow2"
	rm "$work/source.raw"
	figure "$at" "made a source image of $size with $TREE"
}
qemu_img() {
	local at; at=$(clock)
	qemu-img convert -n -O raw "$work/source.qcow2" "$(uri clients)"
	figure "$at" "qemu-img convert" "$bytes"
	at=$(clock)
	qemu-img compare -q -f qcow2 -F raw "$work/source.qcow2" "$(uri clients)" || die "qemu-img compare: the volume differs from the image"
	figure "$at" "qemu-img compare: equal" "$bytes"
}
nbd_copy() {
	local at n=$((64 << 20)); at=$(clock)
	head -c $n /dev/urandom >"$work/random"
	truncate -s "$size" "$work/random"
	nbdcopy --flush "$work/random" "$(uri clients)"
	figure "$at" "nbdcopy to the volume" "$bytes"
	at=$(clock)
	nbdcopy "$(uri clients)" "$work/back"
	figure "$at" "nbdcopy from the volume" "$bytes"
	cmp "$work/random" "$work/back" || die "nbdcopy: what came back differs"
	rm "$work/random" "$work/back"
}
nbd_info() {
	nbdinfo --json "$(uri clients)" >"$work/info.json"
	[ "$(nbdinfo --size "$(uri clients)")" = "$bytes" ] || die "nbdinfo --size: $(nbdinfo --size "$(uri clients)"), want $bytes"
	nbdinfo --can flush "$(uri clients)" || die "FLUSH is not offered: no fsync would ever reach the server"
	local map; map=$(nbdinfo --map --totals "$(uri clients)")
	say "nbdinfo --map --totals: $(tr -s ' ' <<<"$map" | tr '\n' ';')"
	grep -q hole <<<"$map" || die "no hole in the map of a sparse image: BLOCK_STATUS tells nothing"
}
fuse_up() {
	mkdir -p "$work/fuse"
	rm -f "$work/fuse.pid"
	nbdfuse -P "$work/fuse.pid" "$work/fuse/disk" "$(uri clients)" >>"$work/fuse.log" 2>&1 &
	local i
	for ((i = 0; i < 100; i++)); do [ -s "$work/fuse.pid" ] && break; sleep 0.1; done
	[ -s "$work/fuse.pid" ] || die "nbdfuse: $(tail -n 1 "$work/fuse.log")"
	loop=$(losetup -f --show "$work/fuse/disk")
}
fuse_down() {
	if mountpoint -q "$work/mnt"; then umount "$work/mnt"; fi
	if [ -n "${loop:-}" ]; then losetup -d "$loop"; loop=""; fi
	if mountpoint -q "$work/fuse"; then umount "$work/fuse"; fi
	if [ -s "$work/fuse.pid" ]; then
		local pid i; pid=$(cat "$work/fuse.pid")
		for ((i = 0; i < 100; i++)); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
	fi
}
file_system() {
	if [ "$(id -u)" != 0 ] || [ ! -e /dev/fuse ] || ! losetup -f >/dev/null 2>&1; then
		say "SKIPPED ext4 over nbdfuse: needs root, /dev/fuse and a free loop device"
		return
	fi
	local at; at=$(clock)
	later fuse_down
	mkdir -p "$work/mnt"
	fuse_up
	mkfs.ext4 -q -F "$loop"
	mount "$loop" "$work/mnt"
	cp -a "$TREE" "$work/mnt/tree"
	sync -f "$work/mnt"
	(cd "$work/mnt/tree" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"$work/sums"
	(cd "$TREE" && sha256sum --quiet -c "$work/sums") || die "the copy differs from the tree"
	fuse_down
	figure "$at" "ext4 over nbdfuse, $(wc -l <"$work/sums") files copied"
	fuse_up
	e2fsck -fn "$loop" >"$work/fsck.log" 2>&1 || die "fsck: $(tail -n 2 "$work/fsck.log")"
	fuse_down
	server_stop TERM
	at=$(clock)
	server_start
	figure "$at" "restart until ready"
	fuse_up
	mount -o ro "$loop" "$work/mnt"
	(cd "$work/mnt/tree" && sha256sum --quiet -c "$work/sums") || die "files differ after the restart"
	fuse_down
	say "fsck clean, sha256 of all $(wc -l <"$work/sums") files equal after the restart"
}

volume=clients
[ "$SERVER" = scoria ] || volume_create clients "$size"
server_start
[ "$SERVER" != scoria ] || volume_create clients "$size"
image
qemu_img
nbd_copy
nbd_info
file_system
say "passed (SERVER=$SERVER)"
