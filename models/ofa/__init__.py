"""OFA (Wang et al. 2022): one transformer that reads pictures and text and writes text, boxes or image codes."""

from .config import ARCHITECTURES, OFAConfig
from .model import OFAModel

__all__ = ["ARCHITECTURES", "OFAConfig", "OFAModel"]
