# The commands of this repository; `make help` lists them.
# Invariant: `make check` never writes to the tree. What is built or downloaded goes to $(CACHE), outside the checkout.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

CACHE := $(or $(QUARRY_CACHE),$(HOME)/.cache/quarry)
export QUARRY_CACHE := $(CACHE)
export CARGO_TARGET_DIR := $(CACHE)/target
export PYTHONDONTWRITEBYTECODE := 1

# One profile for all that tests, so that nothing is compiled twice, and one for what is run and measured, which takes longer to
# link; the lock file is law.
FLAGS := --release --locked
DIST_FLAGS := --profile dist --locked
# Checkouts share the target directory, so each keeps the binaries that it runs and tests under its own name.
OWN := $(CACHE)/bin/$(shell printf %s "$(CURDIR)" | cksum | cut -d' ' -f1)
BIN := $(OWN)/quarry
TESTED := $(OWN)/tested/quarry
# Where `make run` keeps its disk: ignored by git, removed with the checkout.
DATA := $(or $(QUARRY_DATA),$(CURDIR)/.quarry)
PYTHON := $(CACHE)/venv-clients/bin/python
DENY := $(shell command -v cargo-deny || echo $(CACHE)/tools/bin/cargo-deny)
# The end-to-end tests, in the order in which they begin, two at a time; `make e2e LEGS=crash_loop` runs one.
LEGS := swift_tree openstack_cli cluster_volumes cluster_eventual cluster_survives cluster_splits cluster_grows cluster_policies cluster_power_loss cluster_groups cluster_disk_out crash_loop cluster_openstack cluster_migrate nbd_volumes cluster_users openstack_volumes cluster_join corruption
# Further arguments: `make run ARGS="--ports auto"`, `make fuzz ARGS="..."`.
ARGS :=

.PHONY: help run test check fix bench fuzz soak install build build-tested setup fmt-check clippy deny tidy unit e2e clean-cache

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

run: build ## Build and start one node on $(DATA) (QUARRY_DATA=DIR, ARGS="...")
	@exec "$(BIN)" dev --data "$(DATA)" $(ARGS)

test: ## Everything a change must pass: check, unit and integration tests, real clients
	@.ci/setup build deny clients
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory e2e

check: ## Formatting, lints, dependencies, layering and sizes; changes nothing
	@.ci/setup build deny
	@$(MAKE) --no-print-directory fmt-check tidy deny clippy

fix: setup ## Format, and apply what clippy can
	cargo clippy $(FLAGS) --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

bench: build ## Measure; one JSON line per scenario (ARGS="engine --size 4K", ARGS=--help)
	@cargo run $(DIST_FLAGS) -p quarry-bench -- --quarry "$(BIN)" $(ARGS)

fuzz: setup ## Random inputs and histories from seeds, some minutes (ARGS="store --seed 7")
	cargo build $(FLAGS) -p quarry-fuzz
	@fuzz="$(CARGO_TARGET_DIR)/release/quarry-fuzz"; \
	if [ -n "$(ARGS)" ]; then exec "$$fuzz" $(ARGS); fi; \
	"$$fuzz" run --seconds 20 --save "$(CACHE)" && "$$fuzz" store --seconds 60 && "$$fuzz" cluster --seconds 60 && \
	"$$fuzz" volume --seconds 20 && "$$fuzz" blocks --seconds 30

soak: build ## Hours of kill -9 on the real binary, beside simulated stores, clusters and volumes (ROUNDS=500, SEED=..., SECONDS_OF_STORE=3600, SECONDS_OF_CLUSTER=3600, SECONDS_OF_VOLUME=600, SECONDS_OF_BLOCKS=3600)
	@.ci/setup clients
	cargo build $(FLAGS) -p quarry-fuzz
	@fuzz="$(CARGO_TARGET_DIR)/release/quarry-fuzz"; \
	"$$fuzz" store --seconds $(or $(SECONDS_OF_STORE),3600) & store=$$!; \
	"$$fuzz" cluster --seconds $(or $(SECONDS_OF_CLUSTER),3600) & cluster=$$!; \
	"$$fuzz" volume --seconds $(or $(SECONDS_OF_VOLUME),600) & volume=$$!; \
	"$$fuzz" blocks --seconds $(or $(SECONDS_OF_BLOCKS),3600) & blocks=$$!; \
	ROUNDS=$(or $(ROUNDS),500) $(PYTHON) node/tests/e2e/crash_loop.py "$(BIN)" || { kill $$store $$cluster $$volume $$blocks; exit 1; }; \
	wait $$store; wait $$cluster; wait $$volume; wait $$blocks

install: build ## Put the program into $(PREFIX)/bin, /usr/local/bin by default, and its unit for systemd beside it
	@prefix="$(or $(PREFIX),/usr/local)"; to="$(DESTDIR)$$prefix"; root=; \
	{ mkdir -p "$$to/bin" 2>/dev/null && [ -w "$$to/bin" ]; } || root=sudo; \
	$$root install -D -m 755 "$(BIN)" "$$to/bin/quarry"; echo "$$to/bin/quarry is installed"; \
	sed "s|/usr/local/bin|$$prefix/bin|" node/quarry.service | \
	  $$root install -D -m 644 /dev/stdin "$$to/lib/systemd/system/quarry.service"; \
	echo "$$to/lib/systemd/system/quarry.service runs it with /etc/quarry/quarry.toml: systemctl enable --now quarry"

clean-cache: ## Remove everything that was built or downloaded, RocksDB too
	rm -rf "$(CACHE)"

# --- parts of the above ---

setup:
	@.ci/setup build

build: setup
	@cargo build $(DIST_FLAGS) -p quarry-node --bin quarry
	@mkdir -p "$(dir $(BIN))" && install -m 755 "$(CARGO_TARGET_DIR)/dist/quarry" "$(BIN)"

build-tested: setup
	@cargo build $(FLAGS) -p quarry-node --bin quarry
	@mkdir -p "$(dir $(TESTED))" && install -m 755 "$(CARGO_TARGET_DIR)/release/quarry" "$(TESTED)"

fmt-check:
	cargo fmt --all --check

# Needs no crate, so it is compiled alone: an answer in seconds.
tidy:
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	  CARGO_MANIFEST_DIR="$(CURDIR)/fuzz" rustc --edition 2024 --test -o "$$scratch/tidy" fuzz/tests/tidy/main.rs && \
	  "$$scratch/tidy" --show-output

# The advisory database is fetched from the network; without one the other three checks still count.
deny:
	@if [ ! -x "$(DENY)" ]; then echo "deny: SKIPPED, cargo-deny is not installed and could not be"; exit 0; fi; \
	"$(DENY)" --locked check --hide-inclusion-graph licenses bans sources; \
	if timeout 120 "$(DENY)" --locked fetch db >/dev/null 2>&1; then \
	  "$(DENY)" --locked check --hide-inclusion-graph --disable-fetch advisories; \
	else \
	  echo "deny: advisories skipped, their database cannot be reached from here"; \
	fi

clippy:
	cargo clippy $(FLAGS) --workspace --all-targets -- -D warnings

unit:
	cargo test $(FLAGS) --workspace

e2e: build-tested
	@.ci/setup clients
	@$(PYTHON) node/tests/e2e/run_legs.py "$(TESTED)" $(LEGS)
