#!/bin/bash
# Builds bin/scoria: static, with the version in it.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -d cmd/scoria ]; then
	echo "build: cmd/scoria is not there yet; compiling the packages only" >&2
	exec go build ./...
fi
CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/scoria
echo "bin/scoria: $(du -h bin/scoria | cut -f1)"
