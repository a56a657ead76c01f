# Everything a fresh machine needs: Python >= 3.11, make, and a package index.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
# -qq: errors only
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# One thread per process: two test workers on two cores do not fight, and sums come out in the same order everywhere.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# Nothing below talks to a model hub or to a tracking server.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=offline HF_HUB_DISABLE_TELEMETRY=1

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint format rehearse micro-backbones bench latency test-cluster test-crash report clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp makes the set-up run once, and again only when the wanted packages change.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "peft-bench needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing); name another with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
		echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu install the package python3-venv, then run make again" >&2; rm -rf .venv; exit 1; }
	@# torch first and pinned: a range may pick a build for other hardware.
	@echo "Setting up .venv with the versions of constraints.txt: about 3 minutes the first time"
	@$(PIP_INSTALL) torch
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

setup: .venv/.installed ## Set up .venv with the tested versions

quickstart: .venv/.installed ## Train every row of the micro tables for 100 steps, print them and where they are (5 minutes, 2 cores)
	@$(THREADS) $(OFFLINE) $(BIN)/peft-bench sweep quickstart results_dir=outputs/quickstart --workers $(WORKERS)
	@$(BIN)/peft-bench report --results outputs/quickstart --output outputs/quickstart/tables

test: .venv/.installed ## Run the tests (10 to 15 minutes, 2 cores)
	$(THREADS) $(OFFLINE) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: .venv/.installed ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed ## Format the code and repair what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

rehearse: .venv/.installed ## Walk every experiment at scale=paper for two steps, on stand-ins of the published backbones
	$(THREADS) $(OFFLINE) $(BIN)/peft-bench rehearse --workers $(WORKERS)

micro-backbones: .venv/.installed ## Pretrain the micro backbones again and compare them with the shipped ones
	$(OFFLINE) $(BIN)/peft-bench pretrain --check

bench: .venv/.installed ## Time what is not training: a run's overhead, packs, workers, status, plan, report (10 minutes)
	$(OFFLINE) $(BIN)/python -m peft_bench.studies.overhead

latency: .venv/.installed ## Time a forward pass of the methods beside the backbone's (1 minute; --help: the paper's shapes)
	$(OFFLINE) $(BIN)/peft-bench latency

test-cluster: .venv/.installed ## Run a sweep on a real one-node Slurm (root; Debian: slurmctld slurmd slurm-client munge)
	$(THREADS) $(OFFLINE) bash tests/cluster/one_node_slurm.sh $(BIN)/python tests/cluster/check_sweep.py

test-crash: .venv/.installed ## Kill a sweep at 20 random moments and compare every file with an undisturbed one (15 minutes)
	$(THREADS) $(OFFLINE) $(BIN)/python tests/crash/check_crash.py

report: .venv/.installed ## Write results/tables from results/records
	$(BIN)/peft-bench report

clean: ## Remove .venv, caches and run folders; records and tables stay
	rm -rf .venv outputs multirun wandb build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
