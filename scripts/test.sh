#!/bin/bash
# Everything CI needs, in < 15 minutes on two cores. Exit code 0 only if all of it passed.
# SCORIA_STRESS_SECONDS (45) bounds the stress part, SCORIA_MUTANT_SECONDS (20) the sample of
# the mutation check; 0 leaves a part out.
set -euo pipefail
cd "$(dirname "$0")/.."
begin=$SECONDS failed=()
part() {
	local name=$1 at=$SECONDS
	shift
	echo "== $name"
	"$@" || { failed+=("$name"); echo "== $name FAILED" >&2; }
	echo "== $name: $((SECONDS - at)) s"
}
part dependencies scripts/deps.sh
part build scripts/build.sh
part lint scripts/lint.sh
part "unit tests" scripts/cover.sh
if [ "${SCORIA_STRESS_SECONDS:-45}" -gt 0 ]; then
	part "bounded stress" scripts/stress.sh "${SCORIA_STRESS_SECONDS:-45}"
fi
if [ "${SCORIA_MUTANT_SECONDS:-20}" -gt 0 ]; then
	part "sample of the mutation check" scripts/mutants.sh sample "${SCORIA_MUTANT_SECONDS:-20}"
fi
if [ -x bin/scoria ]; then
	part "end-to-end smoke" scripts/e2e/run.sh smoke
else
	echo "== end-to-end smoke: SKIPPED, there is no bin/scoria"
fi
echo "== test: $((SECONDS - begin)) s in all"
if [ ${#failed[@]} -gt 0 ]; then
	echo "== FAILED: ${failed[*]}" >&2
	exit 1
fi
echo "== all passed"
