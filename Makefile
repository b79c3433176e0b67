# Self-documenting: `make` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
SOURCES := packages tests benchmarks examples docs conftest.py

.DEFAULT_GOAL := help
.PHONY: help setup setup-core demo test lint format docs dist fuzz soak bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# what an installed package is made of, beside the Python files, which are read where they lie
METADATA = packages/VERSION $(foreach package,$(1),packages/map-$(package)/pyproject.toml packages/map-$(package)/setup.py $(wildcard packages/map-$(package)/native/*))

$(VENV)/demo.stamp: constraints.txt $(call METADATA,core vision) | $(BIN)/python
	@echo "installing map-core and map-vision into $(VENV) (about 5 GB, a few minutes the first time)"
	$(PIP) -e packages/map-core -e 'packages/map-vision[demo,bands]'
	@touch $@

# everything but map-dense, whose mmcv takes long
$(VENV)/core.stamp: $(VENV)/demo.stamp $(call METADATA,points) requirements-dev.txt
	$(PIP) -e 'packages/map-points[demo,clouds]' -r requirements-dev.txt
	@touch $@

# no binary of mmcv fits Python 3.11; its build needs torch, so it comes after it and without an isolated
# environment; -g0: debug symbols take as long again
$(VENV)/mmcv.stamp: $(VENV)/core.stamp
	@echo "installing OpenMMLab's mmcv: its operators are compiled once, 10 to 24 minutes on 2 cores (pip keeps the wheel)"
	$(PIP) setuptools wheel ninja psutil
	CFLAGS='-O3 -DNDEBUG -g0' MMCV_WITH_OPS=1 $(PIP) --no-build-isolation onedl-mmcv
	@touch $@

$(VENV)/test.stamp: $(VENV)/mmcv.stamp $(call METADATA,dense)
	$(PIP) -e 'packages/map-dense[mmseg,mmdet]'
	$(BIN)/python -c 'from map_dense.installation import check_operators; check_operators()'
	@touch $@

setup: $(VENV)/test.stamp ## install all four packages and the development tools into .venv

setup-core: $(VENV)/core.stamp ## the same without map-dense, whose mmcv is the long compile

demo: $(VENV)/demo.stamp ## with few labels, does pretraining pay? three seeds on real digits (about 5 minutes on 2 cores)
	$(BIN)/map-vision study --study digits_labels --jobs 2 --out runs/demo

# some of core, vision, points, dense; without it all of them and the tests across packages
PACKAGES ?=
NEEDED := $(if $(filter-out core vision points,$(or $(PACKAGES),dense)),test,core)
# a process more than cores, as tests wait for processes of their own
WORKERS = $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')
test: $(VENV)/$(NEEDED).stamp ## run the test suite; PACKAGES="core vision points" needs no mmcv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(PACKAGES:%=packages/map-%/tests)

lint: $(VENV)/test.stamp ## check format, style, types, import contracts and spelling
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(VENV)/test.stamp ## rewrite the sources in the project's format
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(VENV)/demo.stamp ## build the documentation site, every broken link an error: build/site/index.html
	$(PIP) -e 'packages/map-points' -r requirements-docs.txt
	$(BIN)/python docs/site.py

dist: $(BIN)/python ## build source distributions and wheels of all packages into dist/
	$(PIP) build
	rm -rf dist
	for package in core vision points dense; do $(BIN)/python -m build --outdir dist packages/map-$$package || exit 1; done

SECONDS ?= 600
SEED ?= 0
EACH = --seconds $$(($(SECONDS) / 3)) --seed $(SEED)
fuzz: $(VENV)/test.stamp ## mutate small valid files of every format for ten minutes and read them (SECONDS=600 SEED=0)
	$(BIN)/python packages/map-points/tests/data/test_fuzz.py $(EACH)
	PYTHONPATH=packages/map-core/tests/toys $(BIN)/python packages/map-core/tests/test_fuzz.py $(EACH)
	$(BIN)/python packages/map-vision/tests/data/test_image_fuzz.py $(EACH)

MINUTES ?= 60
KILLS ?= 100
soak: $(VENV)/test.stamp ## train for an hour without growing, and survive 100 kills bit for bit (MINUTES=60 KILLS=100)
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak/soak.py --minutes $(MINUTES) --kills $(KILLS)

bench: $(VENV)/test.stamp ## time a pretraining step and the selective scans on this machine
	$(BIN)/python benchmarks/pretrain_step.py
	$(BIN)/python benchmarks/scan.py

clean: ## remove caches (keeps .venv and runs)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache packages/*/build
	find packages tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
