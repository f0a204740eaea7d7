"""Vocabularies for builders: that of the released checkpoints, and the small world's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ofa_plugin.data.codec import Codec
from tests.conftest import World


@pytest.fixture(scope="session")
def released() -> Callable[[Path], Codec]:
    """The codec of a folder with GPT-2's files, read once."""
    made: dict[Path, Codec] = {}
    return lambda folder: made.get(folder) or made.setdefault(folder, Codec.build("gpt2", str(folder)))


@pytest.fixture
def codec(world: World) -> Codec:
    """100 bins and 8 codes behind the small world's pieces."""
    return Codec.build("sentencepiece", str(world.root / "bpe"), 100, 8)
