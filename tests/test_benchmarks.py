"""The benchmarks run, and what they compare is equal; how fast it is they only print."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.helpers.stock import ROOT

pytestmark = pytest.mark.slow


def test_generation_finds_what_its_baselines_find():
    small = ("--arch", "ofa_nano", "--side", "128", "--batch", "2", "--beam", "3", "--rounds", "1")
    command = (sys.executable, ROOT / "benchmarks" / "bench_generation.py", *small)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    searched = re.findall(r"\| (\d) of 2, scores within (\S+) \|", finished.stdout)
    assert len(searched) == 7 and all(equal == "2" and float(apart) < 1e-4 for equal, apart in searched)
    candidates = re.findall(r"x \| (\de-\d+) \|$", finished.stdout, re.M)
    assert len(candidates) == 4 and all(float(apart) <= 2e-5 for apart in candidates)
    steps = re.findall(r"% \| (\S+) \|$", finished.stdout, re.M)
    assert len(steps) == 4 and all(float(apart) < 1e-5 for apart in steps)


def test_position_probe_asks_all_runs_the_same():
    command = (sys.executable, ROOT / "benchmarks" / "position_probe.py", "--updates", "2", "--every", "1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    rows = re.findall(r"^\| (.+?) \| (\d) \|(?: \S+ \|){3}$", finished.stdout, re.M)
    assert len(rows) == 6 and len({name for name, _ in rows}) == 3
