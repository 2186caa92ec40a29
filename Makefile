# SPDX-License-Identifier: Apache-2.0
# A thin front for Meson: the targets that people type. `make help` lists them.

BUILD ?= build
JOBS ?= $(shell nproc)

all: setup $(BUILD)/build.ninja ## build everything
	@ninja -C $(BUILD) -j$(JOBS)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## install what is needed from Debian's packages (root)
	@tools/setup

$(BUILD)/build.ninja:
	@meson setup $(BUILD) >/dev/null

guest: all
	@tools/guest-image $(BUILD)/guest

demo: guest ## show a VM surviving the death of its host, on this machine (root)
	@tools/demo

check: setup ## all tests (root); the last line is "N passed, N failed, N skipped"
	@tools/check

nightly: setup ## what takes too long for check: hours (root)
	@tools/nightly

bench: guest ## measure what protection costs guests at work, against engine: remus (root, 20 minutes)
	@tools/bench-image $(BUILD)/bench-guest $(BUILD)/guest
	@bench/speed

bench-floor: guest ## take the slow-down of a compiling guest apart (root, 6 minutes)
	@tools/bench-image $(BUILD)/bench-guest $(BUILD)/guest
	@bench/floor

bench-basic: guest ## measure outage, activation, pause, latency and idle cost (root)
	@bench/basic

bench-disk: guest ## measure what replicated disks cost (root)
	@bench/disk

bench-encoder: all ## compare ways to encode dirty pages
	@bench/encoder

bench-large: guest ## measure what protecting a VM costs, by its size (root, 4 minutes)
	@bench/large

bench-link: all ## measure what encryption costs the link
	@bench/link

bench-scan: all ## measure how long it takes to find the pages that were written (root)
	@bench/scan

install: all ## install below DESTDIR
	@meson install -C $(BUILD) --no-rebuild $(if $(DESTDIR),--destdir $(abspath $(DESTDIR)))

clean: ## remove what was built
	@rm -rf $(BUILD) bench/out

.PHONY: all help setup guest demo check nightly bench bench-basic bench-disk bench-encoder bench-floor bench-large bench-link bench-scan install clean
