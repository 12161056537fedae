#!/bin/bash
# Runs the unit tests; prints the summary line of each package, what failed, what was
# skipped and why, and at the end the number of tests and the coverage of each tree.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
go build -o build/cover ./scripts/cover
set +e
go test -json -timeout 5m -coverprofile=build/coverage.out ./... 2>build/test.err | build/cover -profile build/coverage.out
rc=("${PIPESTATUS[@]}")
set -e
cat build/test.err >&2
[ "${rc[0]}" = 0 ] || exit "${rc[0]}"
exit "${rc[1]}"
