# Everything sets itself up: Python 3.11 or newer with venv, and make, are all that a machine needs.
# The work is in tools/setup.sh; the stamps in .venv/ say what is done, so that the second time is at once.

.PHONY: help install run test bench nightly nemesis lint lock clean
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export SOURCE LADDER HTTP DATA
ARGS ?=

help:
	@echo 'make run                  relay a built-in live channel and print where to watch it; Ctrl-C ends it'
	@echo 'make run SOURCE=https://… [LADDER=720p,480p] [HTTP=127.0.0.1:8080] [DATA=dir]'
	@echo '                          relay that live source'
	@echo 'make install              make .venv with .venv/bin/hlsrelay'
	@echo 'make test [ARGS=…]        run the tests (ARGS go to pytest)'
	@echo 'make bench [ARGS=…]       measure hlsrelay side by side with ffmpeg, streamlink and others (ARGS=--help tells the options)'
	@echo 'make nightly              what takes its time: 20,000 random histories of a source, a day of relay, every kind of media with each ffmpeg, nodes that fail'
	@echo 'make nemesis              nodes and Redis that die, stand still, lose their data or are replaced, under streams and players; with figures'
	@echo 'make lint                 check types and style'
	@echo 'make lock                 bring the locked dependencies up to date'
	@echo 'make clean                remove what the above have made'

install: .venv/.installed .venv/.page

.venv/.installed: requirements.lock pyproject.toml
	@sh tools/setup.sh runtime

.venv/.page: hlsrelay/web_page/package-lock.json | .venv/.installed
	@sh tools/setup.sh page

.venv/.dev: requirements-dev.lock | .venv/.installed
	@sh tools/setup.sh dev

.venv/.strict: tests/npm/package-lock.json | .venv/.installed
	@sh tools/setup.sh strict

# The variables come through the environment: a URL may hold any character that the shell would take as its own.
run: install
	@set -- demo; \
	[ -z "$$SOURCE" ] || set -- "$$@" --source "$$SOURCE"; \
	[ -z "$$LADDER" ] || set -- "$$@" --ladder "$$LADDER"; \
	[ -z "$$HTTP" ] || set -- "$$@" --http "$$HTTP"; \
	[ -z "$$DATA" ] || set -- "$$@" --data "$$DATA"; \
	exec .venv/bin/hlsrelay "$$@"

test: install .venv/.dev .venv/.strict
	@sh tools/setup.sh debian
	@.venv/bin/python -m pytest -n 2 --dist loadgroup -rs $(ARGS)

bench: install
	@.venv/bin/hlsrelay bench $(ARGS)

NIGHTLY = tests/unit/test_histories.py tests/integration/test_relay.py tests/integration/test_faults.py tests/integration/test_outage.py \
	tests/integration/test_edge.py tests/integration/test_claims.py $(addprefix tests/acceptance/test_,$(addsuffix .py,encoder encoder_contract pool_real sound formats split demo_origin fault_origin \
	ladder_real page bench nodes_real nodes_faults nodes_redis nodes_clock bucket_real acl relay_real pass_through_real encoder_endings orphans on_demand_real probe check nginx bench_ladder))
nightly: install .venv/.dev
	@HLSRELAY_NIGHTLY=1 .venv/bin/python -m pytest -n 2 --dist loadgroup -rs $(NIGHTLY) $(ARGS)

# What befalls nodes and Redis, with real processes; each fault tells its figures.
nemesis: install .venv/.dev
	@HLSRELAY_NIGHTLY=1 .venv/bin/python -m pytest -rs -v $(addprefix tests/acceptance/,test_nodes_real.py test_nodes_faults.py test_nodes_redis.py test_nodes_clock.py test_nodes_window.py test_redis_real.py) $(ARGS)

lint: install .venv/.dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# setuptools builds hlsrelay itself, so it is locked too: nothing is installed that has no hash here. The image has the extras as well.
UV_COMPILE = .venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-config --system-certs --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'
lock: .venv/.dev
	echo 'setuptools>=77' | $(UV_COMPILE) pyproject.toml - -o requirements.lock
	echo 'setuptools>=77' | $(UV_COMPILE) -c requirements.lock --extra dask --extra s3 pyproject.toml - -o requirements-image.lock
	$(UV_COMPILE) -c requirements-image.lock --extra dev pyproject.toml -o requirements-dev.lock
	cd hlsrelay/web_page && npm update --package-lock-only --ignore-scripts --no-audit --no-fund
	cd tests/npm && npm update --package-lock-only --ignore-scripts --no-audit --no-fund

clean:
	rm -rf .venv build hlsrelay.egg-info hlsrelay/web_page/node_modules tests/npm/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find hlsrelay tests -name __pycache__ -type d -prune -exec rm -rf {} +
