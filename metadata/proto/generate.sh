#!/bin/sh
# Generates the Go code of the schemas here. Needs protoc; the plugins are built from the
# versions that go.mod names.
set -eu
cd "$(dirname "$0")"
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
go build -o "$tools/" google.golang.org/protobuf/cmd/protoc-gen-go
go build -o "$tools/" google.golang.org/grpc/cmd/protoc-gen-go-grpc
PATH="$tools:$PATH" protoc -I . --go_out=../.. --go_opt=module=scoria \
	--go-grpc_out=../.. --go-grpc_opt=module=scoria meta.proto abm.proto nsm.proto
