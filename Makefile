# Each target sets up what it needs. PYTHON=python3.13 make test uses another interpreter (and another environment).
PYTHON ?= python3
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
RUN := $(VENV)/bin/python
# Each worker begins with a half of the tests and takes from another one at its end: few files are divided, and set up twice.
WORKERS ?= 2
# Speed is judged on the newest jax, which wants Python 3.12 or later: `make benchmark` takes the newest it finds, or PYTHON.
NEWER := python3.14 python3.13 python3.12 $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python3)
NEWEST = $(firstword $(foreach python,$(NEWER),$(shell $(python) -c 'print("$(python)")' 2>/dev/null)) $(PYTHON))
# The peers have an interpreter of their own: wheels of a CPU build of torch are not to be had for every Python.
PEER_PYTHON ?= python3
PEERS := .venv-peers

MINUTES ?= 1

.PHONY: demo test complete fuzz simulate kill lint format benchmark compare docs
demo: $(VENV)/ready
	$(RUN) -m experiments.evaluate --config configs/demo.py $(ARGS)

benchmark:
	$(MAKE) compare PYTHON=$(if $(filter file,$(origin PYTHON)),$(NEWEST),$(PYTHON))

compare: $(VENV)/ready $(PEERS)/ready
	$(RUN) -m benchmarks.peers --peer-python $(PEERS)/bin/python $(ARGS)

test: $(VENV)/ready
	@echo "All tests, $(WORKERS) at a time, about 20 minutes on two cores. Those that need more packages are skipped and counted at the end"
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# Every test, with what some of them compare with. TORCH: a release whose wheel is small where the default one brings CUDA.
TORCH ?= torch
complete: $(VENV)/ready
	@echo "Installing what some tests compare with into $(VENV): torch, transformers, ray, the TPU compiler. Once, a few minutes"
	@$(RUN) -m pip install --quiet "$(TORCH)"
	@$(RUN) -m pip install --quiet -r requirements-peers.txt -r requirements-tpu.txt -r requirements-docs.txt \
		-r requirements-sweeps.txt
	test -f work/smollm2.gguf || $(RUN) -m experiments.fetch_smollm2
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal --complete $(ARGS)

# Random programs of threads for MINUTES; one case again: ARGS="--first CASE --cases 1" with minutes enough to compile.
fuzz: $(VENV)/ready
	PYTHONPATH=.:tests $(RUN) -m fuzz_programs --minutes $(MINUTES) $(ARGS)

# Random programs through a simulator of the rules of threads, which knows no engine and no tensors.
PROGRAMS ?= 1000
simulate: $(VENV)/ready
	PYTHONPATH=.:tests $(RUN) -m simulate --programs $(PROGRAMS) $(ARGS)

# Training runs of both kinds that are killed at POINTS random points each and must end as one that was not; minutes.
POINTS ?= 20
kill: $(VENV)/ready
	PYTHONPATH=.:tests $(RUN) -m kill_anywhere --points $(POINTS) $(ARGS)

lint: $(VENV)/ready
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

# The documentation site in results/site; a link that leads nowhere is an error.
docs: $(VENV)/ready
	@$(RUN) -m pip install --quiet -r requirements-docs.txt
	$(RUN) -m zensical build --strict --clean
	@echo "open results/site/index.html, or see it with: $(RUN) -m zensical serve"

format: $(VENV)/ready
	$(RUN) -m ruff check --fix . && $(RUN) -m ruff format .

$(VENV)/ready: requirements.txt requirements-test.txt requirements-gym.txt
	@echo "Setting up $(VENV) with $$($(PYTHON) --version). This happens once and takes a few minutes, most of it downloads"
	@echo "  1 of 3: an environment of its own; nothing is installed outside of it"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --upgrade pip
	@echo "  2 of 3: jax, flax and the others of requirements.txt, and what the tests need"
	@$(RUN) -m pip install --quiet -r requirements.txt -r requirements-test.txt
	@echo "  3 of 3: reasoning-gym, of which a part is compiled"
	@$(RUN) -m pip install --quiet -r requirements-gym.txt || echo "without reasoning-gym: see requirements-gym.txt"
	@touch $@
	@echo "$(VENV) is ready"

$(PEERS)/ready: requirements-bench.txt
	$(PEER_PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	sed 's/ *#.*//; /^$$/d' $< | while read -r peer; do \
		$(PEERS)/bin/python -m pip install --quiet "$$peer" || echo "not installed: $$peer"; done
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
