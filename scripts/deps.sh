#!/bin/bash
# Installs the Debian packages that the real-client tests use, where it may (root, apt-get,
# SCORIA_NO_APT unset). Says what is missing; that is no failure: those tests skip and say so.
set -euo pipefail
# command -> package
wanted="nbdinfo:libnbd-bin nbdcopy:libnbd-bin nbdfuse:libnbd-bin nbdsh:python3-libnbd nbdkit:nbdkit qemu-img:qemu-utils qemu-io:qemu-utils
 qemu-nbd:qemu-utils qemu-system-x86_64:qemu-system-x86 nbd-client:nbd-client fio:fio mkfs.ext4:e2fsprogs e2fsck:e2fsprogs mkfs.xfs:xfsprogs
 cpio:cpio socat:socat xz:xz-utils fusermount3:fuse3 losetup:mount"
missing() {
	local w
	for w in $wanted; do command -v "${w%%:*}" >/dev/null || [ -x "/usr/sbin/${w%%:*}" ] || [ -x "/sbin/${w%%:*}" ] || echo "$w"; done
	[ -e /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 || echo busybox:busybox-static
}
lack=$(missing)
if [ -z "$lack" ]; then
	echo "deps: all clients of the real-client tests are here"
	exit 0
fi
packages=$(sed 's/.*://' <<<"$lack" | sort -u | tr '\n' ' ')
if [ -n "${SCORIA_NO_APT:-}" ]; then
	why="SCORIA_NO_APT is set"
elif ! command -v apt-get >/dev/null; then
	why="this is no Debian (no apt-get)"
elif [ "$(id -u)" != 0 ]; then
	why="not root; run: sudo apt-get install -y --no-install-recommends $packages"
else
	why=""
	log=$(mktemp)
	export DEBIAN_FRONTEND=noninteractive
	echo "deps: installing $packages"
	# shellcheck disable=SC2086 # a list
	timeout 300 bash -c "apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages" >"$log" 2>&1 ||
		why="apt-get failed: $(tail -n 1 "$log")"
	rm -f "$log"
fi
lack=$(missing)
if [ -n "$lack" ]; then
	echo "deps: SKIPPED, tests that need them skip too: $(tr '\n' ' ' <<<"$lack")(${why:-still missing after the installation})"
fi
