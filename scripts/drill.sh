#!/bin/bash
# Fault drills on running systems, of one process and of several: scripts/e2e/drill.
# usage: scripts/drill.sh [SECONDS] [flags of build/e2e-drill]...   about ten minutes by default; the report is build/drill.json
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}
[ $# = 0 ] || shift
mkdir -p build
go build -o build/e2e-drill ./scripts/e2e/drill
exec build/e2e-drill -for "${seconds}s" -report build/drill.json "$@"
