# `make reproduce` and `make test` need nothing but Python 3.11-3.13 and a package index.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" PYTHONUNBUFFERED=1

BENCHMARK := mnist
EVIDENCE := colour colour-sampling colour-codes ladder sampling ablations codes codes16 codes64 evidence

.PHONY: reproduce evidence test test-site site report experiments lint readme lock clean-env

# Another one: make reproduce BENCHMARK=smoke
reproduce: $(READY)
	$(RUN) dvc repro $(if $(filter mnist,$(BENCHMARK)),dvc.yaml,benchmarks/$(BENCHMARK)/dvc.yaml)
	$(RUN) emigm verify $(BENCHMARK)

# The evidence, and the ledger of the paper's claims: about 16 hours of processor time, on two cores, resumable. CIFAR-10
# first, so that files that are missing and cannot be downloaded are said at once.
evidence: $(READY)
	$(RUN) dvc repro $(EVIDENCE:%=benchmarks/%/dvc.yaml)
	$(RUN) emigm verify $(EVIDENCE)

test: $(READY)
	$(RUN) pytest $(PYTEST)

# The results as a site, site/index.html, which needs no server.
site: $(VENV)/.site
	@mkdir -p build && rm -f build/verify.json
	-$(RUN) emigm verify --json build/verify.json
	$(RUN) python docs/build.py --verified build/verify.json

# The results as a report in the form that reproducibility venues ask for: report.pdf.
report: $(READY)
	$(RUN) python docs/report.py

# Experiments beside the baseline: the FID of one model at one sampling configuration, and the settings that differ.
RUN_OF := h-16
experiments: $(READY)
	$(RUN) dvc exp show --only-changed --drop '(?!Experiment|Created|.*params.yaml|results/$(BENCHMARK)/metrics/$(RUN_OF).json:fid)'

# The site on made-up results, opened in a headless Chromium where one is installed.
test-site: $(VENV)/.site
	$(RUN) pytest -n 0 tests/test_site.py

lint: $(READY)
	$(RUN) ruff check . && $(RUN) ruff format --check .

# The page of all results, and the generated blocks of README.md and benchmarks/README.md.
readme: $(READY)
	$(RUN) python -m emigm.report.pages

# pip itself, so that its settings hold: index, mirror, proxy, certificates. About three minutes and 6.3 GB, half of it the
# GPU libraries that the index's builds of torch bring on x86. The stamp comes last: an interrupted installation starts over.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	    f"error: Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed; name one: make PYTHON=python3.12 ...")'
	@git rev-parse --verify --quiet HEAD > /dev/null || { git rev-parse HEAD; echo "error: this is no git checkout that \
	git reads, and results are compared with what git tracks; git clone the repository, or mend what git says"; exit 1; } >&2
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --no-deps --require-hashes --requirement requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.site: docs/requirements.lock $(READY)
	$(PIP) install --no-deps --require-hashes --requirement docs/requirements.lock
	touch $@

# One resolution for Python 3.11 to 3.13 and all platforms, with checksums and no index's name.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-header \
	    --no-annotate --output-file requirements.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --group site --constraint requirements.lock \
	    --generate-hashes --no-header --no-annotate --output-file docs/requirements.lock

clean-env:
	rm -rf $(VENV)
