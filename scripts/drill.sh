#!/bin/bash
# Fault drills on running systems of several processes.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -x scripts/drill/run.sh ]; then
	exec scripts/drill/run.sh
fi
echo "drill: there are no drills yet: they need the roles as separate processes. What one machine can show is in make e2e (kill -9, garbage)." >&2
exit 1
