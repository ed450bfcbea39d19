# The torch build to install. A CUDA build is large; where pip is configured for CPU builds, the
# exact version picks one of those. Example: make train TORCH=torch==2.12.0
TORCH ?= torch==2.13.0
PYTHON ?= python3
# Of the long fault tests.
KILLS ?= 200
MINUTES ?= 30

VENV := .venv
BIN := $(VENV)/bin
# Bytecode is compiled when a module is first imported: of most packages that is never. It is kept,
# whatever the environment says: else every process compiles all that it imports.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
export PYTHONDONTWRITEBYTECODE :=
DECLARED := pyproject.toml distributed_ignn/__init__.py

# Stamps: an installation is repeated when the declared dependencies or TORCH have changed.
BUILD := $(subst =,_,$(TORCH))
TRAIN_READY := $(VENV)/.train-$(BUILD)
DEV_READY := $(VENV)/.dev-$(BUILD)

# Of make fuzz: examples of each property, and seconds of coverage-guided fuzzing for each reader.
EXAMPLES ?= 2000
FUZZ_SECONDS ?= 120

# Of make gpu: such as --sections products, or --device cpu --sizes tiny.
GPU_FLAGS ?=

.PHONY: help train test pseudo-gpu long lint docs docs-figures faults soak fuzz gpu clean
.DEFAULT_GOAL := help

help:
	@echo "make train   two CPU processes train on a generated graph, in a new folder"
	@echo "make test    the tests of every change, cheapest first (about 20 minutes on 2 cores)"
	@echo "make pseudo-gpu  those of them that run on an emulated GPU, and what an evaluation asks of one"
	@echo "make long    tests that take too long for every change"
	@echo "make lint    format, lint, types and import order"
	@echo "make docs    the documentation as a site, in build/site"
	@echo "make docs-figures  blocks of the documentation that commands print, written anew"
	@echo "make faults  200 kills at random moments under torchrun and Ray (half an hour on 2 cores)"
	@echo "make soak    30 minutes of training; memory, file handles and threads have to stay flat"
	@echo "make fuzz    damaged files in every reader, for about an hour"
	@echo "make gpu     what only a GPU can tell, in ten minutes; PYTHON=python3 if that has torch with CUDA"
	@echo "make clean   remove the virtual environment and caches"

train: $(TRAIN_READY)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 2 launch/train.py \
		--dataset chains --device cpu --output runs/quickstart-$$(date +%Y%m%d-%H%M%S)

# Cheapest first, each in any case, two files at a time: the tests of one process, those of a few
# ranks, then the slow ones in the order that tests/conftest.py has for them, then those on an
# emulated GPU, which has to be there before torch is imported; last, alone, those that count
# seconds while ranks are killed or cut off.
# Idle threads sleep, so that ranks share cores.
ALONE := tests/faults tests/clusters
EMULATED := tests/pseudo_gpu
ON_EMULATED := PYTEST_PLUGINS=tests.pseudo_gpu.preload $(BIN)/python -m pytest $(EMULATED) -n 2 --dist loadfile
test: export GOMP_SPINCOUNT = 0
test: export OMP_WAIT_POLICY = passive
test: $(DEV_READY)
	@code=0; pair="-n 2 --dist loadfile $(patsubst %,--ignore=%,$(ALONE) $(EMULATED))"; \
	$(BIN)/python -m pytest -m cheap $$pair || code=$$?; \
	$(BIN)/python -m pytest -m "not cheap and not slow" $$pair || code=$$?; \
	$(BIN)/python -m pytest -m "not cheap and slow" $$pair --no-loadscope-reorder || code=$$?; \
	$(ON_EMULATED) || code=$$?; \
	$(BIN)/python -m pytest $(ALONE) || code=$$?; \
	exit $$code

pseudo-gpu: export OMP_NUM_THREADS = 1
pseudo-gpu: export GOMP_SPINCOUNT = 0
pseudo-gpu: export OMP_WAIT_POLICY = passive
pseudo-gpu: $(DEV_READY)
	$(ON_EMULATED)

long: $(DEV_READY)
	IGNN_LONG_TESTS=1 $(BIN)/python -m pytest -m long

lint: export MYPY_NUM_WORKERS = 2
lint: $(DEV_READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# Warnings, such as a link that leads nowhere, are errors.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(DEV_READY)
	$(BIN)/mkdocs build --quiet

docs-figures: $(DEV_READY)
	$(BIN)/python -m tests.docs.printed

faults: $(DEV_READY)
	$(BIN)/python -m tests.faults --kills $(KILLS)

soak: $(DEV_READY)
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES)

# atheris has no wheels for some versions of Python; the rest does without it
fuzz: $(DEV_READY)
	IGNN_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -o timeout=0 tests/fuzz tests/reading
	if $(PIP) 'atheris>=3,<4'; then \
		$(BIN)/python -m tests.fuzz.coverage_guided --seconds $(FUZZ_SECONDS); \
	else \
		echo "atheris cannot be installed here: no coverage-guided fuzzing"; \
	fi

# An interpreter whose torch sees a GPU is used as it is, and so is one that tries the checks on a
# CPU; else .venv, which is made only where the machine has a GPU.
gpu:
	@python=$(PYTHON); \
	if ! $(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
		if [ -x $(BIN)/python ]; then \
			python=$(BIN)/python; \
		elif [ -e /dev/nvidiactl ]; then \
			$(MAKE) --no-print-directory $(TRAIN_READY) || exit 1; python=$(BIN)/python; \
		fi; \
	fi; \
	$$python -m tests.gpu $(GPU_FLAGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is missing or older than Python 3.11; name a newer one: make PYTHON=python3.12" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"

# torch is named again so that no other requirement replaces the build chosen above.
$(TRAIN_READY): $(DECLARED) | $(BIN)/python
	$(PIP) "$(TORCH)" --editable ".[test]"
	@rm -f $(VENV)/.train-* $(VENV)/.dev-*
	@touch "$@"

$(DEV_READY): $(DECLARED) | $(BIN)/python
	$(PIP) "$(TORCH)" --editable ".[dev]"
	@rm -f $(VENV)/.train-* $(VENV)/.dev-*
	@touch "$(TRAIN_READY)" "$@"
