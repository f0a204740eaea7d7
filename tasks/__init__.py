"""Tasks by name: importing this registers them, their configurations and their scorers with fairseq."""

from . import caption, evaluation, vqa

__all__ = ["caption", "evaluation", "vqa"]
