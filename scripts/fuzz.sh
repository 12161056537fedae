#!/bin/bash
# usage: scripts/fuzz.sh [TIME]   runs every fuzz target for TIME (10s) each, and tells the executions
# An input that finds new code is made smaller by 100 tries only: without the limit, a target with
# long inputs spends all its time on that.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-10s}
failed=0 count=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
while IFS=: read -r file name; do
	count=$((count + 1))
	dir=$(dirname "$file")
	result=ok
	if ! go test "./$dir" -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 100x >"$log" 2>&1; then
		# On a loaded machine the go command may count the end of the time against the call that
		# was under way. A finding has an input.
		if grep -q 'context deadline exceeded' "$log" && ! grep -qE 'Failing input|panic|hung' "$log"; then
			result='ok (cut off)'
		else
			result=FINDING failed=1
			cat "$log"
		fi
	fi
	execs=$(grep -o 'execs: [0-9]*' "$log" | tail -1 | cut -d' ' -f2 || true)
	line=$(printf '%-45s %-24s %12s %s' "$dir" "$name" "${execs:-0}" "$result")
	echo "$line"
done < <(git ls-files -co --exclude-standard '*_test.go' | xargs -r grep -oHE '^func Fuzz[A-Za-z0-9_]+' | sed 's/:func /:/' | sort)
echo "fuzz: $count targets, $time each, $([ $failed = 0 ] && echo no finding || echo FINDINGS, see above)"
exit $failed
