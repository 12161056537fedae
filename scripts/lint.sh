#!/bin/bash
# gofmt, go vet, staticcheck (version pinned in go.mod's tool block), architecture tests.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0
step() { echo "lint: $1" >&2; shift; "$@" || { failed=1; echo "lint: FAILED: $*" >&2; }; }

formatted() {
	local bad
	bad=$(git ls-files -co --exclude-standard '*.go' | while read -r f; do [ -e "$f" ] && echo "$f"; done | grep -v '\.pb\.go$' | xargs -r gofmt -l)
	[ -z "$bad" ] || { echo "not formatted (make fmt):"; echo "$bad"; return 1; }
}
shellscripts() {
	local f bad=0
	while read -r f; do bash -n "$f" || bad=1; done < <(git ls-files -co --exclude-standard '*.sh' .ci/run)
	return $bad
}
step gofmt formatted
step "shell syntax" shellscripts
step "go vet" go vet ./...
step staticcheck go tool staticcheck ./...
step architecture go test ./scripts/archtest
step "mutants apply" go test -run '^Test(MutantsApply|ResultIsOfThisTable)$' ./scripts/mutants
exit $failed
