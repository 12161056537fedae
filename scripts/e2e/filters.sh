#!/bin/bash
# Clients that are programs of others, one after the other on one volume: libnbd from Python, nbdkit's
# filters in front of Scoria, qemu-io, qemu-img (dd, map, bench), nbdcopy between two volumes, fio verify.
# SERVER=scoria|nbdkit; SMALL=1 for a smoke test.
source "$(dirname "$0")/lib.sh"
begin filters
need nbdkit nbdcopy nbdinfo qemu-img qemu-io
size=${SMALL:+96M} size=${size:-256M} # libnbd.py uses the first 64 MiB
bytes=$(numfmt --from=iec $size)

versions() {
	local c out all=()
	for c in nbdkit nbdinfo qemu-img fio nbd-client mkfs.ext4 mkfs.xfs; do
		command -v $c >/dev/null || continue
		case $c in
		mkfs.*) out=$($c -V 2>&1) ;;
		*) out=$($c --version 2>&1) ;;
		esac
		all+=("${out%%$'\n'*}")
	done
	say "versions: $(IFS=';'; echo "${all[*]}"); kernel $(uname -r)"
}
libnbd() {
	if ! /usr/bin/python3 -c 'import nbd' 2>/dev/null; then
		say "SKIPPED libnbd from Python (python3-libnbd)"
		return
	fi
	/usr/bin/python3 "$root/scripts/e2e/libnbd.py" "$(uri one)" || die "libnbd"
}
reset() { nbdcopy --flush "$work/image" "$(uri one)"; }
# through NAME [FILTER... PARAMETER=...]: serves the volume through nbdkit with filters, and sets kit_uri
through() {
	local filters=() params=() a i
	for a; do
		case $a in *=*) params+=("$a") ;; *) filters+=("--filter=$a") ;; esac
	done
	rm -f "$work/kit.sock" "$work/kit.pid"
	nbdkit -f -P "$work/kit.pid" -U "$work/kit.sock" "${filters[@]}" nbd uri="$(uri one)" "${params[@]}" >>"$work/kit.log" 2>&1 &
	kit=$!
	for ((i = 0; i < 100; i++)); do [ -s "$work/kit.pid" ] && break; sleep 0.05; done
	[ -s "$work/kit.pid" ] || die "nbdkit $*: $(tail -n 1 "$work/kit.log")"
	kit_uri="nbd+unix:///?socket=$work/kit.sock"
}
apart() { [ -z "${kit:-}" ] || { kill "$kit"; wait "$kit" || true; kit=""; }; }
same() { # same WHAT FILE URI
	nbdcopy "$3" "$work/back"
	cmp "$2" "$work/back" || die "$1: what came back differs"
}
filters() {
	local at; at=$(clock)
	reset
	through cow
	nbdcopy "$work/other" "$kit_uri" # stays in the filter
	same "cow, above" "$work/other" "$kit_uri"
	apart
	same "cow, below" "$work/image" "$(uri one)"
	through cache retry cache=writeback
	nbdcopy --flush "$work/other" "$kit_uri"
	same "cache, above" "$work/other" "$kit_uri"
	apart
	same "cache, below" "$work/other" "$(uri one)"
	through blocksize minblock=64K maxdata=256K
	qemu-io -f raw -c 'write -P 0x11 1234567 333' -c 'read -P 0x11 1234567 333' -c 'write -z 2M 100k' -c 'read -P 0 2M 100k' "$kit_uri" >"$work/io" || die "blocksize: $(cat "$work/io")"
	apart
	through truncate truncate=$((bytes / 2 + 512))
	[ "$(nbdinfo --size "$kit_uri")" = $((bytes / 2 + 512)) ] || die "truncate: size"
	qemu-io -f raw -c "write -P 0x22 $((bytes / 2)) 512" -c "read -P 0x22 $((bytes / 2)) 512" "$kit_uri" >"$work/io" || die "truncate: $(cat "$work/io")"
	apart
	if command -v sfdisk >/dev/null; then
		printf 'label: gpt\nsize=65536, start=2048\nstart=69632\n' | sfdisk -q "$work/parted" >"$work/sfdisk.log" 2>&1
		nbdcopy --flush "$work/parted" "$(uri one)"
		through partition partition=1
		[ "$(nbdinfo --size "$kit_uri")" = 33554432 ] || die "partition: size"
		head -c 33554432 "$work/other" >"$work/part"
		nbdcopy --flush "$work/part" "$kit_uri"
		same partition "$work/part" "$kit_uri"
		apart
		nbdcopy "$(uri one)" "$work/back"
		cmp -n 33554432 -i 0:1048576 "$work/part" "$work/back" || die "partition: not where it belongs"
		cmp -n 1048576 "$work/parted" "$work/back" || die "partition: the table changed"
	fi
	figure "$at" "nbdkit filters cow, cache, retry, blocksize, truncate, partition"
}
qemu() {
	local at; at=$(clock)
	reset
	qemu-io -f raw -c 'aio_write -P 1 0 64k' -c 'aio_write -P 2 64k 64k' -c aio_flush -c 'writev -P 3 128k 4k 12k 1k' -c 'write -z -u 1M 1M' -c 'discard 3M 1M' \
		-c 'write -f -P 4 5000001 17' -c flush -c 'read -P 1 0 64k' -c 'read -P 2 64k 64k' -c 'read -P 3 128k 17k' -c 'read -P 0 1M 1M' -c 'read -P 0 3M 1M' -c 'read -P 4 5000001 17' \
		"$(uri one)" >"$work/io" 2>&1 || die "qemu-io: $(cat "$work/io")"
	if grep -q -e failed -e Pattern "$work/io"; then die "qemu-io: $(cat "$work/io")"; fi
	qemu-img map -f raw --output=json "$(uri one)" >"$work/map.json"
	grep -q '"zero": true' "$work/map.json" || die "qemu-img map shows no hole"
	reset
	qemu-img dd -f raw -O raw bs=1M count=20 skip=3 if="$(uri one)" of="$work/dd" || die "qemu-img dd"
	cmp -n $((17 << 20)) -i 0:$((3 << 20)) "$work/dd" "$work/image" || die "qemu-img dd: differs" # count counts from the beginning
	qemu-img convert -f raw -O qcow2 "$(uri one)" "$work/copy.qcow2"
	qemu-img compare -q -f qcow2 -F raw "$work/copy.qcow2" "$(uri one)" || die "qemu-img convert from the volume: differs"
	qemu-img bench -f raw -t none -w -c 2000 -d 32 -s 4096 --flush-interval=100 "$(uri one)" >"$work/bench" || die "qemu-img bench"
	figure "$at" "qemu-io, qemu-img map, dd, convert, compare, bench"
}
copies() {
	local at; at=$(clock)
	reset
	nbdcopy --flush "$(uri one)" "$(uri two)"
	same "volume to volume" "$work/image" "$(uri two)"
	nbdcopy --connections=4 --requests=32 --request-size=65536 --destination-is-zero --flush "$work/image" "$(uri three)"
	same "four connections" "$work/image" "$(uri three)"
	figure "$at" "nbdcopy volume to volume, and by four connections"
}
fio_verify() {
	command -v fio >/dev/null || { say "SKIPPED fio"; return; }
	local at; at=$(clock)
	fio --name=v --ioengine=nbd --uri="$(uri one)" --thread --numjobs=2 --offset_increment=$((bytes / 2)) --size=$((bytes / 4)) --rw=randwrite --bsrange=512-64k --bs_unaligned \
		--iodepth=16 --fsync=64 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output="$work/fio" || die "fio verify: $(tail -n 5 "$work/fio")"
	figure "$at" "fio: random writes, verified by crc32c"
}

truncate -s $size "$work/image" "$work/other" "$work/parted"
dd if=/dev/urandom of="$work/image" bs=1M count=16 seek=2 conv=notrunc status=none
dd if=/dev/urandom of="$work/image" bs=777 count=999 seek=77777 conv=notrunc status=none
dd if=/dev/urandom of="$work/other" bs=1M count=40 conv=notrunc status=none
[ "$SERVER" = scoria ] || for v in one two three; do volume_create $v $size; done
server_start
[ "$SERVER" != scoria ] || for v in one two three; do volume_create $v $size >/dev/null; done
later apart
versions
libnbd
filters
qemu
copies
fio_verify
say "passed (SERVER=$SERVER)"
