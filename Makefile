# Every target installs what is missing: Debian packages, and the rest into .venv.

PYTHON ?= python3
# Tests often wait for other programs: run two more than there are cores.
WORKERS ?= $(shell expr $$(nproc) + 2)
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' btw_backup/__init__.py)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

RUNTIME_PACKAGES = bubblewrap bzip2 lbzip2 rdiff-backup tar zstd
BENCH_PACKAGES = borgbackup
TEST_PACKAGES = acl attr btrfs-progs e2fsprogs fish groff-base libcap2-bin locales openssl pbzip2 pigz postgresql procps restic \
	rsync strace util-linux xfsprogs xz-utils zsh
BUILD_PACKAGES = build-essential libacl1-dev librsync-dev python3-dev
DEB_PACKAGES = build-essential debhelper dh-python dpkg-dev python3-setuptools

.PHONY: bench bench-packages clean coverage deb demo docs faults lint packages power test test-btrfs test-deb test-distros \
	test-packages test-rdiff-backup test-wheel wheel

demo: packages .venv/runtime
	PATH="$(CURDIR)/.venv/bin:$$PATH" tests/demo.sh

test: test-packages .venv/development
	.venv/bin/pytest -n $(WORKERS) --dist worksteal $(TESTS)

# Lists the lines that no test runs, counting processes that tests start. See also build/coverage/html.
# Faults would hit what coverage itself does; and whom a test kills leaves half a file, which is no news.
coverage: test-packages .venv/coverage
	rm -rf build/coverage
	status=0; .venv/bin/coverage run -m pytest -n $(WORKERS) --dist worksteal --ignore=tests/test_faults.py $(TESTS) || status=$$?; \
		PYTHONWARNINGS=ignore .venv/bin/coverage combine -q; .venv/bin/coverage html -q; .venv/bin/coverage report; exit $$status

# Runs everything in trees of Debian 12, 13 and testing, which are kept: see tests/distros.sh.
test-distros:
	@$(call install,debootstrap systemd-container)
	tests/distros.sh $(SUITES)

# The tests of chains with each version of rdiff-backup; the older ones are built from source.
test-rdiff-backup: test-packages .venv/development
	@$(call install,$(BUILD_PACKAGES))
	PYTHON=$(PYTHON) WORKERS=$(WORKERS) tests/rdiff_backup.sh

# The tests on btrfs, which lists directories, keeps times and links files in its own way.
test-btrfs: test-packages .venv/development
	tests/btrfs.sh .venv/bin/pytest -n $(WORKERS)

lint: test-packages .venv/development
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

faults: test-packages .venv/development
	.venv/bin/python -m tests.faults

# Mounts file systems, in namespaces of its own.
power: test-packages .venv/development
	$(SUDO) .venv/bin/python -m tests.power

# Man pages, shell completions and docs/reference.rst, dated like the newest entry of the changelog.
docs: .venv/docs
	rm -rf build/docs
	SOURCE_DATE_EPOCH=$$(date -d "$$(sed -n 's/^ -- .*>  //p;T;q' debian/changelog)" +%s) \
		.venv/bin/python tools/generate.py build/docs
	mv build/docs/reference.rst docs/

# dist/btw_backup-VERSION-py3-none-any.whl, with the manual pages and completions.
wheel: docs
	rm -rf build/lib build/bdist.* *.egg-info dist/*.whl
	.venv/bin/pip wheel -q --no-deps -w dist .

# dist/btw-backup_VERSION_all.deb, built from a copy, with the programs of Debian.
DEB_TREE = build/deb/btw-backup-$(VERSION)
deb: docs
	@$(call install,$(DEB_PACKAGES))
	rm -rf build/deb
	mkdir -p $(DEB_TREE) dist
	tar -c --exclude=__pycache__ LICENSE CONTRIBUTING.rst README.rst benchmarks/results.rst btw_backup debian docs pyproject.toml setup.py | tar -x -C $(DEB_TREE)
	cp -r build/docs $(DEB_TREE)/generated
	cd $(DEB_TREE) && PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage --no-sign
	cp build/deb/btw-backup_$(VERSION)_all.deb dist/

test-deb:
	tests/deb.sh

test-wheel: wheel
	tests/wheel.sh

bench: test-packages bench-packages .venv/bench
	.venv/bin/python -m benchmarks.bench --write

bench-packages:
	@$(call install,$(BENCH_PACKAGES))

packages:
	@$(call install,$(RUNTIME_PACKAGES))

test-packages: .venv/bin/promtool
	@$(call install,$(RUNTIME_PACKAGES) $(TEST_PACKAGES))

# Checks the rules for Prometheus; since Debian 13 it has a package of its own. The other, if it were installed,
# is a server that listens on every address, now and after the next boot: only this program is taken out of it.
.venv/bin/promtool: | .venv/bin/pip
	rm -rf .venv/prometheus
	mkdir .venv/prometheus
	$(SUDO) apt-get update -q
	package=$$(apt-cache show promtool >/dev/null 2>&1 && echo promtool || echo prometheus) && \
		cd .venv/prometheus && apt-get download -q -o APT::Sandbox::User=$$(id -un) $$package
	dpkg-deb --fsys-tarfile .venv/prometheus/*.deb | tar -x -C .venv/prometheus ./usr/bin/promtool
	mv .venv/prometheus/usr/bin/promtool $@
	rm -rf .venv/prometheus

# Install the Debian packages of a list that are missing.
install = missing=$$(for package in $(1); do \
		dpkg-query -W -f '$${Status}\n' $$package 2>/dev/null | grep -q '^install ok installed' || echo $$package; \
	done); \
	[ -z "$$missing" ] || { $(SUDO) apt-get update -q && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; }

# The package is found by a path: the import hook that pip uses otherwise takes 10 ms of every start.
EDITABLE = --config-settings editable_mode=compat -e

.venv/bin/pip:
	$(PYTHON) -m venv --clear .venv || { rm -rf .venv; $(call install,python3-venv); $(PYTHON) -m venv --clear .venv; }

.venv/runtime: setup.py btw_backup/__init__.py | .venv/bin/pip
	.venv/bin/pip install -q $(EDITABLE) .
	touch $@

.venv/docs: setup.py btw_backup/__init__.py | .venv/bin/pip
	.venv/bin/pip install -q $(EDITABLE) '.[docs]'
	touch $@

.venv/development: setup.py btw_backup/__init__.py | .venv/bin/pip
	.venv/bin/pip install -q $(EDITABLE) '.[test,lint]'
	touch $@ .venv/runtime

.venv/coverage: .venv/development
	.venv/bin/pip install -q $(EDITABLE) '.[test,coverage]'
	touch $@

.venv/bench: .venv/development
	.venv/bin/pip install -q $(EDITABLE) '.[test,bench]'
	touch $@

clean:
	rm -rf .venv .tox build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
