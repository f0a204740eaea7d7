"""Tasks by name: importing this registers them, their configurations and their scorers with fairseq."""

from . import caption, evaluation, pretrain, refcoco, snli_ve, vqa

__all__ = ["caption", "evaluation", "pretrain", "refcoco", "snli_ve", "vqa"]
