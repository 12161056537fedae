#!/bin/bash
# usage: scripts/e2e/vm/image.sh DIR
# Makes DIR/vmlinuz and DIR/initrd: Debian's cloud kernel, busybox and the tools of the guest.
# The kernel package is fetched once by apt-get and kept in DIR. No root needed.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)

kernel() {
	[ ! -e "$dir/vmlinuz" ] || return 0
	local package
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p' | grep '^linux-image-[0-9]') ||
		{ echo "image: apt knows no linux-image-cloud-amd64 (apt-get update?)" >&2; return 1; }
	(cd "$dir" && apt-get download -q -o APT::Sandbox::User=root "$package" >&2)
	rm -rf "$dir/kernel"
	dpkg-deb -x "$dir/$package"_*.deb "$dir/kernel"
	rm "$dir/$package"_*.deb
	cp "$dir"/kernel/boot/vmlinuz-* "$dir/vmlinuz"
}

# module NAME: copies it after what it depends on, and notes the order.
declare -A have=()
module() {
	local file deps d
	[ -z "${have[$1]:-}" ] || return 0
	have[$1]=1
	file=$(find "$dir/kernel/lib/modules" -name "${1//_/[-_]}.ko*" -print -quit)
	[ -n "$file" ] || return 0 # built in
	case $file in *.xz) xz -dk "$file"; file=${file%.xz} ;; esac
	deps=$(tr '\0' '\n' <"$file" | grep -a '^depends=' | cut -d= -f2 | tr ',' ' ')
	for d in $deps; do module "$d"; done
	cp "$file" "$tree/modules/$1.ko"
	echo "$1" >>"$tree/modules/order"
}

# tool PATH: copies a program with its libraries.
tool() {
	local lib
	mkdir -p "$tree/bin"
	cp -L "$1" "$tree/bin/$(basename "$1")"
	{ ldd "$1" 2>/dev/null || true; } | grep -oE '/[^ )]+' | sort -u | while read -r lib; do
		mkdir -p "$tree$(dirname "$lib")"
		cp -Lu "$lib" "$tree$lib"
	done
}

kernel
tree=$(mktemp -d "$dir/tree.XXXXXX")
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{bin,proc,sys,dev,mnt,modules,tmp,run}
cp /bin/busybox "$tree/bin/busybox"
for t in nbd-client mkfs.ext4 e2fsck mkfs.xfs xfs_repair; do tool "$(command -v "$t")"; done
mv "$tree/bin/mkfs.ext4" "$tree/bin/mke2fs" # before busybox makes its links
for t in mke2fs:mkfs.ext4; do ln -sf "${t%%:*}" "$tree/bin/${t##*:}"; done
[ ! -x "${SCORIA:-$root/bin/scoria}" ] || cp "${SCORIA:-$root/bin/scoria}" "$tree/bin/scoria"
[ ! -x "$root/build/e2e-fsx" ] || cp "$root/build/e2e-fsx" "$tree/bin/fsx"
for m in virtio_pci virtio_net virtio_blk nbd crc32c_generic libcrc32c xfs; do module "$m"; done
cp "$here/init" "$tree/init"
chmod +x "$tree/init"
(cd "$tree" && find . -print0 | cpio --null -o -H newc --quiet | gzip -1) >"$dir/initrd"
echo "image: $(du -h "$dir/vmlinuz" | cut -f1) kernel, $(du -h "$dir/initrd" | cut -f1) initrd, modules $(tr '\n' ' ' <"$tree/modules/order")"
