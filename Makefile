# Each target does its own set-up. A Rust toolchain and a C compiler are enough for `make demo`; `make test` also needs
# PostgreSQL (installed where that can be done) and Go, which builds MinIO once.
CARGO ?= cargo

# Of `make soak`: how long it is.
MINUTES ?= 30

# Of `make faults`: races are two fifths of the rounds, 20 of 50.
ROUNDS ?= 50

# Of `make sim`: how many runs, and the seed of the first.
SEEDS ?= 1000
FIRST_SEED ?= 1

.PHONY: help demo demo-postgres services services-down test soak sim faults lint bench deny check-tools

help:
	@echo "make demo    the 883-site incident on the embedded default, about two minutes after the build"
	@echo "make demo-postgres  the same on PostgreSQL and MinIO"
	@echo "make test    formatting, lints, docs and every test"
	@echo "make services       PostgreSQL and MinIO on loopback, their data in .services"
	@echo "make services-down  stops them"
	@echo "make soak    a drill every minute for MINUTES=30 on both stacks, beside writers and with a server killed"
	@echo "make sim     SEEDS simulated runs from FIRST_SEED on, with crashes, faults and rivals (docs/simulator.md)"
	@echo "make faults  ROUNDS=50 incidents on both stacks under kill -9, restarts, races and a store that fails"
	@echo "make lint    formatting, lints and docs only"
	@echo "make bench   rates as ratios to limits and to the usual ways, on SQLite, PostgreSQL and MinIO; 15 minutes"
	@echo "make deny    licences and sources of all dependencies (installs cargo-deny if it is missing)"

check-tools:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs"; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing: install gcc or clang (Debian: apt-get install gcc)"; exit 1; }

demo: check-tools
	$(CARGO) build --release --locked -p muster-cli
	target/release/muster demo $(DEMO)

# Databases of the demo before go first: their replication slots cost the server. Places and credentials are what
# `muster-services status` prints: where they are, and the credentials to export.
demo-postgres: services
	$(CARGO) build --release --locked -p muster-cli
	@set -e; services=$$($(CARGO) run --quiet --locked -p muster-services -- status); \
	eval "$$(echo "$$services" | grep '^export ')"; \
	place() { echo "$$services" | awk -v name="$$1" '$$1 == name { print $$2 }'; }; \
	target/release/muster demo --postgres "$$(place PostgreSQL)" --drop muster_demo; \
	set -- --postgres "$$(place PostgreSQL)" --s3 "$$(place MinIO)" $(DEMO); \
	echo "target/release/muster demo $$*"; target/release/muster demo "$$@"

services: check-tools
	$(CARGO) run --quiet --locked -p muster-services -- up

services-down: check-tools
	$(CARGO) run --quiet --locked -p muster-services -- down

lint: check-tools
	@$(CARGO) fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@$(CARGO) clippy --version >/dev/null 2>&1 || rustup component add clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

test: lint
	tests/tools.sh
	$(MAKE) services
	$(CARGO) build --locked -p muster-cli
	$(CARGO) test --workspace --locked --no-fail-fast

soak: services
	$(CARGO) build --locked -p muster-cli
	MUSTER_SOAK_MINUTES=$(MINUTES) $(CARGO) test --locked -p muster-tests --test soak -- --nocapture

sim: check-tools
	$(CARGO) run --quiet --release --locked -p muster-sim -- --seeds $(SEEDS) --first-seed $(FIRST_SEED)

faults: services
	$(CARGO) build --locked -p muster-cli
	MUSTER_FAULT_ROUNDS=$(ROUNDS) $(CARGO) test --locked -p muster-tests --test faults --test postgres_faults --no-fail-fast \
		-- --nocapture --test-threads=1

bench: check-tools
	$(CARGO) run --release --locked -p muster-benches
	MUSTER_FLEETS=1000 $(CARGO) test --locked -p muster-forecast --test scheduler_figures -- --nocapture

deny: check-tools
	@command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --locked
	$(CARGO) deny --all-features check bans licenses sources
