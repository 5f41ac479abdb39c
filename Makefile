# What to run. `make` alone prints this list.

CARGO ?= cargo
DIR ?= target/dev-site
FUZZ_SECONDS ?= 60
MOVES ?= 2000
HISTORIES ?= 2000
EVENTS ?= 300
SEED ?= 1
KILLS ?= 300
PARTITIONS ?= 100
FREEZES ?= 50
DBFAILOVERS ?= 20
ALLOCATIONS ?= 1000000
COUNTERS ?= 100000000

.DEFAULT_GOAL := help
.PHONY: adversary advisories allocate bench bootstrap breaks build check demo deny deb dev disasters disasters-full fuzz handbook help hostile interop interop-meter kryoptic measure proto rotation-drill simulate site-keys-drill test test-deb test-deploy transmit

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

bootstrap: ## Install what is missing to build and test: a C compiler, make, SoftHSM, PostgreSQL
	@scripts/bootstrap.sh

build: bootstrap ## Build the programs
	$(CARGO) build --bins

demo: build ## A whole site from nothing: decrypts every published telegram, refuses the forged ones
	@$(CARGO) run --quiet --bin kms-demo -- demo

dev: build ## A server to develop against, kept in DIR (default target/dev-site); Ctrl-C stops it
	@$(CARGO) run --quiet --bin kms-demo -- dev $(DIR)

test: build ## All tests, with SoftHSM; ends with one line of counts
	@scripts/test.sh

check: ## Formatting, lints, and what deny.toml says about dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(MAKE) deny

deny: ## Licences, sources and doors between crates (installs cargo-deny if it is missing)
	@$(CARGO) deny --version >/dev/null 2>&1 || { \
	  echo "cargo-deny is missing: installing it with cargo (some minutes, once)"; \
	  $(CARGO) install cargo-deny --locked; }
	$(CARGO) deny --all-features check bans licenses sources
	$(CARGO) deny --manifest-path proto/generate/Cargo.toml check licenses sources

advisories: ## Known vulnerabilities of dependencies; fetches the RustSec database
	$(CARGO) deny --all-features check advisories

bench: build ## The figures of benches/README.md
	$(CARGO) bench --package benches

hostile: bootstrap ## Hostile load, with and without a certificate, beside an honest caller, by the other site too; some eight minutes
	@$(CARGO) build --release --package kms-server --package kms-client --package softhsm-tests --bins
	@$(CARGO) run --quiet --release --package softhsm-tests --bin kms-hostile

breaks: build ## A stream of 200 messages, broken at each of them in each manner, both ways: some minutes
	BREAKS=all $(CARGO) test --package softhsm-tests --test breaks -- --nocapture --test-threads 1

proto: ## Write proto/src/generated anew, after a change of a .proto file
	$(CARGO) run --quiet --locked --manifest-path proto/generate/Cargo.toml

KEYS ?= 100000
KEYS_KILLS ?= 100
site-keys-drill: ## Rotate block secrets, then the site KEK, over KEYS meters while the server is killed KEYS_KILLS (100) times each
	$(CARGO) build --locked --workspace --bins
	SITE_KEYS_KEYS=$(KEYS) SITE_KEYS_KILLS=$(KEYS_KILLS) $(CARGO) nextest run --locked --workspace --test site_keys --no-capture

METERS ?= 10000
DIALECTS ?= two
rotation-drill: build ## Campaigns over simulated meters: DIALECTS (one, two, all) times every cut, then METERS (10000) in a storm by SEED (1)
	METERS=$(METERS) DIALECTS=$(DIALECTS) SEED=$(SEED) $(CARGO) nextest run --locked --workspace --test rotation_drill --no-capture

fuzz: ## Fuzz the APDU parser, FUZZ_SECONDS (60) a target; wants cargo-fuzz and a nightly compiler
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { \
	  echo "cargo-fuzz is missing: installing it with cargo"; $(CARGO) install cargo-fuzz --locked; }
	@for target in $$($(CARGO) fuzz list); do \
	  mkdir -p fuzz/target/found/$$target; \
	  $(CARGO) +nightly fuzz run $$target fuzz/target/found/$$target fuzz/corpus/$$target -- \
	    -max_len=2048 -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

deb: ## The Debian package in target/deb/, of a release build
	@CARGO="$(CARGO)" scripts/deb.sh

test-deb: build ## Install the package in a clean Debian and run the service there; root, and a mirror once
	@scripts/test-deb.sh

test-deploy: ## Try deploy/: the unit's exposure, account, firewall, PostgreSQL's settings; root
	@scripts/test-deploy.sh

interop: build ## The Python client against a server; python3, and PyPI once
	@scripts/test-interop.sh

interop-meter: ## Two other stacks change the simulated meter's keys; python3, and PyPI once
	@CARGO="$(CARGO)" scripts/test-interop-meter.sh

adversary: build ## A game against a writer of the database: MOVES (2000) at random by SEED (1), each database
	@MOVES=$(MOVES) SEED=$(SEED) $(CARGO) test --package softhsm-tests --test adversary -- \
	  --nocapture --test-threads=1

disasters: build ## Two sites by the real programs through KILLS (300), PARTITIONS (100), FREEZES (50) by SEED (1); some 15 minutes
	@WORLD=simple KILLS=$(KILLS) PARTITIONS=$(PARTITIONS) FREEZES=$(FREEZES) SEED=$(SEED) $(CARGO) test --package softhsm-tests \
	  --test disasters -- --nocapture

disasters-full: build kryoptic ## The same over namespaces, PostgreSQL with a standby, SoftHSM and Kryoptic; DBFAILOVERS (20); root; some 20 minutes
	@WORLD=full KILLS=$(KILLS) PARTITIONS=$(PARTITIONS) FREEZES=$(FREEZES) DBFAILOVERS=$(DBFAILOVERS) SEED=$(SEED) \
	  $(CARGO) test --package softhsm-tests --test disasters -- --nocapture

kryoptic: ## Build Kryoptic, a token of another vendor for tests, and print where it is; some minutes, once
	@CARGO="$(CARGO)" scripts/kryoptic.sh

simulate: ## Two sites through HISTORIES (2000) disasters of EVENTS (300) each, from SEED (1) on; prints what hit what
	@$(CARGO) run --quiet --release --package simulator -- $(HISTORIES) $(SEED) $(EVENTS)

allocate: ## COUNTERS (100000000) simulated counters through such disasters, from SEED (1) on; none twice
	@$(CARGO) run --quiet --release --package simulator -- 1 $(SEED) $(EVENTS) $(COUNTERS)

transmit: ## ALLOCATIONS (1000000) counters through kills and promotions of two real sites, none twice
	@TRANSMIT_ALLOCATIONS=$(ALLOCATIONS) $(CARGO) test --package softhsm-tests --test transmitting -- --nocapture

measure: ## Length of functions and files, parameters: what they are, and whether the bounds are kept
	@scripts/measure.py

handbook: ## Every start-up error is in docs/HANDBOOK.md, every setting in deploy/kms.toml, no dead link
	@scripts/test-handbook.py
