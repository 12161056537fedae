#!/bin/bash
# usage: scripts/fuzz.sh [TIME]   runs every fuzz target for TIME (10s) each
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-10s}
failed=0 count=0
while IFS=: read -r file name; do
	count=$((count + 1))
	echo "== ./$(dirname "$file") $name"
	go test "./$(dirname "$file")" -run '^$' -fuzz "^$name\$" -fuzztime "$time" || failed=1
done < <(git ls-files -co --exclude-standard '*_test.go' | xargs -r grep -oHE '^func Fuzz[A-Za-z0-9_]+' | sed 's/:func /:/' | sort)
echo "fuzz: $count targets, $time each, $([ $failed = 0 ] && echo no finding || echo FINDINGS, see above)"
exit $failed
