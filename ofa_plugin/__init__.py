"""Registers OFA's models, tasks and losses with fairseq: `fairseq-train --user-dir ofa_plugin`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from .errors import BadRow, UserError

__version__ = "0.1.0"
__all__ = ["BadRow", "UserError", "__version__", "register"]

_HERE = Path(__file__).resolve().parent
_ROOT = str(_HERE.parent)

if not (_HERE / "models").is_dir():  # a source checkout, not an installed wheel
    __path__.append(_ROOT)  # ofa_plugin.models is ./models, and so on
    if _ROOT in sys.path:  # fairseq put it first; last, our ./data can never stand in for yours
        sys.path.remove(_ROOT)
        sys.path.append(_ROOT)

INSTALL = {
    "torch": "pip install torch==2.13.0",
    "fairseq": "pip install torch==2.13.0 numpy 'setuptools<81' wheel && "
    "READTHEDOCS=1 pip install --no-build-isolation --no-deps fairseq-fixed==0.12.3.1 && pip install "
    "hydra-core==1.3.2 omegaconf==2.3.0 tqdm regex bitarray scikit-learn sacrebleu",
}
"""What to type for the packages that `pip install NAME` does not get right."""


def register() -> None:
    """Cures stock fairseq, then registers our models, tasks and losses; safe to call twice.

    Raises:
        UserError: fairseq, torch or another package is missing; the message is the command that installs it.
    """
    try:
        from . import compat

        compat.apply()
        from . import criterions, models, muon, optim, tasks  # noqa: F401
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package == __name__:
            raise
        command = INSTALL.get(package, f"pip install {package}")
        raise UserError(f"ofa_plugin needs {package}, which this Python has not: type `{command}`") from None
    compat.prefer_our_scorer()
    _report_stray_folder()


def _report_stray_folder() -> None:
    """One line when another `ofa_plugin` lies in the working directory, which a relative --user-dir would mean."""
    stray = Path("ofa_plugin")
    if stray.exists() and stray.resolve() != _HERE:
        logging.getLogger(__name__).warning(f"{stray.resolve()} is not used; the plug-in is {_HERE}")


if sys.modules.get("fairseq"):  # always so under --user-dir; `ofa doctor` must not need fairseq
    register()
