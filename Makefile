# Each target sets up what it needs. PYTHON=python3.13 make test uses another interpreter (and another environment).
PYTHON ?= python3
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
RUN := $(VENV)/bin/python
WORKERS ?= 2

.PHONY: demo test lint format
demo: $(VENV)/ready
	$(RUN) -m experiments.evaluate --config configs/demo.py $(ARGS)

test: $(VENV)/ready
	$(RUN) -m pytest -n $(WORKERS) $(ARGS)

lint: $(VENV)/ready
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

format: $(VENV)/ready
	$(RUN) -m ruff check --fix . && $(RUN) -m ruff format .

$(VENV)/ready: requirements.txt requirements-gym.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.txt
	$(RUN) -m pip install --quiet -r requirements-gym.txt || echo "without reasoning-gym: see requirements-gym.txt"
	touch $@
