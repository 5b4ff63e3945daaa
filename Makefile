# Each target does its own set-up. A Rust toolchain and a C compiler are enough for `make demo`.
CARGO ?= cargo

.PHONY: help demo test lint bench deny check-tools

help:
	@echo "make demo    the 883-site incident on the embedded default, about two minutes after the build"
	@echo "make test    formatting, lints, docs and every test"
	@echo "make lint    formatting, lints and docs only"
	@echo "make bench   restore and read rates as ratios to their physical limits"
	@echo "make deny    licences and sources of all dependencies (installs cargo-deny if it is missing)"

check-tools:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs"; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing: install gcc or clang (Debian: apt-get install gcc)"; exit 1; }

demo: check-tools
	$(CARGO) build --release --locked -p muster-cli
	target/release/muster demo $(DEMO)

lint: check-tools
	@$(CARGO) fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@$(CARGO) clippy --version >/dev/null 2>&1 || rustup component add clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

test: lint
	tests/tools.sh
	$(CARGO) build --locked -p muster-cli
	$(CARGO) test --workspace --locked

bench: check-tools
	$(CARGO) run --release --locked -p muster-benches

deny: check-tools
	@command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --locked
	$(CARGO) deny --all-features check bans licenses sources
