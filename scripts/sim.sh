#!/bin/bash
# usage: scripts/sim.sh seeds N      simulate the whole system with N fresh seeds
#        scripts/sim.sh soak TIME    ... until TIME (30m, 2h) is over; every second batch under the race detector
# Batches run in processes of their own, since a simulated disk server that dies leaves memory
# behind. A failure prints its plan, a smaller one, and how to replay it.
set -euo pipefail
cd "$(dirname "$0")/.."
pkg=./cmd/scoria/internal/sim batch=25
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
go test -c -o "$dir/sim" $pkg
run() { (cd $pkg && "$@" -test.run '^TestSim$' -test.v -test.timeout 0); }
case "${1:-}" in
seeds)
	left=${2:-200}
	while [ "$left" -gt 0 ]; do
		n=$((left < batch ? left : batch))
		SCORIA_SIM_SEEDS=$n run "$dir/sim" | grep -v '^ *run_test.go:[0-9]*: seed'
		left=$((left - n))
	done
	;;
soak)
	go test -race -c -o "$dir/race" $pkg
	seconds=$(echo "${2:-1h}" | awk '/h$/{print $1 * 3600} /m$/{print $1 * 60} /s$/{print $1 + 0}')
	end=$((SECONDS + seconds))
	while [ $SECONDS -lt $end ]; do
		for binary in "$dir/sim" "$dir/race"; do
			left=$((end - SECONDS))
			if [ $left -gt 0 ]; then
				SCORIA_SIM_FOR=$((left < 180 ? left : 180))s run "$binary" | grep -v '^ *run_test.go:[0-9]*: seed'
			fi
		done
	done
	;;
*)
	echo "usage: scripts/sim.sh seeds N | soak TIME" >&2
	exit 2
	;;
esac
