#!/bin/bash
# The comparison with other servers: `make bench`. Arguments go to the program (-help lists
# them), so that `scripts/bench/run.sh -modes steady,cold -targets scoria-remote` works too.
# SECS (3), ROUNDS (3), MODES (compare), TARGETS set the usual ones; OUT (build/bench) names the results.
# BENCH_PEERS are targets that run already, NAME=URI@PIDFILE, such as a Ceph cluster behind qemu-nbd;
# BENCH_PEERS=ceph starts one (scripts/bench/ceph.sh) and stops it at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -x bin/scoria ] || scripts/build.sh
mkdir -p build
go build -o build/scoria-bench ./scripts/bench
targets=${TARGETS:-scoria,nbdkit-mem,nbdkit-file,qemu-raw,qemu-qcow2}
peers=${BENCH_PEERS:-}
if [ "$peers" = ceph ]; then
	CEPH_DIR=$(mktemp -d "$PWD/build/ceph-XXXXXX")
	export CEPH_DIR
	trap 'scripts/bench/ceph.sh stop' EXIT
	trap 'exit 130' INT TERM
	peers=$(scripts/bench/ceph.sh start "${CEPH_SIZE:-1G}")
fi
build/scoria-bench -modes "${MODES:-compare}" -rounds "${ROUNDS:-3}" -secs "${SECS:-3}" \
	-targets "$targets${peers:+,$peers}" -out "${OUT:-build/bench}" "$@"
echo "bench: results are in ${OUT:-build/bench}.json, .md and .svg" >&2
