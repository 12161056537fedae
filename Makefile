# Thin verbs; the work is in scripts/. Only Go, make and git are needed to build; `make test`
# installs what its real-client tests use where it may, and says what it skipped.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
FUZZTIME ?= 10s
STRESS_SECONDS ?= 300
DRILL_SECONDS ?= 600
SEEDS ?= 200
SOAK ?= 1h
BUILD := build

.PHONY: build run test race lint fmt fuzz bench e2e stress sim soak drill mutants cover proto deps clean help

help: ## this list
	@grep -hE '^[a-z0-9]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

build: ## the static binary bin/scoria
	@scripts/build.sh

run: build ## build, start a whole system under ./data, create the volume demo, say how to use it
	@scripts/run.sh

test: ## everything CI needs: dependencies, lint, architecture, unit tests, a bounded stress
	@scripts/test.sh

race: ## all tests under the race detector
	go test -race -timeout 20m ./...

lint: ## gofmt, go vet, staticcheck (pinned in go.mod), architecture tests
	@scripts/lint.sh

fmt: ## format the Go sources
	gofmt -w $$(git ls-files -co --exclude-standard '*.go' | grep -v '\.pb\.go$$')

fuzz: ## every fuzz target for FUZZTIME (10s) each
	@scripts/fuzz.sh $(FUZZTIME)

bench: ## micro-benchmarks, then Scoria beside other NBD servers
	@scripts/bench.sh

e2e: build ## real clients, a guest kernel, kill -9 and garbage against bin/scoria
	@scripts/e2e/run.sh

stress: ## crash, model and stress tests in a loop for STRESS_SECONDS (300)
	@scripts/stress.sh $(STRESS_SECONDS)

sim: ## the whole system in virtual time, under faults, with SEEDS (200) fresh seeds
	@scripts/sim.sh seeds $(SEEDS)

soak: ## the same for SOAK (1h), every second batch under the race detector
	@scripts/sim.sh soak $(SOAK)

drill: build ## fault drills on running systems for DRILL_SECONDS (600); the report is build/drill.json
	@scripts/drill.sh $(DRILL_SECONDS)

mutants: ## break every contract on purpose and see that tests notice; MUTANT_SECONDS=n: as much as that allows, then go on next time
	@scripts/mutants.sh $(MUTANT_SECONDS)

cover: ## tests with coverage by tree
	@scripts/cover.sh

proto: ## generate the messages again after a change of a .proto (needs protoc)
	go generate ./metadata/proto

deps: ## Debian packages of the real-client tests
	@scripts/deps.sh

clean: ## remove what was built (./data stays)
	rm -rf bin $(BUILD) coverage*.out
	go clean -testcache
