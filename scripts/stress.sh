#!/bin/bash
# usage: scripts/stress.sh [SECONDS]   crash, model and stress tests, longer than `go test` runs them
# Up to two minutes only what keeps to a time is run: the volume driver's crash loop with new
# seeds, under the race detector for half of the time. From there on rounds of all stress tests with long
# settings (a round may take a quarter of an hour). Seeds are printed by the tests that fail.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-300}
if [ "$seconds" -le 120 ]; then
	half=$((seconds / 2))s
	SCORIA_STRESS=$half go test -count=1 -timeout 10m -run '^TestCrash(Concurrent)?$' ./volumedriver
	SCORIA_STRESS=$half go test -race -count=1 -timeout 10m -run '^TestCrash(Concurrent)?$' ./volumedriver
	exit 0
fi
end=$((SECONDS + seconds)) round=0
while :; do
	round=$((round + 1))
	echo "stress: round $round"
	SCORIA_STRESS=${SCORIA_STRESS:-5m} go test -count=1 -timeout 60m -run 'Stress|Crash|Model|Random|Torn|Soak' ./internal/... ./nbd/... ./volumedriver/... ./alba/... ./metadata/... |
		grep -v -e 'no test files' -e 'no tests to run' || { echo "stress: FAILED in round $round"; exit 1; }
	[ $SECONDS -lt $end ] || break
done
echo "stress: $round rounds without a failure"
