# `make demo` and `make test` install what is missing: Debian packages, and the rest into .venv.

PYTHON ?= python3
WORKERS ?= auto
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

RUNTIME_PACKAGES = bzip2 lbzip2 rdiff-backup tar zstd
TEST_PACKAGES = acl attr libcap2-bin pbzip2 pigz rsync strace util-linux xz-utils

.PHONY: demo test lint faults clean packages test-packages

demo: packages .venv/runtime
	PATH="$(CURDIR)/.venv/bin:$$PATH" tests/demo.sh

test: test-packages .venv/development
	.venv/bin/pytest -n $(WORKERS)

lint: test-packages .venv/development
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

faults: test-packages .venv/development
	.venv/bin/python -m tests.faults

packages:
	@$(call install,$(RUNTIME_PACKAGES))

test-packages:
	@$(call install,$(RUNTIME_PACKAGES) $(TEST_PACKAGES))

# Install the Debian packages of a list that are missing.
install = missing=$$(for package in $(1); do \
		dpkg-query -W -f '$${Status}\n' $$package 2>/dev/null | grep -q '^install ok installed' || echo $$package; \
	done); \
	[ -z "$$missing" ] || { $(SUDO) apt-get update -q && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; }

.venv/bin/pip:
	$(PYTHON) -m venv --clear .venv || { rm -rf .venv; $(call install,python3-venv); $(PYTHON) -m venv --clear .venv; }

.venv/runtime: setup.py btw_backup/__init__.py | .venv/bin/pip
	.venv/bin/pip install -q -e .
	touch $@

.venv/development: setup.py btw_backup/__init__.py | .venv/bin/pip
	.venv/bin/pip install -q -e '.[test,lint]'
	touch $@ .venv/runtime

clean:
	rm -rf .venv .tox build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
