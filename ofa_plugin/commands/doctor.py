"""`ofa doctor`: is everything here that fairseq and the plug-in need, and does one training step go through?"""

from __future__ import annotations

import argparse
import base64
import importlib
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import INSTALL, register
from ..errors import UserError

HELP = "check versions, the plug-in and one training step, and name the fix for what fails"

PYTHONS = ((3, 10), (3, 13))


@dataclass(frozen=True)
class Package:
    """A package the plug-in needs: what works, and what the tests were run with.

    Args:
        name: of the distribution.
        module: what it is imported as.
        tested: the version the tests were run with.
        lowest: first version that may be used, "" for any.
        below: first version that may not, "" for none.
    """

    name: str
    module: str
    tested: str
    lowest: str = ""
    below: str = ""

    def allows(self, found: str) -> bool:
        """Whether version `found` lies in the range."""
        low, high = numbers(self.lowest), numbers(self.below)
        return numbers(found) >= low and (not high or numbers(found) < high)

    @property
    def fix(self) -> str:
        """The command that installs it."""
        bounds = ",".join(sign + v for sign, v in ((">=", self.lowest), ("<", self.below)) if v)
        return INSTALL.get(self.module, f"pip install '{self.name}{bounds}'")


PACKAGES = (
    Package("torch", "torch", "2.13.0", "2.6", "2.14"),
    Package("fairseq-fixed", "fairseq", "0.12.3.1", "0.12.3.1", "0.12.3.2"),
    Package("hydra-core", "hydra", "1.3.2", "1.3.2", "1.3.3"),
    Package("omegaconf", "omegaconf", "2.3.0", "2.3", "2.4"),
    Package("numpy", "numpy", "2.4.6", "1.26"),
    Package("sentencepiece", "sentencepiece", "0.2.3"),
    Package("pillow", "PIL", "13.0.0"),
)
"""The tested table, torch first: fairseq's installation needs it."""


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, and the fix where it is bad (`fix` not empty)."""

    what: str
    found: str
    fix: str = ""


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.13.0+cpu" is (2, 13, 0), "" is ()."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Only a way to leave out the slow part."""
    parser.add_argument("--no-train", action="store_true", help="leave out the training step (about half a minute)")


def run(args: argparse.Namespace) -> int:
    """Prints one line for each finding; 0 when none is bad, else 1."""
    bad = 0
    for finding in examine(train=not args.no_train):
        print(f"{'FAIL' if finding.fix else 'ok':4}  {finding.what}: {finding.found}", flush=True)
        if finding.fix:
            bad += 1
            print(f"      fix: {finding.fix}", flush=True)
    print("everything works" if not bad else f"{bad} of these to fix; the first may be the cause of the others")
    return 1 if bad else 0


def examine(train: bool = True) -> Iterator[Finding]:
    """Looks at everything in the order in which a fix should be tried; what depends on a failed part is left out."""
    here = sys.version_info[:2]
    yield Finding(
        "Python",
        f"{sys.version.split()[0]} at {sys.executable}",
        "" if PYTHONS[0] <= here <= PYTHONS[1] else "use Python 3.10 to 3.13",
    )
    whole = True
    for package in PACKAGES:
        finding = examine_package(package)
        whole &= not finding.fix
        yield finding
    if not whole:
        return
    finding = examine_plugin()
    yield finding
    yield examine_device()
    if train and not finding.fix:
        yield train_one_step()


def examine_package(package: Package) -> Finding:
    """Its version against the table, and whether it can be imported."""
    try:
        found = version(package.name)
    except PackageNotFoundError:
        found = ""
    try:
        importlib.import_module(package.module)
    except Exception as error:  # whatever a broken installation throws
        state = f"{found} cannot be imported ({type(error).__name__}: {error})" if found else "not installed"
        return Finding(package.name, state, package.fix)
    if found and not package.allows(found):
        return Finding(package.name, f"{found}, tested with {package.tested}", package.fix)
    if not found:
        return Finding(package.name, f"imported from somewhere without a version, tested with {package.tested}")
    as_tested = found.startswith(package.tested)
    return Finding(package.name, found if as_tested else f"{found}, tested with {package.tested}")


def examine_plugin() -> Finding:
    """Whether fairseq takes the plug-in."""
    try:
        register()
    except Exception as error:  # the report is about whatever it is
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return Finding("plug-in", f"cannot be registered ({reason})", "reinstall ofa-plugin")
    return Finding("plug-in", str(Path(__file__).resolve().parent.parent))


def examine_device() -> Finding:
    """The GPU and whether it computes in bf16; neither is needed."""
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "none seen; everything runs on the CPU, small models in minutes")
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    return Finding("GPU", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {bf16}")


def train_one_step() -> Finding:
    """One update of the smallest model on captions of made-up pictures, through stock `fairseq-train`."""
    what = "one training step through fairseq-train"
    with tempfile.TemporaryDirectory(prefix="ofa-doctor-") as folder:
        try:
            command = make_run(Path(folder))
        except Exception as error:  # the report is about whatever it is
            return Finding(what, f"no data could be made ({type(error).__name__}: {error})", "see above")
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        saved = (Path(folder) / "save" / "checkpoint_last.pt").is_file()
    if run.returncode == 0 and saved:
        return Finding(what, "done, checkpoint written")
    said = (run.stderr.strip() or run.stdout.strip() or "nothing").splitlines()[-1]
    shown = " ".join(command).replace(folder, "FOLDER")
    return Finding(what, f"exit code {run.returncode}, {said}", f"look at the whole output of: {shown}")


def make_run(folder: Path) -> list[str]:
    """Writes eight captioned pictures and their vocabulary into `folder`; returns the command that trains on them."""
    from PIL import Image

    from ..data.sentencepiece_training import train_bpe

    rows = []
    for number, colour in enumerate(("red", "green", "blue", "yellow", "black", "white", "orange", "purple")):
        picture = io.BytesIO()
        Image.new("RGB", (64, 64), colour).save(picture, "PNG")
        cell = base64.urlsafe_b64encode(picture.getvalue()).decode()
        rows.append(f"{number}\t{number}\ta wall that somebody painted {colour}\t\t{cell}\n")
    data = folder / "data"
    data.mkdir()
    (data / "train.tsv").write_text("".join(rows), encoding="utf-8")
    train_bpe(folder / "bpe", [(data / "train.tsv", [2])], 400)
    flags = {
        "--user-dir": Path(__file__).resolve().parent.parent,
        "--task": "caption",
        "--arch": "ofa_nano",
        "--bpe": "sentencepiece",
        "--bpe-dir": folder / "bpe",
        "--num-bins": 100,
        "--code-dict-size": 256,
        "--patch-image-size": 64,
        "--selected-cols": "0,4,2",
        "--criterion": "adjust_label_smoothed_cross_entropy",
        "--optimizer": "adam",
        "--lr": "1e-4",
        "--batch-size": 2,
        "--max-update": 1,
        "--num-workers": 0,
        "--save-dir": folder / "save",
    }
    return [
        sys.executable,
        *("-m", "fairseq_cli.train", str(data), "--cpu", "--disable-validation", "--no-progress-bar"),
        *(str(word) for pair in flags.items() for word in pair),
    ]
