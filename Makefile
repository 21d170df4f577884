# `make train` and `make test` need nothing but Python: they set up what is missing first.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
JOBS ?= 2
CONFIG ?= configs/digit_scenes/uniperceiver_v2_tiny.yaml
OUTPUT ?= output/digit_scenes_tiny
ARGS ?=
DATA := $(or $(DETECTRON2_DATASETS),datasets)/digit_scenes

INSTALLED := $(VENV)/.uniperceiver_v2_installed
WEB := $(VENV)/.uniperceiver_v2_web
EXPORT := $(VENV)/.uniperceiver_v2_export
DOCS := $(VENV)/.uniperceiver_v2_docs
PREPARED := $(DATA)/.prepared

# Everything that the two commands use is on disk after the set-up; nothing may wait for a network.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

# Packages are installed without byte code, which takes longer to write for all modules than the rest of the
# installation; the few that are used get theirs at the first import, unless the environment forbids it.
unexport PYTHONDONTWRITEBYTECODE

# Pictures to show the demo beside scenes of the test data: a file, a folder, or a pattern.
INPUT ?=
ZOO ?= digit_scenes/small
SCENES := $(DATA)/images/test

# The folder that the web page searches.
SEARCH ?= $(SCENES)

.PHONY: setup train demo web packages test test-slow test-faults test-kills test-soak test-fuzz test-web bench docs lint
.DELETE_ON_ERROR:

setup: $(INSTALLED) $(PREPARED)

# An environment that already holds upstream Detectron2 was compiled against its own torch: there we install
# nothing but what is missing. Everywhere else the pinned versions and our own core of Detectron2's API go in.
$(INSTALLED): setup.py pyproject.toml constraints.txt $(wildcard projects/detectron2_core/setup.py)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	if $(PY) -c 'import detectron2, sys; sys.exit("detectron2_core" in detectron2.__file__)' 2>/dev/null; then \
	    packages="-e .[dev]"; \
	else \
	    packages="-c constraints.txt -e projects/detectron2_core -e .[dev]"; \
	fi; \
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile $$packages
	touch $@

# Packages of the web page, of ONNX and of the documents' site, which training does not need. Upstream's environment
# keeps its versions here, too.
$(WEB) $(EXPORT) $(DOCS): $(VENV)/.uniperceiver_v2_%: $(INSTALLED)
	if $(PY) -c 'import detectron2, sys; sys.exit("detectron2_core" in detectron2.__file__)' 2>/dev/null; then \
	    packages="-e .[$*]"; \
	else \
	    packages="-c constraints.txt -e .[$*]"; \
	fi; \
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile $$packages
	touch $@

$(PREPARED): datasets/prepare_digit_scenes.py | $(INSTALLED)
	$(PY) datasets/prepare_digit_scenes.py
	touch $@

train: setup
	$(OFFLINE) $(PY) projects/uniperceiver_v2/train_net.py --config-file $(CONFIG) $(ARGS) OUTPUT_DIR $(OUTPUT)

# The reader's INPUT is a single word whatever its name holds; the program reads patterns itself.
demo: setup
	$(OFFLINE) $(PY) projects/uniperceiver_v2/demo/demo.py --zoo $(ZOO) \
	    --input $(if $(INPUT),'$(subst ','\'',$(INPUT))') '$(SCENES)/00000100000[1-9].png' '$(SCENES)/00000100001[0-2].png' \
	    --output output/demo --sheet output/demo/sheet.png $(ARGS)

# On this machine alone; ARGS="--port 8000" and the like are options of the program. Ctrl-C ends it, which is no error.
web: setup $(WEB)
	$(OFFLINE) $(PY) -m uniperceiver_v2.web --zoo $(ZOO) --examples '$(SCENES)' \
	    --search '$(subst ','\'',$(SEARCH))' $(ARGS)

# Two wheels and their source distributions in dist/, built with what is installed: no network.
packages: $(INSTALLED)
	$(PY) -m build --no-isolation --outdir dist projects/detectron2_core
	$(PY) -m build --no-isolation --outdir dist .

# One thread a worker: two workers with two threads each on two cores get in each other's way.
test: setup $(WEB) $(EXPORT)
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) -m "not slow" $(ARGS)

# What `make test` leaves out for its time, but for the campaign below: compiled kernels, exported files, the site and
# its notebooks.
test-slow: setup $(EXPORT) $(DOCS)
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) -m slow --ignore tests/faults --ignore tests/web/browser $(ARGS)

# The long campaign of kills, processes that stop, and disks that fail or are full, some half an hour on two cores.
test-faults: setup
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -q -s -n 0 -m slow tests/faults $(ARGS)

# 1,000 kills of a small run at random moments, half an hour on a quiet core. It goes on where it was stopped.
test-kills: setup
	$(PY) tests/faults/kills.py --output output/kills $(ARGS)

# Hours of training and of the web page with visitors, whose memory, file handles and threads have to stay level.
HOURS ?= 3
test-soak: setup $(WEB)
	$(PY) tests/faults/soak.py --hours $(HOURS) --output output/soak

# 10,000 broken files, each read in a process of its own. It goes on where it was stopped; SEED="1 2" breaks others.
SEED ?= 0
test-fuzz: setup
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) tests/fuzz/campaign.py --jobs $(JOBS) --seed $(SEED) --output output/fuzz $(ARGS)

CHROMIUM := { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null

# The web page in a headless Chromium, Debian's if there is none. Pictures of all tabs go to output/web.
test-web: setup $(WEB)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e .[browser]
	$(CHROMIUM) || { apt-get update -q && apt-get install -q -y --no-install-recommends chromium; } || true
	if $(CHROMIUM); then \
	    $(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 0 tests/web/browser $(ARGS); \
	else \
	    echo "skipped: there is no Chromium, and apt-get could not install it (as root: apt-get install chromium)"; \
	fi

# Times of ours beside its peers', half an hour on two quiet cores; ARGS=--quick for a first look.
bench: setup $(EXPORT)
	$(OFFLINE) $(PY) projects/uniperceiver_v2/benchmarks/bench.py $(ARGS)

# The documents as a site, output/site/index.html. Once its packages are there, no network is asked.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

lint: $(INSTALLED)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m mypy
