# The newest of these that runs and is at least 3.11; PYTHON=... chooses another.
PYTHON ?= $(shell for python in python3.13 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
VERSION := $(shell $(PYTHON) -c 'import sys; sys.version_info < (3, 11) or print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin

.PHONY: demo folder test slow soak compare cross-validate isic official-score lint clean

# Huge pages where the system allows them: training on CPU is up to 1.25 times as fast.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: $(VENV)/run  ## Train on drawn lesions for a few minutes, sample, write a report.
	$(BIN)/python train.py --config=configs/synthetic.py --workdir=runs/demo/training
	$(BIN)/python sample.py --workdir=runs/demo/training --out=runs/demo

RUN ?= runs/mine
folder: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
folder: $(VENV)/run  ## make folder IMAGES=... MASKS=...: train on them, segment the images held out.
	$(BIN)/python train.py --config=configs/folder.py --workdir="$(RUN)" \
		--config.data.images="$(IMAGES)" --config.data.masks="$(MASKS)" $(FLAGS)
	$(BIN)/python sample.py --workdir="$(RUN)"

test: $(VENV)/dev  ## The test suite, without the slow tests.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

slow: $(VENV)/dev  ## The slow tests.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

ROUNDS ?= 20
soak: $(VENV)/run  ## Kill a training run 20 times; it must end like one that was left alone (a few minutes).
	$(BIN)/python -m tools.soak --rounds=$(ROUNDS)

SIDE_BY_SIDE ?= 1
RECIPE ?= isic2016_64
compare: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
compare: isic $(VENV)/dev  ## make compare ISIC=FOLDER: train every model for 30 minutes, two of them three times; write docs/results.md. RECIPE=isic2016_128: those with that image encoder.
	$(BIN)/python -m tools.compare --recipe=$(RECIPE) --side_by_side=$(SIDE_BY_SIDE) --config.data.manual_dir="$(ISIC)"

CONFIG ?= configs/isic2016_64.py
cross-validate: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
cross-validate: isic $(VENV)/dev  ## make cross-validate ISIC=FOLDER CONFIG=FILE (a config of ISIC): train on all folds but one, for each of five; score every image by the model that did not see it.
	$(BIN)/python -m tools.ensemble --folds=5 --config="$(CONFIG)" --side_by_side=$(SIDE_BY_SIDE) --config.data.manual_dir="$(ISIC)" $(FLAGS)

isic:
	@test -n "$(ISIC)" || { echo "give ISIC=FOLDER, the folder with the archives of ISIC 2016 (docs/data.md)"; exit 1; }

OUT ?= runs/isic/samples_test
TRUTH ?= $(ISIC)/ISBI2016_ISIC_Part1_Test_GroundTruth.zip
official-score: $(if $(filter file,$(origin TRUTH)),isic) $(VENV)/dev  ## Run the ISIC challenge's own scorer on an output folder of sample.py; OUT=..., and TRUTH=... or ISIC=FOLDER.
	$(BIN)/python -m tools.official_score --out="$(OUT)" --truth="$(TRUTH)"

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv-* .cache runs/demo runs/soak data/synthetic_lesions data/resized

$(VENV)/run: requirements.txt
	@test -n "$(VERSION)" || { echo "needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev: $(VENV)/run requirements-dev.txt requirements-data.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@
