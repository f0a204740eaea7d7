"""Takes the cures named in $WITHOUT (comma separated) away again, so that a test sees what stock does: import it."""

from __future__ import annotations

import os

import torch

from ofa_plugin import compat

compat.apply()
for name in filter(None, os.environ.get("WITHOUT", "").split(",")):
    for owner, attribute, stock in reversed(compat.replaced[name]):
        setattr(owner, attribute, stock)
    if name == "data_only_checkpoints":
        torch.serialization.clear_safe_globals()
