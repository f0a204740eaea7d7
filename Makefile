# make quickstart   trains OFA on a small picture world and shows what it learned (QUICK=1: a few updates, no verdict)
# make test         ruff and the tests
# make bench-generation   beams, closed sets, all candidates against their baselines (ARCH=ofa_tiny: a tenth of the time)
# make clean        removes what these made, the environment included
# PYTHON=python3.12 takes another Python, VENV=folder another environment.

PYTHON ?= python3
VENV = .venv
# one thread for each of two test processes; torch's own threads would fight over the cores
WORKERS = 2

ARCH = ofa_base

.PHONY: quickstart test bench-generation clean environment

environment:
	@PYTHON="$(PYTHON)" bash .ci/install.sh "$(VENV)"

quickstart: environment
	"$(VENV)/bin/python" -m ofa_plugin.quickstart

test: environment
	"$(VENV)/bin/python" -m ruff check .
	OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest -n $(WORKERS) --dist loadfile

bench-generation: environment
	"$(VENV)/bin/python" benchmarks/bench_generation.py --arch $(ARCH)

clean:
	rm -rf .venv .ci-venv .ci-venv-wheel build dist quickstart ofa_plugin.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
