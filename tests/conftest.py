"""Fixtures that all tests share: where the shared data lies, and a clean process for each test."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)  # tests fork; OpenMP's threads would not survive that


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """A path below `$OFA_SHARED` (default `../shared` beside the checkout); skips where it is absent."""

    def find(subpath: str) -> Path:
        path = (ROOT / os.environ.get("OFA_SHARED", "../shared") / subpath).resolve()
        if not path.exists():
            pytest.skip(f"{path} is absent: set OFA_SHARED to the folder that holds {subpath}")
        return path

    return find


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random state, with torch's defaults."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
