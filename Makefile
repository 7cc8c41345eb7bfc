# Every target works on a fresh clone: it makes .venv and installs what it needs first.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: install demo test test-slow test-cluster test-exhaustive check bench study soak clean

install: .venv/.installed ## .venv with the package and its tools, nothing else

demo: .venv/.demo ## photographs -> shards -> two ranks through every freeze -> pictures and summary
	bash launch/demo.sh

test: .venv/.test ## the tests, on real ranks; no GPU and no network needed
	DS_ACCELERATOR=cpu .venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not exhaustive and not cluster"

test-slow: .venv/.test ## matrices, real launchers, real kills
	DS_ACCELERATOR=cpu .venv/bin/python -m pytest -m "slow and not cluster"

test-cluster: .venv/.test ## launchers on several hosts made of namespaces; root, and the packages that docs/cluster.md names
	DS_ACCELERATOR=cpu .venv/bin/python -m pytest -rs -m "$(or $(MARKS),cluster)"

test-exhaustive: .venv/.test ## other rows of the matrices, the benchmarks' commands, a short soak, the real compiler
	DS_ACCELERATOR=cpu .venv/bin/python -m pytest -m exhaustive

bench: .venv/.test ## side-by-side tables, long, on a quiet machine; each is a command of its own, too
	OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu .venv/bin/python -m benchmarks.data
	for topic in checkpoint step freezing rebuild rebatch compile scaling; do \
	    DS_ACCELERATOR=cpu .venv/bin/python -m benchmarks.$$topic || exit 1; done

study: .venv/.test ## does freezing pay, at equal cost? Hours; goes on where it was
	DS_ACCELERATOR=cpu .venv/bin/python -m studies.freezing
	DS_ACCELERATOR=cpu .venv/bin/python -m studies.continued

soak: .venv/.test ## an hour of kills, damage and changed layouts against uninterrupted runs
	DS_ACCELERATOR=cpu .venv/bin/python -m tests.soak --minutes $(or $(MINUTES),60)

check: .venv/.check ## lint, format, types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean: ## everything that these targets made
	rm -rf .venv runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache

.venv/.installed: pyproject.toml
	@echo "installing into .venv (torch and DeepSpeed: a few GB, minutes)"
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "python >= 3.11 is needed: make PYTHON=python3.11 …"'
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	@touch $@

.venv/.demo .venv/.test .venv/.check: .venv/.%: .venv/.installed
	$(PIP) -e '.[$*]'
	@touch $@
