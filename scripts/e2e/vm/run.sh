#!/bin/bash
# The kernel's own NBD client: a guest attaches two volumes, makes ext4 and xfs, copies, syncs and
# loses power; the server restarts; a second boot checks every file. Software emulation (no KVM
# needed): correctness only. SERVER=scoria|nbdkit, ATTACH=nbd-client|scoria. With ATTACH=scoria a third
# boot writes while the server is killed and started again: attach has to reconnect, no write may fail.
source "$(dirname "$0")/../lib.sh"
ATTACH=${ATTACH:-nbd-client}
begin "vm-$ATTACH"
need qemu-system-x86_64 nbd-client mkfs.ext4 e2fsck mkfs.xfs xfs_repair cpio dpkg-deb apt-get
[ -e /bin/busybox ] || { say "SKIPPED: no /bin/busybox (busybox-static)"; exit 0; }
[ "$ATTACH" != scoria ] || [ -x "$SCORIA" ] || { say "SKIPPED: ATTACH=scoria needs $SCORIA (make build)"; exit 0; }

at=$(clock)
"$root/scripts/e2e/vm/image.sh" "$root/build/vm" >"$work/image.log" 2>&1 || { say "SKIPPED: no guest image: $(tail -n 1 "$work/image.log")"; exit 0; }
cp "$root/build/vm/initrd" "$work/initrd" # a run beside this one may make a new one
figure "$at" "$(tail -n 1 "$work/image.log")"

outage_done=""
boot() { # boot STEP
	local at pid i
	at=$(clock)
	qemu-system-x86_64 -M q35 -accel tcg,thread=multi -m 768 -smp 2 -display none -nodefaults -no-user-config -no-reboot \
		-serial "file:$work/console.$1" -kernel "$root/build/vm/vmlinuz" -initrd "$work/initrd" \
		-append "console=ttyS0 panic=-1 quiet e2e.step=$1 e2e.attach=$ATTACH e2e.port=$port" \
		-netdev user,id=n0,ipv6=off -device virtio-net-pci,netdev=n0,romfile= >"$work/qemu.$1" 2>&1 &
	pid=$!
	later "kill -KILL $pid"
	for ((i = 0; i < 3000; i++)); do
		kill -0 $pid 2>/dev/null || break
		if [ "$1" = outage ] && [ -z "$outage_done" ] && grep -aq '^guest: outage, please' "$work/console.$1"; then
			outage_done=1
			server_stop KILL
			server_start
		fi
		sleep 0.1
	done
	if kill -0 $pid 2>/dev/null; then
		kill -KILL $pid
		die "the guest ($1) was not done after 300 s: $(tail -n 3 "$work/console.$1")"
	fi
	wait $pid || die "qemu: $(tail -n 2 "$work/qemu.$1")"
	grep -a '^guest: ' "$work/console.$1" | tr -d '\r' | while read -r line; do say "$line"; done
	grep -aq '^E2E-OK' "$work/console.$1" || { tail -n 25 "$work/console.$1" >&2; die "step $1 in the guest"; }
	figure "$at" "boot with step $1"
}

volumes() { volume_create vmext4 400M; volume_create vmxfs 400M; }
[ "$SERVER" = scoria ] || volumes
server_start
[ "$SERVER" != scoria ] || volumes
boot write
server_stop KILL
server_start
boot verify
[ "$ATTACH" != scoria ] || boot outage
say "passed (SERVER=$SERVER, ATTACH=$ATTACH)"
