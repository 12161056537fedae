#!/bin/bash
# Micro-benchmarks of the hot functions, with allocations. BENCH (a pattern) and BENCHTIME choose.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
go test -run '^$' -bench "${BENCH:-.}" -benchmem -benchtime "${BENCHTIME:-0.2s}" ./... | grep -v 'no test files' | tee build/bench.txt
if [ -x scripts/bench/run.sh ]; then
	exec scripts/bench/run.sh
fi
echo "bench: the comparison with peers is not written yet (scripts/bench); above are micro-benchmarks only" >&2
