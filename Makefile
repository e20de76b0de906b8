# `make demo` and `make test` need nothing installed but the packages in the README's first line.
#
# Two environments, so that neither build touches the other: .venv holds the package as a user would install it;
# .venv-test holds it in editable form, its engine built with the invariants checked (umappy/_engine.abi3.so in the tree).
# Each is made again when what it was made from is newer than its stamp.

PYTHON ?= python3
JOBS ?= $(shell nproc)
STRESS_SECONDS ?= 600
DEMO ?=
PYTEST ?=
BENCH ?=
COMPARE ?=

PIP_INSTALL = bin/python -m pip --disable-pip-version-check install --quiet
ENGINE := umappy/engine/build.py $(wildcard umappy/engine/*.c umappy/engine/*.h)
PACKAGING := pyproject.toml setup.py setup.cfg MANIFEST.in
PYTHON_SOURCES := $(shell find umappy -name '*.py' -o -name '*.pyi')
C_SOURCES := $(wildcard umappy/engine/*.[ch] tests/engine/*.[ch] tests/crash/*.[ch])

.PHONY: help demo test lint format test-engine test-engine-asan test-engine-tsan test-python test-python-copy test-crash crash fuzz ceph stress nbd-loss bench bench-full bench-publish bench-compare bench-sort bench-targets bench-zstd bench-nbd packages clean

help:
	@echo 'make demo              sort a file larger than memory through a small budget  (DEMO="--size 8GiB --memory 1GiB")'
	@echo 'make test              linters, types, the tests of the engine and of the package'
	@echo 'make test-python       the tests of the package alone                          (PYTEST="-k flush")'
	@echo 'make test-python-copy  those that page, where pages are copied and not moved'
	@echo 'make test-engine       the C tests alone; also test-engine-asan, test-engine-tsan'
	@echo 'make test-crash        crashes, kill -9, failures and damage of compressed files  (SANITIZE=address)'
	@echo 'make crash             the same for long: kill -9 so many times, random crashes (KILLS=5000 STATES=50)'
	@echo 'make fuzz              files and servers that nobody would write                (FUZZ_SECONDS=3600)'
	@echo 'make ceph              the tests of stores over Ceph RBD: starts a cluster of one   (PYTEST="-k disk")'
	@echo 'make stress            the stress tests at their nightly length                (STRESS_SECONDS=600)'
	@echo 'make nbd-loss          NBD servers killed and stopped under a store, for long    (NBD_LOSS_SECONDS=600)'
	@echo 'make bench             umappy beside its peers, in minutes; tables, and plots in bench-report/   (BENCH="-k random")'
	@echo 'make bench-full        the same with more data, up to an hour'
	@echo 'make bench-publish     docs/performance.md and the table of the README, from JSON=bench-full.json'
	@echo 'make bench-compare     what became slower beside its peers                  (BASE=old.json COMPARE="--tolerance 0.4")'
	@echo 'make bench-sort        sorting against np.memmap under one memory limit        (BENCH="--rounds 5")'
	@echo 'make bench-targets     all speed targets against their peers      (BENCH="--rows sequential,take --quick")'
	@echo 'make bench-zstd        compressed files against blosc2, zarr, h5py and zstd      (BENCH="--rows random --quick")'
	@echo 'make bench-nbd         an NBD server against libnbd and nbdcopy               (BENCH="--rows random --quick")'
	@echo 'make lint, make format check, or mend, the style of Python and C'
	@echo 'make clean             remove environments and builds'

demo: .venv/installed
	.venv/bin/umappy demo $(DEMO)

test: lint test-engine test-crash test-python

lint: .venv-test/installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/clang-format --dry-run --Werror $(C_SOURCES)
	.venv-test/bin/mypy

format: .venv-test/installed
	.venv-test/bin/ruff check --fix-only .
	.venv-test/bin/ruff format .
	.venv-test/bin/clang-format -i $(C_SOURCES)

test-engine: packages
	$(MAKE) -j $(JOBS) -C tests/engine test

test-engine-asan: packages
	$(MAKE) -j $(JOBS) -C tests/engine test SANITIZE=address

test-engine-tsan: packages
	$(MAKE) -j $(JOBS) -C tests/engine test SANITIZE=thread

test-crash: packages
	$(MAKE) -j $(JOBS) -C tests/crash test SANITIZE=$(SANITIZE)

KILLS ?= 5000
STATES ?= 50
FUZZ_SECONDS ?= 3600
crash: packages
	$(MAKE) -C tests/crash kill states KILLS=$(KILLS) STATES=$(STATES)

fuzz: packages
	$(MAKE) -j $(JOBS) -C tests/crash fuzz FUZZ_SECONDS=$(FUZZ_SECONDS)

test-python: .venv-test/installed
	.venv-test/bin/pytest -n $(JOBS) --dist worksteal $(PYTEST)
	$(if $(PYTEST),,$(MAKE) test-python-copy)

# Again what pages in and out, by copying: kernels before 6.8 have nothing else. Not the tests whose subject is the
# process, its end and its descriptors, which are the same.
test-python-copy: .venv-test/installed
	UMAPPY_MECHANISM=copy .venv-test/bin/pytest -n $(JOBS) --dist worksteal --stress-seconds 2 tests/region \
	  $(addprefix tests/process/test_,fork.py memory.py mlock.py) $(PYTEST)

# Starts a Ceph of one node from Debian's packages, and serves its images with qemu-nbd. Not in CI.
ceph: .venv-test/installed
	tests/ceph/run .venv-test/bin/pytest -o 'pythonpath=tests/helpers .' -o faulthandler_timeout=300 tests/ceph $(PYTEST)

# What pytest collects of benchmarks/ (root, else nothing is capped): the JSON, tables here, the page with its plots in
# bench-report/. A benchmark that fails is told after them.
BENCH_PYTEST = .venv/bin/pytest benchmarks -o faulthandler_timeout=0 -W default --benchmark-quiet
bench: .venv/bench-installed
	$(BENCH_PYTEST) --scale quick --benchmark-json=bench.json $(BENCH); status=$$?; \
	  .venv/bin/python benchmarks/publish.py bench.json --docs bench-report && exit $$status

bench-full: .venv/bench-installed
	$(BENCH_PYTEST) --scale full --benchmark-json=bench-full.json $(BENCH); status=$$?; \
	  .venv/bin/python benchmarks/publish.py bench-full.json --docs bench-report && exit $$status

JSON ?= bench-full.json
bench-publish: .venv/bench-installed
	.venv/bin/python benchmarks/publish.py $(JSON) --docs docs --readme README.md

BASE ?=
NOW ?= bench.json
bench-compare: .venv/installed
	@test -n "$(BASE)" || { echo 'name the JSON of before: make bench-compare BASE=old.json' >&2; exit 2; }
	.venv/bin/python benchmarks/compare.py $(BASE) $(NOW) $(COMPARE)

# Sorts 2 GiB in a cgroup of 512 MiB, beside np.memmap, on a device that repeats (root).
bench-sort: .venv/installed
	.venv/bin/python benchmarks/sort_vs_memmap.py $(BENCH)

# Every target of the speed table against its peer (root); --help tells the rest.
bench-targets: .venv/installed
	.venv/bin/python benchmarks/targets.py $(BENCH)

# Compressed files and their targets, against peers that only this needs (root).
bench-zstd: .venv/bench-installed
	.venv/bin/python benchmarks/zstd.py $(BENCH)

# An NBD server, against libnbd and nbdcopy (root).
bench-nbd: .venv/installed
	.venv/bin/python benchmarks/nbd.py $(BENCH)

# One test at a time, each for its full length; the watchdog of pyproject.toml would end them before.
stress: .venv-test/installed
	.venv-test/bin/pytest -m stress --stress-seconds $(STRESS_SECONDS) \
	  -o faulthandler_timeout=$$(($(STRESS_SECONDS) + 300)) $(PYTEST)
	STRESS_SECONDS=$(STRESS_SECONDS) QUICKSORT_MIB=128 $(MAKE) -C tests/engine test \
	  TEST_SECONDS=$$(($(STRESS_SECONDS) + 300))

NBD_LOSS_SECONDS ?= 600
nbd-loss: .venv-test/installed
	.venv-test/bin/pytest -m stress --stress-seconds $(NBD_LOSS_SECONDS) \
	  -o faulthandler_timeout=$$(($(NBD_LOSS_SECONDS) + 300)) tests/stores/test_nbd_kill.py $(PYTEST)

packages:
	@missing=$$(bash tools/missing-packages $(PYTHON)) || { \
	  echo "Missing Debian packages: $$missing" >&2; echo "Install them: apt-get install $$missing" >&2; exit 1; }

.venv/made .venv-test/made: | packages
	$(PYTHON) -m venv --clear $(@D)
	touch $@

# pip leaves build/ behind, with objects that may be of other sources or other flags.
.venv/installed: $(PACKAGING) $(ENGINE) $(PYTHON_SOURCES) | .venv/made
	rm -rf build
	.venv/$(PIP_INSTALL) '.[cli]'
	rm -rf build
	touch $@

.venv/bench-installed: .venv/installed
	.venv/$(PIP_INSTALL) '.[bench]'
	rm -rf build
	touch $@

.venv-test/installed: $(PACKAGING) $(ENGINE) | .venv-test/made
	UMAPPY_DEBUG=1 .venv-test/$(PIP_INSTALL) --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-test build dist umappy.egg-info umappy/_engine*.so
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find umappy tests -name __pycache__ -type d -exec rm -rf {} +
	$(MAKE) -C tests/engine clean
	$(MAKE) -C tests/crash clean
