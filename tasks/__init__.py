"""Tasks by name: importing this registers them, their configurations and their scorers with fairseq."""

from . import caption, evaluation, snli_ve, vqa

__all__ = ["caption", "evaluation", "snli_ve", "vqa"]
