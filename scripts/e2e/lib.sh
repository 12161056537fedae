# Shared by the end-to-end scripts; source it. SERVER chooses the server: scoria (default),
# nbdkit or qemu-nbd (files, as stand-ins that show that the test itself is right).
# shellcheck shell=bash
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
SERVER=${SERVER:-scoria}
SCORIA=${SCORIA:-$root/bin/scoria}
server_pid="" clean_up=()

say() { printf '%s: %s\n' "$test_name" "$*"; }
die() { say "FAILED: $*" >&2; exit 1; }
need() { # need COMMAND...: without them the test says what it skips and ends well
	local c lack=()
	for c; do command -v "$c" >/dev/null || lack+=("$c"); done
	[ ${#lack[@]} = 0 ] || { say "SKIPPED: missing ${lack[*]} (scripts/deps.sh installs them)"; exit 0; }
}
clock() { date +%s%N; }
# figure START WHAT [BYTES]: prints how long it took
figure() {
	local ms=$((($(clock) - $1) / 1000000))
	say "$2: $((ms / 1000)).$(printf %03d $((ms % 1000))) s$([ -z "${3:-}" ] || echo ", $(($3 / 1000 / (ms + 1))) MB/s")"
}
free_port() {
	local p
	while :; do
		p=$((20000 + RANDOM % 20000))
		(exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null || { echo $p; return; }
	done
}
begin() { # begin NAME
	test_name=$1
	mkdir -p "$root/build/e2e"
	work=$(mktemp -d "$root/build/e2e/$1.XXXXXX")
	mkdir -p "$work/disks"
	port=$(free_port) admin=127.0.0.1:$(free_port)
	trap finish EXIT
	trap 'exit 130' INT TERM
	[ "$SERVER" != scoria ] || [ -x "$SCORIA" ] || { say "SKIPPED: no $SCORIA (make build)"; exit 0; }
}
finish() {
	local rc=$? i
	set +e
	for ((i = ${#clean_up[@]} - 1; i >= 0; i--)); do eval "${clean_up[i]}"; done >/dev/null 2>&1
	server_stop KILL
	if [ $rc = 0 ]; then rm -rf "$work"; else say "kept $work (server.log is the server's)" >&2; fi
	exit $rc
}
later() { clean_up+=("$*"); } # later COMMAND: run at the end, last one first

server_start() {
	case $SERVER in
	scoria) "$SCORIA" serve --data "$work/data" --nbd "127.0.0.1:$port" --nbd "unix:$work/nbd.sock" --admin "$admin" >>"$work/server.log" 2>&1 & ;;
	nbdkit) nbdkit -f -i 127.0.0.1 -p "$port" file dir="$work/disks" >>"$work/server.log" 2>&1 & ;;
	qemu-nbd) qemu-nbd -b 127.0.0.1 -p "$port" -t -e 0 -f raw --discard=unmap -x "${volume:?}" "$work/disks/$volume" >>"$work/server.log" 2>&1 & ;;
	*) die "unknown SERVER=$SERVER" ;;
	esac
	server_pid=$!
	local i
	for ((i = 0; i < 600; i++)); do
		server_ready && return
		kill -0 "$server_pid" 2>/dev/null || die "the server ended before it was ready: $(tail -n 3 "$work/server.log")"
		sleep 0.1
	done
	die "the server is not ready after a minute"
}
server_ready() {
	local line
	if [ "$SERVER" != scoria ]; then
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null
		return
	fi
	{ exec 3<>"/dev/tcp/${admin%:*}/${admin##*:}"; } 2>/dev/null || return 1
	printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3
	IFS= read -r -t 5 line <&3 || line=
	exec 3>&-
	[[ $line == *" 200"* ]]
}
server_stop() { # server_stop SIGNAL: by process id, bounded
	[ -n "$server_pid" ] || return 0
	kill "-$1" "$server_pid" 2>/dev/null || true
	local i late=""
	{ # bash tells of killed jobs on stderr; we know
		for ((i = 0; i < 300; i++)); do
			kill -0 "$server_pid" || break
			sleep 0.1
		done
		[ $i -lt 300 ] || { late=1; kill -KILL "$server_pid"; }
		wait "$server_pid" || true
	} 2>/dev/null
	[ -z "$late" ] || say "the server did not end within 30 s of SIG$1" >&2
	server_pid=""
}
volume_create() { # volume_create NAME SIZE (SIZE as truncate takes it: 1G)
	if [ "$SERVER" = scoria ]; then
		"$SCORIA" volume create "$1" --size "$2" --admin "$admin"
	else
		truncate -s "$2" "$work/disks/$1"
	fi
}
uri() { echo "nbd://127.0.0.1:$port/$1"; }
