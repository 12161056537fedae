#!/bin/bash
# Starts the whole one-machine system and makes sure that there is a volume `demo`.
# Ctrl-C stops everything; a second start finds the data again.
# DATA (./data), NBD (127.0.0.1:10809), ADMIN (127.0.0.1:10800), SIZE (10GiB) may be set.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DATA:-./data} nbd=${NBD:-127.0.0.1:10809} admin=${ADMIN:-127.0.0.1:10800} size=${SIZE:-10GiB}
bin=${SCORIA:-bin/scoria}
[ -x "$bin" ] || { echo "run: $bin is not there; make build" >&2; exit 1; }
mkdir -p "$data"
sock=$(realpath "$data")/nbd.sock
"$bin" serve --data "$data" --nbd "$nbd" --nbd "unix:$sock" --admin "$admin" &
pid=$!
stop() {
	trap - EXIT
	kill -TERM "$pid" 2>/dev/null || true
	wait "$pid" 2>/dev/null || true
}
trap stop EXIT
trap 'stop; exit 0' INT TERM

ready() { # bash's own sockets: nothing but Go, make and git is needed
	local line
	{ exec 3<>"/dev/tcp/${admin%:*}/${admin##*:}"; } 2>/dev/null || return 1
	printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3
	IFS= read -r -t 5 line <&3 || line=
	exec 3>&-
	[[ $line == *" 200"* ]]
}
for ((i = 0; i < 600; i++)); do
	ready && break
	kill -0 "$pid" 2>/dev/null || { wait "$pid" || rc=$?; echo "run: the server ended before it was ready" >&2; exit "${rc:-1}"; }
	sleep 0.1
done
ready || { echo "run: the server is not ready after a minute" >&2; exit 1; }
"$bin" volume show demo --admin "$admin" >/dev/null 2>&1 || "$bin" volume create demo --size "$size" --admin "$admin"
cat <<TEXT

Scoria serves the volume demo. The admin address is http://$admin (/metrics, /healthz, /readyz).

  NBD URI     nbd://$nbd/demo
              nbd+unix:///demo?socket=$sock

  nbdinfo     nbdinfo nbd://$nbd/demo
  QEMU        qemu-system-x86_64 ... -drive file=nbd://$nbd/demo,format=raw,if=virtio,cache=none,discard=unmap
  an image    qemu-img convert -n -O raw disk.qcow2 nbd://$nbd/demo
  nbd-client  modprobe nbd && nbd-client ${nbd%:*} ${nbd##*:} /dev/nbd0 -N demo
              or: $bin attach demo /dev/nbd0 --nbd $nbd
  nbdcopy     nbdcopy --flush disk.img nbd://$nbd/demo; nbdcopy nbd://$nbd/demo copy.img

Ctrl-C stops it.
TEXT
wait "$pid"
