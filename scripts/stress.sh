#!/bin/bash
# usage: scripts/stress.sh [SECONDS]   crash, model and stress tests again and again
# Seeds are printed by the tests that fail. SCORIA_STRESS=1 makes single tests longer.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-300}
export SCORIA_STRESS=${SCORIA_STRESS:-1}
end=$((SECONDS + seconds)) round=0
while :; do
	round=$((round + 1))
	echo "stress: round $round"
	go test -count=1 -timeout 15m -run 'Stress|Crash|Model|Random|Torn|Soak' ./internal/... ./nbd/... ./volumedriver/... ./alba/... ./metadata/... |
		grep -v -e 'no test files' -e 'no tests to run' || { echo "stress: FAILED in round $round"; exit 1; }
	[ $SECONDS -lt $end ] || break
done
echo "stress: $round rounds without a failure"
