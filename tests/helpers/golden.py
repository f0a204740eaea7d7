"""Rows of the official datasets: the picture they used, and the vocabulary of the released checkpoints."""

from __future__ import annotations

import base64
import io
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "text"


def golden(name: str) -> Any:
    """The content of a fixture file."""
    return json.loads((FIXTURES / name).read_text(encoding="utf-8"))


def synthetic_image(width: int, height: int) -> str:
    """Base64 (URL-safe) PNG of the fixtures' picture: pixel (x, y) = (7x+3y, 5x+11y+17, xy), each modulo 256."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([(7 * x + 3 * y) % 256, (5 * x + 11 * y + 17) % 256, (x * y) % 256], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.urlsafe_b64encode(buffer.getvalue()).decode()


def settings(**given: Any) -> Namespace:
    """A resolved task configuration as far as builders read it."""
    return Namespace(**{"max_src_length": 128, "max_tgt_length": 30, **given})
