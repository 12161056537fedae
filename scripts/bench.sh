#!/bin/bash
# Micro-benchmarks of the hot functions, with allocations (BENCH, a pattern, and BENCHTIME choose;
# BENCH=- leaves them out), then the comparison with other servers (scripts/bench/run.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
if [ "${BENCH:-.}" != - ]; then
	go test -run '^$' -bench "${BENCH:-.}" -benchmem -benchtime "${BENCHTIME:-0.2s}" ./... | grep -v 'no test files' | tee build/bench.txt
fi
for tool in fio nbdkit qemu-nbd qemu-img; do
	command -v "$tool" >/dev/null || { echo "bench: $tool is missing (make deps): the comparison is SKIPPED" >&2; exit 0; }
done
scripts/build.sh
exec scripts/bench/run.sh "$@"
