"""Models: they know tensors, and nothing of TSV files, tasks or losses."""

from . import ofa

__all__ = ["ofa"]
