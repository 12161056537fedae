#!/bin/bash
# usage: scripts/mutants.sh [SECONDS]   the mutation check: all of it, or a sample of about SECONDS
# All of it also writes the table scripts/mutants/RESULT.md. The sample begins at another mutant for each commit, so that CI sees all of them in time.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
if [ $# = 0 ]; then
	exec go run ./scripts/mutants -json build/mutants.json -markdown scripts/mutants/RESULT.md
fi
exec go run ./scripts/mutants -budget "$1s" -start "$(git rev-list --count HEAD 2>/dev/null || date +%j)"
