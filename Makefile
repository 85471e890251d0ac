# make test        all tests that need no root; installs what real peers need, when it may
# make test-root   the tests that need root; installs the programs for file systems, when it may
#                  POWER_CUTS=300 make test-root cuts the power so often instead of 60 times
# make lint        format and clippy, as CI asks for them
# make bench       the end-to-end benchmark
#
# One optimised profile and one set of features serve all, so that each crate is compiled once.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.PHONY: test test-root lint bench peers root-peers

CARGO ?= cargo
BUILD := --release --all-features
# program:Debian package:module of tests/real that needs it
PEERS := swaks:swaks:swaks smtp-source:postfix:postfix smtp-sink:postfix:postfix \
         dnsmasq:dnsmasq-base:dnsmasq curl:curl:curl python3:python3:python \
         prometheus:prometheus:prometheus promtool:prometheus:prometheus
# program:Debian package that tests/root needs
ROOT_PEERS := mkfs.xfs:xfsprogs mkfs.ext4:e2fsprogs e2fsck:e2fsprogs mount:mount

# Runs a suite and prints its time, whatever comes of it.
define SUITE
suite() {
	local name=$$1 start=$$SECONDS status=0; shift
	echo "== $$name"
	"$$@" || status=$$?
	echo "== $$name: $$((SECONDS - start)) s$$([ $$status = 0 ] || echo ', FAILED')"
	return $$status
}
missing() { # those of these peers that are not installed
	local peer
	for peer in "$$@"; do
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${peer%%:*}" >/dev/null || echo "$$peer"
	done
}
endef

test: peers
	$(SUITE)
	left_out=(); skip=()
	for peer in $$(missing $(PEERS)); do
		left_out+=("$${peer%%:*}"); skip+=(--skip "$${peer##*:}::")
	done
	failed=()
	suite build $(CARGO) test $(BUILD) --no-run
	suite 'unit tests' $(CARGO) test $(BUILD) --lib || failed+=(unit)
	suite 'documentation tests' $(CARGO) test $(BUILD) --doc || failed+=(doc)
	suite it $(CARGO) test $(BUILD) --test it || failed+=(it)
	suite 'real programs' $(CARGO) test $(BUILD) --test real -- "$${skip[@]}" || failed+=(real)
	suite faults $(CARGO) test $(BUILD) --test faults -- --nocapture || failed+=(faults)
	suite kill $(CARGO) test $(BUILD) --test kill -- --nocapture || failed+=(kill)
	if [ $${#failed[@]} -gt 0 ]; then echo "failed: $${failed[*]}"; exit 1; fi
	if [ $${#left_out[@]} -gt 0 ]; then
		echo "left out, because these programs are not installed: $${left_out[*]}"
		if [ "$${ALLOW_PARTIAL:-}" != 1 ]; then
			echo 'install them, or accept less with: make test ALLOW_PARTIAL=1'
			exit 1
		fi
	fi
	echo 'all suites passed'

# Installs the Debian packages of the missing programs, when it may. No service is started.
root-peers: WANTED = $(ROOT_PEERS)
peers: WANTED = $(PEERS)
peers root-peers:
	$(SUITE)
	packages=$$(for peer in $$(missing $(WANTED)); do echo "$$peer" | cut -d: -f2; done | sort -u)
	[ -n "$$packages" ] || exit 0
	echo "missing Debian packages:" $$packages
	command -v apt-get >/dev/null || { echo 'no apt-get here: install them yourself'; exit 0; }
	root=()
	if [ "$$(id -u)" != 0 ]; then
		sudo -n true 2>/dev/null || { echo 'neither root nor sudo without a password: install them yourself'; exit 0; }
		root=(sudo -n)
	fi
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $$policy ]; then
		trap '"$${root[@]}" rm -f '$$policy EXIT
		printf '#!/bin/sh\nexit 101\n' | "$${root[@]}" tee $$policy >/dev/null
		"$${root[@]}" chmod 755 $$policy
	fi
	"$${root[@]}" apt-get update -q || true
	"$${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$packages || true

test-root: root-peers
	$(SUITE)
	runner=()
	if [ "$$(id -u)" != 0 ]; then
		sudo -n true 2>/dev/null || { echo 'make test-root needs root, or sudo without a password'; exit 1; }
		settings=$$(for name in POWER_CUTS SEED KEEP_CUTS; do [ -z "$${!name:-}" ] || printf ', "%s"' "$$name=$${!name}"; done)
		runner=(--config 'target."cfg(all())".runner = ["sudo", "-n", "env"'"$$settings]")
	fi
	suite root $(CARGO) test "$${runner[@]}" $(BUILD) --test root -- --nocapture

lint:
	$(SUITE)
	suite format $(CARGO) fmt --check
	suite clippy $(CARGO) clippy --release --all-targets --all-features -- -D warnings

bench:
	$(CARGO) bench --bench relay
