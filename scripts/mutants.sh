#!/bin/bash
# usage: scripts/mutants.sh [SECONDS]          the mutation check: all that scripts/mutants/RESULT.md does not tell of
#                                              the sources as they are, or as much of it as SECONDS allow; the next run goes on
#        scripts/mutants.sh sample SECONDS     some of them, whatever RESULT.md says; another part for each commit, so that CI sees all in time
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = sample ]; then
	exec go run ./scripts/mutants -budget "$2s" -start "$(git rev-list --count HEAD 2>/dev/null || date +%j)"
fi
exec go run ./scripts/mutants -table scripts/mutants/RESULT.md -budget "${1:-0}s"
