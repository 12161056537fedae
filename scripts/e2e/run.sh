#!/bin/bash
# usage: scripts/e2e/run.sh [smoke|all|clients|vm|crash|disks|drill|garbage]...
# The end-to-end tests against bin/scoria; SERVER=nbdkit tests the tests. smoke is what fits into
# `make test` (about a minute), all (the default) takes about ten. Each part is bounded in time.
set -euo pipefail
cd "$(dirname "$0")/../.."
SERVER=${SERVER:-scoria}
export SERVER
failed=()
part() { # part NAME SECONDS COMMAND...
	local name=$1 limit=$2 at=$SECONDS
	shift 2
	timeout --kill-after=30 "$limit" "$@" || { failed+=("$name"); echo "e2e: $name FAILED" >&2; }
	echo "e2e: $name: $((SECONDS - at)) s"
}
programs() {
	mkdir -p build
	go build -o build/e2e-crash ./scripts/e2e/crash
	go build -o build/e2e-garbage ./scripts/e2e/garbage
	CGO_ENABLED=0 go build -o build/e2e-fsx ./scripts/e2e/fsx # static: it runs in the guest too
}
clients() {
	part clients "${1:-900}" scripts/e2e/clients.sh
	part "clients, filters" "${1:-900}" scripts/e2e/filters.sh
	part "random operations" "${1:-900}" scripts/e2e/fsx.sh
}
crash() { part "kill -9" 600 build/e2e-crash -server "$SERVER" -rounds "$1"; }
prefix() { part "kill -9, one writer" 600 build/e2e-crash -server "$SERVER" -rounds "$1" -connections 1 -depth 1; }
wipe() { # only scoria keeps the volume elsewhere
	[ "$SERVER" != scoria ] || part "kill -9 and the write buffer gone" 600 build/e2e-crash -server scoria -rounds "$1" -wipe gateway
}
disks() { # two of six may go; damage may not reach the client
	[ "$SERVER" = scoria ] || return 0
	part "two disk servers gone" 300 build/e2e-crash -server scoria -lose 2
	part "bytes flipped on two disk servers" 300 build/e2e-crash -server scoria -flip 200
}
garbage() { part garbage 600 build/e2e-garbage -server "$SERVER" -for "$1"; }
drill() { # drill SECONDS [FLAG...]
	[ "$SERVER" = scoria ] || return 0
	local seconds=$1
	shift
	part drill $((seconds + 600)) scripts/drill.sh "$seconds" "$@"
}
vm() {
	part "guest, nbd-client" 700 scripts/e2e/vm/run.sh
	[ "$SERVER" != scoria ] || ATTACH=scoria part "guest, scoria attach" 700 scripts/e2e/vm/run.sh
}
[ $# -gt 0 ] || set -- all
programs
for what; do
	case $what in
	smoke)
		export SMALL=1
		TREE=${TREE:-$(go env GOROOT)/src/net} clients 180
		crash 3
		garbage 5s
		drill 1 -only 'kill gateway while,cut clients,cut disk,kill everything'
		;;
	all) clients; crash 20; prefix 5; wipe 10; disks; garbage 60s; drill 120; vm ;;
	clients) clients ;;
	crash) crash 20; prefix 5; wipe 10 ;;
	disks) disks ;;
	drill) drill 600 ;;
	garbage) garbage "${GARBAGE:-180s}" ;;
	vm) vm ;;
	*) echo "e2e: unknown part $what; see the head of $0" >&2; exit 2 ;;
	esac
done
if [ ${#failed[@]} -gt 0 ]; then
	echo "e2e: FAILED: ${failed[*]}" >&2
	exit 1
fi
echo "e2e: passed (SERVER=$SERVER)"
