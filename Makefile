# `make` alone prints this list. Everything runs in .venv, which `make install` fills from the lock.
.DEFAULT_GOAL := help
.PHONY: help install lock quickstart scenes benchmark ablations siblings test test-slow test-browser lint types format docs shards clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart
EXTRAS := eval remote demo adapters cluster docs dev
IMAGES ?= 600
STEPS ?= 100
SCENES := --size_px 80 --max_things 4 --max_stuff 2 --min_radius 0.08
ROOTS := COCO OPENIMAGES ENTITYSEG CITYSCAPES ADE20K DAVIS
SETS = --coco $(1)/coco --openimages $(1)/openimages --entityseg $(1)/entityseg

help:  ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/installed  ## make .venv and install the locked versions

$(VENV)/installed: requirements.lock setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install -q -p $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install -q -p $(BIN)/python --no-deps -e .
	touch $@

lock:  ## resolve the newest allowed versions into requirements.lock
	$(BIN)/uv pip compile setup.cfg $(EXTRAS:%=--extra %) --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header --upgrade -q -o requirements.lock

quickstart: install  ## synthetic data -> shards -> training -> pipeline -> one picture (5 to 7 minutes, 2 cores)
	$(BIN)/unigs synthetic --out $(RUN)/data --images $(IMAGES) $(SCENES)
	$(BIN)/unigs shards $(call SETS,$(RUN)/data) --out $(RUN)/shards
	$(BIN)/lightning fit --config configs/quickstart.yaml --trainer.max_steps $(STEPS)
	$(BIN)/unigs export --checkpoint $(RUN)/checkpoints/last.ckpt --out $(RUN)/pipeline
	$(BIN)/unigs sheet --pipeline $(RUN)/pipeline --shards '[$(RUN)/shards]' \
	  --per_task 2 --out $(RUN)/sheet.png
	@echo
	@echo "Done. What there is now:"
	@echo "  $(RUN)/data       three data sets in the layouts of COCO, Open Images and EntitySeg"
	@echo "  $(RUN)/shards     the same as WebDataset shards; check: unigs shards verify --out $(RUN)/shards"
	@echo "  $(RUN)/pipeline   the trained model: UniGSPipeline.from_pretrained('$(RUN)/pipeline')"
	@echo "  $(RUN)/sheet.png  condition, image, colormap, decoded masks, truth for each task: look at it"
	@echo "  curves            $(BIN)/tensorboard --logdir runs"
	@echo "Next: your own data, 'make shards COCO=... OUT=...', then 'lightning fit --config configs/joint.yaml'."

BENCH := runs/benchmark
LATENTS = OMP_NUM_THREADS=1 $(BIN)/unigs latents --config configs/benchmark.yaml --out $(BENCH)/latents \
  --samples 48000 --part $(1)

scenes: install  ## draw the benchmark's scenes and write their shards (15 minutes, 2 cores)
	$(BIN)/unigs synthetic --out $(BENCH)/data --images 12000 --val_images 400 $(SCENES)
	$(BIN)/unigs synthetic --out $(BENCH)/test --images 1 --val_images 1000 --held_out test $(SCENES)
	$(BIN)/unigs synthetic --out $(BENCH)/test-again --images 1 --val_images 1000 --held_out test --seed 1 $(SCENES)
	$(BIN)/unigs shards $(call SETS,$(BENCH)/data) --out $(BENCH)/shards
	$(BIN)/unigs shards $(call SETS,$(BENCH)/test) --out $(BENCH)/test-shards
	$(BIN)/unigs shards $(call SETS,$(BENCH)/test-again) --out $(BENCH)/test-again-shards

benchmark: scenes  ## train, judge and score the benchmark's model (about 5 hours, 2 cores); resumes
	test -e $(BENCH)/base/model_index.json || $(BIN)/unigs base --preset small --out $(BENCH)/base
	$(call LATENTS,1/2) & $(call LATENTS,2/2) && wait $$!
	OMP_NUM_THREADS=1 $(BIN)/unigs fit --config configs/benchmark.yaml --data.latents $(BENCH)/latents
	$(BIN)/unigs export --checkpoint $(BENCH)/train/checkpoints/last.ckpt --out $(BENCH)/pipeline --half true
	test -e $(BENCH)/judge/config.json || OMP_NUM_THREADS=1 $(BIN)/unigs fit --config configs/judge.yaml
	$(BIN)/python tools/benchmark_joint.py evaluate
	$(BIN)/python tools/benchmark_joint.py tables

ablations: install  ## the benchmark's tables of what matters; after make benchmark (4 hours, 1 core)
	for seed in 0 1 2; do OMP_NUM_THREADS=1 $(BIN)/python tools/benchmark_joint.py train --seed $$seed || exit; done
	$(BIN)/python tools/benchmark_joint.py decode
	$(BIN)/python tools/benchmark_joint.py sample
	$(BIN)/python tools/benchmark_joint.py guidance
	$(BIN)/python tools/benchmark_joint.py tables

SIBLING = $(BIN)/unigs export --checkpoint runs/$(1)/checkpoints/last.ckpt --out runs/$(1)/model --half true

siblings: scenes  ## train and score Pix2Seq-D and GSS on the same scenes (4 hours, 1 core); resumes
	OMP_NUM_THREADS=1 $(BIN)/unigs fit --config configs/pix2seq-d-benchmark.yaml
	$(call SIBLING,pix2seq-d-benchmark)
	OMP_NUM_THREADS=1 $(BIN)/unigs fit --config configs/gss-benchmark.yaml
	$(call SIBLING,gss-benchmark)
	OMP_NUM_THREADS=1 $(BIN)/unigs fit --config configs/gss-benchmark.yaml --config configs/gss-ft-w.yaml
	$(call SIBLING,gss-ft-w)
	test -e $(BENCH)/base/model_index.json || $(BIN)/unigs base --preset small --out $(BENCH)/base
	OMP_NUM_THREADS=1 $(BIN)/unigs fit --config configs/benchmark.yaml --config configs/entity-benchmark.yaml
	$(call SIBLING,entity-benchmark)
	test -e $(BENCH)/judge/config.json || OMP_NUM_THREADS=1 $(BIN)/unigs fit --config configs/judge.yaml
	$(BIN)/python tools/benchmark_systems.py evaluate
	$(BIN)/python tools/benchmark_systems.py sample
	$(BIN)/python tools/benchmark_systems.py tables

shards: install  ## your data -> shards: make shards COCO=... CITYSCAPES=... OUT=... (all: docs/data.md)
	@test -n "$(OUT)" || { echo "usage: make shards $(foreach set,$(ROOTS),[$(set)=dir]) OUT=dir"; exit 2; }
	$(BIN)/unigs shards $(if $(COCO),--coco "$(COCO)") $(if $(OPENIMAGES),--openimages "$(OPENIMAGES)") \
	  $(if $(ENTITYSEG),--entityseg "$(ENTITYSEG)") $(if $(CITYSCAPES),--cityscapes "$(CITYSCAPES)") \
	  $(if $(ADE20K),--ade20k "$(ADE20K)") $(if $(DAVIS),--davis "$(DAVIS)") --out "$(OUT)"

test: install  ## the default suite, seven to ten minutes on 2 cores
	$(BIN)/python -m pytest -n 2

test-slow: install  ## everything marked slow
	$(BIN)/python -m pytest -m slow

test-browser: install  ## the page in a real browser; needs chromium (apt install chromium)
	$(BIN)/python -m pytest -m browser

lint: install  ## formatter and linter, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## type checker
	$(BIN)/mypy

format: install  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## the reference under build/docs: pages, configs, API; links are checked
	$(BIN)/mkdocs build --strict -q
	@echo "open build/docs/index.html"

clean:  ## remove runs and caches; keeps .venv
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
